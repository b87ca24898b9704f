from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from csg_ray.cli import main
from csg_ray.config.errors import UserError
from csg_ray.config.load import config_to_mapping, load_config, override_config
from csg_ray.config.reader import dump_yaml, read_yaml
from csg_ray.config.run import RunConfig
from csg_ray.data.splits import ArraySplit, SealedSplit
from csg_ray.methods import build_method
from csg_ray.results import sealed
from csg_ray.results.sealed import evaluate_run, evaluate_study
from csg_ray.results.study import load_study
from csg_ray.storage.checkpoint import load_checkpoint, save_checkpoint
from csg_ray.storage.ledger import read_ledger
from csg_ray.storage.paths import StoragePath
from csg_ray.training.evaluate import evaluate_split
from written_study import SPACE, write_study

MakeStudy = Callable[..., Path]
MakeStudyAt = Callable[..., StoragePath]
PUBLISHED = ("completed", [(0.2, 0.9, 0.8), (0.4, 0.8, 0.9), (0.60, 0.70, 0.95)])
STOPPED = ("stopped", [(0.9, 0.1, 0.99)])
WINNER = ("completed", [(0.3, 0.8, 0.7), (0.8, 0.2, 0.8), (0.712, 0.40, 0.90)])
COOLEST = ("completed", [(0.3, 0.8, 0.7), (0.5, 0.5, 0.8), (0.65, 0.30, 0.99)])


