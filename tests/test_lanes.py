"""Lanes that take turns, against the same trainings alone."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from csg_ray.config.errors import UserError
from csg_ray.config.methods import CSGConfig, FeatureL2Config, VanillaConfig
from csg_ray.config.run import AugmentConfig, ModelConfig
from csg_ray.data.loader import Batch
from csg_ray.data.resident import ResidentTrainLoader
from csg_ray.methods.base import ReferenceMethod, StepOutput
from csg_ray.methods.csg import CSG
from csg_ray.seeding import sub_seed
from csg_ray.training.lanes import EpochReport, Lane
from csg_ray.training.ways import measure_ways
from lanes_alone import (
    alone,
    assert_same,
    config_of,
    end_of,
    group_of,
    lane_of,
)
from method_settings import method_config

pytestmark = pytest.mark.timeout(120)

CONFIGS = {
    "published": config_of(),
    "lambda": config_of(method=CSGConfig(queue_size=10, loss_weight=1.0, temperature=0.2)),
    "ema": config_of({"learning_rate": 0.02}, method=CSGConfig(queue_size=10, ema_momentum=0.5)),
    "stages": config_of(method=CSGConfig(queue_size=10, stages="2,3")),
    "magnitude": config_of(augment=AugmentConfig(magnitude=12)),
    "batch": config_of({"batch_size": 12}),
    "l2o": config_of(method=method_config("asg_l2o")),
}


@pytest.mark.timeout(240)
def test_every_lane_has_the_numbers_that_it_has_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {
        name: alone(config, tmp_path / name, monkeypatch) for name, config in CONFIGS.items()
    }
    early = {name: lane_of(CONFIGS[name]) for name in CONFIGS if name not in ("ema", "stages")}
    # One goes on from its first epoch, and so is an epoch ahead of the others.
    early["ema"] = lane_of(CONFIGS["ema"], resume_from=tmp_path / "ema" / "1.pt")
    group = group_of(early)

    def advance(*names: str) -> None:
        reports = group.run_epoch(names or None)
        for name, report in reports.items():
            assert isinstance(report, EpochReport)
            number = int(report.metrics["epoch"])
            assert_same(end_of(report, tmp_path), expected[name][number - 1])
            seen[name].append(number)

    seen: dict[str, list[int]] = {name: [] for name in CONFIGS}
    advance()
    group.add("stages", lane_of(CONFIGS["stages"]))
    group.remove("batch")
    advance("published", "lambda", "stages", "l2o")
    advance()
    advance()
    assert seen == {
        "published": [1, 2, 3],
        "lambda": [1, 2, 3],
        "ema": [2, 3],
        "stages": [1, 2, 3],
        "magnitude": [1, 2, 3],
        "batch": [1],
        "l2o": [1, 2, 3],
    }
    assert group.run_epoch() == {}
    # The one that left goes on where it was.
    group = group_of({"batch": early["batch"]})
    advance()
    assert seen["batch"] == [1, 2]


def test_repeats_are_those_of_a_lane_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = {"two": CONFIGS["published"], "three": CONFIGS["lambda"]}
    counts = {"two": 2, "three": 3}
    lanes = {name: lane_of(configs[name], repeats=counts[name]) for name in configs}
    reports = group_of(lanes).run_epoch()
    for name, config in configs.items():
        config = config.model_copy(update={"train": config.train})
        first = alone(config, tmp_path / name, monkeypatch, repeats=counts[name])[0]
        assert_same(end_of(reports[name], tmp_path), first)


class Trouble:
    """Makes the loss of trainings with one temperature go wrong at their second step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        own_loss = CSG.training_loss
        steps: Counter[int] = Counter()

        def training_loss(method: CSG, batch: Batch) -> StepOutput:
            steps[id(method)] += 1
            output = own_loss(method, batch)
            if steps[id(method)] == 2 and method.temperature == 0.3:
                raise RuntimeError("out of memory")
            if steps[id(method)] == 2 and method.temperature == 0.4:
                return StepOutput(output.loss * math.nan, output.logs)
            return output

        monkeypatch.setattr(CSG, "training_loss", training_loss)


def test_a_lane_that_fails_or_diverges_leaves_the_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trouble(monkeypatch)
    configs = {
        "raises": config_of(method=CSGConfig(queue_size=10, temperature=0.3)),
        "good": config_of(method=CSGConfig(queue_size=10)),
        "diverges": config_of(method=CSGConfig(queue_size=10, temperature=0.4)),
        "other": config_of(method=CSGConfig(queue_size=10, temperature=0.5)),
    }
    lanes = {name: lane_of(config) for name, config in configs.items()}
    group = group_of(lanes)
    first = group.run_epoch()
    assert isinstance(first["raises"], RuntimeError)
    assert isinstance(first["diverges"], EpochReport)
    assert first["diverges"].metrics["diverged"] == 1
    assert first["diverges"].pictures is None
    assert lanes["raises"].finished
    assert lanes["diverges"].finished
    ends = {name: [end_of(first[name], tmp_path)] for name in ("good", "other", "diverges")}
    second = group.run_epoch()
    assert second.keys() == {"good", "other"}
    for name, report in second.items():
        ends[name].append(end_of(report, tmp_path))
    for name, found in ends.items():
        assert_same(found, alone(configs[name], tmp_path / name, monkeypatch)[: len(found)])
    # So it is restored: it has diverged, and there is nothing to do.
    path = tmp_path / "diverges" / "1.pt"
    assert lane_of(configs["diverges"], resume_from=path).finished


