"""The commands on URIs: what they write where, what they print to paste, what they refuse."""

from __future__ import annotations

import json
import shlex
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from csg_ray.cli import main
from csg_ray.config.load import load_config
from csg_ray.config.run import RunConfig
from csg_ray.data import load as data_load
from csg_ray.results.progress import Progress
from csg_ray.scale import claims
from csg_ray.search_space import SearchSpace
from csg_ray.storage.checkpoint import load_checkpoint, save_checkpoint
from csg_ray.storage.paths import RemotePath, StoragePath
from csg_ray.storage.records import read_results
from csg_ray.training import loop as training_loop
from s3_server import S3Server
from written_study import write_study

Capture = pytest.CaptureFixture[str]
WINNER = ("completed", [(0.3, 0.8, 0.7), (0.8, 0.2, 0.8), (0.712, 0.40, 0.90)])
SPACE = """
study: digits
base: {data.name: digits, method.name: csg, train.epochs: 3}
space: {method.loss_weight: {loguniform: [0.01, 10.0]}}
search: {metric: target_val/mean_class_accuracy, mode: max, num_trials: 4}
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["csg-ray"])


@pytest.fixture
def space_file() -> str:
    Path("space.yaml").write_text(SPACE)
    return "space.yaml"


@pytest.fixture
def config_file() -> str:
    Path("quick.yaml").write_text("train: {epochs: 3}\n")
    return "quick.yaml"


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[StoragePath]:
    """The directories that searches were started in, each with a winner at once."""
    directories: list[StoragePath] = []

    def run_study(
        space: SearchSpace, directory: StoragePath, progress: Progress, verbose: bool, *_: object
    ) -> None:
        directories.append(directory)
        write_study(directory, WINNER)

    module = SimpleNamespace(run_study=run_study)
    monkeypatch.setitem(sys.modules, "csg_ray.scale.tuner", module)
    return directories


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A training that takes no time; `before` is called before each epoch."""
    state = SimpleNamespace(before=lambda epoch: None)

    def fit(
        config: RunConfig,
        on_epoch_end: Callable[..., None],
        resume_from: StoragePath | None = None,
    ) -> None:
        finished = 0 if resume_from is None else load_checkpoint(resume_from)["epoch"]
        for epoch in range(finished + 1, config.train.epochs + 1):
            state.before(epoch)
            metrics = {"epoch": epoch, "diverged": 0, "target_val/hse": 1.0 - epoch / 10}
            saved = {"epoch": epoch, "metrics": metrics}
            on_epoch_end(metrics, lambda path, saved=saved: save_checkpoint(path, saved), None)

    monkeypatch.setattr(training_loop, "fit", fit)
    monkeypatch.setattr(
        data_load, "load_splits", lambda data, *_: SimpleNamespace(fingerprint="aa")
    )
    return state


def pasted(line: str) -> list[str]:
    """The words of a printed command, as a shell would hand them on."""
    _, _, command = line.partition("csg-ray ")
    return shlex.split(command)


def test_a_search_takes_the_next_free_name_below_the_uri(
    uri: RemotePath, space_file: str, searches: list[StoragePath], capsys: Capture
) -> None:
    assert main(["search", space_file, "--storage", str(uri)]) == 0
    assert main(["search", space_file, "--storage", str(uri)]) == 0
    assert main(["search", space_file, "--study", str(uri / "mine")]) == 0
    assert searches == [uri / "studies/digits", uri / "studies/digits-2", uri / "mine"]
    out = capsys.readouterr().out
    assert f"Best trial: 0001 of {uri / 'mine'} (by accuracy on target_val" in out
    lines = out.splitlines()
    export = next(line for line in reversed(lines) if " export " in line)
    assert pasted(export) == ["export", str(uri / "mine"), "mine.yaml"]
    assert not Path("studies").exists()


def test_a_storage_may_be_a_folder(
    tmp_path: Path, space_file: str, searches: list[StoragePath]
) -> None:
    assert main(["search", space_file, "--storage", str(tmp_path / "nfs")]) == 0
    assert searches == [tmp_path / "nfs" / "studies" / "digits"]


def test_a_study_that_is_there_is_continued_by_what_is_printed(
    uri: RemotePath, space_file: str, searches: list[StoragePath], capsys: Capture
) -> None:
    write_study(uri / "mine", WINNER)
    assert main(["search", space_file, "--study", str(uri / "mine")]) == 2
    printed = capsys.readouterr().err.partition("'")[2].rpartition(", or choose")[0]
    assert pasted(printed.removesuffix("'")) == ["restore", str(uri / "mine")]
    assert searches == []


def test_best_and_export_read_and_write_uris(uri: RemotePath, capsys: Capture) -> None:
    study = uri / "studies" / "digits"
    write_study(study, ("stopped", WINNER[1][:1]), WINNER)
    assert main(["best", str(study)]) == 0
    out = capsys.readouterr().out
    assert "0002" in out
    assert pasted(out.splitlines()[-1])[:3] == ["export", str(study), "digits.yaml"]
    assert main(["export", str(study), str(uri / "best.yaml")]) == 0
    out = capsys.readouterr().out
    assert pasted(out.splitlines()[-1]) == ["train", str(uri / "best.yaml")]
    exported = yaml.safe_load((uri / "best.yaml").read_text())
    assert exported["provenance"]["study_directory"] == str(study)
    assert exported["provenance"]["trial"] == "0002"


