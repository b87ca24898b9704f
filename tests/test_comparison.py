"""Rows, published rows and files of a comparison, on studies and runs written by hand."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from csg_ray.results.comparison import Comparison, Row, compare, name_places, pool
from csg_ray.results.comparison_table import remarks, row_name, sections, sources
from csg_ray.results.published import published_task
from csg_ray.results.selection import spearman
from made_data import refusal
from written_table import (
    ACCURACY,
    HSE,
    SELF_TRAINING,
    scored,
    table_of_methods,
    write_run,
    write_table,
)

# Table 1 of the paper: HSE at powers 0, 1, 2, and the accuracy.
TABLE_1 = {
    "vanilla": (0.4245, 1.2500, 1.6028, 49.3),
    "weight_l2": (0.4014, 1.2296, 1.5302, 56.4),
    "synaptic_intelligence": (0.3958, 1.2261, 1.5216, 57.6),
    "feature_l2": (0.3337, 1.1910, 1.4449, 57.1),
    "asg_l2o": (0.3251, 1.1840, 1.4229, 61.1),
    "csg": (0.3188, 1.1806, 1.4177, 64.05),
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return table_of_methods(tmp_path / "table1")


def _only(*folders: Path) -> Comparison:
    (comparison,) = compare(folders).comparisons
    return comparison


def _row(comparison: Comparison, method: str) -> Row:
    (row,) = [row for row in comparison.rows if row.method == method]
    return row


def test_rows_are_in_the_paper_s_order_with_what_they_are_measured_by(table: Path) -> None:
    rows = _only(table).rows
    assert [(row.method, row.augmentation) for row in rows] == [
        (name, augmentation)
        for name in ("oracle", "vanilla", "csg")
        for augmentation in ("none", "RandAugment M=6")
    ]
    csg = rows[-1]
    assert (csg.seeds, csg.diverged, csg.epochs) == (3, 0, 2)
    accuracy = csg.value(ACCURACY)
    assert accuracy is not None
    assert (accuracy.mean, accuracy.std) == pytest.approx((0.61, 0.02))
    diverged = rows[3]
    assert (diverged.seeds, diverged.diverged) == (0, 3)
    assert diverged.value(ACCURACY) is None


def test_pooled_deviations_are_those_of_all_values_together() -> None:
    groups = [[0.2, 0.5, 0.3], [0.9], [0.4, 0.7]]
    known = [
        (len(g), statistics.fmean(g), statistics.stdev(g) if len(g) > 1 else None) for g in groups
    ]
    together = [value for group in groups for value in group]
    found = pool(known)
    assert found.mean == pytest.approx(statistics.fmean(together))
    assert found.std == pytest.approx(statistics.stdev(together))
    assert pool([(1, 0.4, None)]).std is None
    assert pool([(3, 0.4, None), (1, 0.2, None)]).std is None


def test_runs_that_differ_in_the_seed_alone_are_one_row(tmp_path: Path) -> None:
    values = {1: 0.5, 2: 0.6, 3: 0.4}
    runs = [
        write_run(tmp_path / f"s{seed}", scored(value, 0.4), seed=seed)
        for seed, value in values.items()
    ]
    other = write_run(tmp_path / "other", scored(0.9, 0.1), seed=1, method__temperature=0.2)
    rows = _only(*runs, other).rows
    assert [row.seeds for row in rows] == [3, 1]
    together = rows[0].value(ACCURACY)
    assert together is not None
    assert together.mean == pytest.approx(statistics.fmean(values.values()))
    assert together.std == pytest.approx(statistics.stdev(values.values()))
    alone = rows[1].value(ACCURACY)
    assert alone is not None
    assert alone.std is None


def test_the_same_training_twice_counts_once(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, scored(0.5, 0.4), seed=3) for name in ("a", "b")]
    found = compare(runs)
    (row,) = found.comparisons[0].rows
    assert row.seeds == 1
    assert found.repeated == ((str(runs[1]), str(runs[0])),)


def _one_setting(folder: Path, state: str = "completed", accuracy: float = 0.5) -> Path:
    """CSG with magnitude 6, three repeats from seed 0."""
    stds = {f"{ACCURACY}_std": 0.1, f"{HSE}_std": 0.2}
    trials = [({"augment.magnitude": 6}, state, scored(accuracy, 0.4) | stds)]
    return write_table(folder, {"augment.magnitude": {"randint": [0, 9]}}, trials, repeats=3)


def test_repeats_and_members_are_pooled_over_all_their_seeds(tmp_path: Path) -> None:
    study = _one_setting(tmp_path / "s")
    run = write_run(tmp_path / "seed7", scored(0.9, 0.8), seed=7)
    (row,) = _only(study, run).rows
    # 0.4, 0.5, 0.6 have the mean 0.5 and the deviation 0.1.
    found = row.value(ACCURACY)
    assert row.seeds == 4
    assert found is not None
    assert found.mean == pytest.approx(statistics.fmean([0.4, 0.5, 0.6, 0.9]))
    assert found.std == pytest.approx(statistics.stdev([0.4, 0.5, 0.6, 0.9]))
    # The deviation of the three is not known, and so that of the four is not.
    power1 = row.value("target_val/hse_power1")
    assert power1 is not None
    assert power1.std is None


@pytest.mark.parametrize("study_first", [True, False])
def test_of_equal_trainings_that_with_more_repeats_stays(tmp_path: Path, study_first: bool) -> None:
    study, run = _one_setting(tmp_path / "s"), write_run(tmp_path / "again", scored(0.9, 0.8))
    compared = compare([study, run] if study_first else [run, study])
    (row,) = compared.comparisons[0].rows
    assert row.seeds == 3
    assert compared.repeated == ((str(run), f"{study} 0001"),)


def test_diverged_members_are_not_in_the_means_and_it_is_said(tmp_path: Path) -> None:
    study = _one_setting(tmp_path / "s", "diverged", accuracy=0.0)
    run = write_run(tmp_path / "seed7", scored(0.9, 0.8), seed=7)
    comparison = _only(study, run)
    (row,) = comparison.rows
    assert (row.seeds, row.diverged) == (1, 3)
    found = row.value(ACCURACY)
    assert found is not None
    assert (found.mean, found.std) == (0.9, None)
    assert "warning: csg: 3 of 4 trainings diverged and are not in the means." in remarks(
        comparison
    )


def test_uneven_rows_are_warned_of(tmp_path: Path) -> None:
    study = _one_setting(tmp_path / "s")
    other = write_run(tmp_path / "other", scored(0.4, 0.5), epoch=5, train__epochs=5)
    told = [each for each in remarks(_only(study, other)) if each.startswith("warning")]
    assert told == [
        "warning: the rows differ in their numbers of seeds (1 to 3) and epochs (2 to 5)."
    ]


def test_data_that_differ_are_never_averaged_and_warned_of(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / data, scored(0.4, 0.5), data=data) for data in ("aa11", "bb22")]
    comparison = _only(*runs)
    names = [row_name(comparison, row) for row in comparison.rows]
    assert names == ["csg, data_sha256 aa11", "csg, data_sha256 bb22"]
    assert any("data_sha256 differs" in each for each in remarks(comparison))


def test_a_value_of_most_rows_is_said_once(tmp_path: Path) -> None:
    usual = [
        write_run(tmp_path / name, scored(0.4, 0.5), method__name=name)
        for name in ("csg", "vanilla")
    ]
    other = write_run(
        tmp_path / "o", scored(0.4, 0.5), method__name="oracle", model__weights="none"
    )
    comparison = _only(*usual, other)
    names = [row_name(comparison, row) for row in comparison.rows]
    assert names == ["oracle, weights none", "vanilla", "csg"]
    assert any("all rows: weights bundled unless shown" in each for each in remarks(comparison))


def test_places_are_named_as_short_as_they_differ() -> None:
    names = {
        "/e/studies/table1/trials/0004": "table1/0004",
        "/e/studies/table1/trials/0012": "table1/0012",
    }
    assert name_places(names) == names
    deep = {"/a/runs/csg/checkpoint.pt": "a/runs/csg", "/b/runs/csg": "b/runs/csg"}
    assert name_places(deep) == deep
    twice = ["/a/runs/csg/checkpoint.pt", "/a/runs/csg"]  # the same one, named in two ways
    assert name_places(twice) == {place: place for place in twice}
    assert name_places(["bundled", "s3://bucket/x.pt"]) == {
        "bundled": "bundled",
        "s3://bucket/x.pt": "bucket/x.pt",
    }
    assert name_places([]) == {}


def test_where_self_training_starts_is_told(tmp_path: Path) -> None:
    starts = ["/e/vanilla/checkpoint.pt", "/e/asg/checkpoint.pt"]
    runs = [
        write_run(tmp_path / f"r{at}", scored(0.4, 0.5), **SELF_TRAINING | {"method__start": start})
        for at, start in enumerate(starts)
    ]
    both, alone = _only(*runs), _only(runs[0])
    names = [row_name(both, row) for row in both.rows]
    assert names == ["cbst, start e/vanilla", "cbst, start e/asg"]
    assert any("cbst: start e/vanilla" in each for each in remarks(alone))
    told = next(each for each in remarks(both) if each.startswith("In brackets"))
    assert "from ASG 82.5 (0.7) with CBST" in told


def test_a_row_is_named_by_what_tells_it_from_the_others(tmp_path: Path) -> None:
    strengths = {"choice": {"asg": {"space": {"method.loss_weight": {"choice": [0.1, 1.0]}}}}}
    strengths["choice"]["vanilla"] = {"space": {}}
    space = {"method.name": strengths, "train.backbone_lr_mult": {"choice": [0.1, 1.0]}}
    trials: list[tuple[dict[str, Any], str, dict[str, float]]] = []
    for mult in (0.1, 1.0):
        common = {"train.backbone_lr_mult": mult}
        trials.append(({"method.name": "vanilla"} | common, "completed", scored(0.5, 0.4)))
        for weight in (0.1, 1.0):
            params = {"method.name": "asg", "method.loss_weight": weight} | common
            trials.append((params, "completed", scored(0.5, 0.4)))
    comparison = _only(write_table(tmp_path / "s", space, trials))
    named = [(row.method, *comparison.settings_of(row)) for row in comparison.rows]
    assert named == [
        ("vanilla", "backbone_lr_mult 0.1"),
        ("vanilla", "backbone_lr_mult 1"),
        ("asg", "loss_weight 0.1", "backbone_lr_mult 0.1"),
        ("asg", "loss_weight 1", "backbone_lr_mult 0.1"),
        ("asg", "loss_weight 0.1", "backbone_lr_mult 1"),
        ("asg", "loss_weight 1", "backbone_lr_mult 1"),
    ]


def test_the_published_numbers_are_those_of_the_paper() -> None:
    task = published_task("classification", "mini")
    rows = {row.method: row for row in task.rows if row.energies}
    assert {name: (*row.energies, row.score) for name, row in rows.items()} == TABLE_1
    found = spearman([row.energies[0] for row in rows.values()], [r.score for r in rows.values()])
    assert found is not None
    assert found.rho == pytest.approx(-0.943, abs=5e-4)
    large = {
        row.method: (row.score, row.reference)
        for row in task.rows
        if row.settings.get("train.backbone_lr_mult") == 1.0
    }
    assert large == {"vanilla": (28.2, 0.8), "asg": (58.7, 76.2)}
    oracle = next(row for row in task.rows if row.method == "oracle")
    assert (oracle.score, oracle.reference) == (53.3, 77.4)
    on_imagenet = {
        (row.method, row.score): row.reference for row in task.rows if row.reference is not None
    }
    assert on_imagenet == {  # of ASG's ablation; the 76.7 are of an ASG with 61.5
        ("oracle", 53.3): 77.4,
        ("vanilla", 49.3): 33.1,
        ("vanilla", 28.2): 0.8,
        ("weight_l2", 56.4): 49.1,
        ("synaptic_intelligence", 57.6): 53.9,
        ("feature_l2", 57.1): 77.4,
        ("asg", 60.2): 76.5,
        ("asg", 58.7): 76.2,
        ("asg_l2o", 61.1): 76.7,
    }
    seeing = {row.method: (row.score, row.aside) for row in task.rows if row.aside}
    assert seeing == {"cbst": (76.4, "(0.9)"), "mrkld": (77.9, "(0.5)")}
    segmentation = {row.method: row.score for row in published_task("segmentation", "").rows}
    assert segmentation == {
        "vanilla": 28.94,
        "asg": 32.79,
        "asg_l2o": 32.79,
        "csg": 38.88,
        "cbst": 46.47,
        "mrkld": 47.39,
        "lrent": 46.51,
    }
    small = {row.method: row.score for row in published_task("segmentation", "resnet50").rows}
    assert small == {"csg": 35.9}


VISDA17: dict[str, Any] = {
    "data__name": "visda17",
    "data__root": "VisDA-17",
    "model__name": "resnet101",
    "model__weights": "imagenet",
}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "not digits with mini; compare the order of the methods, not the numbers"),
        (VISDA17, "as here, but on the whole target set"),
        (VISDA17 | {"data__protocol": "published"}, "as here, so that the numbers compare"),
        (
            VISDA17 | {"data__protocol": "published", "model__weights": "none"},
            "compare the order of the methods, not the numbers",
        ),
    ],
)
def test_it_is_said_whether_the_published_numbers_compare(
    tmp_path: Path, settings: dict[str, Any], told: str
) -> None:
    comparison = _only(write_run(tmp_path / "r", scored(0.6, 0.4), **settings))
    (sentence,) = [each for each in remarks(comparison) if each.startswith("paper: ")]
    assert told in sentence
    assert sources(comparison) == [
        "Sources of the published numbers: CSG (Chen et al., ICLR 2021), Table 1: csg."
    ]


def test_a_method_s_own_note_is_said_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", scored(0.6, 0.4), method__name="drpc", method__styles="styles")
    other = write_run(tmp_path / "v", scored(0.6, 0.4), method__name="vanilla")
    (note,) = [each for each in remarks(_only(run, other)) if each.startswith("note")]
    assert note.startswith("note: drpc: stylised copies")


def test_the_nearest_row_has_the_published_numbers_beside_it(table: Path, tmp_path: Path) -> None:
    comparison = _only(table)
    beside = {
        (row.method, row.augmentation): each
        for row, each in zip(comparison.rows, comparison.beside, strict=True)
    }
    vanilla = beside["vanilla", "none"]
    assert vanilla is not None
    assert (vanilla.row.score, vanilla.differences) == (49.3, ())
    assert beside["vanilla", "RandAugment M=6"] is None
    csg = beside["csg", "RandAugment M=6"]
    assert csg is not None
    assert csg.row.score == 64.05
    assert beside["csg", "none"] is None
    large = write_run(
        tmp_path / "large",
        scored(0.3, 0.9),
        method__name="vanilla",
        augment__num_ops=0,
        train__backbone_lr_mult=1.0,
    )
    (found,) = _only(large).beside
    assert found is not None
    assert found.row.score == 28.2


def test_methods_that_see_the_target_stand_apart(table: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "cbst", scored(0.99, 9.0), **SELF_TRAINING)
    alone, comparison = _only(table), _only(table, run)
    first, second = sections(comparison)
    assert {row.method for row in first.rows} == {"oracle", "vanilla", "csg"}
    assert [row.method for row in second.rows] == ["cbst"]
    # Nor do they change how energy and accuracy go together.
    assert comparison.agreement() == alone.agreement()
    agreement = alone.agreement()
    assert agreement is not None
    assert agreement.count == 5
    assert agreement.rho < -0.8


def test_what_has_not_ended_is_left_out_and_counted(tmp_path: Path) -> None:
    states = ["completed", "stopped", "failed", "unfinished"]
    trials = [
        ({"augment.magnitude": number}, state, scored(0.5, 0.4))
        for number, state in enumerate(states)
    ]
    study = write_table(tmp_path / "s", {"augment.magnitude": {"randint": [0, 9]}}, trials)
    half = write_run(tmp_path / "half", scored(0.5, 0.4), epoch=1)
    compared = compare([study, half])
    assert [len(each.rows) for each in compared.comparisons] == [1]
    assert dict(compared.left_out) == {"stopped": 1, "failed": 1, "unfinished": 2}


def test_other_data_are_another_table(table: Path, tmp_path: Path) -> None:
    folders: dict[str, Any] = {"data__source": "PACS/sketch", "data__target": "PACS/photo"}
    run = write_run(tmp_path / "pacs", scored(0.4, 0.7), data__name="image_folder", **folders)
    names = [each.data for each in compare([table, run]).comparisons]
    assert names == ["digits", "sketch -> photo"]


def test_bad_input_is_one_sentence(table: Path, tmp_path: Path) -> None:
    assert "is given twice" in refusal(lambda: compare([table, tmp_path / "x" / ".." / "table1"]))
    (tmp_path / "empty").mkdir()
    assert "is neither a study nor a run" in refusal(lambda: compare([tmp_path / "empty"]))
    assert "does not exist" in refusal(lambda: compare([tmp_path / "nowhere"]))
    half = write_run(tmp_path / "half", scored(0.5, 0.4), epoch=1)
    assert "has completed (1 unfinished)" in refusal(lambda: compare([half]))
    scenes: dict[str, Any] = {"data__name": "digit_scenes", "model__head": "fcn"}
    run = write_run(tmp_path / "scenes", scored(0.5, 0.4, target_val__mean_iou=0.2), **scenes)
    assert "whose scores do not compare" in refusal(lambda: compare([table, run]))
