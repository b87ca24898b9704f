"""Vanilla, CSG as published and CSG searched on one task, tested on the sealed split.

    python benchmarks/comparison.py search_spaces/digit_scenes.yaml OUT
    python benchmarks/comparison.py search_spaces/pacs.yaml OUT --set data.source=PACS/sketch

1. One study of the search space; its first warm-start point is CSG as published.
2. Vanilla, the published point and the study's pick (by the score on target_val) are trained with
   seeds that the study did not see, all else equal.
3. The sealed target_test is opened once for all of them.

Everything is kept in OUT; a second call goes on where the first one was stopped. Printed: each
seed, means and deviations.
"""

from __future__ import annotations

import argparse
import json
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from csg_ray.cli.searching import parse_settings
from csg_ray.config import RunConfig, override_config
from csg_ray.data.load import load_splits
from csg_ray.results.progress import TrialUpdate
from csg_ray.results.study import load_study
from csg_ray.scale.tuner import restore_study, run_study
from csg_ray.search_space import SearchSpace, load_search_space
from csg_ray.storage.checkpoint import load_checkpoint
from csg_ray.storage.records import CHECKPOINT_FILE, read_results
from csg_ray.training.evaluate import evaluate_split, load_trained
from csg_ray.training.loop import fit
from csg_ray.training.recorder import EpochRecorder

FIRST_SEED = 1000


class Lines:
    """Progress of a study as plain lines."""

    def study_started(self, **about: Any) -> None:
        """One line."""
        print(f"study {about['directory']}", flush=True)

    def trial_updated(self, update: TrialUpdate) -> None:
        """One line a finished trial."""
        if update.state not in ("pending", "running"):
            print(f"  trial {update.id} {update.state} at epoch {update.epoch}", flush=True)

    def message(self, text: str) -> None:
        """The text."""
        print(text, flush=True)

    def study_finished(self) -> None:
        """Nothing."""


def search(space: SearchSpace, directory: Path) -> dict[str, Any]:
    """The pick of the study, which is run or gone on with."""
    if (directory / "study.yaml").exists():
        restore_study(directory, 0, Lines(), False)
    else:
        run_study(space, directory, Lines(), False)
    best = load_study(directory).best_trial("target_val")
    assert best is not None
    print(f"pick: trial {best.id} {dict(best.params)}", flush=True)
    return dict(best.params)


def train(job: tuple[RunConfig, Path]) -> str:
    """Train one run in its own directory, unless that is done; one thread, as in a trial."""
    config, directory = job
    torch.set_num_threads(1)
    results = read_results(directory)
    if not results or results[-1]["epoch"] < config.train.epochs:
        recorder = EpochRecorder(directory)
        checkpoint = directory / CHECKPOINT_FILE
        fit(config, recorder, resume_from=checkpoint if checkpoint.exists() else None)
        recorder.close()
    return directory.name


def measure(runs: dict[str, list[tuple[RunConfig, Path]]], out: Path) -> dict[str, Any]:
    """Score and HSE on target_test of every run."""
    config = next(iter(runs.values()))[0][0]
    splits = load_splits(config.data)
    assert splits.target_test is not None
    split, _ = splits.target_test.open(out / "test_ledger.jsonl", "comparison, all arms")
    measured: dict[str, Any] = {}
    for arm, jobs in runs.items():
        for each, directory in jobs:
            state = load_checkpoint(directory / CHECKPOINT_FILE)
            (method,) = load_trained(each, splits, state, torch.device("cpu"))
            found = evaluate_split(method, split, each, torch.device("cpu"))
            measured.setdefault(arm, []).append({"seed": each.seed, **found})
    return measured


def table(measured: dict[str, Any], score: str) -> str:
    """Markdown, one row for each arm."""
    lines = [
        f"| arm | {score} on target_test, each seed | mean | deviation | HSE |",
        "|" + "---|" * 5,
    ]
    for arm, runs in measured.items():
        values = [run[score] for run in runs]
        energies = [run["hse"] for run in runs]
        deviation = f"{statistics.stdev(values):.3f}" if len(values) > 1 else "-"
        lines.append(
            f"| {arm} | {' '.join(f'{value:.3f}' for value in values)} | "
            f"{statistics.mean(values):.3f} | {deviation} | {statistics.mean(energies):.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """All three steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("space", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time")
    args = parser.parse_args()
    space = load_search_space(args.space, parse_settings(args.set))
    pick = search(space, args.out / "study")
    published = space.first_config()
    arms = {
        "vanilla": override_config(published, {"method.name": "vanilla"}),
        "CSG as published": published,
        "CSG, searched": space.config_for(pick),
    }
    seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
    runs = {
        arm: [
            (
                config.model_copy(update={"seed": seed}),
                args.out / f"{arm.lower().replace(', ', '-').replace(' ', '-')}-{seed}",
            )
            for seed in seeds
        ]
        for arm, config in arms.items()
    }
    with ProcessPoolExecutor(args.workers) as pool:
        for name in pool.map(train, [job for jobs in runs.values() for job in jobs]):
            print(f"  trained {name}", flush=True)
    measured = measure(runs, args.out)
    report = {"space": space.to_mapping(), "pick": pick, "measured": measured}
    (args.out / "results.json").write_text(json.dumps(report, indent=1))
    print(table(measured, space.score))


if __name__ == "__main__":
    main()
