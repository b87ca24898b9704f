from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from csg_ray.config.errors import UserError
from csg_ray.config.methods import CSGConfig
from csg_ray.config.run import AugmentConfig, ModelConfig, RunConfig, TrainConfig
from csg_ray.contrastive.negative_queue import NegativeQueue
from csg_ray.data.loader import Batch
from csg_ray.methods.base import two_layer_head
from csg_ray.methods.csg import CSG
from device_reads import CountReads

BATCH = 4
ONE_VIEW = AugmentConfig(num_ops=0)


def _build(method: CSGConfig, steps_per_epoch: int = 5, **sections: Any) -> CSG:
    train = TrainConfig(batch_size=BATCH)
    config = RunConfig(**{"method": method, "train": train, **sections})
    return CSG(config, 10, steps_per_epoch)


def _batch(views: int = 2, size: int = BATCH) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(size, 3, 32, 32, generator=generator) for _ in range(views)]
    labels = torch.randint(0, 10, (size,), generator=generator)
    return Batch(tuple(images), labels, torch.arange(size))


def _queue(method: CSG, stage: int) -> NegativeQueue:
    queue = method.queues[str(stage)]
    assert isinstance(queue, NegativeQueue)
    return queue


def _disturb(method: CSG) -> CSG:
    """Make encoder and EMA heads differ from the reference and the heads, as in mid-training."""
    torch.manual_seed(3)
    with torch.no_grad():
        for module in (method.encoder.stage(3), method.ema_projection_heads):
            for param in module.parameters():
                param.add_(0.05 * torch.randn_like(param))
    return method


def _pool_by_loops(features: Tensor, source: Tensor) -> Tensor:
    count, _, height, width = features.shape
    rows = []
    for image in range(count):
        mean = source[image].mean(dim=(1, 2))
        pooled, total = torch.zeros(features.shape[1]), torch.zeros(())
        for row in range(height):
            for column in range(width):
                score = torch.dot(source[image, :, row, column], mean)
                pooled = pooled + score * features[image, :, row, column]
                total = total + score
        rows.append(pooled / total)
    return torch.stack(rows)


def _embed_by_loops(head: nn.Module, features: Tensor, source: Tensor) -> Tensor:
    embeddings = head(_pool_by_loops(features, source))
    return torch.stack([row / row.norm() for row in embeddings])


def _loss_by_loops(method: CSG, batch: Batch, attention_from: str) -> Tensor:
    query_maps = method.encoder(batch.views[0])
    encoder_key_maps = method.encoder(batch.views[-1])
    key_maps = method.reference_encoder(batch.views[-1])
    logits = method.head(query_maps[4].mean(dim=(2, 3)))
    loss = -torch.stack(
        [row.log_softmax(0)[label] for row, label in zip(logits, batch.labels, strict=True)]
    ).mean()
    for stage in method.settings.stage_numbers():
        source = encoder_key_maps if attention_from == "encoder" else key_maps
        query = _embed_by_loops(
            method.projection_heads[str(stage)], query_maps[stage], query_maps[stage]
        )
        key = _embed_by_loops(
            method.ema_projection_heads[str(stage)], key_maps[stage], source[stage]
        )
        for image in range(len(batch.labels)):
            scores = [torch.dot(query[image], key[image])]
            scores += [torch.dot(query[image], row) for row in _queue(method, stage).negatives]
            exponentials = torch.stack([torch.exp(score / 0.2) for score in scores])
            nce = -torch.log(exponentials[0] / exponentials.sum())
            loss = loss + 0.7 / len(batch.labels) * nce
    return loss


@pytest.mark.parametrize("attention_from", ["encoder", "self"])
def test_loss_follows_the_paper_step_by_step(attention_from: str) -> None:
    settings = CSGConfig(loss_weight=0.7, temperature=0.2, stages="2,4", queue_size=7)
    settings = settings.model_copy(update={"attention_from": attention_from})
    method, batch = _disturb(_build(settings)), _batch()
    with torch.no_grad():
        expected = _loss_by_loops(method, batch, attention_from)
        other = _loss_by_loops(method, batch, "self" if attention_from == "encoder" else "encoder")
        loss = method.training_loss(batch).loss
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    # The two sources of attention are told apart by more than the tolerance.
    assert abs(other - expected) > 1e-4


