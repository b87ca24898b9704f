"""MLflow and W&B beside a search: what they are told, and what their failures do not do."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from csg_ray.cli import main
from csg_ray.results.study import load_study
from csg_ray.scale.trackers import TrackerCallback, build_trackers
from csg_ray.scale.tuner import run_study
from csg_ray.search_space import Changes
from small_study import Recorder, assert_whole, small_space
from written_study import write_study

Capture = pytest.CaptureFixture[str]
ASSIGNMENT = {"id": "0007", "params": {"method.temperature": 0.07}, "config": {"seed": 0}}
EPOCH = {
    "epoch": 2,
    "target_val/class_accuracy/c++": 0.5,
    "target_val/hse": 0.25,
    "config": ASSIGNMENT,
    "pid": 77,
    "training_iteration": 9,
}


class Logger:
    """One of Ray's logger callbacks, which notes what it is told, or fails."""

    def __init__(self, fails_at: str = "") -> None:
        self.told: list[tuple[Any, ...]] = []
        self._fails_at = fails_at

    def _note(self, what: str, *content: Any) -> None:
        self.told.append((what, *content))
        if what == self._fails_at:
            raise OSError(f"no server\nto {what}")

    def setup(self, *_: Any, **__: Any) -> None:
        self._note("setup")

    def log_trial_start(self, trial: Any) -> None:
        self._note("start", str(trial), trial.config)

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        self._note("result", str(trial), result)

    def log_trial_end(self, trial: Any, failed: bool) -> None:
        self._note("end", str(trial), failed)

    def on_experiment_end(self, trials: Any, **_: Any) -> None:
        self._note("experiment end")


def run(logger: Logger, last: dict[str, Any]) -> list[str]:
    """One trial of two reports through a tracker; the sentences that the user reads."""
    told: list[str] = []
    callback = TrackerCallback("mlflow", lambda: logger, told.append)  # type: ignore[arg-type, return-value]
    trial: Any = SimpleNamespace(
        trial_id="abc_1",
        config=ASSIGNMENT,
        local_path="/scratch",
        experiment_dir_name="tune",
        last_result=last,
    )
    callback.setup(stop=None, num_samples=1)
    callback.on_trial_start(0, [trial], trial)
    callback.on_trial_result(1, [trial], trial, EPOCH)
    callback.on_trial_result(2, [trial], trial, last)
    callback.on_trial_complete(3, [trial], trial)
    callback.on_experiment_end([trial])
    return told


def test_a_tracker_is_told_the_searched_settings_and_the_epochs() -> None:
    logger = Logger()
    assert run(logger, {"error": "ValueError: no"}) == []
    metrics = {"epoch": 2, "target_val/class_accuracy/c__": 0.5, "target_val/hse": 0.25}
    assert logger.told == [
        ("setup",),
        ("start", "0007", {"method.temperature": 0.07}),
        ("result", "0007", metrics | {"training_iteration": 2}),
        ("end", "0007", True),
        ("experiment end",),
    ]


@pytest.mark.parametrize("fails_at", ["setup", "start", "result", "end", "experiment end"])
def test_a_tracker_that_fails_is_told_nothing_more_and_the_user_once(fails_at: str) -> None:
    logger = Logger(fails_at)
    told = run(logger, EPOCH | {"epoch": 3})
    assert told == [
        f"mlflow takes nothing more of this search, which goes on: no server to {fails_at}"
    ]
    assert [what for what, *_ in logger.told].count(fails_at) == 1
    assert logger.told[-1][0] == fails_at


def without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda wanted: None if wanted == name else find(wanted)
    )


