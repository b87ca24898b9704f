"""`csg-ray compare`: what it prints, writes and refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from csg_ray.cli import main
from csg_ray.cli.summary import next_commands
from csg_ray.results.comparison import compare
from csg_ray.results.comparison_files import to_markdown
from csg_ray.results.study import load_study
from csg_ray.storage.paths import StoragePath
from written_table import (
    scored,
    table_of_methods,
    write_run,
)

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return table_of_methods(tmp_path / "table1")


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


def test_files_are_written_to_a_uri_too(table: Path, uri: StoragePath, capsys: Capture) -> None:
    out = uri / "comparison"
    code, shown, _ = _command(capsys, table, "--out", out)
    assert code == 0
    assert f"written to {out}" in shown
    text = (out / "compare.md").read_text("utf-8")
    assert text == to_markdown(compare([table]))
    code, _, error = _command(capsys, table, "--out", out)
    assert code == 2
    assert error == f"csg-ray: {out} exists and is not overwritten; choose another name\n"


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


def test_long_names_are_broken_before_a_column_of_numbers_goes(
    tmp_path: Path, capsys: Capture
) -> None:
    from rich.console import Console

    from csg_ray.cli.comparing import print_comparison

    several: dict[str, Any] = {
        "train__warmup_steps": 7,
        "train__weight_decay": 0.01,
        "train__momentum": 0.5,
    }
    first = write_run(tmp_path / "a", scored(0.6, 0.4321))
    second = write_run(tmp_path / "b", scored(0.5, 0.5432), method__name="vanilla", **several)
    print_comparison(compare([first, second]), Console(width=70))
    lines = capsys.readouterr().out.splitlines()
    table = lines[: next(at for at, line in enumerate(lines) if "do not fit" in line)]
    assert all(len(line) <= 70 for line in table)
    assert all(any(word in line for line in table) for word in ("0.4321", "0.5432", "64.05"))
    words = " ".join(" ".join(table).split())
    assert all(each in words for each in ("warmup_steps 7", "momentum 0.5", "weight_decay 0.01"))


def test_it_needs_neither_torch_nor_ray(table: Path) -> None:
    code = (
        "import atexit, sys; heavy = ('torch', 'ray', 'optuna');"
        "atexit.register(lambda: print([name for name in heavy if name in sys.modules]));"
        f"from csg_ray.cli import main; main(['compare', {str(table)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
    assert "Spearman" in done.stdout
