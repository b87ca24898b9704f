"""Draw what `digits_comparison.py` measured: accuracy by arm, and energy against accuracy.

python benchmarks/plot_comparison.py OUT PICTURE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from csg_ray.results.study import ENERGY, load_study

ACCURACY = "target_val/mean_class_accuracy"
COLOURS = {"digits-vanilla": "#b07aa1", "digits": "#1f77b4"}
NAMES = {"digits-vanilla": "vanilla", "digits": "CSG"}


def draw_arms(axes: Axes, results: dict[str, list[list[list[float]]]]) -> None:
    """Every retrained run as a dot, the mean as a bar, by arm; groups keep their own column."""
    for row, (_name, groups) in enumerate(results.items()):
        values = [run[0] for group in groups for run in group]
        axes.barh(row, sum(values) / len(values), color="#d9e6f2", height=0.6, zorder=1)
        for offset, group in zip((-0.16, 0.0, 0.16), groups, strict=True):
            axes.scatter(
                [run[0] for run in group],
                [row + offset] * len(group),
                s=14,
                color="#1f77b4",
                zorder=2,
            )
    axes.set_yticks(range(len(results)), list(results))
    axes.invert_yaxis()
    axes.set_xlim(0.0, 0.85)
    axes.set_xlabel("mean class accuracy on target_test (sealed, opened once)")
    axes.set_title("Four ways to train, nine runs each", loc="left")


def draw_trials(axes: Axes, folder: Path) -> None:
    """Every completed trial of the studies."""
    for directory in sorted(folder.iterdir()):
        study = load_study(directory)
        trials = [trial for trial in study.trials if trial.state == "completed"]
        label = NAMES[study.name] if directory.name.endswith("-0") else None
        points = ([t.last[ENERGY] for t in trials], [t.last[ACCURACY] for t in trials])
        axes.scatter(*points, s=22, color=COLOURS[study.name], label=label, alpha=0.8)
        published = study.published
        if study.name == "digits" and published is not None and published.state == "completed":
            label = "CSG as published" if directory.name.endswith("-0") else None
            point = ([published.last[ENERGY]], [published.last[ACCURACY]])
            axes.scatter(*point, marker="*", s=110, color="#e15759", label=label)
    axes.set_xlabel("hyperspherical energy on target_val (low: spread out)")
    axes.set_ylabel("mean class accuracy on target_val")
    axes.set_title("Trials of the six studies", loc="left")
    axes.legend(frameon=False)


def main() -> None:
    """Read OUT, write PICTURE."""
    out, picture = Path(sys.argv[1]), Path(sys.argv[2])
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), constrained_layout=True)
    draw_arms(left, json.loads((out / "results.json").read_text()))
    draw_trials(right, out / "studies")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main()
