"""Trials in one process: their numbers, their files, and what each suffers alone."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from csg_ray.config.run import RunConfig
from csg_ray.scale.lane_keeper import LaneKeeper
from csg_ray.storage.checkpoint import load_checkpoint
from csg_ray.storage.records import read_results
from csg_ray.training.loop import fit
from csg_ray.training.recorder import EpochRecorder
from small_study import small_space

EPOCHS = 2
SPACE = small_space(4, EPOCHS)
TIMES = ("seconds", "images_per_second", "timestamp")

pytestmark = pytest.mark.timeout(120)


def config_of(temperature: float, **changes: Any) -> RunConfig:
    params = {"method.temperature": temperature} | changes
    return SPACE.config_for(params)


def assign(directory: Path, name: str, config: RunConfig, known: int = 0) -> dict[str, Any]:
    folder = directory / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps({"id": name}))
    return {
        "id": name,
        "directory": str(folder),
        "params": {"method.temperature": 0.1},
        "config": config.model_dump(),
        "repeats": 1,
        "known_epochs": known,
    }


@pytest.fixture
def keeper() -> Iterator[Callable[[], LaneKeeper]]:
    """Makes keepers, whose files are closed in the end."""
    made: list[LaneKeeper] = []

    def make() -> LaneKeeper:
        made.append(LaneKeeper(cpus=1, gpus=0, how="in_turn"))
        return made[-1]

    yield make
    for each in made:
        for name in list(each._trials):
            each.leave(name)


def timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], Path]:
    """The directory of a trial in a process of its own, by its temperature."""
    made: dict[float, Path] = {}

    def train(temperature: float) -> Path:
        if temperature not in made:
            torch.set_num_threads(1)
            made[temperature] = directory = tmp_path_factory.mktemp("alone")
            recorder = EpochRecorder(directory)
            fit(config_of(temperature), recorder)
            recorder.close()
        return made[temperature]

    return train


def test_two_trials_that_come_and_go_have_the_numbers_of_each_alone(
    alone: Callable[[float], Path], keeper: Callable[[], LaneKeeper], tmp_path: Path
) -> None:
    """The second joins an epoch later, and the process is lost between."""
    trials = {"0001": 0.07, "0002": 0.3}
    assigned = {name: assign(tmp_path, name, config_of(t)) for name, t in trials.items()}
    first = keeper()
    assert first.join(assigned["0001"]) == ([], False)
    first.train(["0001"])
    assert first.join(assigned["0002"]) == ([], False)
    assert first.train(["0002"])["0002"]["epoch"] == 1
    # Lost after the checkpoint, before the line.
    (tmp_path / "0002" / "result.json").unlink()

    second = keeper()
    for name in trials:
        joined = second.join(assigned[name])
        assert ([line["epoch"] for line in joined.reports], joined.finished) == ([1], False)
    reports = second.train(list(trials))
    assert {name: report["epoch"] for name, report in reports.items()} == dict.fromkeys(trials, 2)
    for name, temperature in trials.items():
        expected = alone(temperature)
        lines = read_results(tmp_path / name)
        assert timeless(lines) == timeless(read_results(expected))
        assert timeless([reports[name]]) == timeless(lines)[1:]
        ours, theirs = (
            load_checkpoint(folder / "checkpoint.pt")["repeats"][0]["method"]
            for folder in (tmp_path / name, expected)
        )
        assert all(
            value.equal(theirs[key]) if isinstance(value, torch.Tensor) else value == theirs[key]
            for key, value in ours.items()
        )
        assert second.join(assigned[name] | {"known_epochs": 2}) == ([], True)


def test_one_that_fails_or_diverges_does_so_alone(
    alone: Callable[[float], Path], keeper: Callable[[], LaneKeeper], tmp_path: Path
) -> None:
    group = keeper()
    good = assign(tmp_path, "0001", config_of(0.07))
    (tmp_path / "0002").mkdir()
    (tmp_path / "0002" / "checkpoint.pt").write_bytes(b"not a checkpoint")
    unreadable = assign(tmp_path, "0002", config_of(0.07))
    wild = config_of(0.07, **{"train.max_gradient_norm": 1e-9, "train.max_skipped_steps": 1})
    diverging = assign(tmp_path, "0003", wild)
    assert group.join(good) == ([], False)
    joined = group.join(unreadable)
    assert joined.finished
    assert "checkpoint.pt" in joined.reports[0]["error"]
    assert "Traceback" in (tmp_path / "0002" / "error.txt").read_text()
    assert group.join(diverging) == ([], False)
    reports = group.train(["0001", "0003"])
    assert (reports["0003"]["diverged"], reports["0001"]["diverged"]) == (1, 0)
    assert group.join(diverging | {"known_epochs": 1}) == ([], True)
    group.train(["0001"])
    expected = read_results(alone(0.07))
    assert timeless(read_results(tmp_path / "0001")) == timeless(expected)


class Raises:
    """A stand-in for the recorder's or the group's method."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, *_: Any) -> Any:
        raise self.error


