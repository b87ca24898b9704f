"""Rows, published rows and files of a comparison, on studies and runs written by hand."""

from __future__ import annotations

import csv
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from csg_ray.cli import main
from csg_ray.cli.summary import next_commands
from csg_ray.config.load import config_to_mapping, override_config
from csg_ray.config.reader import dump_yaml
from csg_ray.config.run import RunConfig
from csg_ray.results.comparison import Comparison, Row, compare, pool
from csg_ray.results.comparison_files import to_markdown, write_comparison
from csg_ray.results.comparison_table import sections
from csg_ray.results.published import published_task
from csg_ray.results.selection import spearman
from csg_ray.results.study import load_study
from made_data import refusal

Capture = pytest.CaptureFixture[str]
ACCURACY, HSE = "target_val/mean_class_accuracy", "target_val/hse"
# Table 1 of the paper: HSE at powers 0, 1, 2, and the accuracy.
TABLE_1 = {
    "vanilla": (0.4245, 1.2500, 1.6028, 49.3),
    "weight_l2": (0.4014, 1.2296, 1.5302, 56.4),
    "synaptic_intelligence": (0.3958, 1.2261, 1.5216, 57.6),
    "feature_l2": (0.3337, 1.1910, 1.4449, 57.1),
    "asg_l2o": (0.3251, 1.1840, 1.4229, 61.1),
    "csg": (0.3188, 1.1806, 1.4177, 64.05),
}


def _metrics(accuracy: float, hse: float, **more: float) -> dict[str, float]:
    return {
        ACCURACY: accuracy,
        HSE: hse,
        "target_val/hse_power1": hse + 1,
        "target_val/hse_power2": hse + 2,
        "source_val/mean_class_accuracy": 0.9,
        **{name.replace("__", "/"): value for name, value in more.items()},
    }


