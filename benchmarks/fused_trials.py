"""How many steps of trials a second: one trial, several in turn, several stacked, or processes.

    python benchmarks/fused_trials.py --out benchmarks/results/fused_trials.json
    python benchmarks/fused_trials.py --workloads mini-32 --lanes 1 2 4 --rounds 3 --ready

Two spaces: `shared`, where trials differ in lambda, tau and the EMA momentum, so that images and
reference forward pass are the same for all, and `searched`, where each has a magnitude of its own.
Trials are trained `alone` (one process, one at a time), `in_turn` and `stacked` (one process, K at
a time), or as `processes` (K of them side by side: with one thread each on CPUs, with a K-th of the
GPU's memory each on a GPU). All take turns in every round, so that they see the same machine;
reported are medians of steps a second over all trials, and the ratios to `alone`. Images are noise
in memory, augmented as in training; with `--ready` they are made once, before the clock starts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from csg_ray.config.data import ImageFolderConfig
from csg_ray.config.methods import CSGConfig
from csg_ray.config.run import AugmentConfig, ModelConfig, RunConfig, TrainConfig
from csg_ray.data.loader import Batch, Batches
from csg_ray.data.splits import ArraySplit, DomainSplits
from csg_ray.training.lanes import Lane, LaneGroup
from csg_ray.training.loop import Training
from csg_ray.training.stacked import stacked
from csg_ray.training.turns import Rounds, in_turn

WAYS: dict[str, Rounds] = {"in_turn": in_turn, "stacked": stacked}
WARM_UP = 3
BATCH = 32
STEPS_PER_EPOCH = 200
NUM_IMAGES = 1024


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        space: `shared` or `searched`.
        workers: loader processes of each trial.
        ready: whether the images are made before the clock starts.
    """

    model: str
    side: int
    space: str
    workers: int
    ready: bool

    def config(self, number: int) -> RunConfig:
        """Trial `number` of the space. Its weights hardly move: random ones could diverge."""
        return RunConfig(
            data=ImageFolderConfig(
                source="not read", target="not read", image_size=self.side, workers=self.workers
            ),
            model=ModelConfig(
                name=self.model,  # type: ignore[arg-type]
                weights="bundled" if self.model == "mini" else "none",
            ),
            method=CSGConfig(
                loss_weight=0.1 + 0.01 * number,
                temperature=0.07 + 0.01 * number,
                ema_momentum=0.999 - 0.001 * number,
                queue_size=2048,
            ),
            augment=AugmentConfig(
                translate="fraction",
                magnitude=6.0 + (number if self.space == "searched" else 0),
            ),
            train=TrainConfig(
                batch_size=BATCH,
                steps_per_epoch=STEPS_PER_EPOCH,
                learning_rate=1e-12,
                max_gradient_norm=1e30,
            ),
        )


class ReadyBatches(Batches):
    """One batch, made beforehand, as often as an epoch has batches."""

    def __init__(self, batches: Batches, device: torch.device) -> None:
        super().__init__(batches.batch_indices, batches.load, 0)
        self.batch = self.load(self.batch_indices[0]).to(device)

    def share_of_each(self) -> Batches:
        """All of it: there is one process."""
        return self

    def __iter__(self) -> Iterator[Batch]:
        return iter([self.batch] * len(self))