def test_an_error_in_an_epoch_is_the_trials_and_frees_its_lane(
    keeper: Callable[[], LaneKeeper], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = keeper()
    for name in ("0001", "0002"):
        group.join(assign(tmp_path, name, config_of(0.07)))
    monkeypatch.setattr(group._group, "run_epoch", lambda names: {"0001": ZeroDivisionError("x")})
    assert group.train(["0001"]) == {"0001": {"error": "ZeroDivisionError: x"}}
    assert "Traceback" in (tmp_path / "0001" / "error.txt").read_text()
    assert set(group._trials) == {"0002"}


def test_a_full_disk_is_reported_as_such(
    keeper: Callable[[], LaneKeeper], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = keeper()
    group.join(assign(tmp_path, "0001", config_of(0.07)))
    full = OSError(errno.ENOSPC, "no space left")
    monkeypatch.setattr(EpochRecorder, "__call__", Raises(full))
    assert group.train(["0001"]) == {"0001": {"disk_full": str(tmp_path / "0001")}}
    assert not (tmp_path / "0001" / "error.txt").exists()


def test_too_little_memory_for_several_names_the_setting(
    keeper: Callable[[], LaneKeeper], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = keeper()
    for name in ("0001", "0002"):
        group.join(assign(tmp_path, name, config_of(0.07)))
    monkeypatch.setattr(group._group, "run_epoch", Raises(torch.OutOfMemoryError("CUDA: no")))
    first, second = group.train(["0001", "0002"]).values()
    assert first == second, "it is the fault of neither"
    assert first["no_memory"] == (
        "2 trials in one process (search.fuse) need more memory than its GPU, or its share of one, "
        "has; continue with csg-ray restore and --fuse 1"
    )
    group.join(assign(tmp_path, "0003", config_of(0.07)))
    assert group.train(["0003"])["0003"]["error"].startswith("OutOfMemoryError"), "its own need"


def test_a_trial_on_another_disk_is_told_so(
    keeper: Callable[[], LaneKeeper], tmp_path: Path
) -> None:
    assignment = assign(tmp_path, "0001", config_of(0.07))
    shutil.rmtree(tmp_path / "0001")
    joined = keeper().join(assignment)
    assert joined.finished
    assert "is not visible from" in joined.reports[0]["error"]


def test_a_gpu_that_is_broken_ends_the_process_and_fails_no_trial(
    tmp_path: Path, keeper: Callable[[], LaneKeeper], monkeypatch: pytest.MonkeyPatch
) -> None:
    class EndedError(Exception):
        pass

    def end(code: int) -> None:
        raise EndedError(code)

    def broken(*_: object) -> None:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    monkeypatch.setattr("os._exit", end)
    own = keeper()
    own.join(assign(tmp_path, "0001", config_of(0.1)))
    monkeypatch.setattr("csg_ray.training.loop.Training.train_on", broken)
    with pytest.raises(EndedError):
        own.train(["0001"])
    monkeypatch.setattr("csg_ray.scale.lane_keeper.Lane", broken)
    with pytest.raises(EndedError):
        own.join(assign(tmp_path, "0002", config_of(0.2)))
    assert not list(tmp_path.glob("*/error.txt"))
