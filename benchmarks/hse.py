"""Time and peak memory of the hyperspherical energies, against what cannot be saved.

    python benchmarks/hse.py [--rows 12000 --channels 2048] [--out FILE]
    python benchmarks/hse.py --paper

`products` multiplies the same blocks of the upper triangle, and does nothing with them: the floor.
`cdist` is what one writes first: all distances at once, every pair twice; left out where they do
not fit. A second floor is printed below: every pair written once and read once, at the bandwidth
that this machine's memory was measured to have.

Every measurement is a process of its own, so that its peak memory is its own; the variants take
turns, so that all see the same machine. Shown are medians, and of the ratios within a round.
Baseline memory (Python, torch, the features) is measured alike and subtracted. `--paper` is the
size of table 1: 55,388 images of 2,048 channels, a minute a variant on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from machine import describe_machine, write_result
from torch import Tensor

from csg_ray.metrics import _default_block_size, _squared_distances, hyperspherical_energies

PAPER = (55_388, 2_048)
PASS_BYTES = 2**28


def cdist(features: Tensor) -> list[float]:
    """What one writes first: all distances at once, every pair twice, float32 means."""
    unit = torch.nn.functional.normalize(features, dim=1)
    distances = torch.cdist(unit, unit)
    pairs = distances[~torch.eye(len(unit), dtype=torch.bool)]
    return [
        float(mean) for mean in (-2 * pairs.log().mean(), (1 / pairs).mean(), (pairs**-2).mean())
    ]


def energies(features: Tensor) -> list[float]:
    """The product's way."""
    found = hyperspherical_energies(features)
    return [found.power0, found.power1, found.power2]


def products(features: Tensor) -> list[float]:
    """The same blocks' products alone, of features as they are."""
    size = _default_block_size(features)
    memory = features.new_empty(size * 4 * size)
    for start in range(0, len(features), size):
        rows = features[start : start + size]
        _squared_distances(rows, rows)
        for at in range(start + size, len(features), 4 * size):
            columns = features[at : at + 4 * size]
            tile = memory[: len(rows) * len(columns)].view(len(rows), len(columns))
            _squared_distances(rows, columns, out=tile)
    return []


def bandwidth(_: Tensor) -> list[float]:
    """Bytes a second of reading and writing memory far larger than the caches."""
    memory = torch.zeros(PASS_BYTES // 4)
    times = []
    for _repeat in range(7):
        start = time.perf_counter()
        memory.add_(1)
        times.append(time.perf_counter() - start)
    return [2 * PASS_BYTES / statistics.median(times)]


def nothing(_: Tensor) -> list[float]:
    """The memory that is there before any starts."""
    return []


VARIANTS = {
    "energies": energies,
    "products": products,
    "cdist": cdist,
    "bandwidth": bandwidth,
    "nothing": nothing,
}


def measure_here(variant: str, rows: int, channels: int) -> None:
    """Run one variant once in this process and print what it took as JSON."""
    torch.manual_seed(0)
    features = torch.randn(rows, channels).clamp_min_(0)
    features[:64] @ features[:64].T  # starts the threads
    start, start_cpu = time.perf_counter(), time.process_time()
    values = VARIANTS[variant](features)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps(
            {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mib": peak, "values": values}
        )
    )


def measure(variant: str, rows: int, channels: int) -> dict[str, float]:
    """Run one variant in a fresh process."""
    command = [sys.executable, __file__, "--variant", variant]
    command += ["--rows", str(rows), "--channels", str(channels)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(finished.stdout)
    return result


def fits(rows: int) -> bool:
    """Whether five matrices of all distances fit into half of this machine's memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 5 * 4 * rows**2 < memory / 2


def compare(rows: int, channels: int, rounds: int) -> dict[str, object]:
    """Measure the variants in turns and print a line for each; everything, for a file."""
    names = ["energies", "products", *(["cdist"] if fits(rows) else [])]
    empty = measure("nothing", rows, channels)["peak_mib"]
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in [*names, "bandwidth"]}
    for _ in range(rounds):
        for name, results in taken.items():
            results.append(measure(name, rows, channels))
    for name in names:
        spread = [each["seconds"] for each in taken[name]]
        peak = statistics.median(each["peak_mib"] for each in taken[name]) - empty
        print(
            f"{rows:6d} x {channels}  {name:8s} {statistics.median(spread):7.2f} s "
            f"({min(spread):.2f} to {max(spread):.2f})  {peak:7.0f} MiB above {empty:.0f} MiB"
        )
    for other in names[1:]:
        for clock in ("seconds", "cpu_seconds"):
            pairs = zip(taken["energies"], taken[other], strict=True)
            ratios = sorted(mine[clock] / its[clock] for mine, its in pairs)
            print(
                f"{'':14s}  energies / {other}: {statistics.median(ratios):.2f} times the "
                f"{'CPU time' if clock == 'cpu_seconds' else 'time'} "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
            )
    print_second_floor(rows, [each["values"][0] for each in taken["bandwidth"]])  # type: ignore[index]
    return {"rows": rows, "channels": channels, "empty_mib": empty, "taken": taken}


def print_second_floor(rows: int, speeds: list[float]) -> None:
    """How long it takes to write every pair's distance once and to read it once."""
    speed = statistics.median(speeds)
    pairs = rows * (rows - 1) // 2
    print(
        f"{'':14s}  every pair written and read once, at {speed / 1e9:.1f} GB/s: "
        f"{2 * 4 * pairs / speed:.2f} s"
    )


def main() -> None:
    """Compare at one size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=6_000)
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--paper", action="store_true", help="the size of table 1")
    parser.add_argument("--out", type=Path, help="a file for all measurements, as JSON")
    parser.add_argument("--variant", choices=VARIANTS, help="measure once, in this process")
    arguments = parser.parse_args()
    rows, channels = PAPER if arguments.paper else (arguments.rows, arguments.channels)
    if arguments.variant:
        measure_here(arguments.variant, rows, channels)
        return
    print(", ".join(f"{name} {value}" for name, value in describe_machine().items()))
    write_result(arguments.out, compare(rows, channels, arguments.rounds))


if __name__ == "__main__":
    main()