def test_images_that_cannot_be_read_fail_those_that_need_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, *_ = alone(CONFIGS["published"], tmp_path, monkeypatch)
    load = ResidentTrainLoader.__call__

    def refuse(loader: ResidentTrainLoader, draws: Tensor) -> Batch:
        if loader.seed == damaged:
            raise UserError("image 3 is damaged")
        return load(loader, draws)

    damaged = sub_seed(5, "augment/1")
    monkeypatch.setattr(ResidentTrainLoader, "__call__", refuse)
    lanes = {name: lane_of(config_of(seed=5)) for name in "ab"}
    reports = group_of(lanes | {"whole": lane_of(CONFIGS["published"])}).run_epoch()
    assert isinstance(reports["a"], UserError)
    assert isinstance(reports["b"], UserError)
    assert_same(end_of(reports["whole"], tmp_path), expected)


class Watch:
    """Counts images loaded, and the batches that a reference encoder has seen."""

    def __init__(self, lanes: dict[str, Lane], monkeypatch: pytest.MonkeyPatch) -> None:
        self.images = 0
        self.batches = 0
        self.encoders: dict[int, Any] = {}
        load = ResidentTrainLoader.__call__

        def counted(loader: ResidentTrainLoader, draws: Tensor) -> Batch:
            self.images += len(draws)
            return load(loader, draws)

        monkeypatch.setattr(ResidentTrainLoader, "__call__", counted)
        for lane in lanes.values():
            for training in lane.trainings:
                assert isinstance(training.method, ReferenceMethod)
                encoder = training.method.reference_encoder
                self.encoders[id(encoder)] = encoder
        for encoder in self.encoders.values():
            encoder.register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self.batches += 1


def test_what_is_the_same_is_loaded_and_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = config_of(method=CSGConfig(queue_size=10, stages="2"))
    features = config_of(method=FeatureL2Config(), augment=AugmentConfig(views="shared"))
    names = {"published": CONFIGS["published"], "lambda": CONFIGS["lambda"], "stages": stages}
    lanes = {name: lane_of(config) for name, config in names.items()}
    group = group_of(lanes)
    watch = Watch(lanes, monkeypatch)
    assert len(watch.encoders) == 1
    group.run_epoch()
    assert (watch.images, watch.batches) == (24, 3)
    # Other images, and another number of views: loaded anew, by the same encoder.
    lanes |= {"magnitude": lane_of(CONFIGS["magnitude"]), "features": lane_of(features)}
    for name in ("magnitude", "features"):
        group.add(name, lanes[name])
    watch.images = watch.batches = 0
    group.run_epoch()  # the new ones are at their first epoch, the others at their second
    assert (watch.images, watch.batches) == (72, 9)
    # Nothing is kept between the rounds.
    method = lanes["published"].trainings[0].method
    assert isinstance(method, ReferenceMethod)
    assert method.reference._remembered is None


def test_other_reference_weights_are_not_shared() -> None:
    lanes = {
        "bundled": lane_of(CONFIGS["published"]),
        "random": lane_of(config_of(model=ModelConfig(weights="none"))),
        "other": lane_of(config_of(model=ModelConfig(weights="none"), seed=1)),
    }
    group_of(lanes)
    methods = [lane.trainings[0].method for lane in lanes.values()]
    references = [each.reference for each in methods if isinstance(each, ReferenceMethod)]
    assert len({id(reference) for reference in references}) == 3
    for method, reference in zip(methods, references, strict=True):
        start = reference.encoder.get_parameter("conv1.weight")
        assert start.equal(method.encoder.get_parameter("conv1.weight"))


def test_the_cost_of_lanes_adds_up_and_goes_by_their_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    lanes = {"long": lane_of(CONFIGS["published"]), "short": lane_of(CONFIGS["batch"])}
    group_of(lanes).run_epoch()
    long, short = (lane.trainings[0] for lane in lanes.values())
    assert long.training_seconds / short.training_seconds == pytest.approx(3 / 2)
    assert 0 < long.training_seconds < long.seconds


def test_measuring_the_ways_leaves_the_lanes_as_they_were(tmp_path: Path) -> None:
    names = ("published", "lambda", "magnitude")
    for resumed in (False, True):
        lanes, twins = ({name: lane_of(CONFIGS[name]) for name in names} for _ in range(2))
        if resumed:
            for each in (lanes, twins):
                group_of(each).run_epoch()
        before = {name: _everything(lane) for name, lane in lanes.items()}
        found = measure_ways(list(lanes.values()), steps=1)
        assert found.keys() == {"alone", "in_turn", "stacked"}
        assert all(seconds > 0 for seconds in found.values())
        assert_same({name: _everything(lane) for name, lane in lanes.items()}, before)
        ends = (
            {k: end_of(v, tmp_path) for k, v in group_of(g).run_epoch().items()}
            for g in (lanes, twins)
        )
        assert_same(next(ends), next(ends))


def test_lanes_that_are_unlike_cannot_be_measured_stacked() -> None:
    lanes = [lane_of(CONFIGS["published"]), lane_of(config_of(method=VanillaConfig()))]
    assert measure_ways(lanes, steps=1).keys() == {"alone", "in_turn"}


def _everything(lane: Lane) -> dict[str, Any]:
    training = lane.trainings[0]
    tensors = {
        k: v.clone() if isinstance(v, Tensor) else v
        for k, v in training.method.state_dict().items()
    }
    state = {**training.state_dict(), "method": tensors}
    state["optimizer"] = _copied(training.optimizer.state_dict())
    return state


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value
