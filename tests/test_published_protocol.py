"""A study and a run of the published protocol: nothing is sealed, and every output says so."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from csg_ray.cli import main
from csg_ray.config.data import NO_SEALED_SPLIT
from csg_ray.config.load import load_config
from csg_ray.results.study import load_study
from made_data import refusal
from written_study import PROVENANCE

Capture = pytest.CaptureFixture[str]
SMALLER = "images of at most 64 pixels on the shorter side, not as published"
NOTES = [f"note: {NO_SEALED_SPLIT}", f"note: {SMALLER}"]
SPACE: dict[str, Any] = {
    "study": "visda17",
    "base": {
        "data.name": "visda17",
        "data.root": "VisDA-17",
        "data.protocol": "published",
        "data.max_side": 64,
        "train.epochs": 1,
    },
    "space": {"method.loss_weight": {"loguniform": [0.01, 10.0]}},
    "points_to_evaluate": [{"method.loss_weight": 0.1}],
    "search": {"metric": "target_val/mean_class_accuracy", "mode": "max", "num_trials": 2},
}
SCENES: dict[str, Any] = SPACE | {
    "study": "scenes",
    "base": {"data.name": "digit_scenes", "model.head": "fcn", "train.epochs": 1},
    "search": {"metric": "target_val/mean_iou", "mode": "max", "num_trials": 2},
}
PIXELS = {"target_val/mean_class_accuracy": 0.9, "source_val/mean_class_accuracy": 0.9}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["csg-ray"])


def write_study(space: dict[str, Any], *metrics: dict[str, float]) -> Path:
    """A study of completed trials with these metrics of their only epoch."""
    directory = Path("studies") / str(space["study"])
    header = {"format": 1, "csg_ray": "0.1.0", "space": space, "provenance": PROVENANCE}
    for number, measured in enumerate(metrics, start=1):
        folder = directory / "trials" / f"{number:04d}"
        folder.mkdir(parents=True)
        params = {"method.loss_weight": 0.1 * number}
        origin = "warm start" if number == 1 else "sampler"
        record = {"id": folder.name, "params": params, "origin": origin, "created": 1.0}
        (folder / "params.json").write_text(json.dumps(record))
        line = {"epoch": 1, "diverged": 0} | measured
        (folder / "result.json").write_text(json.dumps(line) + "\n")
        (folder / "state.json").write_text(json.dumps({"state": "completed", "reason": "x"}))
    (directory / "study.yaml").write_text(yaml.safe_dump(header))
    return directory


@pytest.fixture
def published() -> Path:
    return write_study(
        SPACE,
        {"target_val/mean_class_accuracy": 0.5, "target_val/hse": 0.9},
        {"target_val/mean_class_accuracy": 0.6, "target_val/hse": 0.8},
    )


@pytest.fixture
def scenes() -> Path:
    """By pixel accuracy the first would win, by mIoU the second."""
    return write_study(
        SCENES,
        PIXELS | {"target_val/mean_iou": 0.2, "target_val/hse": 0.9, "source_val/mean_iou": 0.4},
        dict.fromkeys(PIXELS, 0.1)
        | {"target_val/mean_iou": 0.3, "target_val/hse": 0.8, "source_val/mean_iou": 0.35},
    )


def notes(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("note: ")]


# nothing is sealed


def test_best_says_so_and_shows_no_source(published: Path, capsys: Capture) -> None:
    assert main(["best", str(published)]) == 0

    out = capsys.readouterr().out
    assert notes(out) == NOTES
    assert "accuracy" in out
    assert "source" not in out


def test_export_says_so_in_the_file_too(published: Path, capsys: Capture) -> None:
    assert main(["export", str(published), "best.yaml"]) == 0

    assert notes(capsys.readouterr().out) == NOTES
    written = yaml.safe_load(Path("best.yaml").read_text())
    assert written["provenance"]["notes"] == [NO_SEALED_SPLIT, SMALLER]
    assert load_config(Path("best.yaml")).data.notes == (NO_SEALED_SPLIT, SMALLER)


def test_a_search_ends_with_it_and_without_evaluate(
    published: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuner = SimpleNamespace(restore_study=lambda *_: None)
    monkeypatch.setitem(sys.modules, "csg_ray.scale.tuner", tuner)
    monkeypatch.setattr("csg_ray.cli.searching.prepare_study", lambda _: None)

    assert main(["restore", str(published)]) == 0

    out = capsys.readouterr().out
    assert notes(out) == NOTES
    assert [line.split()[1] for line in out.partition("Next:")[2].split("\n") if line] == [
        "best",
        "report",
        "export",
    ]


def test_a_run_ends_with_it_and_without_evaluate(capsys: Capture) -> None:
    run = Path("run")
    run.mkdir()
    config = {section: dict[str, Any]() for section in ("data", "train")}
    for path, value in SPACE["base"].items():
        section, _, name = path.partition(".")
        config[section][name] = value
    (run / "run.yaml").write_text(yaml.safe_dump(config))
    line = {"epoch": 1, "target_val/mean_class_accuracy": 0.5, "target_val/hse": 0.9}
    (run / "result.json").write_text(json.dumps(line) + "\n")

    assert main(["restore", "run"]) == 0

    out = capsys.readouterr().out
    assert "run run: accuracy 0.500, HSE 0.900 on target_val" in out
    assert notes(out) == NOTES
    assert "next:" not in out

    (run / "checkpoint.pt").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("csg_ray.results.sealed._load_state", lambda _: {})
        assert main(["evaluate", "run"]) == 2
    assert f"run has no target_test to open ({NO_SEALED_SPLIT})" in capsys.readouterr().err


def test_evaluate_refuses_and_writes_nothing(
    published: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("csg_ray.results.sealed._load_state", lambda _: {})
    before = sorted(published.rglob("*"))

    assert main(["evaluate", str(published)]) == 2

    captured = capsys.readouterr()
    assert f"{published} has no target_test to open ({NO_SEALED_SPLIT})" in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert sorted(published.rglob("*")) == before


def test_nothing_selects_by_a_split_that_is_not_there(published: Path, capsys: Capture) -> None:
    study = load_study(published)
    assert set(study.rules) == {"target_val", "hse"}
    sentence = refusal(lambda: study.best_trial("source_val"))
    assert "has no source_val to select by, since with data.protocol published" in sentence

    assert main(["best", str(published), "--by", "source_val"]) == 2
    assert sentence in capsys.readouterr().err


# mIoU in the place of accuracy


def test_a_segmentation_study_is_ranked_and_shown_by_miou(scenes: Path, capsys: Capture) -> None:
    study = load_study(scenes)
    assert study.score_metric == "target_val/mean_iou"
    metrics = {name: rule.metric for name, rule in study.rules.items()}
    assert metrics == {
        "target_val": "target_val/mean_iou",
        "source_val": "source_val/mean_iou",
        "hse": "target_val/hse",
    }
    winners = {rule: trial.id for rule in study.rules if (trial := study.best_trial(rule))}
    assert winners == {"target_val": "0002", "source_val": "0001", "hse": "0002"}

    assert main(["best", str(scenes), "--by", "source_val"]) == 0
    out = capsys.readouterr().out
    words = out.replace("┃", " ").replace("│", " ").split()
    assert "source mIoU" in " ".join(words)
    assert "by mIoU on source_val" in " ".join(words)
    assert "accuracy" not in words
    row = words[words.index("0001") :]
    assert row[3:8] == ["completed", "1", "0.200", "0.900", "0.400"]


def test_a_segmentation_search_ends_with_miou(
    scenes: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuner = SimpleNamespace(restore_study=lambda *_: None)
    monkeypatch.setitem(sys.modules, "csg_ray.scale.tuner", tuner)
    monkeypatch.setattr("csg_ray.cli.searching.prepare_study", lambda _: None)

    assert main(["restore", str(scenes)]) == 0

    out = capsys.readouterr().out
    assert "  mIoU 0.300, HSE 0.800 on target_val, epoch 1" in out
    assert "mIoU +10.0 points, HSE -0.100." in out
    assert "csg-ray evaluate studies/scenes" in out
