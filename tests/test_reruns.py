from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from csg_ray.cli import main
from csg_ray.config.errors import UserError
from csg_ray.results.reruns import (
    Rerun,
    distinct_settings,
    find_reruns,
    lead,
    pair_up,
    parent_of,
    rerun_space,
    reruns_of,
    winner,
)
from csg_ray.results.selection import RULES
from csg_ray.results.study import Study, Trial, load_study
from csg_ray.scale.tuner import run_study
from csg_ray.search_space import parse_search_space
from small_study import Recorder, small_space
from written_study import write_study

MakeStudy = Callable[..., Path]
ACCURACY = "target_val/mean_class_accuracy"
FIRST = ("completed", [(0.2, 0.9, 0.8), (0.60, 0.70, 0.95)])
SECOND = ("completed", [(0.2, 0.9, 0.8), (0.70, 0.50, 0.90)])
THIRD = ("completed", [(0.2, 0.9, 0.8), (0.65, 0.20, 0.99)])
CUT = ("stopped", [(0.9, 0.1, 0.99)])


@pytest.fixture
def study(make_study: MakeStudy) -> Study:
    return load_study(make_study(FIRST, SECOND, CUT, THIRD))


def rerun(trial_id: str, values: list[float], state: str = "completed") -> Rerun:
    """A rerun over so many seeds, as the loop would report it."""
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    last = {"epoch": 2, ACCURACY: mean, f"{ACCURACY}_std": spread}
    trial = Trial(trial_id, {}, "warm start", state, "", (last,), Path(trial_id))
    return Rerun(replace(trial, id=f"1{trial_id}"), trial)


def test_the_space_runs_the_settings_once_more_over_new_seeds(study: Study) -> None:
    again = rerun_space(study, study.top(2), 3)

    assert again.points_to_evaluate == tuple(dict(trial.params) for trial in study.top(2))
    assert (again.search.num_trials, again.search.repeats) == (2, 3)
    assert again.search.scheduler == "none"
    assert again.search.keep_checkpoints == 2
    for trial in study.top(2):
        before, after = study.space.config_for(trial.params), again.config_for(trial.params)
        assert after.seed != before.seed
        assert after.model_copy(update={"seed": before.seed}) == before
    # The file that the study's folder will hold is a legal one, and says the same.
    assert parse_search_space(again.to_mapping()).to_mapping() == again.to_mapping()


def test_the_stamp_stays_what_it_was(study: Study) -> None:
    """What steered the search has had a hand in the reruns, too."""
    assert rerun_space(study, study.top(1), 2).search.sampler == study.space.search.sampler


def test_a_study_over_seeds_has_its_reruns_already(study: Study) -> None:
    mapping = study.space.to_mapping()
    mapping["space"]["seed"] = {"choice": [0, 1]}
    mapping["points_to_evaluate"] = []
    seeded = replace(study, space=parse_search_space(mapping))
    with pytest.raises(UserError, match=r"searched the seed itself.*csg-ray compare"):
        rerun_space(seeded, [], 3)


def test_the_same_settings_are_trained_once(study: Study) -> None:
    best, second, third = study.top(3)
    twin = replace(second, id="0009", params=dict(best.params))
    assert distinct_settings([best, twin, second, third], 2) == [best, second]
    assert distinct_settings([best, twin], 5) == [best]


def test_the_mean_over_new_seeds_decides_and_not_the_lucky_seed() -> None:
    pairs = [rerun("1", [0.70, 0.60]), rerun("2", [0.66, 0.68]), rerun("3", [0.9, 0.9], "diverged")]
    best = winner(pairs, RULES["target_val"])
    assert best is not None
    assert best.original.id == "12"
    assert winner([pairs[2]], RULES["target_val"]) is None


def test_the_lead_and_its_standard_error_by_hand() -> None:
    one, two = [0.70, 0.60, 0.62], [0.66, 0.68, 0.67]
    found = lead([rerun("1", one), rerun("2", two)], RULES["target_val"], 3)
    assert found is not None
    gap = abs(sum(one) / 3 - sum(two) / 3)
    variances = [sum((v - sum(vs) / 3) ** 2 for v in vs) / 2 for vs in (one, two)]
    assert found == pytest.approx((gap, math.sqrt(variances[0] / 3 + variances[1] / 3)))
    assert lead([rerun("1", one)], RULES["target_val"], 3) is None
    assert lead([], RULES["target_val"], 3) is None


