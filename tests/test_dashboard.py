"""optuna-dashboard on studies: what its pages get, against the study's files."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import socket
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import pytest

from csg_ray.cli import main
from csg_ray.config.errors import UserError
from csg_ray.results.followed import FollowedStudy
from csg_ray.results.study import load_study
from csg_ray.storage.records import append_result, write_atomically
from small_study import Command
from written_study import write_study

MakeStudy = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
COMPLETED = ("completed", [(0.2, 0.9, 0.8), (0.4, 0.8, 0.9), (0.60, 0.70, 0.95)])
STOPPED = ("stopped", [(0.9, 0.1, 0.99)])
FAILED: tuple[str, list[tuple[float, float, float]]] = ("failed", [])
RUNNING = ("unfinished", [(0.3, 0.8, 0.7)])
LOSS_WEIGHT, MAGNITUDE = "method.loss_weight", "augment.magnitude"


def add_epoch(directory: Path, trial: str, epoch: int, accuracy: float) -> None:
    line = {
        "epoch": epoch,
        "diverged": 0,
        "target_val/mean_class_accuracy": accuracy,
        "target_val/hse": 0.5,
        "source_val/mean_class_accuracy": 0.6,
        "timestamp": 500.0 + epoch,
    }
    append_result(directory / "trials" / trial, line)


def end_trial(directory: Path, trial: str, state: str) -> None:
    ending = {"state": state, "reason": f"was {state}", "timestamp": 600.0}
    write_atomically(directory / "trials" / trial / "state.json", json.dumps(ending))


def add_trial(directory: Path, trial: str) -> None:
    folder = directory / "trials" / trial
    folder.mkdir()
    params = {LOSS_WEIGHT: 2.5, MAGNITUDE: 11}
    record = {"id": trial, "params": params, "origin": "sampler", "created": 450.0}
    write_atomically(folder / "params.json", json.dumps(record))


# in memory


@pytest.fixture
def storage() -> optuna.storages.InMemoryStorage:
    return optuna.storages.InMemoryStorage()


def follow(
    directory: Path, storage: optuna.storages.InMemoryStorage
) -> tuple[FollowedStudy, Callable[[], list[optuna.trial.FrozenTrial]]]:
    followed = FollowedStudy(load_study(directory), storage, "digits")
    return followed, lambda: optuna.load_study(study_name="digits", storage=storage).trials


def test_every_state_of_a_trial_in_optunas_words(
    make_study: MakeStudy, storage: optuna.storages.InMemoryStorage
) -> None:
    _, trials = follow(make_study(COMPLETED, STOPPED, FAILED, RUNNING), storage)
    completed, stopped, failed, running = trials()
    assert [t.state.name for t in trials()] == ["COMPLETE", "PRUNED", "FAIL", "RUNNING"]
    assert completed.params == {LOSS_WEIGHT: 0.1, MAGNITUDE: 6}
    assert (completed.value, stopped.value, failed.value, running.value) == (0.6, 0.9, None, None)
    assert completed.intermediate_values == {1: 0.2, 2: 0.4, 3: 0.6}
    assert running.intermediate_values == {1: 0.3}
    assert completed.user_attrs == {
        "id": "0001",
        "state": "completed",
        "reason": "was completed",
        "epoch": 3,
        "target_val/mean_class_accuracy": 0.6,
        "source_val/mean_class_accuracy": 0.95,
        "target_val/hse": 0.7,
    }
    assert completed.datetime_start == datetime.fromtimestamp(1.0)
    assert completed.datetime_complete == datetime.fromtimestamp(103.0)
    assert (running.datetime_start, running.datetime_complete) == (
        datetime.fromtimestamp(1.0),
        None,
    )


def test_a_trial_that_goes_on_ends_and_another_that_begins(
    make_study: MakeStudy, storage: optuna.storages.InMemoryStorage
) -> None:
    directory = make_study(COMPLETED, RUNNING)
    followed, trials = follow(directory, storage)
    add_epoch(directory, "0002", 2, 0.45)
    followed.refresh()
    assert trials()[1].state.name == "RUNNING"
    assert trials()[1].intermediate_values == {1: 0.3, 2: 0.45}

    add_epoch(directory, "0002", 3, 0.71)
    end_trial(directory, "0002", "completed")
    add_trial(directory, "0003")
    followed.refresh()
    followed.refresh()
    first, second, third = trials()
    assert (first.value, second.value, second.state.name) == (0.6, 0.71, "COMPLETE")
    assert second.user_attrs["state"] == "completed"
    assert second.user_attrs["epoch"] == 3
    assert (third.state.name, third.number) == ("RUNNING", 2)
    assert third.params == {LOSS_WEIGHT: 2.5, MAGNITUDE: 11}
    assert optuna.load_study(study_name="digits", storage=storage).best_trial.number == 1


def test_two_objectives_have_two_values_and_no_curve(
    make_study: MakeStudy, storage: optuna.storages.InMemoryStorage
) -> None:
    objectives = [
        {"metric": "target_val/mean_class_accuracy", "mode": "max"},
        {"metric": "target_val/hse", "mode": "min"},
    ]
    search = {"objectives": objectives, "sampler": "nsga2", "scheduler": "none"}
    directory = study_with(make_study, search)
    _, trials = follow(directory, storage)
    assert trials()[0].values == [0.6, 0.7]
    assert trials()[0].intermediate_values == {}
    directions = optuna.load_study(study_name="digits", storage=storage).directions
    assert [direction.name for direction in directions] == ["MAXIMIZE", "MINIMIZE"]


def study_with(make_study: MakeStudy, search: dict[str, Any]) -> Path:
    directory = make_study(COMPLETED, RUNNING, search=search)
    text = (directory / "study.yaml").read_text()
    kept = [line for line in text.splitlines() if not re.match(r"    (metric|mode): ", line)]
    (directory / "study.yaml").write_text("\n".join(kept) + "\n")
    return directory


def test_a_study_that_was_deleted_on_the_page_comes_back(
    make_study: MakeStudy, storage: optuna.storages.InMemoryStorage
) -> None:
    followed, trials = follow(make_study(COMPLETED, STOPPED), storage)
    storage.delete_study(storage.get_study_id_from_name("digits"))
    followed.refresh()
    assert [trial.value for trial in trials()] == [0.6, 0.9]


def test_a_study_that_cannot_be_read_stays_as_it_was(
    make_study: MakeStudy, storage: optuna.storages.InMemoryStorage
) -> None:
    directory = make_study(COMPLETED)
    followed, trials = follow(directory, storage)
    (directory / "study.yaml").rename(directory / "away.yaml")
    with pytest.raises(UserError, match=r"holds no study\.yaml"):
        followed.refresh()
    assert [trial.value for trial in trials()] == [0.6]


# the command


class Page:
    """A dashboard in a process of its own."""

    def __init__(self, *words: str | Path, cwd: Path) -> None:
        self.command = Command("dashboard", *words, "--port", "0", cwd=cwd)
        self.command.wait_until(lambda: "Ctrl-C" in self.command.output)
        found = re.search(r"http://127\.0\.0\.1:\d+/", self.command.output)
        assert found is not None
        self.address = found.group()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.address + path, timeout=10) as answer:
            return json.load(answer)

    def trials(self, study: int = 0) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get(f"api/studies/{study}")["trials"]
        return found


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Page]]:
    pages: list[Page] = []

    def begin(*words: str | Path) -> Page:
        pages.append(Page(*words, cwd=tmp_path))
        return pages[-1]

    yield begin
    for page in pages:
        page.command.process.kill()
        page.command.process.wait()


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.timeout(120)
def test_the_page_shows_the_files_and_what_is_added_to_them(
    make_study: MakeStudy, opened: Callable[..., Page]
) -> None:
    directory = make_study(COMPLETED, STOPPED, FAILED, RUNNING)
    before = contents(directory)
    page = opened(directory)

    (summary,) = page.get("api/studies")["study_summaries"]
    assert (summary["study_name"], summary["directions"]) == ("digits", ["maximize"])
    trials = page.trials()
    assert [trial["state"] for trial in trials] == ["Complete", "Pruned", "Fail", "Running"]
    for shown, trial in zip(trials, load_study(directory).trials, strict=True):
        params = {p["name"]: p["param_external_value"] for p in shown["params"]}
        assert params == {path: str(value) for path, value in trial.params.items()}
        curve = {point["step"]: point["value"] for point in shown["intermediate_values"]}
        metric = "target_val/mean_class_accuracy"
        assert curve == {line["epoch"]: line[metric] for line in trial.results}
    with urllib.request.urlopen(page.address, timeout=10) as answer:
        assert b"<title>Optuna Dashboard" in answer.read()

    assert contents(directory) == before
    end_trial(directory, "0004", "stopped")
    add_trial(directory, "0005")
    page.command.wait_until(lambda: len(page.trials()) == 5, seconds=30)
    assert [trial["state"] for trial in page.trials()][3:] == ["Pruned", "Running"]

    page.command.process.send_signal(signal.SIGINT)
    assert page.command.process.wait(timeout=30) == 0
    lines = page.command.output.split("\n")
    assert lines[0] == f"study digits at {page.address} (Ctrl-C ends it)"
    assert lines[1].startswith("what is written on the page")
    assert "".join(lines[2:]) == "", "no access log, no traceback"


@pytest.mark.timeout(60)
def test_studies_of_one_name_are_told_apart_by_their_directories(
    tmp_path: Path, opened: Callable[..., Page]
) -> None:
    for name in ("digits", "digits-2"):
        write_study(tmp_path / name, COMPLETED)
    page = opened("digits", "digits-2", "digits")
    assert page.command.output.startswith("study digits, digits-2 at http")
    names = [study["study_name"] for study in page.get("api/studies")["study_summaries"]]
    assert names == ["digits", "digits-2"]
    assert [trial["values"] for trial in page.trials(1)] == [[0.6]]


def refusal(capsys: Capture, *words: str | Path) -> str:
    assert main(["dashboard", *map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("csg-ray: ").rstrip("\n")


def test_a_port_that_is_taken(make_study: MakeStudy, capsys: Capture) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        sentence = refusal(capsys, make_study(COMPLETED), "--port", str(port))
    assert sentence == (
        f"the dashboard cannot listen on 127.0.0.1:{port}: address already in use; "
        "choose another --port (0: any free one) or --host"
    )


def test_a_host_that_is_not_this_machine(make_study: MakeStudy, capsys: Capture) -> None:
    sentence = refusal(capsys, make_study(COMPLETED), "--host", "192.0.2.1")
    assert sentence.startswith("the dashboard cannot listen on 192.0.2.1:8080: ")


def test_a_directory_that_is_no_study(tmp_path: Path, capsys: Capture) -> None:
    assert refusal(capsys, tmp_path) == f"{tmp_path} is not a study: it holds no study.yaml"


def test_without_optuna_dashboard(
    make_study: MakeStudy, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if "dashboard" in name else find(name)
    )
    assert refusal(capsys, make_study(COMPLETED)) == (
        "there is no optuna-dashboard here; install it with: pip install 'csg-ray[dashboard]'"
    )