def test_nce_is_reported_without_its_weight_and_summed_over_stages() -> None:
    def nce(stages: str, loss_weight: float) -> Tensor:
        settings = CSGConfig(stages=stages, loss_weight=loss_weight, queue_size=16)
        return _build(settings).training_loss(_batch()).logs["nce"]

    torch.testing.assert_close(nce("3,4", 0.1), nce("3", 5.0) + nce("4", 0.0))


@pytest.mark.parametrize(("size", "golden"), [(1024, 0.0014), (4096, 0.0056), (16384, 0.0223)])
def test_first_nce_without_augmentation_has_its_golden_value(size: int, golden: float) -> None:
    method = _build(CSGConfig(queue_size=size), augment=ONE_VIEW)
    nce = method.training_loss(_batch(views=1, size=16)).logs["nce"].item()
    # Encoder and reference are the same and so are the heads: every query is its own key.
    assert nce / 2 == pytest.approx(golden, rel=0.2)


def test_queries_equal_keys_before_the_first_step_without_augmentation() -> None:
    method, batch = _build(CSGConfig(queue_size=8), augment=ONE_VIEW), _batch(views=1)
    maps = method.features(batch.views[0])
    for stage, key in method._keys(batch.views[0], maps).items():
        torch.testing.assert_close(method._query(stage, maps), key)


@pytest.mark.parametrize(
    ("augment", "pooling", "attention_from", "forwards"),
    [
        (AugmentConfig(), "attention", "encoder", 2),
        (AugmentConfig(), "attention", "self", 1),
        (AugmentConfig(), "mean", "encoder", 1),
        (AugmentConfig(views="shared"), "attention", "encoder", 1),
        (ONE_VIEW, "attention", "encoder", 1),
    ],
)
def test_the_encoder_runs_no_more_often_than_needed(
    augment: AugmentConfig, pooling: str, attention_from: str, forwards: int
) -> None:
    settings = CSGConfig().model_copy(update={"pooling": pooling, "attention_from": attention_from})
    method = _build(settings, augment=augment)
    calls = []
    method.encoder.register_forward_hook(lambda *_: calls.append(1))
    method.training_loss(_batch(method.num_views))
    assert len(calls) == forwards


def test_the_keys_view_leaves_the_running_statistics_alone() -> None:
    method = _build(CSGConfig(), model=ModelConfig(freeze_batch_norm=False))
    batch, alone = _batch(), copy.deepcopy(method.encoder)
    assert alone.training
    alone(batch.views[0])
    method.training_loss(batch)
    assert all(module.training for module in method.encoder.modules())
    expected = dict(alone.named_buffers())
    assert expected["bn1.num_batches_tracked"] == 1 + _tracked(method.reference_encoder)
    for name, buffer in method.encoder.named_buffers():
        assert buffer.equal(expected[name]), name


def _tracked(encoder: nn.Module) -> int:
    return int(encoder.get_buffer("bn1.num_batches_tracked"))


def test_shared_views_reuse_the_query_maps_and_change_nothing() -> None:
    shared = _disturb(_build(CSGConfig(), augment=AugmentConfig(views="shared")))
    independent = _disturb(_build(CSGConfig()))
    batch = _batch(views=1)
    twice = Batch(batch.views * 2, batch.labels, batch.indices)
    torch.testing.assert_close(
        shared.training_loss(batch).loss, independent.training_loss(twice).loss
    )


def _encoder_gradient(method: CSG) -> Tensor:
    torch.autograd.backward(method.training_loss(_batch()).loss)
    gradient = method.encoder.get_parameter("layer4.0.conv1.weight").grad
    assert gradient is not None
    return gradient


def test_detached_attention_changes_the_gradient_and_not_the_loss() -> None:
    attached = _disturb(_build(CSGConfig(loss_weight=5.0, queue_size=100)))
    settings = CSGConfig(loss_weight=5.0, queue_size=100, detach_attention=True)
    detached = _disturb(_build(settings))
    batch = _batch()
    assert attached.training_loss(batch).loss.equal(detached.training_loss(batch).loss)
    gradient = _encoder_gradient(attached)
    difference = gradient - _encoder_gradient(detached)
    assert difference.norm() > 1e-3 * gradient.norm()


