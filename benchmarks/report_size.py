"""How long the report of a large study takes to build, how large it is, how fast it opens.

    python benchmarks/report_size.py --trials 1000

The study is simulated (`synthetic.py`): settings drawn at random from search_spaces/digits.yaml,
learning curves with noise, ASHA as the search runs it. With --keep DIR it stays there. The browser
is Chromium without a network, driven by playwright (`make browser-tools`).
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from synthetic import accuracy, draw, energy, epoch_seconds, learning_curve

from csg_ray.config.reader import dump_yaml
from csg_ray.scale.halving import SuccessiveHalving
from csg_ray.search_space import SearchSpace, load_search_space

SPACE = Path(__file__).parents[1] / "search_spaces" / "digits.yaml"
ACCURACY, ENERGY = "target_val/mean_class_accuracy", "target_val/hse"


def write_study(directory: Path, count: int) -> None:
    """A study of `count` trials, as a search would have left it."""
    space = load_search_space(SPACE, {"search.num_trials": count})
    header = {
        "format": 1,
        "csg_ray": "simulated",
        "created": "2026-01-01T00:00:00+00:00",
        "space": space.to_mapping(),
        "provenance": {"versions": {}, "data_sha256": "simulated"},
        "restores": [],
    }
    (directory / "trials").mkdir(parents=True)
    (directory / "study.yaml").write_text(dump_yaml(header))
    epochs, search = space.first_config().train.epochs, space.search
    halving = SuccessiveHalving(epochs, search.grace_period, search.reduction_factor, "max")
    draws = random.Random(0)
    for number in range(1, count + 1):
        first = number == 1
        params = space.first_point() if first else settings(space, draws)
        write_trial(directory / "trials" / f"{number:04d}", params, first, epochs, halving)


def settings(space: SearchSpace, draws: random.Random) -> dict[str, Any]:
    """One random setting of everything that is searched."""
    return {path: draw(domain, draws) for path, domain in space.space.items()}


def write_trial(
    folder: Path, params: dict[str, Any], first: bool, epochs: int, halving: SuccessiveHalving
) -> None:
    """A trial, cut where ASHA cuts it."""
    folder.mkdir()
    origin = "warm start" if first else "sampler"
    record = {"id": folder.name, "params": params, "origin": origin, "created": 0.0}
    (folder / "params.json").write_text(json.dumps(record))
    lines, state = [], "completed"
    diverges = accuracy(params) < 0.15
    for epoch, value in enumerate(learning_curve(params, epochs, folder.name), start=1):
        source = min(1.0, value + 0.25 + random.Random(f"{folder.name}/{epoch}").gauss(0, 0.01))
        line = {
            "epoch": epoch,
            ACCURACY: 0.0 if diverges else value,
            ENERGY: 18.4 if diverges else energy(params),
            "source_val/mean_class_accuracy": 0.0 if diverges else source,
            "diverged": int(diverges),
            "seconds": epoch_seconds(params, f"{folder.name}/{epoch}"),
        }
        lines.append(json.dumps(line) + "\n")
        if diverges:
            state = "diverged"
            break
        if epoch < epochs and halving.stops(folder.name, epoch, value):
            state = "stopped"
            break
    (folder / "result.json").write_text("".join(lines))
    (folder / "state.json").write_text(json.dumps({"state": state, "reason": state}))


def open_in_browser(page: Path) -> dict[str, float]:
    """Seconds until the page can be read, until all figures are drawn, and to sort the table."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        tab = browser.new_context(offline=True).new_page()
        seconds = {}
        started = time.perf_counter()
        tab.goto(page.as_uri())
        seconds["open"] = time.perf_counter() - started
        started = time.perf_counter()
        tab.evaluate("document.querySelectorAll('[data-figure]').forEach(draw)")
        seconds["draw every figure"] = time.perf_counter() - started
        started = time.perf_counter()
        tab.click("table.sortable th:nth-child(4) button")
        seconds["sort the table"] = time.perf_counter() - started
        browser.close()
    return seconds


def main() -> None:
    """Write, report, open."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--keep", type=Path, help="new directory for the study")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = args.keep or Path(scratch) / "study"
        write_study(directory, args.trials)
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "csg_ray", "report", str(directory)], check=True)
        print(f"report of {args.trials} trials: {time.perf_counter() - started:.1f} s")
        page = directory / "report.html"
        print(f"page: {page.stat().st_size / 1e6:.1f} MB")
        for name, seconds in open_in_browser(page).items():
            print(f"{name}: {seconds:.1f} s")


if __name__ == "__main__":
    main()
