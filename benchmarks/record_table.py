"""Train random settings of a search space to the end, and keep every epoch of each.

    python benchmarks/record_table.py TABLE.jsonl [--settings 64] [--space FILE]

The table is what `study_cost.py` replays searches over. Its first row is the space's first
warm-start point, the published settings; the others are drawn uniformly by a seed of their own. A
line each, written when its training has ended, so that it can be stopped and gone on with.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import torch

from csg_ray.scale.suggestions import _suggest
from csg_ray.search_space import SearchSpace, load_search_space
from csg_ray.training.loop import fit

SPACE = Path(__file__).parents[1] / "search_spaces" / "digits.yaml"


def settings(space: SearchSpace, count: int) -> list[dict[str, Any]]:
    """The published point, and random ones."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=20261126))
    drawn = [_suggest(study.ask(), space) for _ in range(count - 1)]
    return [dict(space.points_to_evaluate[0]), *drawn]


def train(space: SearchSpace, params: dict[str, Any]) -> list[dict[str, float]]:
    """The metrics of every epoch."""
    epochs: list[dict[str, float]] = []
    fit(space.config_for(params), lambda metrics, *_: epochs.append(metrics))
    return epochs


def main() -> None:
    """Go on with the table where it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--settings", type=int, default=64)
    parser.add_argument("--space", type=Path, default=SPACE)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    space = load_search_space(arguments.space)
    done = len(arguments.table.read_text().splitlines()) if arguments.table.exists() else 0
    for number, params in enumerate(settings(space, arguments.settings)):
        if number < done:
            continue
        began = time.perf_counter()
        row = {"params": params, "epochs": train(space, params)}
        with arguments.table.open("a") as table:
            table.write(json.dumps(row) + "\n")
        seconds = time.perf_counter() - began
        print(f"{number + 1}/{arguments.settings} {seconds:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