def digit_like(name: str, count: int) -> ArraySplit:
    images = np.random.default_rng(count).integers(0, 256, (count, 32, 32), dtype=np.uint8)
    return ArraySplit(name, images, torch.arange(count) % 10, tuple("0123456789"))


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Splits whose seal counts its openings; `measured` holds what was evaluated on them."""
    state = SimpleNamespace(opened=0, on_opening=lambda: None, measured=[], fingerprint="bb")
    test = digit_like("target_test", 20)

    def load() -> ArraySplit:
        state.opened += 1
        state.on_opening()
        return test

    splits = SimpleNamespace(
        source_train=digit_like("source_train", 64),
        class_names=test.class_names,
        target_test=SealedSplit("target_test", test.fingerprint, load),
    )

    def load_splits(data: Any) -> SimpleNamespace:
        splits.fingerprint = state.fingerprint
        return splits

    monkeypatch.setattr("csg_ray.data.load.load_splits", load_splits)
    return state


@pytest.fixture
def quick(room: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """As `room`, with a number from the checkpoint in the place of a measurement."""

    def load(config: RunConfig, splits: Any, state: dict[str, Any], device: Any) -> list[float]:
        return list(state["repeats"])

    def measure(config: RunConfig, methods: list[float], split: ArraySplit) -> dict[str, Any]:
        room.measured.append(methods[0])
        return {"mean_class_accuracy": methods[0], "hse": 0.5}

    monkeypatch.setattr("csg_ray.training.evaluate.load_trained", load)
    monkeypatch.setattr(sealed, "_measure", measure)
    return room


def add_checkpoints(directory: StoragePath) -> None:
    study = load_study(directory)
    for trial in study.trials:
        config = study.space.config_for(dict(trial.params))
        state = {"config": config.model_dump(), "epoch": trial.epoch, "repeats": [float(trial.id)]}
        save_checkpoint(trial.checkpoint, state)


@pytest.fixture
def study(make_study_at: MakeStudyAt) -> StoragePath:
    directory = make_study_at(PUBLISHED, STOPPED, WINNER, COOLEST)
    add_checkpoints(directory)
    return directory


def test_the_picks_are_frozen_then_the_seal_opens_once_for_all(
    study: StoragePath, quick: SimpleNamespace
) -> None:
    frozen: list[Any] = []
    quick.on_opening = lambda: frozen.append(json.loads((study / "test_picks.json").read_text()))

    outcome = evaluate_study(study)

    assert quick.opened == 1
    assert [(pick["rule"], pick["trial"]) for pick in frozen[0]["picks"]] == [
        ("target_val", "0003"),
        ("source_val", "0004"),
        ("hse", "0004"),
    ]
    assert quick.measured == [3.0, 4.0]
    assert [pick["metrics"]["mean_class_accuracy"] for pick in outcome["picks"]] == [3.0, 4.0, 4.0]
    assert all(pick["selected with target labels"] for pick in outcome["picks"])
    assert outcome["earlier_openings"] == []
    assert json.loads((study / "test_results.json").read_text()) == outcome
    [line] = read_ledger(study / "test_ledger.jsonl")
    assert line["reason"] == "evaluate target_val 0003, source_val 0004, hse 0004"


def test_a_second_look_says_so_and_keeps_the_first(
    study: StoragePath, quick: SimpleNamespace
) -> None:
    first = evaluate_study(study)
    second = evaluate_study(study)
    third = evaluate_study(study)

    assert second["earlier_openings"] == read_ledger(study / "test_ledger.jsonl")[:1]
    assert len(third["earlier_openings"]) == 2
    first.pop("earlier_results")
    assert second.pop("earlier_results") == [first]
    assert third["earlier_results"] == [first, second]


def test_what_is_to_be_said_of_the_data_is_in_the_results_and_printed(
    make_study: MakeStudy, quick: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {"data.name": "image_folder", "data.source": "a", "data.target": "b"}
    base: Any = SPACE["base"]
    space = SPACE | {"base": {**base, **folders, "data.max_side": 64}}
    directory = make_study(WINNER, header={"space": space})
    add_checkpoints(directory)

    assert main(["evaluate", str(directory)]) == 0

    note = "images of at most 64 pixels on the shorter side, not as published"
    assert f"note: {note}\n" in capsys.readouterr().out
    assert json.loads((directory / "test_results.json").read_text())["notes"] == [note]


@pytest.mark.parametrize(
    "content", [b"", b'{"picks": [', b"\xff", b"[1]", b'{"picks": []}', b'{"earlier_results": 3}']
)
def test_damaged_earlier_results_leave_the_seal(
    study: StoragePath, quick: SimpleNamespace, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    results = study / "test_results.json"
    results.write_bytes(content)

    assert main(["evaluate", str(study)]) == 2

    assert capsys.readouterr().err == (
        f"csg-ray: {results} is damaged or was not written by csg-ray evaluate; "
        "bring it back from a copy, or move it away\n"
    )
    assert quick.opened == 0
    assert results.read_bytes() == content


def nothing_was_touched(directory: StoragePath, room: SimpleNamespace) -> bool:
    names = ("test_ledger.jsonl", "test_ledger", "test_picks.json", "test_results.json")
    return room.opened == 0 and not any((directory / name).exists() for name in names)


def test_no_completed_trial_leaves_the_seal(make_study: MakeStudy, room: SimpleNamespace) -> None:
    directory = make_study(STOPPED)

    with pytest.raises(UserError, match=r"no trial of study .* has completed"):
        evaluate_study(directory)

    assert nothing_was_touched(directory, room)


def test_unfinished_trials_leave_the_seal(make_study: MakeStudy, room: SimpleNamespace) -> None:
    unfinished = ("unfinished", STOPPED[1])
    directory = make_study(WINNER, unfinished, STOPPED, ("unfinished", []))
    add_checkpoints(directory)

    with pytest.raises(UserError, match=r"^2 of 4 trials of study .* are unfinished.* restore"):
        evaluate_study(directory)

    assert nothing_was_touched(directory, room)


def test_a_missing_or_foreign_checkpoint_leaves_the_seal(
    study: StoragePath, room: SimpleNamespace
) -> None:
    checkpoint = study / "trials" / "0004" / "checkpoint.pt"
    kept = checkpoint.read_bytes()

    checkpoint.write_bytes((study / "trials" / "0001" / "checkpoint.pt").read_bytes())
    with pytest.raises(UserError, match=r"checkpoint of another training .*magnitude 6"):
        evaluate_study(study)
    checkpoint.write_bytes(kept[:100])
    with pytest.raises(UserError, match=r"0004/checkpoint\.pt.* is not a readable checkpoint"):
        evaluate_study(study)
    checkpoint.unlink()
    missing = r"0004/checkpoint\.pt.* does not exist, but source_val picks.*--trial 0004, train it"
    with pytest.raises(UserError, match=missing):
        evaluate_study(study)

    assert nothing_was_touched(study, room)


def test_a_checkpoint_of_an_earlier_epoch_leaves_the_seal(
    study: StoragePath, room: SimpleNamespace
) -> None:
    checkpoint = study / "trials" / "0003" / "checkpoint.pt"
    save_checkpoint(checkpoint, load_checkpoint(checkpoint) | {"epoch": 2})

    with pytest.raises(UserError, match=r"is of epoch 2, but the results beside it end at epoch 3"):
        evaluate_study(study)

    assert nothing_was_touched(study, room)


def test_other_data_than_the_study_saw_leave_the_seal(
    study: StoragePath, room: SimpleNamespace
) -> None:
    room.fingerprint = "of other images"

    with pytest.raises(UserError, match=r"data are not those that .* target_test stays sealed"):
        evaluate_study(study)

    assert nothing_was_touched(study, room)


def test_the_command_prints_a_table_and_who_looked_before(
    study: StoragePath, quick: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(study)]) == 0
    assert "opened before" not in capsys.readouterr().out
    assert main(["evaluate", str(study)]) == 0

    out = capsys.readouterr().out
    rows = [line.replace("│", " ").split() for line in out.splitlines()]
    assert ["target_val", "0003", "3.000", "0.500", "yes"] in rows
    assert ["hse", "0004", "4.000", "0.500", "yes"] in rows
    opened = read_ledger(study / "test_ledger.jsonl")[0]
    assert f"target_test was opened before: {opened['opened_at']} by {opened['user']}" in out


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two repeats with real weights, as `csg-ray train` would leave it."""
    return write_run(tmp_path / "run", {"method.name": "vanilla"})


