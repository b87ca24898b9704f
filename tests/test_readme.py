"""The README's commands run as written, in order, in a folder that holds what a clone holds.

Only the study file is a smaller one, so that this takes a minute and not six.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SMALLER = {"data.num_train": 64, "data.num_val": 20, "train.epochs": 1}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone whose `.venv` is the environment that runs these tests, installed and up to date."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / name, tmp_path / name)
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name in ("python", "csg-ray"):
        script = f'#!/bin/sh\nexec "{Path(sys.executable).with_name(name)}" "$@"\n'
        (binaries / name).write_text(script)
        (binaries / name).chmod(0o755)
    (tmp_path / ".venv" / ".installed").touch()
    space = yaml.safe_load((ROOT / "search_spaces" / "digits.yaml").read_text())
    space["base"] |= SMALLER
    space["search"] |= {"num_trials": 2, "grace_period": 1}
    (tmp_path / "search_spaces").mkdir()
    (tmp_path / "search_spaces" / "digits.yaml").write_text(yaml.safe_dump(space))
    return tmp_path


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_every_command_runs_as_written(clone: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_"))}
    output = ""
    for block in blocks("bash"):
        ran = subprocess.run(
            ["bash", "-euxc", block], cwd=clone, env=environment, capture_output=True, text=True
        )
        output += ran.stdout
        assert ran.returncode == 0, f"{block}\n{ran.stdout}\n{ran.stderr}"
    for block in blocks("python"):
        ran = subprocess.run(
            [sys.executable, "-c", block], cwd=clone, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        assert "method.temperature" in ran.stdout
    assert "Best trial:" in output
    assert (clone / "studies" / "digits" / "trials" / "0003" / "result.json").exists()
    assert (clone / "studies" / "digits" / "test_results.json").exists()
    assert (clone / "runs" / "best" / "checkpoint.pt").exists()


def test_links_and_paths_of_the_file_table_exist() -> None:
    text = (ROOT / "README.md").read_text()
    named = re.findall(r"^\| `([^`]+)` \| ", text, re.M) + re.findall(
        r"\]\((?!http)([^)#]+)\)", text
    )
    paths = [name for name in named if "/" in name]
    assert len(paths) > 10
    missing = [name for name in paths if not (ROOT / name).exists()]
    assert not missing
