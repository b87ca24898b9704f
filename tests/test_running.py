from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from csg_ray.cli import main
from csg_ray.config.load import load_config
from csg_ray.config.run import RunConfig
from csg_ray.data import load as data_load
from csg_ray.results.export import first_free
from csg_ray.scale.lock import StudyLock
from csg_ray.storage.checkpoint import load_checkpoint, save_checkpoint
from csg_ray.training import loop as training_loop

Capture = pytest.CaptureFixture[str]
Report = Callable[[dict[str, float], Callable[[Path], None], None], None]


@pytest.fixture(autouse=True)
def loop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A training that takes no time: accuracy is a tenth of the epoch. `before` may raise."""
    state = SimpleNamespace(before=lambda epoch: None, diverges_in=None, data="aa")

    def fit(config: RunConfig, on_epoch_end: Report, resume_from: Path | None = None) -> None:
        finished = 0 if resume_from is None else load_checkpoint(resume_from)["epoch"]
        for epoch in range(finished + 1, config.train.epochs + 1):
            state.before(epoch)
            metrics = {
                "epoch": float(epoch),
                "target_val/mean_class_accuracy": epoch / 10,
                "target_val/hse": 1 - epoch / 10,
                "diverged": float(epoch == state.diverges_in),
            }
            saved = {"epoch": epoch, "metrics": metrics}
            on_epoch_end(metrics, lambda path, saved=saved: save_checkpoint(path, saved), None)  # type: ignore[misc]
            if metrics["diverged"]:
                return

    monkeypatch.setattr(training_loop, "fit", fit)
    monkeypatch.setattr(
        data_load, "load_splits", lambda data, *_: SimpleNamespace(fingerprint=state.data)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["csg-ray"])
    return state


@pytest.fixture
def config_file() -> Path:
    path = Path("quick.yaml")
    path.write_text("train: {epochs: 3, learning_rate: 1e-3}\nprovenance: {trial: '0007'}\n")
    return path


def interrupt(epoch: int) -> None:
    if epoch == 2:
        raise KeyboardInterrupt


def test_a_run_holds_its_config_its_epochs_and_where_it_comes_from(
    config_file: Path, capsys: Capture
) -> None:
    assert main(["train", str(config_file)]) == 0

    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/3: accuracy 0.100, HSE 0.900",
        "epoch 2/3: accuracy 0.200, HSE 0.800",
        "epoch 3/3: accuracy 0.300, HSE 0.700",
        "run runs/quick: accuracy 0.300, HSE 0.700 on target_val",
        "next: csg-ray evaluate runs/quick",
    ]
    assert load_config("runs/quick/run.yaml") == load_config(config_file)
    provenance = yaml.safe_load(Path("runs/quick/run.yaml").read_text())["provenance"]
    assert provenance["exported"] == {"trial": "0007"}
    assert provenance["data_sha256"] == "aa"
    lines = Path("runs/quick/result.json").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


def test_a_run_of_an_exported_config_knows_its_study() -> None:
    exported = {"study": "digits", "study_directory": "/somewhere/studies/digits"}
    Path("best.yaml").write_text(yaml.safe_dump({"train": {"epochs": 1}, "provenance": exported}))

    assert main(["train", "best.yaml"]) == 0

    provenance = yaml.safe_load(Path("runs/best/run.yaml").read_text())["provenance"]
    assert provenance["exported"]["study_directory"] == "/somewhere/studies/digits"


def test_names_are_taken_in_turn_and_never_twice(config_file: Path, capsys: Capture) -> None:
    assert main(["train", str(config_file)]) == 0
    assert main(["train", str(config_file)]) == 0
    assert Path("runs/quick-2/run.yaml").is_file()
    capsys.readouterr()

    assert main(["train", str(config_file), "--out", "runs/quick"]) == 2
    assert capsys.readouterr().err == (
        "csg-ray: runs/quick exists; continue it with 'csg-ray restore runs/quick', "
        "or choose another name with --out\n"
    )


def test_a_run_that_loses_its_name_to_another(
    config_file: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_splits(data: object, *_: object) -> SimpleNamespace:
        # Loading takes seconds, in which another command may take the name.
        for name in ("runs/quick", "mine"):
            Path(name).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(fingerprint="aa")

    monkeypatch.setattr(data_load, "load_splits", load_splits)

    assert main(["train", str(config_file)]) == 0
    assert Path("runs/quick-2/run.yaml").is_file()
    Path("mine").rmdir()
    capsys.readouterr()

    assert main(["train", str(config_file), "--out", "mine"]) == 2
    assert capsys.readouterr().err == (
        "csg-ray: mine exists; continue it with 'csg-ray restore mine', "
        "or choose another name with --out\n"
    )
    assert not list(Path("mine").iterdir()) + list(Path("runs/quick").iterdir())


def test_two_runs_that_ask_for_a_name_at_once_get_two(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken_as_soon_as_it_is_seen(path: Path) -> Path:
        free = first_free(path)
        if free.name != "quick-3":
            free.mkdir(parents=True)
        return free

    monkeypatch.setattr("csg_ray.cli.running.first_free", taken_as_soon_as_it_is_seen)

    assert main(["train", str(config_file)]) == 0

    assert Path("runs/quick-3/run.yaml").is_file()


def test_an_interrupted_run_goes_on_where_it_was(
    loop: SimpleNamespace, config_file: Path, capsys: Capture
) -> None:
    loop.before = interrupt
    assert main(["train", str(config_file)]) == 130
    expected = "csg-ray: stopped; continue with: csg-ray restore runs/quick\n"
    assert capsys.readouterr().err == expected

    loop.before = lambda epoch: None
    assert main(["restore", "runs/quick"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("epoch 2/3: ")

    assert main(["restore", "runs/quick"]) == 0
    assert capsys.readouterr().out.startswith("run runs/quick has already ended at epoch 3\n")


def test_sigterm_ends_a_run_like_ctrl_c(
    loop: SimpleNamespace, config_file: Path, capsys: Capture
) -> None:
    def terminate(epoch: int) -> None:
        if epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    loop.before = terminate
    expected = "csg-ray: stopped; continue with: csg-ray restore runs/quick\n"
    for words in (["train", str(config_file)], ["restore", "runs/quick"]):
        assert main(words) == 143
        assert capsys.readouterr().err == expected
    assert not Path("runs/quick/driver.lock").exists()


def test_a_run_is_trained_by_one_command_at_a_time(
    loop: SimpleNamespace, config_file: Path, capsys: Capture
) -> None:
    lock = Path("runs/quick/driver.lock")
    locked = []

    def stop_in_the_second_epoch(epoch: int) -> None:
        locked.append(lock.is_file())
        interrupt(epoch)

    loop.before = stop_in_the_second_epoch
    assert main(["train", str(config_file)]) == 130
    assert locked == [True, True]
    assert not lock.exists()
    capsys.readouterr()

    result_file = Path("runs/quick/result.json")
    # A torn line shows whether a refused command writes: whoever records an epoch cuts it off.
    result_file.write_text(result_file.read_text() + '{"epo')
    before = result_file.read_text()
    with StudyLock(Path("runs/quick")):
        assert main(["restore", "runs/quick"]) == 2
    assert "runs/quick is being run by " in capsys.readouterr().err
    assert result_file.read_text() == before
    assert locked == [True, True]


def test_an_interrupt_before_the_first_file(
    config_file: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("csg_ray.cli.running.write_config", stop)
    assert main(["train", str(config_file)]) == 130
    assert capsys.readouterr().err == "csg-ray: stopped before anything was written\n"


def test_a_disk_that_fills_says_how_to_go_on(
    loop: SimpleNamespace, config_file: Path, capsys: Capture
) -> None:
    def fill(epoch: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    loop.before = fill
    assert main(["train", str(config_file)]) == 2
    assert capsys.readouterr().err == (
        "csg-ray: no space left on the disk of runs/quick; free some, "
        "then continue with: csg-ray restore runs/quick\n"
    )


def test_a_diverged_run_fails_and_stays_so(
    loop: SimpleNamespace, config_file: Path, capsys: Capture
) -> None:
    loop.diverges_in = 2
    for words in (["train", str(config_file)], ["restore", "runs/quick"]):
        assert main(words) == 1
        assert capsys.readouterr().err == "csg-ray: run runs/quick diverged in epoch 2\n"


def test_restore_says_what_changed_and_refuses_other_data(
    loop: SimpleNamespace, config_file: Path, capsys: Capture
) -> None:
    loop.before = interrupt
    main(["train", str(config_file)])
    loop.before = lambda epoch: None
    run_file = Path("runs/quick/run.yaml")
    content = yaml.safe_load(run_file.read_text())
    content["provenance"]["versions"]["torch"] = "1.0"
    run_file.write_text(yaml.safe_dump(content))
    capsys.readouterr()

    loop.data = "other"
    assert main(["restore", "runs/quick"]) == 2
    assert capsys.readouterr().err.startswith("csg-ray: the data of run runs/quick have changed")
    loop.data = "aa"
    assert main(["restore", "runs/quick", "--more", "2"]) == 2
    assert "--more is for studies" in capsys.readouterr().err
    assert main(["restore", "runs/quick"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("changed since the run began: versions.torch: 1.0 -> ")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("train: {epoch: 3}", "did you mean 'train.epochs'?"),
        ("csg_ray: 99.0.0", "newer than the installed"),
        ("train: [", "not YAML"),
        ("study: x\nspace: {}", "start it with csg-ray search"),
    ],
)
def test_a_bad_config_is_one_sentence_and_writes_nothing(
    capsys: Capture, text: str, sentence: str
) -> None:
    Path("bad.yaml").write_text(text)

    assert main(["train", "bad.yaml"]) == 2

    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["bad.yaml"]