def build_trainings(case: Case, numbers: range, device: torch.device) -> list[Training]:
    """Trials of a group, which share what can be shared."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (NUM_IMAGES, case.side, case.side), dtype=np.uint8)
    labels = torch.from_numpy(generator.integers(0, 10, NUM_IMAGES))
    split = ArraySplit("source_train", images, labels, tuple(map(str, range(10))))
    splits = DomainSplits(split, None, split, None, None)
    lanes = [Lane(case.config(number), splits, device) for number in numbers]
    group = LaneGroup()
    for number, lane in zip(numbers, lanes, strict=True):
        group.add(str(number), lane)
    trainings = [lane.trainings[0] for lane in lanes]
    for training in trainings:
        training.begin_epoch(1)
    if case.ready:
        made: dict[Any, ReadyBatches] = {}
        for training in trainings:
            if training.images_key not in made:
                made[training.images_key] = ReadyBatches(training.batches, device)
            training.batches = made[training.images_key]
    return trainings


def rate(trainings: list[Training], rounds: Rounds, steps: int) -> float:
    """Steps a second, of all trainings together."""
    outcomes: dict[Any, Any] = {}
    going = rounds(trainings, outcomes)
    for _ in range(WARM_UP):
        next(going)
    wait()
    started = time.perf_counter()
    for _ in range(steps):
        next(going)
    wait()
    seconds = time.perf_counter() - started
    assert not outcomes, outcomes
    return len(trainings) * steps / seconds


def wait() -> None:
    """Until the GPU, if there is one, has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Processes:
    """K processes with a trial each, idle until they are asked for their rate."""

    def __init__(self, case: Case, count: int) -> None:
        self.running = []
        for number in range(count):
            job = json.dumps({"case": asdict(case), "number": number, "count": count})
            self.running.append(
                subprocess.Popen(
                    [sys.executable, __file__, "--process", job],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        for process in self.running:
            self._read(process)  # it is ready

    def rate(self, seconds: float) -> float:
        """Steps a second of all, over a stretch in which all of them train."""
        for process in self.running:
            assert process.stdin is not None
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
        return sum(self._read(process) for process in self.running)

    def close(self) -> None:
        """Let them end."""
        for process in self.running:
            process.communicate()

    @staticmethod
    def _read(process: subprocess.Popen[str]) -> float:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise torch.OutOfMemoryError("a process has ended")
        return float(line)


def serve(job: dict[str, Any]) -> None:
    """Be one of K processes: train for as many seconds as each line of the input says."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1 / job["count"])
    number = job["number"]
    trainings = build_trainings(Case(**job["case"]), range(number, number + 1), device)
    rate(trainings, in_turn, 1)
    print(0, flush=True)
    going = itertools.chain.from_iterable(in_turn(trainings, {}) for _ in itertools.count())
    for line in sys.stdin:
        steps, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < float(line):
            next(going)
            wait()
            steps += 1
        print(steps / elapsed, flush=True)


def measure(case: Case, args: argparse.Namespace) -> dict[str, float | None]:
    """Medians of steps a second by way and K, such as `stacked 4`; None where memory ran out."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainings = build_trainings(case, range(max(args.lanes)), device)
    pools = {count: Processes(case, count) for count in args.processes}
    rates: dict[str, list[float]] = {}
    failed = set()

    def note(name: str, measure_rate: Any) -> None:
        try:
            rates.setdefault(name, []).append(measure_rate())
        except torch.OutOfMemoryError:
            failed.add(name)

    for _ in range(args.rounds):
        note("alone", lambda: rate(trainings[:1], in_turn, args.steps))
        for count in args.lanes:
            for way, rounds in WAYS.items():
                if count > 1:
                    some = trainings[:count]
                    note(f"{way} {count}", lambda s=some, r=rounds: rate(s, r, args.steps))
        for count, pool in pools.items():
            note(f"processes {count}", lambda p=pool: p.rate(args.seconds))
    for pool in pools.values():
        pool.close()
    return {
        name: None if name in failed else statistics.median(all_) for name, all_ in rates.items()
    }


def hardware() -> dict[str, Any]:
    """What it ran on, and when."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "gpu": gpu,
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Measure every workload in both spaces, print and write what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--workloads", nargs="+", default=["mini-32", "resnet18-64", "resnet18-128"]
    )
    parser.add_argument("--spaces", nargs="+", default=["shared", "searched"])
    parser.add_argument("--lanes", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--processes", nargs="*", type=int, default=[2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="in a round, of each trial")
    parser.add_argument("--seconds", type=float, default=5.0, help="of processes in a round")
    parser.add_argument("--workers", type=int, default=0, help="loader processes of each trial")
    parser.add_argument("--ready", action="store_true", help="images made before the clock starts")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--process", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.process is not None:
        serve(args.process)
        return
    found = []
    for workload in args.workloads:
        model, side = workload.split("-")
        for space in args.spaces:
            case = Case(model, int(side), space, args.workers, args.ready)
            rates = measure(case, args)
            found.append({**asdict(case), "batch": BATCH, "steps_per_second": rates})
            print(f"\n{workload}, {space}{', images ready' if args.ready else ''}")
            alone = rates["alone"]
            for name, value in rates.items():
                if value is None or alone is None:
                    print(f"  {name:14} out of memory")
                else:
                    print(f"  {name:14} {value:8.2f} steps/s  {value / alone:5.2f} x alone")
            if args.out is not None:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps({**hardware(), "cases": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
