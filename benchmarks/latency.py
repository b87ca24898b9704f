"""How long a user waits: for help, for `best`, for the first epoch, between two trials.

    python benchmarks/latency.py

Each figure is measured over whole processes: medians of several runs, and for comparison the time
Python itself takes to start. Between two trials: a study of one trial at a time is searched, and
from its files comes (end of a trial -> line of the next one's first epoch) less the time that an
epoch takes (first line -> second line).
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from csg_ray.results.study import load_study

SPACE = Path(__file__).parents[1] / "search_spaces" / "digits.yaml"
RUNS = 7


def seconds(*words: str) -> float:
    """Median wall time of a Python command."""
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def search(directory: Path) -> float:
    """Search a small study, one trial at a time; seconds from the console to the first epoch."""
    words = ["search", str(SPACE), "--study", str(directory), "--trials", "6"]
    for setting in ("search.max_concurrent=1", "search.scheduler=none", "train.epochs=2"):
        words += ["--set", setting]
    began = time.time()
    subprocess.run([sys.executable, "-m", "csg_ray", *words], check=True, capture_output=True)
    return float(load_study(directory).trials[0].results[0]["timestamp"]) - began


def gaps(directory: Path) -> list[float]:
    """Seconds from each trial's end to the next one's first step."""
    trials = load_study(directory).trials
    found = []
    for before, after in itertools.pairwise(trials):
        ended = json.loads((before.directory / "state.json").read_text())["timestamp"]
        first, second = (line["timestamp"] for line in after.results)
        found.append(first - ended - (second - first))
    return found


def main() -> None:
    """Print the five figures."""
    bare = seconds("-c", "pass")
    print(f"python -c pass                     {bare:6.2f} s")
    helped = seconds("-m", "csg_ray", "--help")
    print(
        f"csg-ray --help                     {helped:6.2f} s  ({helped / bare:.1f} x bare python)"
    )
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "study"
        first = search(directory)
        print(f"console to first finished epoch    {first:6.2f} s")
        between = gaps(directory)
        print(
            f"trial end to next first step       {statistics.median(between):6.2f} s"
            f"  (of {len(between)}: {min(between):.2f} to {max(between):.2f})"
        )
        best = seconds("-m", "csg_ray", "best", str(directory))
        print(
            f"csg-ray best                       {best:6.2f} s  ({best / bare:.1f} x bare python)"
        )


if __name__ == "__main__":
    main()
