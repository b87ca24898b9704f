"""Images per second of 1, 2 and 4 workers that share each batch, on the cores of this machine.

    python benchmarks/worker_scaling.py [--rounds 3]

CSG on digits at batch 64, one thread a worker, gloo, started by torchrun; per run the median over
its epochs but the first. Ratios are against one worker of the same round. On two cores more than
two workers can only cost, and gloo over the loopback is no network: this shows that the workers do
divide the work, not how GPUs scale.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from csg_ray.storage.records import read_results

CONFIG = """\
data: {num_train: 1024, num_val: 20}
method: {name: csg}
augment: {translate: fraction}
train: {epochs: 4, batch_size: 64, learning_rate: 0.03}
evaluation: {hse_max_images: 100}
"""
WORKERS = (1, 2, 4)


def images_per_second(workers: int) -> float:
    """Of one run."""
    with tempfile.TemporaryDirectory() as folder:
        config, out = Path(folder) / "run.yaml", Path(folder) / "run"
        config.write_text(CONFIG)
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
        command = ["-m", *launcher, "-m", "csg_ray", "train", str(config), "--out", str(out)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *command], check=True, capture_output=True, env=environment)
        lines = read_results(out)
    assert {line["workers"] for line in lines} == {workers}
    return statistics.median(line["images_per_second"] for line in lines[1:])


def main() -> None:
    """Print a line for every number of workers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = [
        {workers: images_per_second(workers) for workers in WORKERS}
        for _ in range(parser.parse_args().rounds)
    ]
    print(f"{os.cpu_count()} cores")
    for workers in WORKERS:
        speeds = [each[workers] for each in rounds]
        ratios = [each[workers] / each[1] for each in rounds]
        print(
            f"{workers} worker(s) {statistics.median(speeds):7.1f} images/s, "
            f"{statistics.median(ratios):.2f} x one ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
