"""The files of a comparison."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from csg_ray.results.comparison import Comparison, compare
from csg_ray.results.comparison_files import to_markdown, write_comparison
from csg_ray.results.comparison_table import sections
from csg_ray.storage.paths import StoragePath
from written_table import (
    ACCURACY,
    SELF_TRAINING,
    scored,
    table_of_methods,
    write_run,
    write_table,
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return table_of_methods(tmp_path / "table1")


def _only(*folders: Path) -> Comparison:
    (comparison,) = compare(folders).comparisons
    return comparison


def test_files_hold_every_digit_and_a_table_to_read(table: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "cbst", scored(0.987654321, 9.0), **SELF_TRAINING)
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
    assert records[2]["paper/reference_accuracy"] == 0.331
    assert records[5]["paper/reference_accuracy"] is None
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


def test_what_cannot_be_written_whole_is_not_written(
    table: Path, place: StoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_at_the_second(path: StoragePath, content: bytes) -> None:
        if path.name != "compare.md":
            raise OSError(28, "No space left on device")
        path.write_bytes(content)

    monkeypatch.setattr("csg_ray.results.comparison_files.write_whole", fail_at_the_second)
    before = sorted(each.name for each in place.iterdir())
    with pytest.raises(OSError, match="No space left"):
        write_comparison(compare([table]), place / "out")
    assert sorted(each.name for each in place.iterdir()) == before


def test_underscores_of_names_stay_as_they_are_in_markdown(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "r", scored(0.6, 0.4), method__name="weight_l2", model__weights="none"
    )
    base = write_run(tmp_path / "b", scored(0.6, 0.4), model__weights="/w/_odd_|*.pt")
    text = to_markdown(compare([run, base]))
    assert "| weight_l2 |" in text
    assert r"weights w/\_odd\_\|\*.pt" in text


def test_segmentation_has_its_classes(tmp_path: Path) -> None:
    base = {"data.name": "digit_scenes", "model.head": "fcn"}
    metrics = scored(0.5, 0.4, target_val__mean_iou=0.25)
    classes = {f"target_val/class_iou/{name}": 0.1 for name in ("background", "0", "1")}
    trials = [
        ({"method.name": name}, "completed", metrics | classes) for name in ("vanilla", "asg")
    ]
    space = {"method.name": {"choice": ["vanilla", "asg"]}}
    study = write_table(tmp_path / "s", space, trials, base, metric="target_val/mean_iou")
    (section,) = sections(_only(study))
    headers = [" ".join(column.header) for column in section.columns()]
    assert "mIoU %" in headers
    assert [" ".join(c.header) for c in section.class_columns()] == ["row", "background", "0", "1"]
    assert section.class_columns()[1].cells == ("10.0", "10.0")
    text = to_markdown(compare([study]))
    assert "IoU of each class" in text
    assert "32.79" in text  # of ASG, Table 5
