"""What ASHA's grace period costs and saves, replayed over recorded learning curves.

    python benchmarks/grace_period.py benchmarks/results/digits_table_2026-11-26.jsonl

A study of so many trials, two at a time: the published settings (the table's first row), then rows
in random order; ASHA is the project's. Printed are, over many orders, the mean of the winner's
value (of completed trials, at their last epoch), of the epochs that were trained, and of the trials
that completed; and how well each epoch's value foretells the last one over all rows (Spearman).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from pathlib import Path

from scipy.stats import spearmanr

from csg_ray.scale.halving import SuccessiveHalving

METRIC = "target_val/mean_class_accuracy"
REDUCTION_FACTOR = 3

Curves = list[list[float]]


def read_curves(table: Path) -> Curves:
    """The metric of every epoch of each row that was trained to the end."""
    rows = [json.loads(line)["epochs"] for line in table.read_text().splitlines()]
    curves = [[epoch[METRIC] for epoch in row] for row in rows]
    return [curve for curve in curves if len(curve) == len(curves[0])]


def study(curves: Curves, trials: int, grace: int | None, order: random.Random) -> list[float]:
    """The winner's value, epochs trained, trials completed."""
    left = [0, *order.sample(range(1, len(curves)), trials - 1)]
    epochs = len(curves[0])
    halving = None if grace is None else SuccessiveHalving(epochs, grace, REDUCTION_FACTOR, "max")
    running: dict[int, int] = {}
    finished: list[float] = []
    trained = 0
    while left or running:
        while left and len(running) < 2:
            running[left.pop(0)] = 0
        for row in list(running):
            running[row] += 1
            trained += 1
            epoch, value = running[row], curves[row][running[row] - 1]
            stops = halving is not None and halving.stops(str(row), epoch, value)
            if epoch == epochs:
                finished.append(value)
            if stops or epoch == epochs:
                del running[row]
    return [max(finished), trained, len(finished)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--trials", type=int, nargs="+", default=[10, 16])
    parser.add_argument("--orders", type=int, default=3000)
    arguments = parser.parse_args()
    curves = read_curves(arguments.table)
    last = [curve[-1] for curve in curves]
    print(f"{len(curves)} rows; published {last[0]:.3f}, best {max(last):.3f}")
    for number in range(len(curves[0]) - 1):
        correlation = spearmanr([curve[number] for curve in curves], last).statistic
        print(f"  epoch {number + 1} against the last: {correlation:+.2f}")
    for trials in arguments.trials:
        print(f"{trials} trials: winner, epochs, completed")
        for grace in (None, 1, 2, 3, 4, 5, 6):
            order = random.Random(0)
            runs = [study(curves, trials, grace, order) for _ in range(arguments.orders)]
            winner, epochs, completed = (statistics.fmean(each) for each in zip(*runs, strict=True))
            name = "no stopping" if grace is None else f"grace {grace}"
            print(f"  {name:12s} {winner:.3f}  {epochs:5.1f}  {completed:4.1f}")


if __name__ == "__main__":
    main()
