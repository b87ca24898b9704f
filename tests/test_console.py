from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from csg_ray.cli.console import LiveProgress, PlainProgress
from csg_ray.results.cost import Meter
from csg_ray.results.progress import TrialUpdate


def test_a_reader_who_leaves_does_not_end_the_study() -> None:
    program = (
        "import sys\n"
        "from csg_ray.cli.console import PlainProgress\n"
        "progress = PlainProgress()\n"
        "progress.message('first')\n"
        "sys.stdin.readline()\n"
        "progress.message('second')\n"
        "progress.message('third')\n"
        "print('the summary')\n"
        "sys.stderr.write('went on')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    with process:
        assert process.stdout.readline() == "first\n"
        process.stdout.close()
        process.stdin.write("go on\n")
        process.stdin.close()
        errors = process.stderr.read()

    assert (process.returncode, errors) == (0, "went on")


def test_a_failed_trial_says_why() -> None:
    lines: list[str] = []
    console = Console(width=80, record=True, file=io.StringIO())
    plain = PlainProgress(write=lines.append, clock=lambda: 0.0)
    for progress in (plain, LiveProgress(console)):
        progress.study_started(
            "digits", Path("d"), 4, 3, "target_val/mean_class_accuracy", "max", Meter()
        )
        progress.trial_updated(TrialUpdate("0001", "failed", reason="of an earlier session"))
        for number, reason in enumerate(("no [red] kernel\nat all", "x " * 300, ""), start=2):
            progress.trial_updated(TrialUpdate(f"{number:04d}", "running"))
            progress.trial_updated(TrialUpdate(f"{number:04d}", "failed", reason=reason))
        progress.study_finished()

    assert [line.partition(" | ")[0] for line in lines[1:]] == [
        "trial 0002 failed at epoch 0/3: no [red] kernel at all",
        f"trial 0003 failed at epoch 0/3: {'x ' * 98}...",
        "trial 0004 failed at epoch 0/3: no reason was given",
    ]
    text = console.export_text()
    assert "trial 0002 failed: no [red] kernel at all\n" in text
    assert "trial 0004 failed: no reason was given\n" in text
    assert "earlier session" not in text