def test_mean_pooling_is_plain_averaging() -> None:
    method = _build(CSGConfig(pooling="mean", stages="4", queue_size=8))
    batch = _batch()
    maps = method.features(batch.views[0])
    embedding = method.projection_heads["4"](maps[4].mean(dim=(2, 3)))
    expected = embedding / embedding.norm(dim=1, keepdim=True)
    torch.testing.assert_close(method._query("4", maps), expected)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_ema_heads_follow_the_heads_after_the_step(momentum: float) -> None:
    method = _build(CSGConfig(stages="4", ema_momentum=momentum))
    start = method.ema_projection_heads["4"].get_parameter("0.weight").clone()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.5)
    torch.autograd.backward(method.training_loss(_batch()).loss)
    optimizer.step()
    assert method.ema_projection_heads["4"].get_parameter("0.weight").equal(start)
    method.after_step(optimizer, 1, 10)
    moved = method.projection_heads["4"].get_parameter("0.weight")
    assert not moved.equal(start)
    expected = momentum * start + (1 - momentum) * moved
    ema = method.ema_projection_heads["4"].get_parameter("0.weight")
    torch.testing.assert_close(ema, expected)


def _step(method: CSG) -> None:
    method.after_step(torch.optim.SGD(method.parameters(), lr=0.1), 1, 10)


def test_keys_enter_the_queue_after_the_step_only() -> None:
    method, batch = _build(CSGConfig(stages="3,4", queue_size=6)), _batch()
    start = {stage: _queue(method, stage).negatives.clone() for stage in (3, 4)}
    method.training_loss(batch)
    keys = method._keys(batch.views[1], method.features(batch.views[0]))
    for stage in (3, 4):
        assert _queue(method, stage).negatives.equal(start[stage])
    _step(method)
    for stage in (3, 4):
        negatives = _queue(method, stage).negatives
        assert negatives[:BATCH].equal(keys[str(stage)])
        assert negatives[BATCH:].equal(start[stage][BATCH:])


def test_keys_of_a_skipped_step_never_enter() -> None:
    method = _build(CSGConfig(stages="4", queue_size=16))
    batch = _batch()
    method.training_loss(Batch((batch.views[1], batch.views[0]), batch.labels, batch.indices))
    method.training_loss(batch)
    _step(method)
    assert _queue(method, 4).num_filled == BATCH
    _step(method)
    assert _queue(method, 4).num_filled == BATCH


