from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from csg_ray.config.errors import UserError
from csg_ray.results.study import load_study
from csg_ray.storage.paths import StoragePath
from csg_ray.storage.records import write_atomically

MakeStudy = Callable[..., Path]
# (accuracy, HSE, source accuracy) of every epoch.
PUBLISHED = [(0.2, 0.9, 0.8), (0.4, 0.8, 0.9), (0.60, 0.70, 0.95)]
WINNER = [(0.3, 0.8, 0.7), (0.8, 0.2, 0.8), (0.70, 0.40, 0.90)]
COOLEST = [(0.3, 0.8, 0.7), (0.5, 0.5, 0.8), (0.65, 0.30, 0.99)]
BURST = [(0.95, 0.1, 0.99)]
WRECK = [(0.95, 0.1, 0.99), (0.0, 18.4, 0.0)]


TRIALS = (
    ("completed", PUBLISHED),
    ("stopped", BURST),
    ("completed", WINNER),
    ("completed", COOLEST),
    ("diverged", WRECK),
    ("unfinished", BURST),
)


@pytest.fixture
def study_directory(make_study: MakeStudy) -> Path:
    return make_study(*TRIALS)


@pytest.fixture
def study_anywhere(make_study_at: Callable[..., StoragePath]) -> StoragePath:
    return make_study_at(*TRIALS)


def test_a_study_is_what_its_files_say(study_anywhere: StoragePath) -> None:
    study = load_study(study_anywhere)

    assert study.name == "digits"
    assert study.space.search.num_trials == 6
    assert study.provenance["git"] == {"commit": "c0ffee", "dirty": False}
    assert [(trial.id, trial.state, trial.epoch) for trial in study.trials] == [
        ("0001", "completed", 3),
        ("0002", "stopped", 1),
        ("0003", "completed", 3),
        ("0004", "completed", 3),
        ("0005", "diverged", 2),
        ("0006", "unfinished", 1),
    ]
    third = study.trials[2]
    assert third.params == {"method.loss_weight": pytest.approx(0.3), "augment.magnitude": 8}
    assert [line["target_val/hse"] for line in third.results] == [0.8, 0.2, 0.4]
    assert (third.origin, third.reason) == ("sampler", "was completed")
    assert third.checkpoint == study_anywhere / "trials" / "0003" / "checkpoint.pt"
    assert study.published is study.trials[0]


def test_each_rule_has_its_winner_among_the_completed_ones_at_their_last_epoch(
    study_anywhere: StoragePath,
) -> None:
    study = load_study(str(study_anywhere))

    winners = {rule: study.best_trial(rule) for rule in ("target_val", "source_val", "hse")}

    assert {rule: trial and trial.id for rule, trial in winners.items()} == {
        "target_val": "0003",
        "source_val": "0004",
        "hse": "0004",
    }
    assert study.best_trial() is winners["target_val"]
    assert [trial.id for trial in study.top(2)] == ["0003", "0004"]
    assert [trial.id for trial in study.top(99, "source_val")] == ["0004", "0001", "0003"]


def test_no_completed_trial_no_winner(make_study: MakeStudy) -> None:
    study = load_study(make_study(("stopped", BURST), ("diverged", WRECK), ("failed", [])))

    assert study.best_trial() is None
    assert study.top(3, "hse") == []
    assert study.trials[2].last == {}
    assert study.trials[2].epoch == 0


@pytest.mark.parametrize(
    ("metric", "mode", "rule"),
    [
        ("target_val/mean_class_accuracy", "max", "target_val"),
        ("source_val/mean_class_accuracy", "max", "source_val"),
        ("target_val/hse", "min", "hse"),
        ("target_val/accuracy", "max", "objective"),
        ("target_val/hse_power1", "min", "objective"),
        ("target_val/hse", "max", "objective"),
        ("source_val/hse", "min", "objective"),
    ],
)
def test_the_default_rule_ranks_by_what_was_searched_for(
    make_study: MakeStudy, metric: str, mode: str, rule: str
) -> None:
    study = load_study(make_study(search={"metric": metric, "mode": mode}))

    assert study.default_rule == rule
    assert (study.rule(rule).metric, study.rule(rule).mode) == (metric, mode)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_objective_ranks_in_its_own_direction(make_study: MakeStudy, mode: str) -> None:
    search = {"metric": "source_val/hse", "mode": mode}
    directory = make_study(("completed", PUBLISHED), ("completed", WINNER), search=search)
    for number, energy in ((1, 0.25), (2, 0.125)):
        results = directory / "trials" / f"{number:04d}" / "result.json"
        line = json.loads(results.read_text().splitlines()[-1]) | {"source_val/hse": energy}
        results.write_text(json.dumps(line) + "\n")
    study = load_study(directory)

    winner = study.best_trial("objective")

    assert winner is not None
    assert winner.id == {"max": "0001", "min": "0002"}[mode]
    assert study.rule("objective").uses_target_labels is False
    default = study.best_trial()
    assert default is not None
    assert default.id == "0002"


