"""`compare`: methods side by side, as the paper has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from csg_ray.cli.guard import command
from csg_ray.config.errors import UserError
from csg_ray.results.comparison import Compared, compare
from csg_ray.results.comparison_table import (
    SELF_TRAINING,
    Column,
    remarks,
    remarks_on_all,
    sections,
)
from csg_ray.results.export import check_new_directory
from csg_ray.storage.paths import StoragePath

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPE_WIDTH = 10_000
# Columns whose names are broken into lines before a column of numbers goes.
LONG_NAMES = (("settings",), ("row",))
NARROW = 21


def show_comparison(directories: Sequence[StoragePath], out: StoragePath | None) -> None:
    """Print the rows of studies and runs beside what was published; write them to `out`, too."""
    if out is not None:
        if out.exists():
            raise UserError(f"{out} exists and is not overwritten; choose another name")
        check_new_directory(out)
    compared = compare(directories)
    # Rich costs a tenth of a second, and a wrong directory is told without it.
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        # In a pipe there is no edge to wrap at, and a wrapped table cannot be read by a program.
        console.width = PIPE_WIDTH
    print_comparison(compared, console)
    if out is None:
        print(f"next: {command('compare', *directories, '--out', 'comparison')}")
        return
    from csg_ray.results.comparison_files import write_comparison

    write_comparison(compared, out)
    print(f"written to {out}: compare.md, compare.csv, compare.parquet")


def print_comparison(compared: Compared, console: Console) -> None:
    """Tables as wide as the console, and below each what has to be said about it."""
    for comparison in compared.comparisons:
        hidden = 0
        for section in sections(comparison):
            title = f"{comparison.data}, {', '.join(comparison.models)}"
            if section.rows[0].sees_target:
                title = f"{title}\n{SELF_TRAINING}"
            hidden += _print_table(section.columns(), title, console)
            if classes := section.class_columns():
                hidden += _print_table(classes, "IoU of each class in %", console)
        if hidden:
            print(f"{hidden} columns do not fit; a wider terminal, a pipe or --out has them.")
        for sentence in remarks(comparison):
            print(sentence)
    for sentence in remarks_on_all(compared):
        print(sentence)


def _print_table(columns: Sequence[Column], title: str, console: Console) -> int:
    """Print as many columns as fit, names broken into lines if need be; how many do not fit."""
    shown, narrow = list(columns), False
    table = _table(shown, title, narrow)
    unbounded = console.options.update(max_width=PIPE_WIDTH)
    while console.measure(table, options=unbounded).maximum > console.width:
        if any(column.cells != column.short for column in shown):
            shown = [replace(column, cells=column.short) for column in shown]
        elif not narrow:
            narrow = True
        elif last := max(column.rank for column in shown):
            shown = [column for column in shown if column.rank < last]
        else:
            break
        table = _table(shown, title, narrow)
    console.print(table)
    return len(columns) - len(shown)


def _table(columns: Sequence[Column], title: str, narrow: bool) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Ruled as in a paper, which also leaves the most room for numbers.
    table = Table(
        title=Text(title),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    height = max(len(column.header) for column in columns)
    for column in columns:
        lines = ("",) * (height - len(column.header)) + column.header
        justify: Literal["right", "left"] = "right" if column.is_number else "left"
        widest = NARROW if narrow and column.header in LONG_NAMES else None
        table.add_column(Text("\n".join(lines)), justify=justify, max_width=widest)
    for number in range(len(columns[0].cells)):
        cells = (
            Text(column.cells[number], style="bold" if number in column.best else "")
            for column in columns
        )
        table.add_row(*cells)
    return table