@pytest.mark.parametrize("loss_weight", [0.0, 0.1])
@pytest.mark.parametrize("stage", ["3", "4"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_key_makes_the_loss_so_too(loss_weight: float, stage: str, bad: float) -> None:
    # What lets `after_step` trust the keys: the loop takes no step after such a loss.
    method = _build(CSGConfig(queue_size=16, loss_weight=loss_weight))
    with torch.no_grad():
        method.ema_projection_heads[stage].get_parameter("2.bias")[5] = bad
    assert not method.training_loss(_batch()).loss.isfinite()


def test_non_finite_keys_never_enter() -> None:
    method, batch = _build(CSGConfig(stages="4", queue_size=16)), _batch()
    batch.views[1][2] = math.nan
    assert method.training_loss(batch).loss.isnan()
    # The loop ends here; the next step's keys take the place of these.
    method.training_loss(_batch())
    _step(method)
    assert _queue(method, 4).negatives.isfinite().all()
    assert _queue(method, 4).num_filled == BATCH


def test_keys_enter_without_waiting_for_the_device() -> None:
    method = _build(CSGConfig(stages="3,4", queue_size=16))
    method.training_loss(_batch())
    with CountReads() as reads:  # type: ignore[no-untyped-call]
        _step(method)
        assert reads.count == 0
        assert bool(torch.ones(()))
        assert reads.count == 1
    assert _queue(method, 3).num_filled == _queue(method, 4).num_filled == BATCH


@pytest.mark.parametrize(
    ("batch_size", "steps", "grid", "size"),
    [
        (32, 62, 1, 832),  # digits: 0.43 * 1984 = 853
        (32, 4762, 1, 65536),  # VisDA-17: as published
        (16, 9524, 1, 65536),
        (32, 9000, 1, 65536),  # larger than VisDA-17: no more than published
        (4, 1, 1, 4),  # at least one batch
        (6, 2000, 8, 65280),  # GTA5: 0.43 of 768,000 is more than 65,536 = 170 steps of 384
        (4, 5, 2, 32),  # 0.43 * 80 = 34
    ],
)
def test_auto_queue_is_that_of_visda_in_proportion_and_shorter_than_an_epoch(
    batch_size: int, steps: int, grid: int, size: int
) -> None:
    train = TrainConfig(batch_size=batch_size)
    settings = CSGConfig(patch_grid=grid, stages="1", projection_dim=2)
    assert _build(settings, steps, train=train).queue_size == size


def test_a_queue_longer_than_an_epoch_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    # Five steps of four images in four patches each: 80 keys.
    _build(CSGConfig(queue_size=80, patch_grid=2, stages="3"), 5)
    assert caplog.records == []
    _build(CSGConfig(queue_size=81, patch_grid=2, stages="3"), 5)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "method.queue_size 81" in record.getMessage()
    assert "80 keys" in record.getMessage()


def test_the_share_of_real_keys_is_logged() -> None:
    method = _build(CSGConfig(stages="3,4", queue_size=10))
    fills = []
    for _ in range(4):
        fills.append(float(method.training_loss(_batch()).logs["queue_fill"]))
        _step(method)
    assert fills == pytest.approx([0.0, 0.4, 0.8, 1.0])


def test_patches_are_anchors_with_their_own_keys() -> None:
    settings = CSGConfig(stages="3,4", patch_grid=2, queue_size=100, loss_weight=1.0)
    method, batch = _disturb(_build(settings)), _batch()
    method.training_loss(batch)
    # Key (row 1, column 0) of image 3, pooled from its patch by loops.
    patch = (slice(3, 4), slice(None), slice(2, 4), slice(0, 2))
    with torch.no_grad():
        expected = _embed_by_loops(
            method.ema_projection_heads["4"],
            method.reference_encoder(batch.views[1])[4][patch],
            method.encoder(batch.views[1])[4][patch],
        )
    _step(method)
    queue = _queue(method, 4)
    assert queue.num_filled == 4 * BATCH
    torch.testing.assert_close(queue.negatives[2 * BATCH + 3], expected[0])


def test_a_grid_that_does_not_divide_the_maps_is_refused_at_once() -> None:
    with pytest.raises(UserError, match=r"patch_grid is 8.*4x4"):
        _build(CSGConfig(stages="1,4", patch_grid=8))


def test_a_stage_starts_the_same_whatever_the_other_stages() -> None:
    alone = _build(CSGConfig(stages="4", queue_size=8)).state_dict()
    among = _build(CSGConfig(stages="1,2,3,4", queue_size=8)).state_dict()
    for name in ("projection_heads.4.0.weight", "ema_projection_heads.4.0.weight", "queues.4.keys"):
        assert alone[name].equal(among[name])
    assert not among["queues.4.keys"].equal(among["queues.3.keys"])


def test_heads_have_the_published_sizes() -> None:
    def count(module: nn.Module) -> int:
        return sum(param.numel() for param in module.parameters())

    assert count(two_layer_head(2048, 512, 12)) == 1_055_244
    assert count(two_layer_head(1024, 1024, 128)) == 1_180_800
    assert count(two_layer_head(2048, 2048, 128)) == 4_458_624


def test_the_instance_norm_variants_train() -> None:
    for norm in ("ibn_a", "ibn_b"):
        model = ModelConfig(weights="none").model_copy(update={"norm": norm})
        method = _build(CSGConfig(), model=model)
        torch.autograd.backward(method.training_loss(_batch()).loss)
        assert all(
            param.grad.isfinite().all() for param in method.parameters() if param.grad is not None
        )
