from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from csg_ray.config.data import DigitsConfig
from csg_ray.config.methods import CSGConfig, VanillaConfig
from csg_ray.config.run import EvaluationConfig, ModelConfig, RunConfig
from csg_ray.data.load import load_splits
from csg_ray.data.splits import ArraySplit
from csg_ray.methods import build_method
from csg_ray.methods.csg import CSG
from csg_ray.methods.vanilla import Vanilla
from csg_ray.metrics import HSE_WORST
from csg_ray.training.evaluate import evaluate_split, load_trained, measure_split, worst_metrics

CPU = torch.device("cpu")


class Stub(Vanilla):
    """Predicts the class whose number is the left half's grey value, in tens."""

    scale = 1.0

    def features(self, images: Tensor) -> dict[int, Tensor]:
        assert not self.training
        assert not torch.is_grad_enabled()
        # Normalised grey to the number it was made from.
        value = ((images[:, 0, :, :16].mean(dim=(1, 2)) * 0.229 + 0.485) * 25.5).round()
        angle = value / 10
        plane = torch.stack([angle.cos(), angle.sin()], dim=1)
        return {4: (plane * self.scale)[:, :, None, None].expand(-1, -1, 2, 2)}

    def classify(self, maps: dict[int, Tensor], size: tuple[int, int]) -> Tensor:
        cosine, sine = maps[4][:, 0, 0, 0], maps[4][:, 1, 0, 0]
        value = (torch.atan2(sine, cosine) * 10).round()
        return (2 - 1.5 * (value[:, None] - torch.arange(3.0)).abs()) * self.scale


def _split(values: list[int], labels: list[int], right: int | None = None) -> ArraySplit:
    images = np.zeros((len(values), 32, 32), dtype=np.uint8)
    images += np.array(values, dtype=np.uint8)[:, None, None] * 10
    if right is not None:
        images[:, :, 16:] = right * 10
    return ArraySplit("target_val", images, torch.tensor(labels), ("a", "b", "c"))


def _config(**settings: Any) -> RunConfig:
    return RunConfig(method=VanillaConfig(), evaluation=EvaluationConfig(**settings))


def _stub(config: RunConfig, scale: float = 1.0) -> Stub:
    stub = Stub(config, 3, 1)
    stub.scale = scale
    return stub


def test_metrics_of_a_hand_made_split() -> None:
    config = _config(batch_size=4)
    split = _split([0, 0, 0, 1, 2, 0], [0, 0, 0, 1, 1, 2])
    metrics = evaluate_split(_stub(config), split, config, CPU)
    assert metrics["accuracy"] == pytest.approx(4 / 6)
    assert metrics["mean_class_accuracy"] == pytest.approx((1 + 0.5 + 0) / 3)
    # Four equal features make 6 duplicates; 8 pairs at 0.1 (4), 0.2 (4) rad and one at 0.1 remain.
    squared = [2 - 2 * np.cos(0.1)] * 5 + [2 - 2 * np.cos(0.2)] * 4
    assert metrics["hse_duplicates"] == 6
    assert metrics["hse"] == pytest.approx(np.mean(-np.log(squared)), rel=1e-3)
    assert metrics["hse_distance"] == pytest.approx(metrics["hse"] / 2)
    assert metrics["hse_power1"] == pytest.approx(np.mean(np.power(squared, -0.5)), rel=1e-3)
    assert metrics["hse_power2"] == pytest.approx(np.mean(np.power(squared, -1.0)), rel=1e-3)
    per_class = {name: metrics[f"class_accuracy/{name}"] for name in "abc"}
    assert per_class == {"a": 1.0, "b": 0.5, "c": 0.0}
    assert metrics["hse_zero_rows"] == 0


def test_a_class_without_images_has_no_accuracy() -> None:
    config, split = _config(), _split([0, 2, 1], [0, 2, 2])
    metrics = evaluate_split(_stub(config), split, config, CPU)
    per_class = {name: value for name, value in metrics.items() if "class_accuracy/" in name}
    assert per_class == {"class_accuracy/a": 1.0, "class_accuracy/c": 0.5}
    assert worst_metrics(split, "classification").keys() == metrics.keys()


