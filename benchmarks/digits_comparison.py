"""What the search is worth: four ways to train on rendered digits, tested on handwritten ones.

    python benchmarks/digits_comparison.py OUT

1. The base learning rate is tuned for vanilla (grid, three seeds, by target_val accuracy).
2. Vanilla (M, learning rate) and CSG (the five) are searched, 16 trials, three study
   seeds each.
3. Every pick is retrained with three training seeds that no search saw; the two settings that need
   no search (vanilla as is, CSG as published) with nine.
4. The sealed target_test is opened once for all of them.

Everything is kept in OUT; a second call goes on where the first one was stopped. About 45 minutes
on two CPU cores. Printed: mean and 95 % interval (Student's t) over the nine runs, and over the
three groups of three, which for a searched arm are the three studies.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from csg_ray.config import RunConfig, override_config
from csg_ray.data.load import load_splits
from csg_ray.methods import build_method
from csg_ray.metrics import HSE_WORST
from csg_ray.results.progress import TrialUpdate
from csg_ray.results.selection import spearman
from csg_ray.results.study import load_study
from csg_ray.scale.tuner import restore_study, run_study
from csg_ray.search_space import load_search_space
from csg_ray.storage.checkpoint import load_checkpoint
from csg_ray.storage.records import CHECKPOINT_FILE, read_results
from csg_ray.training.evaluate import evaluate_split
from csg_ray.training.loop import fit
from csg_ray.training.recorder import EpochRecorder

SPACES = Path(__file__).parents[1] / "search_spaces"
LEARNING_RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
STUDY_SEEDS = (0, 1, 2)
NUM_TRIALS = 16
TRAINING_SEEDS = (1000, 1001, 1002)
ACCURACY, HSE = "target_val/mean_class_accuracy", "target_val/hse"
T_95 = {2: 12.706, 3: 4.303, 9: 2.306}  # Student's t, 97.5 %, by sample size

Job = tuple[str, dict[str, Any], Path]


class Lines:
    """Progress of a study as plain lines."""

    def study_started(self, **about: Any) -> None:
        """One line."""
        print(f"study {about['directory']}", flush=True)

    def trial_updated(self, update: TrialUpdate) -> None:
        """One line a finished trial."""
        if update.state not in ("pending", "running"):
            accuracy = update.metrics.get(ACCURACY, math.nan)
            print(f"  {update.id} {update.state} {update.epoch} {accuracy:.3f}", flush=True)

    def message(self, text: str) -> None:
        """The text."""
        print(text, flush=True)

    def study_finished(self) -> None:
        """Nothing."""


def base_config(method: str) -> RunConfig:
    """The shipped study's fixed settings and its published point, for either method."""
    space = load_search_space(SPACES / "digits.yaml")
    config = space.config_for(space.first_point())
    return config if method == "csg" else override_config(config, {"method.name": method})


def train(job: Job) -> str:
    """Train one job in its own directory, unless that is done; one thread, as in a trial."""
    method, settings, directory = job
    torch.set_num_threads(1)
    config = override_config(base_config(method), settings)
    results = read_results(directory)
    if not results or results[-1]["epoch"] < config.train.epochs:
        recorder = EpochRecorder(directory)
        checkpoint = directory / CHECKPOINT_FILE
        fit(config, recorder, resume_from=checkpoint if checkpoint.exists() else None)
        recorder.close()
    return directory.name


def train_all(jobs: Iterable[Job], workers: int) -> None:
    """Train the jobs side by side."""
    with ProcessPoolExecutor(workers) as pool:
        for name in pool.map(train, jobs):
            print(f"  trained {name}", flush=True)


def tune_learning_rate(out: Path, workers: int) -> float:
    """The grid's best learning rate for vanilla, by mean target_val accuracy over three seeds."""
    folders = {
        rate: [out / "learning_rate" / f"{rate}-{seed}" for seed in STUDY_SEEDS]
        for rate in LEARNING_RATES
    }
    train_all(
        (
            ("vanilla", {"train.learning_rate": rate, "seed": seed}, folder)
            for rate, paths in folders.items()
            for seed, folder in zip(STUDY_SEEDS, paths, strict=True)
        ),
        workers,
    )
    means = {}
    for rate, paths in folders.items():
        values = [read_results(path)[-1][ACCURACY] for path in paths]
        means[rate] = statistics.mean(values)
        print(f"learning rate {rate:<6} vanilla target_val {means[rate]:.3f}", flush=True)
    return max(means, key=lambda rate: means[rate])


def search(out: Path, space_file: str, settings: dict[str, Any]) -> list[Path]:
    """One study a seed."""
    directories = []
    for seed in STUDY_SEEDS:
        sizes = {"search.seed": seed, "search.num_trials": NUM_TRIALS}
        space = load_search_space(SPACES / space_file, settings | sizes)
        directory = out / "studies" / f"{space.study}-{seed}"
        if (directory / "study.yaml").exists():
            restore_study(directory, 0, Lines(), False)
        else:
            run_study(space, directory, Lines(), False)
        directories.append(directory)
    return directories


