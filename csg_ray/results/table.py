"""A study as one table: a row per trial and epoch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from csg_ray.results.study import Study
from csg_ray.storage.paths import StoragePath
from csg_ray.storage.records import write_whole


def build_table(study: Study) -> pa.Table:
    """One row per (trial, epoch); a trial that has none yet keeps one row without metrics.

    Columns: id, state, reason, origin, `trial_seconds` (what the trial has cost in all on each
    worker; `seconds` among the metrics is the epoch's), `param/<path>` for every searched setting,
    the metrics.
    """
    rows = [
        {"id": trial.id, "state": trial.state, "reason": trial.reason, "origin": trial.origin}
        | {"trial_seconds": trial.seconds}
        | {f"param/{path}": value for path, value in trial.params.items()}
        | dict(metrics)
        for trial in study.trials
        for metrics in (trial.results or ({},))
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {
        name: typed_column([row.get(name) for row in rows]) for name in sorted(names, key=_order)
    }
    return pa.table(columns)


def write_table(study: Study, path: StoragePath) -> None:
    """Write the table as Parquet, whole or not at all, over an older table of the same study."""
    file = io.BytesIO()
    pq.write_table(build_table(study), file)
    write_whole(path, file.getbuffer())


def _order(name: str) -> tuple[int, str]:
    leading = ["id", "state", "reason", "origin", "epoch", "trial_seconds"]
    if name in leading:
        return leading.index(name), ""
    return (len(leading) if name.startswith("param/") else len(leading) + 1), name


def typed_column(values: Sequence[Any]) -> pa.Array:
    """A typed column; values of different kinds, such as 512 and 'auto', all become text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float}:
        kind = pa.int64() if kinds == {int} else pa.float64()
        return pa.array(values, type=kind)
    if kinds == {bool}:
        return pa.array(values, type=pa.bool_())
    return pa.array([None if value is None else str(value) for value in values], type=pa.string())
