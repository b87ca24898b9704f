"""Time and peak memory of one training step of every method, against vanilla's.

    python benchmarks/training_step.py                      # on a GPU, at the published sizes
    python benchmarks/training_step.py --batch 2            # on a CPU, at a smaller batch
    python benchmarks/training_step.py --workload digits    # the embedded task

Every measurement is a process of its own, so that its peak memory is its own; the methods take
turns, so that both see the same machine. Time: the median of the steps after the first, which
allocates. Memory: what torch has at most allocated on a GPU; on a CPU the most that the process
held, above what it holds once everything is imported. Images and weights are random, made before
the clock starts.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

import torch
from torch import nn

from csg_ray.config.data import DigitsConfig, GTA5CityscapesConfig, VisDA17Config
from csg_ray.config.methods import METHOD_CONFIGS, CSGConfig, MethodConfig
from csg_ray.config.run import ModelConfig, RunConfig, TrainConfig
from csg_ray.data.loader import Batch
from csg_ray.methods import build_method
from csg_ray.methods.base import ReferenceMethod
from csg_ray.models.resnet import TappedResNet
from csg_ray.training.optim import build_optimizer

# Those of self-training are vanilla's step on other images, after a pass over the target.
METHODS = (
    "vanilla",
    "oracle",
    "weight_l2",
    "synaptic_intelligence",
    "feature_l2",
    "asg",
    "asg_l2o",
    "drpc",
    "csg",
)
CLASSIFICATION_ONLY = ("asg_l2o",)
# What a method has no default for.
REQUIRED = {"drpc": {"styles": "not read"}}


@dataclass(frozen=True)
class Workload:
    """What the paper trains, or the embedded task.

    Attributes:
        side: of the images.
        label_shape: of one image's labels, () for a class.
    """

    side: int
    label_shape: tuple[int, ...]
    num_classes: int
    batch_size: int
    epoch_images: int
    model: ModelConfig
    csg: CSGConfig
    data: DigitsConfig | VisDA17Config | GTA5CityscapesConfig


WORKLOADS = {
    "digits": Workload(
        side=32,
        label_shape=(),
        num_classes=10,
        batch_size=32,
        epoch_images=2000,
        model=ModelConfig(),
        csg=CSGConfig(),
        data=DigitsConfig(),
    ),
    "visda17": Workload(
        side=224,
        label_shape=(),
        num_classes=12,
        batch_size=32,
        epoch_images=152_397,
        model=ModelConfig(name="resnet101", weights="none"),
        csg=CSGConfig(stages="3,4", queue_size=65536),
        data=VisDA17Config(root="not read"),
    ),
    "gta5_cityscapes": Workload(
        side=512,
        label_shape=(512, 512),
        num_classes=19,
        batch_size=6,
        epoch_images=12_000,
        model=ModelConfig(
            name="resnet50", weights="none", head="aspp_v3", train_batch_norm_affine=False
        ),
        csg=CSGConfig(stages="3,4", queue_size=65536, patch_grid=8, train_projection=False),
        data=GTA5CityscapesConfig(gta5="not read", cityscapes="not read"),
    ),
}


def measure_here(workload: Workload, method_name: str, batch_size: int, steps: int) -> None:
    """Take the steps in this process and print what they took as JSON."""
    imported = _peak_of_process()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = RunConfig(
        data=workload.data,
        model=workload.model,
        method=_settings(workload, method_name),
        train=TrainConfig(batch_size=batch_size),
    )
    steps_per_epoch = workload.epoch_images // batch_size
    method = build_method(config, workload.num_classes, steps_per_epoch).to(device)
    optimizer = build_optimizer(method, config.train)
    batch = _random_batch(workload, method.num_views, batch_size).to(device)
    _fit_statistics(method.encoder, batch)
    if isinstance(method, ReferenceMethod):
        _fit_statistics(method.reference_encoder, batch)
    seconds = []
    for step in range(1, steps + 2):
        start = time.perf_counter()
        loss = method.training_loss(batch).loss
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        method.after_backward()
        optimizer.step()
        method.after_step(optimizer, step, steps)
        assert loss.isfinite()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = _peak_of_process() - imported
    print(json.dumps({"seconds": statistics.median(seconds[1:]), "peak_mib": peak}))


def _settings(workload: Workload, method_name: str) -> MethodConfig:
    if method_name == "csg":
        return workload.csg
    settings: MethodConfig = METHOD_CONFIGS[method_name](**REQUIRED.get(method_name, {}))
    return settings


def _random_batch(workload: Workload, num_views: int, size: int) -> Batch:
    views = [torch.randn(size, 3, workload.side, workload.side) for _ in range(num_views)]
    labels = torch.randint(workload.num_classes, (size, *workload.label_shape))
    return Batch(tuple(views), labels, torch.arange(size))


@torch.no_grad()
def _fit_statistics(encoder: TappedResNet, batch: Batch) -> None:
    """Set the running statistics of random weights to those of two images.

    Left at their start, they let the activations grow from block to block: logits of 30,000.
    """
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    encoder.train()
    encoder(batch.views[0][:2])
    encoder.eval()


def _peak_of_process() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, method_name: str, batch_size: int, steps: int) -> dict[str, float]:
    """Take the steps in a fresh process."""
    command = [sys.executable, __file__, "--workload", name, "--method", method_name]
    command += ["--batch", str(batch_size), "--steps", str(steps)]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(finished.stdout)
    return result


def compare(name: str, methods: list[str], batch_size: int | None, steps: int, rounds: int) -> None:
    """Measure the methods in turns; print a line for each, with the ratios to the first."""
    workload = WORKLOADS[name]
    size = batch_size or workload.batch_size
    published = "" if size == workload.batch_size else f" (published: {workload.batch_size})"
    print(f"{name}: {workload.model.name}, {workload.side} px, batch {size}{published}")
    taken: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    for _ in range(rounds):
        for method in methods:
            taken[method].append(measure(name, method, size, steps))
    first = taken[methods[0]]
    print(f"  {'':21s}   seconds (range)             MiB   of {methods[0]}: time (range), memory")
    for method, each in taken.items():
        seconds = sorted(one["seconds"] for one in each)
        times = sorted(a["seconds"] / b["seconds"] for a, b in zip(each, first, strict=True))
        memory = (a["peak_mib"] / b["peak_mib"] for a, b in zip(each, first, strict=True))
        print(
            f"  {method:21s} {statistics.median(seconds):9.4f} "
            f"({seconds[0]:.4f} to {seconds[-1]:.4f}) "
            f"{statistics.median(one['peak_mib'] for one in each):7.0f}   "
            f"{statistics.median(times):.2f} ({times[0]:.2f} to {times[-1]:.2f}), "
            f"{statistics.median(memory):.2f}"
        )


def main() -> None:
    """Compare the methods on every workload, or on the one named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=WORKLOADS, help="this one only")
    parser.add_argument("--batch", type=int, help="images per step; default: as published")
    parser.add_argument("--steps", type=int, default=5, help="timed, after one that is not")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--method", choices=METHODS, help="measure once, in this process")
    arguments = parser.parse_args()
    if arguments.method:
        workload = WORKLOADS[arguments.workload]
        measure_here(workload, arguments.method, arguments.batch, arguments.steps)
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads")
    for name in [arguments.workload] if arguments.workload else WORKLOADS:
        compare(name, list(arguments.methods), arguments.batch, arguments.steps, arguments.rounds)


if __name__ == "__main__":
    main()
