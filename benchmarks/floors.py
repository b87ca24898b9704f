"""How far a step of CSG is from what the machine can do, and what the rest of its time is.

    python benchmarks/floors.py [--workload digits] [--batch 32] [--threads 1]

First the machine: the best rate of a matrix product, in the precision that the step's encoders
have, and of copying memory. Then the step: its multiplications and additions, counted by torch,
over that rate are its floor. Beside it the measured step, and by the profiler what part of the
kernels' time goes to convolutions and products, to the optimizer, and to all the rest.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import write_result
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from training_step import WORKLOADS, contender, workload_of

ROUNDS = 15
GROUPS = {
    "convolutions and products": ("conv", "mm", "bmm", "linear", "gemm"),
    "optimizer": ("sgd", "foreach", "_fused"),
}


def median_seconds(act: Callable[[], Any], device: torch.device, rounds: int = ROUNDS) -> float:
    """Of so many calls after three that do not count."""
    seconds = []
    for _ in range(rounds + 3):
        began = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[3:])


def peak_rate(device: torch.device) -> float:
    """Operations per second of the best of three square products, in the encoders' precision."""
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    rates = []
    for side in (4096, 8192, 16384) if on_gpu else (512, 1024, 2048):
        left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(left)
        seconds = median_seconds(lambda a=left, b=right, o=out: torch.mm(a, b, out=o), device)
        rates.append(2 * side**3 / seconds)
    return max(rates)


def bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of copying what no cache holds."""
    numbers = torch.randn(1 << 28 if device.type == "cuda" else 1 << 25, device=device)
    out = torch.empty_like(numbers)
    seconds = median_seconds(lambda: out.copy_(numbers), device)
    return 2 * numbers.numel() * numbers.element_size() / seconds


def operations(step: Callable[[], Any]) -> int:
    """Multiplications and additions of one step; convolutions and products, as torch counts."""
    counter = FlopCounterMode(display=False)
    with counter:
        step()
    return int(counter.get_total_flops())


def parts(step: Callable[[], Any], device: torch.device, steps: int = 5) -> dict[str, float]:
    """Shares of the time that kernels take, by group."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            step()
    sums = dict.fromkeys((*GROUPS, "element-wise and the rest"), 0.0)
    for event in profiler.key_averages():
        on_gpu = device.type == "cuda"
        taken = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        sums[_group(event.key.lower())] += taken
    total = sum(sums.values())
    return {name: value / total for name, value in sums.items()}


def _group(name: str) -> str:
    for group, words in GROUPS.items():
        if any(word in name for word in words):
            return group
    return "element-wise and the rest"


def main() -> None:
    """Print the machine's rates, and the step of each workload beside its floor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=WORKLOADS, default="digits")
    parser.add_argument("--model", help="another encoder than the paper's")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--threads", type=int, help="of a CPU; a trial has one")
    parser.add_argument("--out", type=Path, help="keep the figures in this file")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rate, bytes_per_second = peak_rate(device), bandwidth(device)
    print(f"products: {rate / 1e9:.0f} G operations/s, copies: {bytes_per_second / 1e9:.1f} GB/s")
    workload = workload_of(arguments.workload, arguments.model)
    batch = arguments.batch or workload.batch_size
    step = contender(workload, "csg", batch, device)
    step()
    count = operations(step)
    seconds = median_seconds(step, device)
    floor = count / rate
    shares = parts(step, device)
    print(
        f"{arguments.workload}, {workload.model.name}, batch {batch}: {count / 1e9:.1f} G "
        f"operations, floor {floor:.4f} s, measured {seconds:.4f} s ({seconds / floor:.2f} x)"
    )
    for name, share in shares.items():
        print(f"  {name:28s} {share:5.1%}")
    figures = {
        "operations_per_second": rate,
        "bytes_per_second": bytes_per_second,
        "workload": arguments.workload,
        "model": workload.model.name,
        "batch": batch,
        "operations": count,
        "floor_seconds": floor,
        "seconds": seconds,
        "shares": shares,
    }
    write_result(arguments.out, figures)


if __name__ == "__main__":
    main()