def test_a_run_on_a_uri_is_stopped_and_restored(
    uri: RemotePath, config_file: str, training: SimpleNamespace, capsys: Capture
) -> None:
    def interrupt(epoch: int) -> None:
        if epoch == 3:
            raise KeyboardInterrupt

    training.before = interrupt
    assert main(["train", config_file, "--storage", str(uri)]) == 130
    run = uri / "runs" / "quick"
    assert pasted(capsys.readouterr().err) == ["restore", str(run)]
    assert load_config(run / "run.yaml") == load_config(config_file)
    assert [line["epoch"] for line in read_results(run)] == [1, 2]

    training.before = lambda epoch: None
    assert main(["restore", str(run)]) == 0
    assert [line["epoch"] for line in read_results(run)] == [1, 2, 3]
    assert pasted(capsys.readouterr().out.splitlines()[-1]) == ["evaluate", str(run)]
    names = {path.name for path in run.iterdir() if not path.name.startswith("events.")}
    assert names <= {"run.yaml", "results", "checkpoint.pt", "driver.lock"}
    assert list((run / "driver.lock").iterdir()) == []

    assert main(["train", str(run / "run.yaml"), "--out", str(uri / "again")]) == 0
    assert (uri / "again" / "run.yaml").is_file()


def test_a_run_whose_place_another_process_took_stops(
    uri: RemotePath,
    config_file: str,
    training: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.05)
    run = uri / "run"

    def replace(epoch: int) -> None:
        if epoch == 2:
            [claim] = (run / "driver.lock").iterdir()
            record = {"took": [claim.name], "pid": 7, "host": "elsewhere"}
            (run / "driver.lock" / "successor.json").write_bytes(json.dumps(record).encode())
            time.sleep(1)  # several heartbeats

    training.before = replace
    assert main(["train", config_file, "--out", str(run)]) == 2
    assert "was taken over by process 7 on elsewhere" in capsys.readouterr().err
    assert [line["epoch"] for line in read_results(run)] == [1]


def test_a_store_that_goes_away_is_told_with_how_to_go_on(
    s3: S3Server, uri: RemotePath, config_file: str, training: SimpleNamespace, capsys: Capture
) -> None:
    def go_away(epoch: int) -> None:
        if epoch == 2:
            s3.fault = lambda request: "403 ExpiredToken"

    training.before = go_away
    assert main(["train", config_file, "--out", str(uri / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert pasted(error) == ["restore", str(uri / "run")]


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(params=["no rights", "unreachable", "no bucket", "unknown scheme"])
def bad_place(request: pytest.FixtureRequest, s3: S3Server) -> tuple[str, str]:
    """A URI on which nothing can be done, and the sentence about it."""
    if request.param == "no rights":
        s3.fault = lambda request: "403 AccessDenied"
        return s3.uri("x"), "access is denied; check the credentials"
    if request.param == "unreachable":
        endpoint = f"http://127.0.0.1:{closed_port()}"
        return f"s3://bucket/x?endpoint_override={endpoint}", "the store cannot be reached"
    if request.param == "no bucket":
        return s3.uri("x", bucket="nowhere"), "there is no such bucket; create it"
    return "foo://x", "unknown scheme 'foo' in foo://x: allowed: "


def refusal(capsys: Capture, *words: str) -> str:
    """The one sentence that a refused command prints; nothing else may be printed."""
    assert main(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("csg-ray: ")
    return captured.err


def test_a_search_on_a_bad_place_is_refused_before_it_starts(
    bad_place: tuple[str, str], space_file: str, searches: list[StoragePath], capsys: Capture
) -> None:
    uri, sentence = bad_place
    assert sentence in refusal(capsys, "search", space_file, "--storage", uri)
    assert sentence in refusal(capsys, "search", space_file, "--study", uri)
    assert searches == []


def test_a_run_on_a_bad_place_is_refused_before_it_starts(
    bad_place: tuple[str, str], config_file: str, training: SimpleNamespace, capsys: Capture
) -> None:
    uri, sentence = bad_place
    training.before = lambda epoch: pytest.fail("it was started")
    assert sentence in refusal(capsys, "train", config_file, "--storage", uri)


@pytest.mark.parametrize("command", [["best"], ["restore"], ["evaluate"], ["export", "out.yaml"]])
def test_reading_from_a_bad_place_is_refused(
    bad_place: tuple[str, str], capsys: Capture, command: list[str]
) -> None:
    uri, sentence = bad_place
    if "nowhere" in uri:
        sentence = "is not a study: it does not exist"  # a store tells no difference
    assert sentence in refusal(capsys, command[0], uri, *command[1:])
    assert list(Path().iterdir()) == []


def test_two_places_at_once_are_refused(space_file: str, config_file: str, capsys: Capture) -> None:
    sentence = refusal(capsys, "search", space_file, "--study", "a", "--storage", "b")
    assert sentence == "csg-ray: --study and --storage exclude each other; give one\n"
    sentence = refusal(capsys, "train", config_file, "--out", "a", "--storage", "b")
    assert sentence == "csg-ray: --out and --storage exclude each other; give one\n"