def write_run(directory: Path, settings: dict[str, Any]) -> Path:
    directory.mkdir()
    config = override_config(RunConfig(), {"train.epochs": 1, **settings})
    provenance = {"data_sha256": "bb", "exported": {"selected with target labels": True}}
    text = dump_yaml(config_to_mapping(config) | {"provenance": provenance})
    (directory / "run.yaml").write_text(text)
    (directory / "result.json").write_text('{"epoch": 1, "diverged": 0}\n')
    repeats = []
    for seed in (1, 2):
        method = build_method(config.model_copy(update={"seed": seed}), 10, 2)
        repeats.append({"seed": seed, "method": method.state_dict()})
    state = {"config": config.model_dump(), "epoch": 1, "repeats": repeats}
    save_checkpoint(directory / "checkpoint.pt", state)
    return directory


@pytest.mark.timeout(60)  # four passes through a real network on a busy machine
def test_a_run_is_measured_with_the_weights_of_every_repeat(
    run: Path, room: SimpleNamespace
) -> None:
    config = load_config(run / "run.yaml")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    test = digit_like("target_test", 20)
    expected = [
        evaluate_split(
            build_method(config.model_copy(update={"seed": seed}), 10, 2).to(device),
            test,
            config,
            device,
        )
        for seed in (1, 2)
    ]

    [pick] = evaluate_run(run)["picks"]

    assert (pick["rule"], pick["trial"], pick["epoch"]) == ("run", "", 1)
    assert pick["selected with target labels"] is True
    for name in ("mean_class_accuracy", "hse", "accuracy"):
        values = [each[name] for each in expected]
        assert pick["metrics"][name] == pytest.approx(np.mean(values), rel=1e-5)
    energies = [each["hse"] for each in expected]
    assert pick["metrics"]["hse_std"] == pytest.approx(np.std(energies, ddof=1), abs=1e-6)


@pytest.mark.timeout(60)
def test_random_reference_weights_are_those_of_each_repeat(
    tmp_path: Path, room: SimpleNamespace
) -> None:
    settings = {"method.name": "csg", "method.projection_dim": 2, "model.weights": "none"}
    run = write_run(tmp_path / "run", settings)

    [pick] = evaluate_run(run)["picks"]

    assert pick["metrics"]["hse_std"] > 0