def test_reruns_are_found_beside_the_trials_that_they_repeat(study: Study) -> None:
    assert isinstance(study.directory, Path)
    assert find_reruns(study) == []
    space = rerun_space(study, study.top(2), 3)
    for name in ("reruns", "reruns-2"):
        write_study(study.directory / name, SECOND, THIRD)
    (study.directory / "reruns-3").mkdir()  # made, and killed before its first file
    found = find_reruns(study)
    assert [each.directory.name for each in found] == ["reruns", "reruns-2"]
    assert reruns_of(study, space) is None
    assert reruns_of(study, found[1].space) == found[0]
    # As written, its trials have the settings of 0001 and 0002.
    assert [(p.original.id, p.again.id) for p in pair_up(study, found[0])] == [
        ("0001", "0001"),
        ("0002", "0002"),
    ]
    assert parent_of(found[0].directory) == study.directory
    assert parent_of(study.directory) is None
    assert parent_of(study.directory / "trials") is None
    assert [trial.id for trial in load_study(study.directory).trials] == [
        trial.id for trial in study.trials
    ]


def test_a_study_that_may_still_change_its_best_is_refused(
    make_study: MakeStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = make_study(FIRST, ("unfinished", [(0.2, 0.9, 0.8)]))
    assert main(["best", str(directory), "--rerun-seeds", "2"]) == 2
    error = capsys.readouterr().err
    assert "1 of 2 trials of study" in error
    assert "restore the study with csg-ray restore first" in error
    assert not (directory / "reruns").exists()


def test_one_seed_is_no_spread(make_study: MakeStudy, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["best", str(make_study(FIRST)), "--rerun-seeds", "1"]) == 2
    assert "--rerun-seeds" in capsys.readouterr().err


def finished_reruns(study: Study, accuracies: Any) -> None:
    """Reruns that have ended, with (mean, deviation) of the accuracy of each."""
    assert isinstance(study.directory, Path)
    space = rerun_space(study, study.top(2), 3)
    header = {"space": space.to_mapping()}
    write_study(study.directory / "reruns", FIRST, FIRST, header=header)
    for number, (trial, (mean, spread)) in enumerate(
        zip(study.top(2), accuracies, strict=True), start=1
    ):
        folder = study.directory / "reruns" / "trials" / f"{number:04d}"
        record = json.loads((folder / "params.json").read_text())
        (folder / "params.json").write_text(json.dumps(record | {"params": dict(trial.params)}))
        line = {"epoch": 3, ACCURACY: mean, f"{ACCURACY}_std": spread, "target_val/hse": 0.5}
        line["source_val/mean_class_accuracy"] = 0.9
        (folder / "result.json").write_text(json.dumps(line) + "\n")


def test_ended_reruns_are_shown_and_not_trained_again(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    finished_reruns(study, [(0.61, 0.01), (0.67, 0.02)])

    words = ["best", str(study.directory), "--rerun-seeds", "3", "--top", "2"]
    assert main(words) == 0

    out = capsys.readouterr().out
    rows = [line.replace("│", " ").split() for line in out.splitlines() if "│" in line]
    assert ["0002", "completed", "0.700", "0.610", "+-", "0.010", "0.500", "0.900"] in rows
    assert ["0004", "completed", "0.650", "0.670", "+-", "0.020", "0.500", "0.900"] in rows
    error = math.sqrt((0.01**2 + 0.02**2) / 3)
    assert f"leads the second by 0.060, which is more than two standard errors ({error:.3f}" in out
    assert "Winner over 3 new seeds: trial 0004 (by accuracy on target_val, selected with" in out
    assert f"export {study.directory} digits.yaml --trial 0004" in out


def test_a_lead_within_chance_is_called_that(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    finished_reruns(study, [(0.66, 0.03), (0.67, 0.02)])
    assert main(["best", str(study.directory), "--rerun-seeds", "3", "--top", "2"]) == 0
    assert "by 0.010, which is not more than two standard errors" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_reruns_are_trained_go_on_where_they_were_and_are_reported(
    shared_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "small"
    run_study(small_space(3, epochs=1, scheduler="none"), directory, Recorder(), verbose=False)
    words = ["best", str(directory), "--rerun-seeds", "2", "--top", "2"]
    assert main(words) == 0
    first = load_study(directory / "reruns")
    assert [trial.state for trial in first.trials] == ["completed", "completed"]
    study = load_study(directory)
    assert [dict(trial.params) for trial in first.trials] == [
        dict(trial.params) for trial in study.top(2)
    ]
    for trial in first.trials:
        assert trial.last[f"{ACCURACY}_std"] >= 0
    # As if it had been killed in its second trial.
    lost = directory / "reruns" / "trials" / "0002"
    for name in ("state.json", "result.json", "checkpoint.pt"):
        (lost / name).unlink()
    kept = (directory / "reruns" / "trials" / "0001" / "result.json").read_bytes()
    capsys.readouterr()

    assert main(words) == 0

    again = load_study(directory / "reruns")
    assert (directory / "reruns" / "trials" / "0001" / "result.json").read_bytes() == kept
    # The same seeds give the same numbers.
    assert again.trials[1].last[ACCURACY] == first.trials[1].last[ACCURACY]
    assert not (directory / "reruns-2").exists()
    assert "Winner over 2 new seeds: trial 000" in capsys.readouterr().out
    assert main(["report", str(directory)]) == 0
    assert "Over new seeds" in (directory / "report.html").read_text()