def jobs_of(studies: list[Path], method: str, out: Path, rate: float) -> list[list[Job]]:
    """Retrainings of each study's pick."""
    groups = []
    for number, directory in enumerate(studies):
        best = load_study(directory).best_trial("target_val")
        assert best is not None
        print(f"pick of {directory.name}: {best.id} {dict(best.params)}", flush=True)
        settings = {"train.learning_rate": rate, **best.params}
        groups.append(
            [
                (
                    method,
                    {**settings, "seed": seed},
                    out / "runs" / f"{method}-search{number}-{seed}",
                )
                for seed in TRAINING_SEEDS
            ]
        )
    return groups


def fixed_jobs(method: str, out: Path, rate: float) -> list[list[Job]]:
    """Nine training seeds of settings that need no search."""
    seeds = [seed + 1000 * group for group in range(3) for seed in TRAINING_SEEDS]
    jobs: list[Job] = [
        (
            method,
            {"train.learning_rate": rate, "seed": seed},
            out / "runs" / f"{method}-fixed-{seed}",
        )
        for seed in seeds
    ]
    return [jobs[0:3], jobs[3:6], jobs[6:9]]


def test(
    groups: dict[str, list[list[Job]]], out: Path
) -> dict[str, list[list[tuple[float, float]]]]:
    """Open the sealed split once; (accuracy, HSE) of every run, grouped as the jobs are."""
    splits = load_splits(base_config("csg").data)
    split, _ = splits.target_test.open(out / "test_ledger.jsonl", "digits_comparison, all arms")
    device = torch.device("cpu")

    def measure(job: Job) -> tuple[float, float]:
        method, settings, directory = job
        config = override_config(base_config(method), settings)
        steps = len(splits.source_train) // config.train.batch_size
        model = build_method(config, len(splits.class_names), steps)
        model.load_state_dict(load_checkpoint(directory / CHECKPOINT_FILE)["repeats"][0]["method"])
        found = evaluate_split(model, split, config, device)
        return found["mean_class_accuracy"], found["hse"]

    return {
        name: [[measure(job) for job in group] for group in arms] for name, arms in groups.items()
    }


def interval(values: list[float]) -> str:
    """Mean and half the 95 % interval."""
    half = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.3f} +- {half:.3f}"


def table(measured: dict[str, list[list[tuple[float, float]]]]) -> str:
    """Markdown: accuracy and HSE by arm; a collapsed run gives every image the same features."""
    lines = [
        "| arm | accuracy, 9 runs | 3 groups | median | collapsed | HSE, 9 runs | median |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, groups in measured.items():
        accuracies = [run[0] for group in groups for run in group]
        energies = [run[1] for group in groups for run in group]
        studies = interval([statistics.mean(run[0] for run in group) for group in groups])
        collapsed = sum(energy == HSE_WORST["hse"] for energy in energies)
        lines.append(
            f"| {name} | {interval(accuracies)} | {studies} | {statistics.median(accuracies):.3f} "
            f"| {collapsed} | {interval(energies)} | {statistics.median(energies):.3f} |"
        )
    return "\n".join(lines)


def agreement(studies: list[Path]) -> str:
    """Spearman of HSE and accuracy over the completed trials of some studies."""
    trials = [t for path in studies for t in load_study(path).trials if t.state == "completed"]
    found = spearman([t.last[HSE] for t in trials], [t.last[ACCURACY] for t in trials])
    assert found is not None
    return f"{found.rho:+.2f}, 95 % interval {found.interval}, {found.count} completed trials"


def main() -> None:
    """All four steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time")
    args = parser.parse_args()
    out: Path = args.out
    rate = tune_learning_rate(out, args.workers)
    print(f"base learning rate: {rate}", flush=True)
    vanilla = search(out, "digits_vanilla.yaml", {})
    csg = search(out, "digits.yaml", {"train.learning_rate": rate})
    groups = {
        "vanilla as is": fixed_jobs("vanilla", out, rate),
        "vanilla, searched": jobs_of(vanilla, "vanilla", out, rate),
        "CSG as published": fixed_jobs("csg", out, rate),
        "CSG, searched": jobs_of(csg, "csg", out, rate),
    }
    train_all((job for arm in groups.values() for group in arm for job in group), args.workers)
    measured = test(groups, out)
    (out / "results.json").write_text(json.dumps(measured, indent=1))
    report = [
        table(measured),
        "",
        f"HSE and accuracy on target_val, CSG studies: Spearman {agreement(csg)}",
        f"HSE and accuracy on target_val, vanilla studies: Spearman {agreement(vanilla)}",
    ]
    (out / "table.md").write_text("\n".join(report) + "\n")
    print("\n".join(report))


if __name__ == "__main__":
    main()