def test_weights_that_do_not_fit_leave_the_seal(tmp_path: Path, room: SimpleNamespace) -> None:
    settings = {"method.name": "csg", "method.projection_dim": 2, "model.weights": "none"}
    run = write_run(tmp_path / "run", settings)
    state = torch.load(run / "checkpoint.pt", weights_only=True)  # noqa: TID251 - to spoil it
    state["repeats"][1]["seed"] = 3
    save_checkpoint(run / "checkpoint.pt", state)

    with pytest.raises(UserError, match="trained against other reference weights"):
        evaluate_run(run)

    assert nothing_was_touched(run, room)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"epoch": 1, "diverged": 1}, r"^run .* diverged in epoch 1, so there is nothing to test"),
        ({"epoch": 1, "diverged": 0}, r"^run .* has finished 1 of 2 epochs; continue .* restore"),
    ],
)
def test_a_run_that_did_not_get_to_its_end_is_refused(
    run: Path, room: SimpleNamespace, line: dict[str, int], sentence: str
) -> None:
    content = (run / "run.yaml").read_text()
    (run / "run.yaml").write_text(content.replace("epochs: 1", "epochs: 2"))
    assert load_config(run / "run.yaml").train.epochs == 2
    (run / "result.json").write_text(json.dumps(line) + "\n")

    with pytest.raises(UserError, match=sentence):
        evaluate_run(run)

    assert nothing_was_touched(run, room)


@pytest.fixture
def exported_run(run: Path, study: Path) -> Path:
    """A run of a config that was exported from `study`."""
    set_provenance(run, {"study_directory": str(study), "selected with target labels": True})
    return run


def set_provenance(run: Path, exported: Any) -> None:
    content = read_yaml(run / "run.yaml")
    content["provenance"]["exported"] = exported
    (run / "run.yaml").write_text(dump_yaml(content))


def set_checkpoint(run: Path) -> None:
    config = load_config(run / "run.yaml")
    state = {"config": config.model_dump(), "epoch": 1, "repeats": [0.5]}
    save_checkpoint(run / "checkpoint.pt", state)


def test_a_run_shares_the_ledger_of_its_study(
    exported_run: Path, study: StoragePath, quick: SimpleNamespace
) -> None:
    set_checkpoint(exported_run)
    evaluate_study(study)

    outcome = evaluate_run(exported_run)

    ledger = read_ledger(study / "test_ledger.jsonl")
    assert outcome["earlier_openings"] == ledger[:1]
    assert ledger[1]["reason"] == f"evaluate run {exported_run}"
    assert not (exported_run / "test_ledger.jsonl").exists()
    assert json.loads((exported_run / "test_results.json").read_text()) == outcome
    assert evaluate_study(study)["earlier_openings"] == ledger


def test_a_run_of_a_run_shares_the_ledger_too(
    exported_run: Path, study: StoragePath, quick: SimpleNamespace
) -> None:
    set_checkpoint(exported_run)
    set_provenance(exported_run, read_yaml(exported_run / "run.yaml")["provenance"])

    [pick] = evaluate_run(exported_run)["picks"]

    assert pick["selected with target labels"] is True
    assert len(read_ledger(study / "test_ledger.jsonl")) == 1


@pytest.mark.parametrize("exported", [None, "by hand", {"study_directory": "/no/longer/there"}])
def test_a_run_without_its_study_keeps_its_own_ledger(
    run: Path, quick: SimpleNamespace, exported: Any
) -> None:
    set_checkpoint(run)
    set_provenance(run, exported)

    assert evaluate_run(run)["earlier_openings"] == []
    assert evaluate_run(run)["earlier_openings"] == read_ledger(run / "test_ledger.jsonl")[:1]


def test_a_run_without_an_epoch_is_refused(run: Path, room: SimpleNamespace) -> None:
    (run / "result.json").unlink()

    with pytest.raises(UserError, match=r"run .* has no finished epoch"):
        evaluate_run(run)

    assert nothing_was_touched(run, room)


def test_reruns_write_into_the_ledger_of_their_study(
    study: StoragePath, quick: SimpleNamespace
) -> None:
    """Both look at one split, and neither may hide its look."""
    evaluate_study(study)
    reruns = study / "reruns"
    write_study(reruns, WINNER, COOLEST)
    add_checkpoints(reruns)

    outcome = evaluate_study(reruns)

    assert [opening["reason"] for opening in outcome["earlier_openings"]] == [
        "evaluate target_val 0003, source_val 0004, hse 0004"
    ]
    assert len(read_ledger(study / "test_ledger.jsonl")) == 2
    assert read_ledger(reruns / "test_ledger.jsonl") == []
