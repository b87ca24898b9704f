r"""Time and peak memory of one training step: against the plain step, and against vanilla's.

    python benchmarks/training_step.py --against plain      # on a GPU, at the published sizes
    python benchmarks/training_step.py --against plain --together --workload visda17 \
        --model resnet50 --batch 8                          # on a CPU
    python benchmarks/training_step.py                      # every method against vanilla
    python benchmarks/training_step.py --workload digits    # the embedded task

`plain` is CSG in float32 as the paper reads, from `tests/plain_step.py`, with torch's own SGD; the
others of `--against plain` are the package with one setting after the other switched on:
`csg_nchw` (float32, no folding in the trained encoder, NCHW), `csg_unfolded`, `csg_fp32`, and `csg`
as it comes (bfloat16 where `compute.precision: auto` is). `csg_one_view` reuses the student's maps.

Every measurement is a process of its own, so that its peak memory is its own; the methods take
turns, so that both see the same machine. Time: the median of the steps after the first, which
allocates. Memory: what torch has at most allocated on a GPU; on a CPU the most that the process
held, above what it holds once everything is imported. Images and weights are random, made before
the clock starts. `--out` keeps all of it with the date and the machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from machine import write_result
from torch import nn

from csg_ray.config.data import DigitsConfig, GTA5CityscapesConfig, VisDA17Config
from csg_ray.config.methods import METHOD_CONFIGS, CSGConfig, MethodConfig
from csg_ray.config.run import AugmentConfig, ComputeConfig, ModelConfig, RunConfig, TrainConfig
from csg_ray.data.loader import Batch
from csg_ray.methods.base import ReferenceMethod
from csg_ray.methods.csg import CSG
from csg_ray.models.encoders import build_encoder
from csg_ray.models.resnet import TappedResNet
from csg_ray.training.loop import Training

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from plain_step import PlainStep

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
# CSG with less and less of what makes it fast.
VARIANTS: dict[str, dict[str, Any]] = {
    "csg_fp32": {"compute": ComputeConfig(precision="fp32")},
    "csg_unfolded": {"compute": ComputeConfig(precision="fp32", fold_batch_norm=False)},
    "csg_nchw": {
        "compute": ComputeConfig(precision="fp32", fold_batch_norm=False, channels_last=False)
    },
    "csg_one_view": {"augment": AugmentConfig(views="shared")},
}
AGAINST_PLAIN = ("plain", "csg_nchw", "csg_unfolded", "csg_fp32", "csg", "csg_one_view")
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


Step = Callable[[], torch.Tensor]


def measure_here(workload: Workload, name: str, batch_size: int, steps: int) -> None:
    """Take the steps in this process and print what they took as JSON."""
    imported = _peak_of_process()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    step = contender(workload, name, batch_size, device)
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        loss = step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        assert loss.isfinite()
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = _peak_of_process() - imported
    print(json.dumps({"seconds": statistics.median(seconds[1:]), "peak_mib": peak}))


def contender(workload: Workload, name: str, batch_size: int, device: torch.device) -> Step:
    """A function that takes one step, as the loop does, and returns the loss."""
    config = RunConfig(
        data=workload.data,
        model=workload.model,
        method=_settings(workload, name),
        train=TrainConfig(batch_size=batch_size),
        **VARIANTS.get(name, {}),
    )
    if name == "plain":
        return _plain(config, workload, batch_size, device)
    # Of the splits a training asks only how much there is before its first epoch.
    splits: Any = SimpleNamespace(
        source_train=range(workload.epoch_images), class_names=range(workload.num_classes)
    )
    training = Training(config, splits, device)
    method = training.method
    batch = _random_batch(workload, method.num_views, batch_size).to(device)
    _fit_statistics(method.encoder, batch)
    if isinstance(method, ReferenceMethod):
        _fit_statistics(method.reference_encoder, batch)
    return lambda: training._train_step(batch)["loss"]


def _plain(config: RunConfig, workload: Workload, batch_size: int, device: torch.device) -> Step:
    """The plain step with the same weights, and torch's SGD as it comes."""
    own = CSG(config, workload.num_classes, workload.epoch_images // batch_size)
    encoder = build_encoder(config.model, 8 if config.data.task == "segmentation" else 32)
    batch = _random_batch(workload, 2, batch_size).to(device)
    encoder.to(device)
    _fit_statistics(encoder, batch)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d) and not config.model.train_batch_norm_affine:
            module.requires_grad_(False)
    own.head.to(memory_format=torch.contiguous_format)
    stages = own.settings.stage_numbers()
    plain = PlainStep(
        encoder,
        own.head,
        {stage: own.projection_heads[str(stage)] for stage in stages},
        {stage: own.get_buffer(f"queues.{stage}.keys").to(device) for stage in stages},
        own.loss_weight,
        own.temperature,
        own.ema_momentum,
        own.settings.patch_grid,
    ).to(device)
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    for backend in backends:
        backend.fp32_precision = "ieee"
    trained = [param for param in plain.parameters() if param.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-5, momentum=0.9, weight_decay=5e-4)

    def step() -> torch.Tensor:
        loss = plain.loss(batch.views[0], batch.views[-1], batch.labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        plain.after_step()
        return loss.detach()

    return step


def _settings(workload: Workload, method_name: str) -> MethodConfig:
    if method_name == "csg" or method_name in AGAINST_PLAIN:
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


def measure(
    name: str, model: str, method_name: str, batch_size: int, steps: int
) -> dict[str, float]:
    """Take the steps in a fresh process."""
    command = [sys.executable, __file__, "--workload", name, "--method", method_name]
    command += ["--model", model, "--batch", str(batch_size), "--steps", str(steps)]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(finished.stdout)
    return result


def compare(
    name: str, workload: Workload, methods: list[str], batch_size: int, steps: int, rounds: int
) -> dict[str, Any]:
    """Measure the methods in turns; print a line for each, with the ratios to the first."""
    model = workload.model.name
    published = "" if batch_size == workload.batch_size else f" (published: {workload.batch_size})"
    print(f"{name}: {model}, {workload.side} px, batch {batch_size}{published}")
    taken: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    for _ in range(rounds):
        for method in methods:
            taken[method].append(measure(name, model, method, batch_size, steps))
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
    return {"workload": name, "model": model, "batch": batch_size, "steps": steps, "runs": taken}


def compare_together(
    name: str, workload: Workload, methods: list[str], batch_size: int, rounds: int
) -> dict[str, Any]:
    """A step of each in every round, all in this process: less noise, and no memory."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{name}: {workload.model.name}, {workload.side} px, batch {batch_size}, {rounds} rounds")
    contenders = {method: contender(workload, method, batch_size, device) for method in methods}
    taken: dict[str, list[tuple[float, float]]] = {method: [] for method in methods}
    for _ in range(1 + rounds):
        for method, step in contenders.items():
            clocks = time.perf_counter(), time.process_time()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken[method].append((time.perf_counter() - clocks[0], time.process_time() - clocks[1]))
    print(f"  {'':21s}   seconds   times as fast as {methods[0]}: by the clock, processor time")
    first = taken[methods[0]][1:]
    for method, each in taken.items():
        ratios = [
            statistics.median(a[clock] / b[clock] for a, b in zip(first, each[1:], strict=True))
            for clock in range(2)
        ]
        seconds = statistics.median(by_clock for by_clock, _ in each[1:])
        print(f"  {method:21s} {seconds:9.4f}   {ratios[0]:.2f}, {ratios[1]:.2f}")
    return {"workload": name, "model": workload.model.name, "batch": batch_size, "runs": taken}


def main() -> None:
    """Compare the methods on every workload, or on the one named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=WORKLOADS, help="this one only")
    parser.add_argument("--model", help="another encoder than the paper's")
    parser.add_argument("--batch", type=int, help="images per step; default: as published")
    parser.add_argument("--steps", type=int, default=5, help="timed, after one that is not")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", choices=("vanilla", "plain"), default="vanilla")
    parser.add_argument("--methods", nargs="+", choices=(*METHODS, *AGAINST_PLAIN))
    parser.add_argument("--together", action="store_true", help="all in one process, no memory")
    parser.add_argument("--out", type=Path, help="keep the figures in this file")
    parser.add_argument("--method", help="measure once, in this process")
    arguments = parser.parse_args()
    names = [arguments.workload] if arguments.workload else list(WORKLOADS)
    workloads = {name: workload_of(name, arguments.model) for name in names}
    if arguments.method:
        (workload,) = workloads.values()
        measure_here(workload, arguments.method, arguments.batch, arguments.steps)
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads")
    methods = arguments.methods or (AGAINST_PLAIN if arguments.against == "plain" else METHODS)
    figures = []
    for name, workload in workloads.items():
        whom = name, workload, _possible(methods, workload)
        size, rounds = arguments.batch or workload.batch_size, arguments.rounds
        if arguments.together:
            figures.append(compare_together(*whom, size, rounds))
        else:
            figures.append(compare(*whom, size, arguments.steps, rounds))
    write_result(arguments.out, figures)


def workload_of(name: str, model: str | None) -> Workload:
    """One of the paper's or the embedded one, with another encoder if there is a name."""
    workload = WORKLOADS[name]
    if model is None:
        return workload
    return replace(workload, model=workload.model.model_copy(update={"name": model}))


def _possible(methods: Sequence[str], workload: Workload) -> list[str]:
    """Without those that this task does not have."""
    if workload.data.task == "classification":
        return list(methods)
    missing = (*CLASSIFICATION_ONLY, "csg_one_view")  # pixels always see two views
    return [method for method in methods if method not in missing]


if __name__ == "__main__":
    main()