def test_features_of_length_zero_are_counted() -> None:
    config, split = _config(), _split([0, 1, 2], [0, 1, 2])
    assert evaluate_split(_stub(config, scale=0.0), split, config, CPU)["hse_zero_rows"] == 3


def test_the_batch_size_changes_nothing() -> None:
    split = _split([0, 1, 2, 1, 0, 2, 2], [0, 1, 2, 2, 1, 0, 2])
    one, many = (_config(batch_size=size) for size in (1, 100))
    alone = evaluate_split(_stub(one), split, one, CPU)
    assert alone == pytest.approx(evaluate_split(_stub(many), split, many, CPU))


def test_flip_averages_the_scores_of_both_sides() -> None:
    # Left says 0, right says 2: sigmoid scores .88 + .27 each, and .62 + .62 in between.
    split = _split([0, 0], [1, 1], right=2)
    plain, flipped = _config(), _config(flip=True)
    assert evaluate_split(_stub(plain), split, plain, CPU)["accuracy"] == 0
    assert evaluate_split(_stub(flipped), split, flipped, CPU)["accuracy"] == 1


def test_energy_of_a_large_split_uses_the_same_subsample_every_time() -> None:
    values = [0, 1, 2] * 10
    split = _split(values, values)
    config = _config(hse_max_images=4)
    evaluation = measure_split(_stub(config), split, config, CPU)
    energies = evaluation.energies
    assert energies.pairs + energies.duplicates == 4 * 3 // 2
    assert int(evaluation.confusion.counts.sum()) == 30
    assert measure_split(_stub(config), split, config, CPU).energies == energies


def test_every_repeat_is_loaded_with_the_reference_of_its_own_seed() -> None:
    config = RunConfig(
        data=DigitsConfig(num_train=96, num_val=20),
        method=CSGConfig(projection_dim=2),
        model=ModelConfig(weights="none", head="linear"),
    )
    splits = load_splits(config.data)
    trained = [build_method(config.model_copy(update={"seed": seed}), 10, 3) for seed in (5, 6)]
    for method in trained:
        with torch.no_grad():
            method.head.get_parameter("bias").fill_(method.config.seed)
    state = {
        "repeats": [{"seed": each.config.seed, "method": each.state_dict()} for each in trained]
    }
    loaded = load_trained(config, splits, state, CPU)
    for one, other in zip(loaded, trained, strict=True):
        assert isinstance(one, CSG)
        assert isinstance(other, CSG)
        assert one.head.get_parameter("bias").equal(other.head.get_parameter("bias"))
        weight, expected = (
            method.reference_encoder.get_parameter("conv1.weight") for method in (one, other)
        )
        assert weight.equal(expected)


def test_the_mode_is_put_back() -> None:
    config, split = _config(), _split([0, 1], [0, 1])
    stub = _stub(config)
    for mode in (True, False):
        stub.train(mode)
        evaluate_split(stub, split, config, CPU)
        assert stub.training is mode


def test_non_finite_logits_are_noticed_and_the_metrics_stay_finite() -> None:
    config, split = _config(), _split([0, 1, 2], [0, 1, 2])
    evaluation = measure_split(_stub(config, scale=float("nan")), split, config, CPU)
    assert not evaluation.finite
    assert evaluation.metrics["hse"] == HSE_WORST["hse"]
    assert all(np.isfinite(value) for value in evaluation.metrics.values())
    assert measure_split(_stub(config), split, config, CPU).finite


def test_worst_metrics_have_the_keys_of_good_ones_and_are_worse() -> None:
    config, split = _config(), _split([0, 1, 2, 0], [0, 1, 2, 2])
    worst, good = (
        worst_metrics(split, "classification"),
        evaluate_split(_stub(config), split, config, CPU),
    )
    assert worst.keys() == good.keys()
    for name, value in good.items():
        assert worst[name] < value if "accuracy" in name else worst[name] > value