def _study(
    folder: Path,
    space: Mapping[str, Any],
    trials: list[tuple[dict[str, Any], str, dict[str, float]]],
    base: Mapping[str, Any] | None = None,
    repeats: int = 1,
    metric: str = ACCURACY,
) -> Path:
    """A grid study; each trial is (params, state, metrics of its last epoch)."""
    mapping = {
        "study": "table",
        "base": {"train.epochs": 2, **(base or {})},
        "space": space,
        "points_to_evaluate": [],
        "search": {
            "metric": metric,
            "mode": "max",
            "num_trials": len(trials),
            "sampler": "tpe" if "randint" in str(space) else "grid",
            "scheduler": "none",
            "repeats": repeats,
        },
        "resources": {},
    }
    header = {"format": 1, "space": mapping, "provenance": {"data_sha256": "bb"}}
    (folder / "trials").mkdir(parents=True)
    (folder / "study.yaml").write_text(dump_yaml(header))
    for number, (params, state, metrics) in enumerate(trials, start=1):
        trial = folder / "trials" / f"{number:04d}"
        trial.mkdir()
        record = {"id": trial.name, "params": params, "origin": "grid", "created": 1.0}
        (trial / "params.json").write_text(json.dumps(record))
        lines = [
            {"epoch": epoch, "diverged": int(state == "diverged" and epoch == 2), **metrics}
            for epoch in (1, 2)
        ]
        (trial / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if state != "unfinished":
            (trial / "state.json").write_text(json.dumps({"state": state, "reason": ""}))
    return folder


def _run(folder: Path, metrics: dict[str, float], epoch: int = 2, **settings: Any) -> Path:
    folder.mkdir()
    named = {name.replace("__", "."): value for name, value in settings.items()}
    config = override_config(RunConfig(), {"train.epochs": 2, **named})
    text = dump_yaml(config_to_mapping(config) | {"provenance": {"data_sha256": "bb"}})
    (folder / "run.yaml").write_text(text)
    line = {"epoch": epoch, "diverged": 0, **metrics}
    (folder / "result.json").write_text(json.dumps(line) + "\n")
    return folder


METHODS_SPACE = {
    "method.name": {"choice": ["csg", "vanilla", "oracle"]},
    "augment.num_ops": {"choice": [0, 1]},
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Three methods with and without augmentation, out of the paper's order; one diverged."""
    trials = []
    for place, name in enumerate(("csg", "vanilla", "oracle")):
        for num_ops in (0, 1):
            accuracy, hse = 0.6 - 0.1 * place + 0.01 * num_ops, 0.3 + 0.1 * place
            metrics = _metrics(accuracy, hse, reference_task__accuracy=0.8)
            stds = {f"{ACCURACY}_std": 0.02, f"{HSE}_std": 0.03}
            state = "diverged" if (name, num_ops) == ("vanilla", 1) else "completed"
            trials.append(
                ({"method.name": name, "augment.num_ops": num_ops}, state, metrics | stds)
            )
    return _study(tmp_path / "table1", METHODS_SPACE, trials, repeats=3)


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
        _run(tmp_path / f"s{seed}", _metrics(value, 0.4), seed=seed)
        for seed, value in values.items()
    ]
    other = _run(tmp_path / "other", _metrics(0.9, 0.1), seed=1, method__temperature=0.2)
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
    runs = [_run(tmp_path / name, _metrics(0.5, 0.4), seed=3) for name in ("a", "b")]
    found = compare(runs)
    (row,) = found.comparisons[0].rows
    assert row.seeds == 1
    assert found.repeated == ((str(runs[1]), str(runs[0])),)


def test_a_row_is_named_by_what_tells_it_from_the_others(tmp_path: Path) -> None:
    strengths = {"choice": {"asg": {"space": {"method.loss_weight": {"choice": [0.1, 1.0]}}}}}
    strengths["choice"]["vanilla"] = {"space": {}}
    space = {"method.name": strengths, "train.backbone_lr_mult": {"choice": [0.1, 1.0]}}
    trials: list[tuple[dict[str, Any], str, dict[str, float]]] = []
    for mult in (0.1, 1.0):
        common = {"train.backbone_lr_mult": mult}
        trials.append(({"method.name": "vanilla"} | common, "completed", _metrics(0.5, 0.4)))
        for weight in (0.1, 1.0):
            params = {"method.name": "asg", "method.loss_weight": weight} | common
            trials.append((params, "completed", _metrics(0.5, 0.4)))
    comparison = _only(_study(tmp_path / "s", space, trials))
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
    segmentation = {row.method: row.score for row in published_task("segmentation", "").rows}
    assert segmentation["csg"] == 38.88
    assert segmentation["cbst"] == 46.47


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
    large = _run(
        tmp_path / "large",
        _metrics(0.3, 0.9),
        method__name="vanilla",
        augment__num_ops=0,
        train__backbone_lr_mult=1.0,
    )
    (found,) = _only(large).beside
    assert found is not None
    assert found.row.score == 28.2


SELF_TRAINING: dict[str, Any] = {
    "method__name": "cbst",
    "method__start": "runs/csg",
    "train__steps_per_epoch": 3,
}


def test_methods_that_see_the_target_stand_apart(table: Path, tmp_path: Path) -> None:
    run = _run(tmp_path / "cbst", _metrics(0.99, 9.0), **SELF_TRAINING)
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


def test_files_hold_every_digit_and_a_table_to_read(table: Path, tmp_path: Path) -> None:
    run = _run(tmp_path / "cbst", _metrics(0.987654321, 9.0), **SELF_TRAINING)
    compared = compare([table, run])
    out = tmp_path / "new" / "out"
    write_comparison(compared, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "compare.csv",
        "compare.md",
        "compare.parquet",
    ]
    records = pq.read_table(out / "compare.parquet").to_pylist()
    with (out / "compare.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(records) == len(lines) == 7
    for record, line in zip(records, lines, strict=True):
        for name, value in record.items():
            assert line[name] == ("" if value is None else str(value)), name
    assert [record["sees_target"] for record in records] == [False] * 6 + [True]
    assert records[-1][ACCURACY] == 0.987654321
    assert records[5][f"{ACCURACY}_std"] == 0.02
    assert records[5]["paper/mean_class_accuracy"] == 0.6405
    assert records[5]["origin"] == f"{table} 0002"
    assert records[3]["diverged"] == 3
    text = (out / "compare.md").read_text()
    assert text == to_markdown(compared)
    assert "| **0.3000 ± 0.0300** |" in text
    assert "**61.0 ± 2.0**" in text  # of those that see no target
    assert "| diverged |" in text
    assert "self-training" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.count(" | ") for line in rows[:8]}) == 1


def test_segmentation_has_its_classes(tmp_path: Path) -> None:
    base = {"data.name": "digit_scenes", "model.head": "fcn"}
    metrics = _metrics(0.5, 0.4, target_val__mean_iou=0.25)
    classes = {f"target_val/class_iou/{name}": 0.1 for name in ("background", "0", "1")}
    trials = [
        ({"method.name": name}, "completed", metrics | classes) for name in ("vanilla", "asg")
    ]
    space = {"method.name": {"choice": ["vanilla", "asg"]}}
    study = _study(tmp_path / "s", space, trials, base, metric="target_val/mean_iou")
    (section,) = sections(_only(study))
    headers = [" ".join(column.header) for column in section.columns()]
    assert "mIoU %" in headers
    assert [" ".join(c.header) for c in section.class_columns()] == ["row", "background", "0", "1"]
    assert section.class_columns()[1].cells == ("10.0", "10.0")
    text = to_markdown(compare([study]))
    assert "IoU of each class" in text
    assert "32.79" in text  # of ASG, Table 5


