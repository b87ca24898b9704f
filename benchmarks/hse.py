"""Time and peak memory of the hyperspherical energies, against a plain `torch.cdist`.

    python benchmarks/hse.py

Every measurement is a process of its own, so that its peak memory is its own; the variants take
turns, so that both see the same machine. Shown are medians. Baseline memory (Python, torch, the
features) is measured alike and subtracted.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor

from csg_ray.metrics import hyperspherical_energies

CHANNELS = 512


def naive(features: Tensor) -> tuple[float, float, float]:
    """What one writes first: all distances at once, every pair twice, float32 means."""
    unit = torch.nn.functional.normalize(features, dim=1)
    distances = torch.cdist(unit, unit)
    pairs = distances[~torch.eye(len(unit), dtype=torch.bool)]
    return (
        float((-2 * pairs.log()).mean()),
        float((1 / pairs).mean()),
        float((1 / pairs**2).mean()),
    )


def blocked(features: Tensor) -> tuple[float, float, float]:
    """The product's way."""
    energies = hyperspherical_energies(features)
    return energies.power0, energies.power1, energies.power2


def nothing(_: Tensor) -> tuple[float, float, float]:
    """The memory that is there before either starts."""
    return 0.0, 0.0, 0.0


VARIANTS = {"naive": naive, "blocked": blocked, "nothing": nothing}


def measure_here(variant: str, rows: int) -> None:
    """Run one variant once in this process and print what it took as JSON."""
    torch.manual_seed(0)
    features = torch.randn(rows, CHANNELS).clamp_min_(0)
    features[:64] @ features[:64].T  # starts the threads
    start = time.perf_counter()
    values = VARIANTS[variant](features)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": peak, "values": values}))


def measure(variant: str, rows: int) -> dict[str, float]:
    """Run one variant in a fresh process."""
    command = [sys.executable, __file__, "--variant", variant, "--rows", str(rows)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(finished.stdout)
    return result


def compare(rows: int, names: list[str], rounds: int) -> None:
    """Measure the variants in turns and print a line for each."""
    empty = measure("nothing", rows)["peak_mib"]
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            taken[name].append(measure(name, rows))
    for name in names:
        seconds = statistics.median(each["seconds"] for each in taken[name])
        spread = [each["seconds"] for each in taken[name]]
        peak = statistics.median(each["peak_mib"] for each in taken[name]) - empty
        print(
            f"{rows:6d} x {CHANNELS}  {name:8s} {seconds:7.2f} s "
            f"({min(spread):.2f} to {max(spread):.2f})  {peak:7.0f} MiB above {empty:.0f} MiB"
        )
    if len(names) == 2:
        pairs = zip(taken[names[0]], taken[names[1]], strict=True)
        ratios = sorted(first["seconds"] / second["seconds"] for first, second in pairs)
        print(
            f"{'':14s}  {names[0]} / {names[1]}: {statistics.median(ratios):.1f} times the time "
            f"({ratios[0]:.1f} to {ratios[-1]:.1f})"
        )


def main() -> None:
    """Compare on what a full distance matrix allows, then measure the target size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--variant", choices=VARIANTS, help="measure once, in this process")
    parser.add_argument("--rows", type=int, default=20_000)
    arguments = parser.parse_args()
    if arguments.variant:
        measure_here(arguments.variant, arguments.rows)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    compare(6_000, ["naive", "blocked"], arguments.rounds)
    compare(10_000, ["naive", "blocked"], arguments.rounds)
    compare(20_000, ["blocked"], arguments.rounds)


if __name__ == "__main__":
    main()
