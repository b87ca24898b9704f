"""Self-training against a plain form of it: rounds, pseudo-labels, losses, starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from csg_ray.cli.preparing import prepare_run, prepare_study
from csg_ray.cli.searching import show_plan
from csg_ray.config.data import DigitScenesConfig, DigitsConfig, ImageFolderConfig, VisDA17Config
from csg_ray.config.errors import UserError
from csg_ray.config.load import override_config
from csg_ray.config.methods import SEES_TARGET
from csg_ray.config.run import AugmentConfig, EvaluationConfig, ModelConfig, RunConfig, TrainConfig
from csg_ray.data.epoch import eval_batches, train_batches
from csg_ray.data.load import load_splits
from csg_ray.data.loader import Batch
from csg_ray.data.mixture import ClassMixture, SceneMixture
from csg_ray.data.splits import ArraySplit, DomainSplits, Split
from csg_ray.data.visda17 import list_visda17
from csg_ray.methods import build_method
from csg_ray.methods.pseudo_labels import class_thresholds, hard_labels, soft_labels
from csg_ray.methods.self_training import CBST
from csg_ray.methods.start import load_start
from csg_ray.scale.cluster import Cluster, Node
from csg_ray.search_space import SearchSpace, parse_search_space
from csg_ray.storage.checkpoint import load_checkpoint, save_checkpoint
from made_data import make_visda17, refusal
from method_settings import SELF_TRAINING, method_config, start_checkpoint
from plain_self_training import hard_label, loss, soft_label, thresholds
from resumed import assert_resumes_to_the_bit

CPU = torch.device("cpu")
EVERY = pytest.mark.parametrize("name", SELF_TRAINING)
TASKS = pytest.mark.parametrize("segmentation", [False, True], ids=["images", "pixels"])


def _random(count: int, classes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(count, classes, generator=generator, dtype=torch.float64)).softmax(1)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 1.0])
def test_thresholds_equal_the_plain_ones(share: float) -> None:
    probabilities = _random(60, 4)
    probabilities[:, 3] *= 1e-9  # nobody is predicted so
    confidences, predictions = probabilities.max(dim=1)
    found = class_thresholds(confidences.log(), predictions, 4, share).exp()
    assert found.tolist() == pytest.approx(thresholds(probabilities.tolist(), share))
    assert found[3] == 1


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_hard_labels_equal_the_plain_ones(share: float) -> None:
    probabilities = _random(60, 4)
    least = thresholds(probabilities.tolist(), share)
    labels, kept = hard_labels(probabilities.log(), torch.tensor(least, dtype=torch.float64).log())
    expected = [hard_label(row, least) for row in probabilities.tolist()]
    for label, keep, wanted in zip(labels, kept.tolist(), expected, strict=True):
        assert keep == (wanted is not None)
        assert label.sum() == 1
        assert wanted in (None, int(label.argmax()))
    assert len(kept) > kept.sum() > 0 or share == 1


def test_the_label_is_the_class_that_is_furthest_above_what_is_usual_for_it() -> None:
    probabilities = torch.tensor([[0.6, 0.4], [0.8, 0.2]], dtype=torch.float64)
    labels, kept = hard_labels(probabilities.log(), torch.tensor([0.9, 0.3]).double().log())
    assert labels.argmax(dim=1).tolist() == [1, 0]
    assert kept.tolist() == [True, False]


def test_all_are_kept_at_a_share_of_one() -> None:
    probabilities = _random(200, 5)
    log_confidences, predictions = probabilities.log().max(dim=1)
    found = class_thresholds(log_confidences, predictions, 5, 1.0)
    _, kept = hard_labels(probabilities.log(), found)
    assert kept.all()


def test_equal_confidences_are_kept_together() -> None:
    probabilities = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.6, 0.4], [0.4, 0.6]])
    log_confidences, predictions = probabilities.log().max(dim=1)
    found = class_thresholds(log_confidences, predictions, 2, 0.5)
    # Four of class 0: rank 2 is 0.8. One of class 1: rank 0, nothing is kept.
    assert found.exp().tolist() == pytest.approx([0.8, 1.0])
    _, kept = hard_labels(probabilities.log(), found)
    assert kept.tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_soft_labels_equal_the_plain_ones(alpha: float) -> None:
    probabilities = _random(60, 4)
    least = thresholds(probabilities.tolist(), 0.3)
    logs = torch.tensor(least, dtype=torch.float64).log()
    labels, kept = soft_labels(probabilities.log(), logs, alpha)
    expected = [soft_label(row, least, alpha) for row in probabilities.tolist()]
    assert kept.tolist() == [each is not None for each in expected]
    # With an alpha of 1 the rule is sum(P / t) > 1, which holds for all.
    assert 0 < kept.sum() <= len(kept) - (alpha < 1)
    for label, wanted in zip(labels, expected, strict=True):
        if wanted is not None:
            assert label.tolist() == pytest.approx(wanted)


def test_soft_labels_without_smoothness_are_hard_ones() -> None:
    probabilities = _random(60, 4)
    least = torch.tensor(thresholds(probabilities.tolist(), 0.3), dtype=torch.float64).log()
    hard, kept_hard = hard_labels(probabilities.log(), least)
    soft, kept_soft = soft_labels(probabilities.log(), least, 1e-6)
    assert soft.isfinite().all()
    # Who only just reaches a threshold is on the edge of the other rule.
    clear = ((probabilities.log() - least).amax(dim=1).abs() > 1e-9) & kept_hard
    assert clear.any()
    assert soft[clear].equal(hard[clear])
    assert kept_soft[clear].all()


def test_pixels_are_labelled_as_images_are() -> None:
    probabilities = _random(2 * 3 * 4, 5)
    maps = probabilities.view(2, 3, 4, 5).permute(0, 3, 1, 2)
    least = torch.tensor([0.5, 0.9, 0.6, 1.0, 0.7], dtype=torch.float64).log()
    for label in (hard_labels, lambda p, t: soft_labels(p, t, 0.25)):
        flat, kept = label(probabilities.log(), least)
        labels, kept_map = label(maps.log(), least)
        torch.testing.assert_close(labels.permute(0, 2, 3, 1).reshape(-1, 5), flat)
        assert kept_map.flatten().equal(kept)


def _config(name: str, segmentation: bool = False, **settings: Any) -> RunConfig:
    head: Any = "fcn" if segmentation else "mlp"
    data = DigitScenesConfig(num_train=30, num_val=10, image_size=48)
    like = RunConfig(
        data=data if segmentation else DigitsConfig(num_train=40, num_val=20),
        model=ModelConfig(head=head),
        augment=AugmentConfig(num_ops=0),
        train=TrainConfig(batch_size=6, steps_per_epoch=3, epochs=2, learning_rate=0.02),
        evaluation=EvaluationConfig(batch_size=64),
    )
    return RunConfig(**{**dict(like), "method": method_config(name, like, **settings)})


def _build(config: RunConfig) -> CBST:
    method = build_method(config, len(_splits(config).class_names), 3)
    assert isinstance(method, CBST)
    return method


def _splits(config: RunConfig) -> DomainSplits:
    """Of the task, with few target images."""
    splits = load_splits(config.data)
    target = splits.target_train
    if isinstance(target, ArraySplit):
        target = replace(target, images=target.images[:40], labels=target.labels[:40])
    return replace(splits, target_train=target)


def _plain_probabilities(method: CBST, split: Split, config: RunConfig) -> Tensor:
    """Image by image."""
    single = config.model_copy(update={"evaluation": EvaluationConfig(batch_size=1)})
    method.eval()
    with torch.no_grad():
        rows = [method.predict(b.views[0])[0].double() for b in eval_batches(split, single)]
    method.train()
    return torch.stack(rows).softmax(dim=1)


@EVERY
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_round_holds_the_images_that_the_plain_rule_keeps(name: str, epoch: int) -> None:
    config = _config(name, target_share_step=0.2, source_share_step=0.1)
    method, splits = _build(config), _splits(config)
    assert splits.target_train is not None
    method.training_data(splits, 1)  # takes the weights of the start
    split = method.training_data(splits, epoch)
    assert isinstance(split, ClassMixture)
    rows = _plain_probabilities(method, splits.target_train, config).tolist()
    share = {1: 0.2, 3: 0.5}[epoch]  # 0.2 + 2 * 0.2 is above target_share_max
    least = thresholds(rows, share)
    plain: list[Any] = [
        soft_label(row, least, 0.25) if name == "lrent" else hard_label(row, least) for row in rows
    ]
    kept = [position for position, label in enumerate(plain) if label is not None]
    assert 0 < len(kept) < len(rows)
    assert split.target_positions.tolist() == kept
    count = {1: 3, 3: 7}[epoch]  # round(40 * 0.065), and of 0.165
    assert len(split.source_positions) == len(set(split.source_positions.tolist())) == count
    for row, position in enumerate(kept):
        label = method._image_labels[row].tolist()
        wanted = plain[position]
        if name != "lrent":
            wanted = [float(number == wanted) for number in range(10)]
        assert label == pytest.approx(wanted, abs=1e-5)
    assert method._kept_share == pytest.approx(len(kept) / len(rows))


def test_every_round_draws_another_part_of_the_source() -> None:
    config = _config("cbst", source_share=0.2)
    method, splits = _build(config), _splits(config)
    drawn = [method.training_data(splits, epoch).source_positions.tolist() for epoch in (1, 2, 1)]  # type: ignore[attr-defined]
    assert drawn[0] != drawn[1]
    assert drawn[0] == drawn[2]


def test_a_mixture_is_source_with_labels_then_target_without() -> None:
    config = _config("cbst")
    splits = _splits(config)
    source, target = splits.source_train, splits.target_train
    assert isinstance(source, ArraySplit)
    assert isinstance(target, ArraySplit)
    labelled = replace(target, labels=torch.arange(len(target)) % 10)  # not to be read
    split = ClassMixture(source, labelled, np.array([7, 2]), np.array([30, 4, 9]))
    assert len(split) == 5
    assert split.labels.tolist() == [int(source.labels[7]), int(source.labels[2]), -1, -1, -1]
    for index, (part, position) in enumerate(
        [(source, 7), (source, 2), (target, 30), (target, 4), (target, 9)]
    ):
        assert np.array_equal(np.asarray(split.image(index)), np.asarray(part.image(position)))


def test_a_mixture_of_scenes_hides_what_is_known_of_the_target() -> None:
    splits = load_splits(_config("cbst", segmentation=True).data)
    source: Any = splits.source_train
    split = SceneMixture(source, splits.target_val, np.array([3]), np.array([1, 0]))
    assert np.array_equal(split.label_map(0), source.label_map(3))
    for index in (1, 2):
        assert (split.label_map(index) == 255).all()
        assert split.label_map(index).shape == (64, 64)


def _batch_of(method: CBST, split: Split, config: RunConfig) -> Batch:
    """In float64, with images of both domains in it."""
    for batch in train_batches(split, config, 1, 1):
        of_target = batch.indices >= method._first_target
        if of_target.any() and not of_target.all():
            return Batch((batch.views[0].double(),), batch.labels, batch.indices)
    raise AssertionError("no batch holds both domains")


@EVERY
def test_the_loss_of_images_equals_the_plain_one(name: str) -> None:
    config = _config(name, source_share=0.3, target_share=0.5)
    method = _build(config).double()
    splits = _splits(config)
    assert splits.target_train is not None
    # Predictions of float32 images, as those of the plain form.
    split = method.float().training_data(splits, 1)
    assert isinstance(split, ClassMixture)
    method.double()
    method._image_labels = method._image_labels.double()
    batch = _batch_of(method, split, config)
    labels: list[list[float] | None] = []
    of_target = [index >= len(split.source_positions) for index in batch.indices.tolist()]
    for index, known in zip(batch.indices.tolist(), batch.labels.tolist(), strict=True):
        beyond = index - len(split.source_positions)
        hard = [float(number == known) for number in range(10)]
        labels.append(method._image_labels[beyond].tolist() if beyond >= 0 else hard)
    logits = method.classify(method.features(batch.views[0]), (1, 1))
    _compare(method, batch, loss(list(logits), labels, of_target, 0.1 if name == "mrkld" else 0))


@EVERY
def test_the_loss_of_pixels_equals_the_plain_one(name: str) -> None:
    config = _config(name, segmentation=True, source_share=0.5, target_share=0.3)
    method = _build(config).double()
    split = method.float().training_data(_splits(config), 1)
    method.double()
    for part in method._round:
        part.double()
    batch = _batch_of(method, split, config)
    images, of_target = batch.views[0], (batch.indices >= method._first_target).tolist()
    # The network goes on; the labels are those of the round's start.
    with torch.no_grad():
        rows = method.predict(images).softmax(dim=1)
        for param in method.parameters():
            param.add_(0.01 * torch.randn_like(param))
    least = method._log_thresholds.double().exp().tolist()
    logits = method.classify(method.features(images), (48, 48))
    flat: list[Tensor] = []
    labels: list[list[float] | None] = []
    targets: list[bool] = []
    step = 6  # few pixels are enough for a plain loop
    counted = torch.zeros_like(batch.labels, dtype=torch.bool)
    counted[:, ::step, ::step] = True
    for image, target in enumerate(of_target):
        for row in range(0, 48, step):
            for column in range(0, 48, step):
                shares = rows[image, :, row, column].tolist()
                known: Any = int(batch.labels[image, row, column])
                if target and name == "lrent":
                    label = soft_label(shares, least, 0.25)
                else:
                    number = hard_label(shares, least) if target else known
                    label = None if number is None else [float(k == number) for k in range(11)]
                flat.append(logits[image, :, row, column])
                labels.append(label)
                targets.append(target)
    kept = [label is not None for label, target in zip(labels, targets, strict=True) if target]
    assert 0 < sum(kept) < len(kept)
    batch.labels[~counted] = 255
    method._target_labels = _only(method._target_labels, counted)  # type: ignore[method-assign]
    expected = loss(flat, labels, targets, 0.1 if name == "mrkld" else 0)
    output = _compare(method, batch, expected)
    counted_share = sum(kept) / (sum(of_target) * 48 * 48)
    assert output["kept_share"].item() == pytest.approx(counted_share)


def _only(labels_of: Any, counted: Tensor) -> Any:
    def restricted(batch: Batch) -> tuple[Tensor, Tensor]:
        labels, kept = labels_of(batch)
        return labels, kept & counted

    return restricted


def _compare(method: CBST, batch: Batch, expected: Tensor) -> dict[str, Tensor]:
    parameters = [param for param in method.parameters() if param.requires_grad]
    wanted = torch.autograd.grad(expected, parameters)
    output = method.training_loss(batch)
    found = torch.autograd.grad(output.loss, parameters)
    torch.testing.assert_close(output.loss, expected, rtol=1e-6, atol=1e-9)
    for left, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-9)
    return output.logs


@TASKS
def test_nothing_kept_is_training_on_the_source_alone(segmentation: bool) -> None:
    config = _config("mrkld", segmentation, target_share=1e-9, target_share_max=1e-9)
    splits = _splits(config)
    method = build_method(config, len(splits.class_names), 3)
    assert isinstance(method, CBST)
    for batch in train_batches(method.training_data(splits, 1), config, 1, 1):
        output = method.training_loss(batch)
        # The target's pixels do not count in the label maps, and of its images there are none.
        expected = method.task_loss(method.features(batch.views[0]), batch.labels)
        torch.testing.assert_close(output.loss, expected)
        assert output.logs["kept_share"] == 0


def test_a_round_begins_with_the_weights_of_the_start_and_later_ones_do_without() -> None:
    config = _config("cbst")
    splits = _splits(config)
    method = _build(config)
    method.training_data(splits, 1)
    weights = load_start(config.method.model_dump()["start"], config, 10)
    state = method.state_dict()
    assert weights.keys() == state.keys()
    assert all(state[name].equal(each) for name, each in weights.items())
    gone = _build(_config("cbst", start="gone"))
    gone.load_state_dict(state)
    gone.training_data(splits, 2)
    assert all(gone.state_dict()[name].equal(each) for name, each in weights.items())
    assert "gone does not exist" in refusal(lambda: gone.training_data(splits, 1))


@TASKS
def test_a_resumed_training_makes_the_same_rounds(segmentation: bool) -> None:
    config = _config("lrent", segmentation, source_share=0.3)
    assert_resumes_to_the_bit(config, _splits(config))


def _trained(folder: Path, **changes: Any) -> Path:
    """A start whose state is changed."""
    state = load_checkpoint(Path(start_checkpoint(RunConfig())))
    folder.mkdir()
    save_checkpoint(folder / "checkpoint.pt", {**state, **changes})
    return folder


def _refused(start: Path, **settings: Any) -> list[str]:
    base = {"method.name": "cbst", "method.start": str(start), "train.steps_per_epoch": 3}
    config = override_config(RunConfig(), base | settings)
    space = parse_search_space(
        {
            "study": "s",
            "base": base | settings,
            "space": {"method.target_share": {"choice": [0.2, 0.5]}},
            "search": {"metric": "target_val/hse", "mode": "min"},
        }
    )
    tried = (lambda: prepare_run(config), lambda: prepare_study(space), lambda: _check(space))
    return [refusal(call) for call in tried]


def _check(space: SearchSpace) -> None:
    show_plan(space, Path("space.yaml"), Cluster((Node(4, 0),)))


@pytest.mark.timeout(60)  # every case by three commands
def test_a_bad_start_is_refused_before_anything_starts(tmp_path: Path) -> None:
    config = RunConfig().model_dump()
    other = {**config, "model": {**config["model"], "norm": "ibn_a"}}
    cases = {
        "nowhere": (tmp_path / "nowhere", "nowhere does not exist; give a run or a trial"),
        "other": (_trained(tmp_path / "other", config=other), "with model.norm ibn_a, not batch"),
        "diverged": (
            _trained(tmp_path / "diverged", metrics={"diverged": 1}),
            "diverged diverged; start from one that did not",
        ),
        "empty": (tmp_path / "empty", "checkpoint.pt does not exist"),
    }
    (tmp_path / "empty").mkdir()
    for start, sentence in cases.values():
        for found in _refused(start):
            assert found.startswith("method.start: ")
            assert sentence in found


def test_a_start_of_other_classes_is_refused(tmp_path: Path) -> None:
    start = start_checkpoint(RunConfig())
    sentence = refusal(lambda: load_start(start, RunConfig(), 7))
    assert "knows 10 classes, and the task has 7" in sentence


def test_the_repeat_of_the_same_seed_is_taken(tmp_path: Path) -> None:
    states = [build_method(RunConfig(seed=seed), 10, 3).state_dict() for seed in (4, 9)]
    repeats = [{"seed": seed, "method": s} for seed, s in zip((4, 9), states, strict=True)]
    start = _trained(tmp_path / "run", repeats=repeats)
    for seed, state in ((4, states[0]), (9, states[1]), (7, states[0])):
        settings = {"method.name": "cbst", "method.start": str(start), "seed": seed}
        config = override_config(RunConfig(), settings | {"train.steps_per_epoch": 3})
        head = load_start(str(start), config, 10)["head.0.weight"]
        assert head.equal(state["head.0.weight"])


@EVERY
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"train.steps_per_epoch": "auto"}, "train.steps_per_epoch must be a number, not auto"),
        (
            {"data.name": "image_folder", "data.source": "a", "data.target": "b"},
            "keeps no target_train as it is set; set data.target_train_share to a share",
        ),
        (
            {"data.name": "visda17", "data.root": "a"},
            "keeps no target_train as it is set; set data.target_train_share to a share",
        ),
    ],
)
def test_what_self_training_needs_is_asked_for(
    name: str, settings: dict[str, Any], sentence: str
) -> None:
    base = {"method.name": name, "method.start": "x", "train.steps_per_epoch": 3}
    with pytest.raises(UserError) as caught:
        override_config(RunConfig(), base | settings)
    assert sentence in str(caught.value)


@EVERY
def test_every_output_is_told(name: str) -> None:
    config = RunConfig(method=method_config(name, start="x"), train=TrainConfig(steps_per_epoch=3))
    assert SEES_TARGET in config.notes
    data = ImageFolderConfig(source="a", target="b", target_train_share=0.2)
    assert SEES_TARGET in RunConfig(**{**dict(config), "data": data}).notes


def test_visda17_gives_unlabelled_images_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_visda17(tmp_path, monkeypatch)

    def config(**settings: Any) -> VisDA17Config:
        return VisDA17Config(root=str(root), cache="off", **settings)

    splits = list_visda17(config(target_train_share=0.25)).splits
    assert set(splits["target_train"].labels) == {-1}
    target = [set(splits[f"target_{name}"].files.images) for name in ("train", "val", "test")]
    assert [len(each) for each in target] == [24, 36, 12]  # of six a class
    assert len(set.union(*target)) == 72
    published = list_visda17(config(protocol="published", target_train_share=0.25)).splits
    assert published["target_train"].files == published["target_val"].files
    assert set(published["target_train"].labels) == {-1}
    notes = config(protocol="published", target_train_share=0.25).notes
    assert any("without their labels" in note for note in notes)
    assert "target_train" not in list_visda17(config(protocol="published")).splits
    with pytest.raises(ValueError, match="leave nothing for target_test"):
        config(target_val_share=0.8, target_train_share=0.2)


def test_a_start_of_other_pretraining_is_refused(tmp_path: Path) -> None:
    config = RunConfig().model_dump()
    other = {**config, "model": {**config["model"], "weights": "/w.pt"}}
    for found in _refused(_trained(tmp_path / "other", config=other)):
        assert "with model.weights /w.pt, not bundled" in found


def test_a_width_that_a_head_does_not_have_need_not_be_the_same() -> None:
    start = start_checkpoint(RunConfig(model=ModelConfig(head="linear")))
    load_start(start, RunConfig(model=ModelConfig(head="linear", head_width=64)), 10)


def test_a_start_below_the_home_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _trained(tmp_path / "run")
    assert load_start("~/run", RunConfig(), 10)