def test_energy_against_accuracy_over_completed_trials(make_study: MakeStudy) -> None:
    levels = [(0.5, 0.9), (0.6, 0.7), (0.7, 0.8), (0.8, 0.1)]
    trials = [("completed", [(accuracy, energy, 0.9)]) for accuracy, energy in levels]
    study = load_study(make_study(*trials, ("stopped", [(0.99, 0.99, 0.9)])))

    found = study.energy_and_accuracy()

    # Energy ranks 4 2 3 1 against 1 2 3 4: rho = 1 - 6 * (9 + 0 + 0 + 9) / 60 = -0.8.
    assert found is not None
    assert found.rho == pytest.approx(-0.8)
    assert found.count == 4


def test_trials_are_found_with_and_without_leading_zeros(study_directory: Path) -> None:
    study = load_study(study_directory)

    assert study.trial("3") is study.trial("0003") is study.trials[2]
    with pytest.raises(UserError, match=r"has no trial '7'; it holds 0001 to 0006$"):
        study.trial("7")


def test_ids_beyond_four_digits_come_last(study_directory: Path) -> None:
    source = study_directory / "trials" / "0002"
    source.rename(study_directory / "trials" / "10000")
    params = study_directory / "trials" / "10000" / "params.json"
    params.write_text(params.read_text().replace("0002", "10000"))

    assert load_study(study_directory).trials[-1].id == "10000"


def test_half_written_trials_are_left_out_and_torn_lines_too(study_directory: Path) -> None:
    trials = study_directory / "trials"
    (trials / "0007").mkdir()
    (trials / "0008").mkdir()
    (trials / "0008" / "params.json").write_text('{"id": "0008", "par')
    (trials / "note.txt").write_text("not a trial")
    with (trials / "0006" / "result.json").open("a") as file:
        file.write('{"epoch": 2, "target_val/hse": 0.')
    (trials / "0004" / "state.json").write_text('{"state": "compl')

    study = load_study(study_directory)

    assert [trial.id for trial in study.trials][-1] == "0006"
    assert study.trials[5].epoch == 1
    assert study.trials[3].state == "unfinished"


@pytest.mark.parametrize("content", [None, '{"id": "0003", "par', "[1, 2]", '{"id": "0003"}'])
def test_results_without_settings_are_not_dropped_silently(
    study_anywhere: StoragePath, content: str | None
) -> None:
    params = study_anywhere / "trials" / "0003" / "params.json"
    params.unlink()
    if content is not None:
        write_atomically(params, content)

    with pytest.raises(UserError, match=r"0003.* holds results, but its params.json is missing"):
        load_study(study_anywhere)


def test_what_is_no_study_is_refused(place: StoragePath) -> None:
    with pytest.raises(UserError, match=r"nowhere.* is not a study: it does not exist$"):
        load_study(place / "nowhere")
    file = place / "file"
    file.write_bytes(b"x")
    with pytest.raises(UserError, match=r"is not a study: it holds no study.yaml$"):
        load_study(place)
    with pytest.raises(UserError, match=r"file.* is not a study: it holds no study.yaml$"):
        load_study(file)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a: [1", "not YAML"),
        ("", "holds nothing"),
        ("a: 1", "has no 'format' number"),
        ("format: 1\nspace: 3", "has no 'space'"),
        ("format: 1\nspace: {}", "has no 'provenance'"),
    ],
)
def test_a_damaged_header_is_named(place: StoragePath, content: str, sentence: str) -> None:
    write_atomically(place / "study.yaml", content)

    with pytest.raises(UserError, match=sentence) as caught:
        load_study(place)

    assert "study.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_newer_format_is_refused(make_study: MakeStudy) -> None:
    directory = make_study(header={"format": 2, "csg_ray": "9.1.0"})

    with pytest.raises(UserError, match=r"newer csg_ray 9.1.0 \(format 2, this one reads 1\)"):
        load_study(directory)


def test_an_unknown_state_is_refused(study_directory: Path) -> None:
    (study_directory / "trials" / "0002" / "state.json").write_text('{"state": "paused"}')

    with pytest.raises(UserError, match=r"0002/state.json has the unknown state 'paused'"):
        load_study(study_directory)


def test_reading_needs_neither_torch_nor_ray_nor_pandas(study_directory: Path) -> None:
    program = (
        "import json, sys\n"
        "from csg_ray.results.study import load_study\n"
        f"best = load_study({str(study_directory)!r}).best_trial()\n"
        "heavy = [name for name in ('torch', 'ray', 'pandas', 'optuna') if name in sys.modules]\n"
        "print(json.dumps([best.id, heavy]))\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert json.loads(done.stdout) == ["0003", []]


def test_the_header_may_hold_its_restores(make_study: MakeStudy) -> None:
    directory = make_study(header={"restores": [{"at": "now", "more": 2, "changed": {}}]})

    assert load_study(directory).restores == ({"at": "now", "more": 2, "changed": {}},)
    assert yaml.safe_load((directory / "study.yaml").read_text())["format"] == 1
