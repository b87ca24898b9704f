"""The files of a comparison: a table to read, and two with every digit."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from csg_ray.results.comparison import ENERGIES, REFERENCE, Compared, Comparison, Row
from csg_ray.results.comparison_table import (
    SELF_TRAINING,
    Column,
    remarks,
    remarks_on_all,
    row_name,
    sections,
    sources,
)
from csg_ray.results.published import Beside
from csg_ray.results.table import typed_column
from csg_ray.storage.folders import remove_tree, whole_folder
from csg_ray.storage.paths import RemotePath, StoragePath
from csg_ray.storage.records import write_whole

PER_CLASS = ("target_val/class_accuracy/", "target_val/class_iou/")


def write_comparison(compared: Compared, directory: StoragePath) -> None:
    """Write `compare.md`, `compare.csv` and `compare.parquet` into a new directory, all or none."""
    table = build_comparison_table(compared)
    parquet = io.BytesIO()
    pq.write_table(table, parquet)
    files = {
        "compare.md": to_markdown(compared).encode(),
        "compare.csv": _to_csv(table).encode(),
        "compare.parquet": parquet.getvalue(),
    }
    if isinstance(directory, RemotePath):
        _write_objects(files, directory)
        return
    with whole_folder(directory) as hidden:
        for name, content in files.items():
            write_whole(hidden / name, content)


def _write_objects(files: Mapping[str, bytes], directory: RemotePath) -> None:
    """Nothing can be renamed on a store: what was written goes again when the rest fails."""
    try:
        for name, content in files.items():
            write_whole(directory / name, content)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # nothing was written yet
            remove_tree(directory)
        raise


def build_comparison_table(compared: Compared) -> pa.Table:
    """A row for each row of the tables; numbers as they are in the results, shares not in %.

    Columns: data, row, method, augmentation, sees_target, seeds, diverged, epochs, seconds (of a
    training, on each worker), `param/<path>`
    for every setting in which rows differ, each metric and `<metric>_std`, `paper/...`, and where
    the row comes from.
    """
    rows = [
        _record(comparison, row, beside)
        for comparison in compared.comparisons
        for row, beside in zip(comparison.rows, comparison.beside, strict=True)
    ]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: typed_column([row.get(name) for row in rows]) for name in names}
    return pa.table(columns)


def _record(comparison: Comparison, row: Row, beside: Beside | None) -> dict[str, Any]:
    differing = {path: row.settings.get(path) for path in comparison.differing}
    origins = [f"{member.directory.resolve()} {member.trial}".rstrip() for member in row.members]
    return {
        "data": comparison.data,
        "row": row_name(comparison, row),
        "method": row.method,
        "augmentation": comparison.augmentation_of(row),
        "sees_target": row.sees_target,
        "seeds": row.seeds,
        "diverged": row.diverged,
        "epochs": row.epochs,
        "seconds": row.seconds,
        **{f"param/{path}": value for path, value in differing.items()},
        **_metrics(comparison, row),
        **_published(comparison, beside),
        "selected_with_target_labels": row.selected_with_target_labels,
        "data_sha256": row.members[0].data_sha256,
        "origin": "; ".join(origins),
    }


def _metrics(comparison: Comparison, row: Row) -> dict[str, float | None]:
    score = comparison.score
    metrics = [*ENERGIES, f"target_val/{score}", f"source_val/{score}", REFERENCE]
    metrics += [key for key in row.members[0].last if key.startswith(PER_CLASS)]
    found: dict[str, float | None] = {}
    for metric in metrics:
        value = row.value(metric)
        found[metric] = None if value is None else value.mean
        found[f"{metric}_std"] = None if value is None else value.std
    return found


def _published(comparison: Comparison, beside: Beside | None) -> dict[str, Any]:
    """What stands beside, shares as such: the paper's 64.05 % is 0.6405."""
    row = None if beside is None else beside.row
    energies = row.energies if row is not None and row.energies else (None, None, None)
    reference = None if row is None or row.reference is None else row.reference
    differences = [] if beside is None else list(beside.differences)
    return {
        "paper/task": " ".join(comparison.published.title),
        "paper/hse": energies[0],
        "paper/hse_power1": energies[1],
        "paper/hse_power2": energies[2],
        f"paper/{comparison.score}": None if row is None else _share(row.score),
        "paper/reference_accuracy": None if reference is None else _share(reference),
        "paper/source": None if row is None else row.source,
        "paper/differs_in": ", ".join(differences) or None,
    }


def _share(percent: float) -> float:
    return round(percent / 100, 6)


def to_markdown(compared: Compared) -> str:
    """Tables as GitHub shows them, and below each what has to be said about it."""
    lines = ["# Comparison"]
    for comparison in compared.comparisons:
        lines += ["", f"## {comparison.data}, {', '.join(comparison.models)}"]
        for section in sections(comparison):
            if section.rows[0].sees_target:
                lines += ["", f"**{SELF_TRAINING}**"]
            lines += ["", *_markdown_table(section.columns())]
            if classes := section.class_columns():
                lines += ["", "IoU of each class in %:", "", *_markdown_table(classes)]
        told = [*remarks(comparison), *sources(comparison)]
        lines += ["", *(f"- {_escape(sentence)}" for sentence in told)]
    if told := remarks_on_all(compared):
        lines += ["", *(f"- {_escape(sentence)}" for sentence in told)]
    return "\n".join(lines) + "\n"


def _markdown_table(columns: Sequence[Column]) -> list[str]:
    headers = ["<br>".join(_escape(line) for line in column.header) for column in columns]
    rules = ["---:" if column.is_number else "---" for column in columns]
    rows = [
        [
            f"**{_escape(column.cells[number])}**"
            if number in column.best
            else _escape(column.cells[number])
            for column in columns
        ]
        for number in range(len(columns[0].cells))
    ]
    return [f"| {' | '.join(cells)} |" for cells in (headers, rules, *rows)]


def _escape(text: str) -> str:
    """Text in which Markdown sees no marks; an underscore between letters is none anyway."""
    return re.sub(r"([\\`*|<\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", text)


def _to_csv(table: pa.Table) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, table.column_names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.to_pylist())
    return file.getvalue()
