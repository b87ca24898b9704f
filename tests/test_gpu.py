"""What only a CUDA device can show: `pytest -m gpu`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from csg_ray.config.data import DigitScenesConfig, DigitsConfig
from csg_ray.config.errors import UserError
from csg_ray.config.methods import CSGConfig
from csg_ray.config.run import ComputeConfig, ModelConfig, RunConfig, TrainConfig
from csg_ray.data.load import load_splits
from csg_ray.data.loader import Batch
from csg_ray.methods import METHODS
from csg_ray.metrics import hyperspherical_energies
from csg_ray.scale.gpu_share import CurrentGpu, train_within
from csg_ray.storage.checkpoint import load_checkpoint
from csg_ray.training.lanes import EpochReport, Lane, LaneGroup, Way
from csg_ray.training.loop import Metrics, Training, fit
from method_settings import method_config, stylised_copies

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.timeout(120),
]

CONFIG = RunConfig(
    data=DigitsConfig(num_train=96, num_val=20),
    method=CSGConfig(queue_size=40),
    train=TrainConfig(epochs=2, learning_rate=0.01),
)
SCENES = RunConfig(
    data=DigitScenesConfig(num_train=96, num_val=20),
    model=ModelConfig(head="aspp_v3"),
    method=CSGConfig(queue_size=400, patch_grid=3),
    train=TrainConfig(epochs=2, learning_rate=0.01),
)


def _train(
    folder: Path, resume_from: Path | None = None, config: RunConfig = CONFIG
) -> list[Metrics]:
    """The reports of a training; its checkpoints go to `folder`, one an epoch."""
    reports: list[Metrics] = []

    def on_epoch_end(metrics: Metrics, save: Callable[[Path], None], _: object) -> None:
        reports.append(metrics)
        save(folder / f"{metrics['epoch']}.pt")

    folder.mkdir()
    torch.cuda.reset_peak_memory_stats()
    fit(config, on_epoch_end, resume_from=resume_from)
    # It did run there: weights, momentum and queues alone are larger.
    assert torch.cuda.max_memory_allocated() > 2e6
    return reports


@pytest.mark.parametrize("config", [CONFIG, SCENES], ids=["digits", "scenes"])
def test_two_epochs_on_cuda(tmp_path: Path, config: RunConfig) -> None:
    reports = _train(tmp_path / "run", config=config)
    assert [report["epoch"] for report in reports] == [1, 2]
    assert [report["diverged"] for report in reports] == [0, 0]
    assert all(math.isfinite(value) for report in reports for value in report.values())


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("like", [CONFIG, SCENES], ids=["digits", "scenes"])
def test_every_method_trains_on_cuda(tmp_path: Path, name: str, like: RunConfig) -> None:
    if like is SCENES and name == "asg_l2o":
        pytest.skip("asg_l2o is of classification")
    styles = {"styles": stylised_copies(like.data)} if name == "drpc" else {}
    train = TrainConfig(epochs=2, learning_rate=0.01, steps_per_epoch=3)
    method = method_config(name, like, **styles)
    config = RunConfig(data=like.data, model=like.model, method=method, train=train)
    reports = _train(tmp_path / "run", config=config)
    assert [report["diverged"] for report in reports] == [0, 0]
    assert all(math.isfinite(value) for report in reports for value in report.values())


def _training(config: RunConfig) -> tuple[Training, Iterator[Batch]]:
    """A training on CUDA, and its batches there."""
    training = Training(config, load_splits(config.data), torch.device("cuda"))
    training.begin_epoch(1)
    return training, (batch.to("cuda") for batch in training.batches)


@pytest.mark.parametrize("config", [CONFIG, SCENES], ids=["digits", "scenes"])
def test_a_step_does_not_wait_for_the_gpu(config: RunConfig) -> None:
    training, batches = _training(config)
    training.train_on(next(batches))  # the first one allocates, and chooses kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.train_on(next(batches))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert training.guard.take_skipped(2) == 0


def test_encoders_run_in_bfloat16_and_nothing_is_kept_in_it() -> None:
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bfloat16")
    training, batches = _training(CONFIG)
    batch = next(batches)
    maps = training.method.features(batch.views[0])
    assert maps[4].dtype == torch.float32
    assert maps[4].equal(maps[4].bfloat16().float())
    training.train_on(batch)
    state = training.method.state_dict()
    kept = [tensor for tensor in state.values() if isinstance(tensor, torch.Tensor)]
    kept += [state["momentum_buffer"] for state in training.optimizer.state.values()]
    assert {tensor.dtype for tensor in kept if tensor.is_floating_point()} == {torch.float32}


def test_stacked_lanes_on_cuda_are_those_in_turn() -> None:
    exact = RunConfig(**dict(CONFIG) | {"compute": ComputeConfig(precision="fp32")})
    strengths = (0.1, 0.5, 2.0)
    methods = [CSGConfig(queue_size=40, loss_weight=strength) for strength in strengths]
    ends = {}
    ways: tuple[Way, ...] = ("in_turn", "stacked")
    for how in ways:
        group = LaneGroup(how)
        for number, method in enumerate(methods):
            config = exact.model_copy(update={"method": method})
            lane = Lane(config, load_splits(config.data), torch.device("cuda"))
            group.add(str(number), lane)
        ends[how] = group.run_epoch()
    for name, report in ends["in_turn"].items():
        stacked = ends["stacked"][name]
        assert isinstance(report, EpochReport)
        assert isinstance(stacked, EpochReport)
        for key in ("train/loss", "train/nce", "target_val/hse"):
            assert stacked.metrics[key] == pytest.approx(report.metrics[key], rel=1e-3), key


def test_a_resumed_training_on_cuda_is_as_good_as_the_same(tmp_path: Path) -> None:
    (_, straight) = _train(tmp_path / "straight")
    (resumed,) = _train(tmp_path / "resumed", resume_from=tmp_path / "straight" / "1.pt")
    # Not bitwise: the order of sums is not fixed on CUDA.
    for name in ("train/loss", "train/nce", "source_val/hse", "target_val/hse"):
        assert resumed[name] == pytest.approx(straight[name], rel=1e-3), name
    first, second = (
        load_checkpoint(tmp_path / run / "2.pt")["repeats"][0] for run in ("straight", "resumed")
    )
    assert first["step"] == second["step"] == 6
    assert first["rng"]["cuda"].equal(second["rng"]["cuda"])
    for name, tensor in first["method"].items():
        if isinstance(tensor, torch.Tensor):
            torch.testing.assert_close(second["method"][name], tensor, rtol=1e-2, atol=1e-4)


def test_energies_on_cuda_equal_those_on_the_cpu() -> None:
    features = torch.randn(3000, 64, generator=torch.Generator().manual_seed(0))
    features[7] = features[8]
    features[9] = 0
    here, there = hyperspherical_energies(features), hyperspherical_energies(features.cuda())
    assert (there.pairs, there.duplicates, there.zero_rows) == (2999 * 2998 // 2 - 1, 1, 1)
    assert (here.pairs, here.duplicates, here.zero_rows) == (2999 * 2998 // 2 - 1, 1, 1)
    for name in ("power0", "power0_distance", "power1", "power2"):
        assert getattr(there, name) == pytest.approx(getattr(here, name), rel=1e-5), name


def test_a_share_of_the_gpu_is_a_limit() -> None:
    """A training that needs more than its share is told so, and the memory comes back."""
    gpu = CurrentGpu()
    held: list[torch.Tensor] = []

    def grow() -> None:
        while True:
            held.append(torch.empty(256 << 20, dtype=torch.uint8, device="cuda"))

    with pytest.raises(UserError, match=r"more than its share of the GPU: .* 0\.1 is"):
        train_within(0.1, grow, gpu, wait_seconds=1)
    assert sum(map(torch.Tensor.nelement, held)) <= 0.1 * gpu.total()
    held.clear()
    train_within(0.1, lambda: None, gpu, wait_seconds=1)
    assert gpu.held() == 0
    torch.cuda.set_per_process_memory_fraction(1.0)