def test_what_has_not_ended_is_left_out_and_counted(tmp_path: Path) -> None:
    states = ["completed", "stopped", "failed", "unfinished"]
    trials = [
        ({"augment.magnitude": number}, state, _metrics(0.5, 0.4))
        for number, state in enumerate(states)
    ]
    study = _study(tmp_path / "s", {"augment.magnitude": {"randint": [0, 9]}}, trials)
    half = _run(tmp_path / "half", _metrics(0.5, 0.4), epoch=1)
    compared = compare([study, half])
    assert [len(each.rows) for each in compared.comparisons] == [1]
    assert dict(compared.left_out) == {"stopped": 1, "failed": 1, "unfinished": 2}


def test_other_data_are_another_table(table: Path, tmp_path: Path) -> None:
    folders: dict[str, Any] = {"data__source": "PACS/sketch", "data__target": "PACS/photo"}
    run = _run(tmp_path / "pacs", _metrics(0.4, 0.7), data__name="image_folder", **folders)
    names = [each.data for each in compare([table, run]).comparisons]
    assert names == ["digits", "sketch -> photo"]


def test_bad_input_is_one_sentence(table: Path, tmp_path: Path) -> None:
    assert "is given twice" in refusal(lambda: compare([table, tmp_path / "x" / ".." / "table1"]))
    (tmp_path / "empty").mkdir()
    assert "is neither a study nor a run" in refusal(lambda: compare([tmp_path / "empty"]))
    assert "does not exist" in refusal(lambda: compare([tmp_path / "nowhere"]))
    half = _run(tmp_path / "half", _metrics(0.5, 0.4), epoch=1)
    assert "has completed (1 unfinished)" in refusal(lambda: compare([half]))
    scenes: dict[str, Any] = {"data__name": "digit_scenes", "model__head": "fcn"}
    run = _run(tmp_path / "scenes", _metrics(0.5, 0.4, target_val__mean_iou=0.2), **scenes)
    assert "whose scores do not compare" in refusal(lambda: compare([table, run]))


def _command(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    try:
        code = main(["compare", *map(str, arguments)])
    except SystemExit as ending:
        code = int(ending.code or 0)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_the_command_prints_the_table(table: Path, capsys: Capture) -> None:
    code, out, _ = _command(capsys, table)
    assert code == 0
    lines = out.splitlines()
    (csg,) = [line for line in lines if line.startswith("csg") and "RandAugment" in line]
    for word in ("0.3000 ± 0.0300", "61.0 ± 2.0", "64.05", "0.3188", "80.0"):
        assert word in csg  # in a pipe nothing is cut
    assert any("Mean ± sample deviation over 3 seeds" in line for line in lines)
    assert any("paper's 6 methods: Spearman -0.94" in line for line in lines)
    assert any("compare the order of the methods, not the numbers" in line for line in lines)
    assert any("selects with target labels" in line for line in lines)
    assert lines[-1].startswith("next: ")


def test_a_table_s_search_ends_by_naming_the_command(table: Path) -> None:
    assert next_commands(load_study(table))[0].endswith(f"compare {table}")


def test_the_command_writes_files_once(table: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    code, shown, _ = _command(capsys, table, "--out", out)
    assert code == 0
    assert f"written to {out}" in shown
    before = (out / "compare.csv").read_bytes()
    code, _, error = _command(capsys, table, "--out", out)
    assert code == 2
    assert "exists and is not overwritten" in error
    assert (out / "compare.csv").read_bytes() == before


def test_a_refused_comparison_writes_nothing(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    code, _, error = _command(capsys, tmp_path / "nowhere", "--out", out)
    assert code == 2
    assert "nowhere" in error
    assert list(tmp_path.iterdir()) == []


def test_a_narrow_terminal_keeps_what_matters(table: Path, capsys: Capture) -> None:
    from rich.console import Console

    from csg_ray.cli.comparing import print_comparison

    console = Console(width=90, force_terminal=False)
    print_comparison(compare([table]), console)
    out = capsys.readouterr().out
    assert all(len(line) <= 90 for line in out.splitlines() if line.startswith(("csg", "vanilla")))
    assert "61.0 ± 2.0" in out
    assert "columns do not fit" in out


def test_it_needs_neither_torch_nor_ray(table: Path) -> None:
    code = (
        "import atexit, sys; heavy = ('torch', 'ray', 'optuna');"
        "atexit.register(lambda: print([name for name in heavy if name in sys.modules]));"
        f"from csg_ray.cli import main; main(['compare', {str(table)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
    assert "Spearman" in done.stdout
