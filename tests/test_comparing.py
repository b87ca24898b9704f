"""What `compare` says beside its numbers, on runs written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from csg_ray.cli import main
from csg_ray.cli.comparing import print_comparison
from csg_ray.config.load import config_to_mapping, override_config
from csg_ray.config.reader import dump_yaml
from csg_ray.config.run import RunConfig
from csg_ray.results.comparison import Compared, compare, describe_settings
from csg_ray.results.comparison_files import build_comparison_table
from csg_ray.results.comparison_table import remarks, remarks_on_all, sections
from csg_ray.results.published import published_task
from csg_ray.results.selection import spearman

Capture = pytest.CaptureFixture[str]
PLAIN = {"augment.num_ops": 0}
CBST = {"method.name": "cbst", "method.start": "runs/csg", "train.steps_per_epoch": 3}


def _run(
    folder: Path,
    settings: dict[str, Any],
    accuracy: float | None = 0.5,
    hse: float = 0.4,
    epoch: int = 2,
    diverged: bool = False,
    exported: dict[str, Any] | None = None,
) -> Path:
    """A run of two epochs whose last record is of `epoch`."""
    folder.mkdir()
    config = override_config(RunConfig(), {"train.epochs": 2, **settings})
    provenance = {"data_sha256": "bb"} | ({"exported": exported} if exported else {})
    text = dump_yaml(config_to_mapping(config) | {"provenance": provenance})
    (folder / "run.yaml").write_text(text)
    line: dict[str, Any] = {"epoch": epoch, "diverged": int(diverged), "target_val/hse": hse}
    if accuracy is not None:
        line["target_val/mean_class_accuracy"] = accuracy
    (folder / "result.json").write_text(json.dumps(line) + "\n")
    return folder


def _told(*runs: Path) -> list[str]:
    (comparison,) = compare(runs).comparisons
    return remarks(comparison)


def _cells(header: str, *runs: Path) -> tuple[str, ...]:
    (comparison,) = compare(runs).comparisons
    (section,) = sections(comparison)
    (column,) = [each for each in section.columns() if each.header[0] == header]
    return column.cells


def test_a_run_that_diverged_before_its_last_epoch_is_a_row_that_says_so(tmp_path: Path) -> None:
    early = _run(tmp_path / "early", {"method.name": "asg"}, 0.0, 18.4, epoch=1, diverged=True)
    whole = _run(tmp_path / "whole", {"method.name": "csg"})
    assert _cells("accuracy", early, whole) == ("diverged", "50.0")
    assert _cells("HSE", early, whole) == ("-", "0.4000")
    assert dict(compare([early, whole]).left_out) == {}


def test_a_row_says_how_many_of_its_seeds_diverged(tmp_path: Path) -> None:
    runs = [
        _run(tmp_path / f"s{seed}", {"seed": seed}, diverged=seed == 1, accuracy=0.1 * seed)
        for seed in (1, 2, 4)
    ]
    whole = _run(tmp_path / "whole", {"method.name": "vanilla"})
    assert _cells("seeds", *runs, whole) == ("1", "2, 1 diverged")
    # 20 % and 40 %: their sample deviation is 20 / sqrt(2).
    assert _cells("accuracy", *runs, whole) == ("50.0", "30.0 ± 14.1")


def test_a_metric_that_one_seed_lacks_is_no_mean_of_the_others(tmp_path: Path) -> None:
    runs = [_run(tmp_path / "a", {"seed": 1}), _run(tmp_path / "b", {"seed": 2}, accuracy=None)]
    (comparison,) = compare(runs).comparisons
    assert comparison.rows[0].value("target_val/mean_class_accuracy") is None
    assert comparison.rows[0].value("target_val/hse") is not None


def test_the_time_of_a_training_is_the_mean_over_its_seeds(tmp_path: Path) -> None:
    runs = [_run(tmp_path / f"s{seed}", {"seed": seed}) for seed in (1, 2)]
    whole = _run(tmp_path / "whole", {"method.name": "vanilla"})
    for place, seconds in zip((*runs, whole), (100.0, 200.0, 3000.0), strict=True):
        line = json.loads((place / "result.json").read_text())
        (place / "result.json").write_text(json.dumps(line | {"seconds": seconds}) + "\n")
    assert _cells("time of a", *runs, whole) == ("50 min", "2 min")
    assert "All trainings of these rows took 55 min." in _told(*runs, whole)


def test_the_time_of_trainings_that_were_not_timed_is_not_told(tmp_path: Path) -> None:
    timed, old = _run(tmp_path / "a", {"seed": 1}), _run(tmp_path / "b", {"method.name": "asg"})
    line = json.loads((timed / "result.json").read_text())
    (timed / "result.json").write_text(json.dumps(line | {"seconds": 100.0}) + "\n")
    assert _cells("time of a", timed, old) == ("-", "2 min")
    assert not any("trainings of these rows took" in each for each in _told(timed, old))


def test_augmentations_are_worded(tmp_path: Path) -> None:
    settings: list[dict[str, Any]] = [
        PLAIN,
        {"augment.magnitude": 9},
        {"augment.num_ops": 2},
    ]
    runs = [_run(tmp_path / str(number), each) for number, each in enumerate(settings)]
    assert _cells("augmentation", *runs) == (
        "none",
        "RandAugment M=9",
        "RandAugment N=2 M=6",
    )
    scenes = {"data.name": "digit_scenes", "model.head": "fcn"}
    jitter = {"augment.implementation": "color_jitter", "augment.jitter": 0.3}
    (comparison,) = compare([_run(tmp_path / "scenes", scenes | jitter)]).comparisons
    assert comparison.rows[0].augmentation == "colour jitter 0.3"


def test_where_the_paper_s_row_differs_is_marked_and_told(tmp_path: Path) -> None:
    equal = _run(tmp_path / "equal", PLAIN | {"method.name": "weight_l2"})
    augmented = _run(tmp_path / "augmented", {"method.name": "feature_l2"})
    (comparison,) = compare([equal, augmented]).comparisons
    (section,) = sections(comparison)
    paper = next(c for c in section.columns() if c.header[0] == "paper," and "%" in c.header[-1])
    assert paper.header == ("paper,", "VisDA-17", "ResNet-101", "accuracy %")
    assert paper.cells == ("56.4", "57.1†")
    assert "† the paper's row differs: augmentation none (feature_l2)." in remarks(comparison)
    assert not any(sentence.startswith("†") for sentence in _told(equal))
    table = build_comparison_table(compare([equal, augmented]))
    assert table.column("paper/differs_in").to_pylist() == [None, "augmentation"]


def test_gains_of_segmentation_are_those_of_table_5() -> None:
    rows = published_task("segmentation", "resnet101").rows
    assert {row.method: row.aside for row in rows if row.aside} == {
        "asg": "(+4.85)",
        "asg_l2o": "(+4.85)",
        "csg": "(+9.94)",
    }


def test_settings_that_all_rows_share_are_told_unless_defaults(tmp_path: Path) -> None:
    runs = [
        _run(tmp_path / name, {"method.name": name, "train.momentum": 0.5})
        for name in ("csg", "vanilla")
    ]
    (sentence,) = [each for each in _told(*runs) if each.startswith("Settings of")]
    assert sentence == "Settings of all rows: momentum 0.5, augmentation RandAugment M=6."


def test_the_published_protocol_is_another_table(tmp_path: Path) -> None:
    visda = {"data.name": "visda17", "data.root": "VisDA-17"}
    runs = [
        _run(tmp_path / "sealed", visda),
        _run(tmp_path / "published", visda | {"data.protocol": "published"}),
    ]
    assert [each.data for each in compare(runs).comparisons] == [
        "visda17",
        "visda17, published protocol",
    ]


def test_what_is_left_out_is_one_sentence_and_repeats_are_named(tmp_path: Path) -> None:
    first, again = (_run(tmp_path / name, {}) for name in ("first", "again"))
    half = [_run(tmp_path / f"h{seed}", {"seed": seed}, epoch=1) for seed in (1, 2)]
    assert remarks_on_all(compare([first, again, *half])) == [
        "left out: 2 unfinished",
        f"left out: {again}, which is {first} again: the same settings and seed",
    ]
    assert remarks_on_all(compare([first])) == []
    stopped = Compared((), {"stopped": 2, "failed": 1, "unfinished": 0}, ())
    assert remarks_on_all(stopped) == ["left out: 1 failed, 2 stopped by the scheduler"]


def test_settings_are_named_as_short_as_is_clear() -> None:
    settings = {"a.x": 1, "b.x": 2.0, "a.y": None, "model.norm": "ibn_a", "model.name": "mini"}
    assert describe_settings(settings | {"data.seed": 3}, [*settings, "data.seed"]) == [
        "a.x 1",
        "b.x 2",
        "y null",
        "norm ibn_a",
        "model mini",
        "data.seed 3",
    ]


def test_settings_that_were_chosen_by_target_labels_are_named(tmp_path: Path) -> None:
    chosen = _run(tmp_path / "c", {}, exported={"selected with target labels": True})
    other = _run(tmp_path / "o", {"method.name": "vanilla"})
    assert any(each.endswith("The settings of these were: csg.") for each in _told(chosen, other))
    assert not any("The settings of these" in each for each in _told(other))


def test_oracle_is_in_the_correlation_and_out_of_one_of_its_own(tmp_path: Path) -> None:
    # Without oracle energy and accuracy rise together; oracle alone makes them fall.
    values = {"vanilla": (0.5, 0.3), "weight_l2": (0.6, 0.4), "asg": (0.7, 0.5), "csg": (0.8, 0.6)}
    runs = [
        _run(tmp_path / name, {"method.name": name}, accuracy, hse)
        for name, (accuracy, hse) in values.items()
    ]
    oracle = _run(tmp_path / "oracle", {"method.name": "oracle"}, 0.1, 0.9)
    all_rows = spearman([0.3, 0.4, 0.5, 0.6, 0.9], [0.5, 0.6, 0.7, 0.8, 0.1])
    trained = spearman([0.3, 0.4, 0.5, 0.6], [0.5, 0.6, 0.7, 0.8])
    assert all_rows is not None
    assert trained is not None
    assert all_rows.rho == pytest.approx(0.0, abs=1e-12)
    assert trained.rho == 1.0
    told = [each for each in _told(*runs, oracle) if "over the paper's" not in each]
    assert f"HSE and accuracy over 5 rows: {all_rows}." in told
    assert any(each.startswith("HSE and accuracy over the 4 rows without oracle") for each in told)
    assert any(each.endswith(f"for which the paper has no HSE: {trained}.") for each in told)
    assert not any("without oracle" in each for each in _told(*runs))


def test_self_training_alone_still_names_its_data(tmp_path: Path, capsys: Capture) -> None:
    run = _run(tmp_path / "cbst", CBST)
    assert main(["compare", str(run)]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "digits, mini"
    assert lines[1].startswith("self-training: ")
    assert "76.4 (0.9)" in "\n".join(lines)


def test_a_narrow_terminal_drops_deviations_before_columns(tmp_path: Path, capsys: Capture) -> None:
    runs = [
        _run(tmp_path / str(seed), {"seed": seed}, accuracy=0.1 * seed, hse=0.2 * seed)
        for seed in (1, 2)
    ]
    compared = compare(runs)
    wide: list[str] = []
    narrow: list[str] = []
    for lines, width in ((wide, 200), (narrow, 60)):
        print_comparison(compared, Console(width=width))
        lines += capsys.readouterr().out.splitlines()
    assert any("0.3000 ± 0.1414" in line and "15.0 ± 7.1" in line for line in wide)
    (csg,) = [line for line in narrow if line.startswith("csg")]
    assert "0.3000" in csg
    assert "± 0.1414" not in csg
    assert "15.0 ± 7.1" in csg  # of the score the deviation stays


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["one", "one"], "is given twice"),
        (["one", "empty"], "is neither a study nor a run"),
        (["half"], "has completed (1 unfinished), so there is nothing to compare"),
        (["one", "--out", "empty"], "exists and is not overwritten"),
    ],
)
def test_bad_input_ends_with_code_2(
    words: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    _run(tmp_path / "one", {})
    _run(tmp_path / "half", {}, epoch=1)
    (tmp_path / "empty").mkdir()
    assert main(["compare", *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert sentence in shown.err
    assert shown.err.count("\n") == 1