@pytest.mark.parametrize("words", [["search", "space.yaml"], ["search", "space.yaml", "--resume"]])
@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(
    words: list[str],
    name: str,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").write_text("study: s\n")
    without(name, monkeypatch)
    assert main([*words, "--log-to", name]) == 2
    assert capsys.readouterr() == (
        "",
        f"csg-ray: there is no {name} here; install it with: pip install 'csg-ray[{name}]'\n",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]


def test_a_run_is_not_logged_to_a_tracker(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r").mkdir()
    Path("r/run.yaml").write_text("{}\n")
    assert main(["restore", "r", "--log-to", "mlflow"]) == 2
    assert "r is a run, and --log-to is for studies" in capsys.readouterr().err


SPACE = """
study: digits
base: {data.name: digits, method.name: csg, train.epochs: 3}
space: {method.loss_weight: {loguniform: [0.01, 10.0]}}
search: {metric: target_val/mean_class_accuracy, mode: max, num_trials: 6}
"""


def test_the_trackers_that_are_named_reach_a_search_and_a_restore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Any]] = []

    def run_study(space: Any, directory: Path, progress: Any, verbose: bool, log_to: Any) -> None:
        asked.append(("search", log_to))
        write_study(directory, ("completed", [(0.6, 0.7, 0.95)] * 3))

    def restore_study(
        directory: Path, changes: Changes, progress: Any, verbose: bool, to: Any
    ) -> None:
        asked.append((f"restore {changes.more}", to))

    tuner = SimpleNamespace(run_study=run_study, restore_study=restore_study)
    monkeypatch.setitem(sys.modules, "csg_ray.scale.tuner", tuner)
    monkeypatch.setattr("csg_ray.data.load.load_splits", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").write_text(SPACE)
    both = ["--log-to", "mlflow", "--log-to", "wandb"]
    assert main(["search", "space.yaml", *both]) == 0
    assert main(["search", "space.yaml", "--study", "new", "--resume", "--log-to", "wandb"]) == 0
    assert main(["restore", "studies/digits", "--more", "2", "--log-to", "mlflow"]) == 0
    assert main(["restore", "studies/digits"]) == 0
    assert asked == [
        ("search", ["mlflow", "wandb"]),
        ("search", ["wandb"]),
        ("restore 2", ["mlflow"]),
        ("restore 0", []),
    ]


# for real


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trackers that stay in tmp_path; what a search sets besides is taken back."""
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    os.environ |= {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
    }
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("default")  # of MLflow and wandb, which are not ours to mend
def test_a_search_in_mlflow_and_wandb(
    shared_ray: None, tmp_path: Path, environment: None, capfd: Capture
) -> None:
    directory, progress = tmp_path / "s", Recorder()
    run_study(small_space(2), directory, progress, False, ["mlflow", "wandb"])
    assert progress.messages == []
    assert capfd.readouterr() == ("", "")
    study = load_study(directory)
    assert_whole(study, 2)
    metric = "target_val/mean_class_accuracy"
    expected = {
        trial.id: (
            trial.params["method.temperature"],
            [(line["epoch"], line[metric]) for line in trial.results],
        )
        for trial in study.trials
    }
    assert read_mlflow(metric) == expected
    assert read_wandb(tmp_path / "wandb", metric) == expected


def read_mlflow(metric: str) -> dict[str, tuple[float, list[tuple[int, float]]]]:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    return {
        run.info.run_name: (
            float(run.data.params["method.temperature"]),
            [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, metric)],
        )
        for run in runs
    }


def read_wandb(folder: Path, metric: str) -> dict[str, tuple[float, list[tuple[int, float]]]]:
    from wandb.proto import wandb_internal_pb2

    found = {}
    for path in folder.glob("offline-run-*/run-*.wandb"):
        name, settings, curve = "", {}, []
        for data in wandb_records(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)  # type: ignore[attr-defined]
            name = name or record.run.display_name
            for item in record.run.config.update:
                settings[item.key] = json.loads(item.value_json)
            line = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            if metric in line:
                curve.append((json.loads(line["epoch"]), json.loads(line[metric])))
        found[name] = (settings["method.temperature"], curve)
    return found


def wandb_records(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file, LevelDB's log format after a header of 7 bytes.

    Blocks of 32 KiB hold pieces: checksum (4 bytes), length (2), kind (whole, first, middle, last).
    """
    block, header, position, parts = 32768, 7, 7, b""
    while position + header <= len(content):
        if block - position % block < header:
            position += block - position % block
        length = int.from_bytes(content[position + 4 : position + 6], "little")
        kind = content[position + 6]
        parts += content[position + header : position + header + length]
        position += header + length
        if kind in (1, 4):
            yield parts
            parts = b""


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("default")
def test_a_tracking_server_that_is_away_does_not_stop_the_search(
    shared_ray: None, tmp_path: Path, environment: None
) -> None:
    os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:1"
    progress = Recorder()
    run_study(small_space(2, epochs=1), tmp_path / "s", progress, False, ["mlflow"])
    (message,) = progress.messages
    assert message.startswith(
        "mlflow takes nothing more of this search, which goes on: API request"
    )
    assert_whole(load_study(tmp_path / "s"), 2)


def test_a_tracker_named_twice_is_told_once() -> None:
    assert len(build_trackers(["mlflow", "mlflow"], "s", print, verbose=True)) == 1
