"""Trainings that are alike, stepped as one: their weights stacked, one vmapped forward pass.

A small encoder leaves a GPU waiting for the next kernel. Stacked, K of them launch as many kernels
as one. The stack is made from the trainings when an epoch begins and written back when it ends, so
that whatever happens between two epochs finds them as it always does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from csg_ray.config.methods import CSGConfig
from csg_ray.contrastive.negative_queue import NegativeQueue
from csg_ray.data.loader import Batch
from csg_ray.distributed import world_size
from csg_ray.methods.base import Method
from csg_ray.methods.csg import CSG
from csg_ray.methods.vanilla import Vanilla
from csg_ray.models.precision import float32_products
from csg_ray.training.guard import DivergedError
from csg_ray.training.loop import Training
from csg_ray.training.optim import schedule_learning_rate
from csg_ray.training.turns import Outcomes, companies, own_batches


def stack_key(training: Training) -> Hashable | None:
    """Equal for trainings that can be stacked; None for one that cannot.

    They may differ in the seed, the augmentation, the numbers of the loss and of SGD, and the
    epoch.
    """
    config, method = training.config, training.method
    plain = type(method) in (Vanilla, CSG) and config.data.task == "classification"
    if not plain or not config.model.freeze_batch_norm or world_size() > 1:
        return None
    settings, own = config.method, None
    if isinstance(method, CSG):
        assert isinstance(settings, CSGConfig)
        numbers = {"loss_weight": 0.0, "temperature": 1.0, "ema_momentum": 0.0}
        settings = settings.model_copy(update=numbers)
        own = method.reference, method.queue_size, method.num_views
    sgd = config.train.sgd_form, config.train.momentum > 0
    steps = config.train.batch_size, training.steps_per_epoch
    return (
        settings,
        own,
        config.model,
        config.compute,
        config.data,
        sgd,
        steps,
        str(training.device),
    )


def stacked(trainings: Sequence[Training], outcomes: Outcomes) -> Iterator[None]:
    """One step of all trainings in every round; nothing of them changes before the last one.

    Args:
        trainings: with one and the same `stack_key`.
        outcomes: takes the divergences.
    """
    together = companies(trainings)
    streams = [own_batches(company) for company in together]
    order = [next(n for n, each in enumerate(together) if one in each) for one in trainings]
    stack = _Stack(trainings)
    for batches in zip(*streams, strict=True):
        batch = batches[0] if len(batches) == 1 else _stack([batches[n] for n in order])
        with float32_products(trainings[0].config.compute.precision):
            stack.step(batch)
        yield
    stack.commit(outcomes)


def _stack(batches: Sequence[Batch]) -> Batch:
    """K batches as one whose tensors have a first axis K; views that are one tensor stay one."""
    shared = batches[0].views[0] is batches[0].views[-1]
    views = [torch.stack([batch.views[n] for batch in batches]) for n in range(1 if shared else 2)]
    labels = torch.stack([batch.labels for batch in batches])
    return Batch((views[0], views[-1]), labels, labels)


class _Queue(NamedTuple):
    """K queues: keys (K, size, D), and of each what `NegativeQueue` has as numbers, (K,)."""

    keys: Tensor
    pointers: Tensor
    num_filled: Tensor

    def enqueue(self, keys: Tensor, accepted: Tensor) -> _Queue:
        """Replace the oldest entries of the queues that accept, (K,), by keys (K, B, D)."""
        count, size = keys.shape[1], self.keys.shape[1]
        newest = keys[:, -size:]
        start = self.pointers + max(count - size, 0)
        offsets = torch.arange(newest.shape[1], device=keys.device)
        places = (start.unsqueeze(1) + offsets) % size
        lanes = torch.arange(len(keys), device=keys.device).unsqueeze(1)
        former = self.keys[lanes, places]
        self.keys[lanes, places] = torch.where(accepted.view(-1, 1, 1), newest, former)
        added = count * accepted
        filled = (self.num_filled + added).clamp_max(size)
        return _Queue(self.keys, (self.pointers + added) % size, filled)


class _Loss(nn.Module):
    """Cross-entropy, the sum of InfoNCE and the new keys as a forward pass."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(
        self, views: tuple[Tensor, ...], labels: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        if isinstance(self.method, CSG):
            return self.method.loss_parts(Batch(views, labels, labels), temperature)
        task = self.method.task_loss(self.method.features(views[0]), labels)
        return task, torch.zeros_like(task), {}


class _Stack:
    """K trainings as tensors with a first axis K.

    All trained parameters are one leaf (K, P), in the order of the optimizer's groups: so gradient,
    norm, momentum and update take a handful of kernels, however many parameters there are.
    """

    def __init__(self, trainings: Sequence[Training]) -> None:
        self.trainings = trainings
        self.loss = _Loss(trainings[0].method)
        self.flat = self._gather(_trained).requires_grad_()
        self.momentum_buffers = self._gather(_momentum_buffers)
        self.ema_heads = self._gather(_ema_heads)
        self.queues = {stage: self._gather_queue(stage) for stage in _queues(trainings[0])}
        self._name_tensors()
        self._read_settings()
        self._start_counting()

    def _name_tensors(self) -> None:
        """What the forward pass is given under which name."""
        names = {tensor: name for name, tensor in self.loss.named_parameters()}
        self.trained = {names[each]: each.shape for each in _trained(self.trainings[0])}
        self.sizes = [shape.numel() for shape in self.trained.values()]
        ema = {names[each]: each.shape for each in _ema_heads(self.trainings[0])}
        self.state = _views(self.ema_heads, ema)
        self.state |= {
            f"method.queues.{name}.keys": each.keys for name, each in self.queues.items()
        }
        own = [_all_tensors(training) for training in self.trainings]
        for name in own[0].keys() - self.trained.keys() - self.state.keys():
            self.state[name] = torch.stack([tensors[name] for tensors in own])

    def _read_settings(self) -> None:
        """Each training's numbers, (K,) or (K, 1); the learning rates are (steps, K, groups)."""
        trains = [training.config.train for training in self.trainings]
        methods = [training.config.method for training in self.trainings]
        csg = [method for method in methods if isinstance(method, CSGConfig)]
        self.loss_weight = self._numbers([method.loss_weight for method in csg] or [0.0])
        self.temperature = self._numbers(
            [method.temperature for method in csg] or [1.0] * len(trains)
        )
        self.ema_step = self._numbers([1 - method.ema_momentum for method in csg]).unsqueeze(1)
        self.momentum = self._numbers([train.momentum for train in trains]).unsqueeze(1)
        self.weight_decay = self._numbers([train.weight_decay for train in trains]).unsqueeze(1)
        self.max_norm = self._numbers([train.max_gradient_norm for train in trains])
        self.max_in_a_row = self._numbers([train.max_skipped_steps for train in trains])
        self.rates = self._numbers([_rates(each) for each in self.trainings]).transpose(0, 1)
        groups = self.trainings[0].optimizer.param_groups
        sizes = [sum(param.numel() for param in group["params"]) for group in groups]
        self.group_sizes = torch.tensor(sizes, device=self.flat.device)

    def _start_counting(self) -> None:
        self.step_number = 0
        self.log_sums: dict[str, Tensor] = {}
        in_a_row = [training.guard.skipped_in_a_row for training in self.trainings]
        self.in_a_row = torch.tensor(in_a_row, device=self.flat.device)
        self.alive = torch.ones_like(self.in_a_row, dtype=torch.bool)
        self.stepped = torch.zeros_like(self.alive)
        self.lived, self.skipped = torch.zeros_like(self.in_a_row), torch.zeros_like(self.in_a_row)
        self.last_loss = torch.zeros_like(self.in_a_row, dtype=torch.float32)

    def step(self, batch: Batch) -> None:
        """One step of all; a batch without the axis K is everybody's."""
        losses, nce, keys = self._backward(batch)
        stepped = self._judge(losses)
        logs = {"loss": losses, "nce": nce}
        if self.queues:
            queue = next(iter(self.queues.values()))
            logs["queue_fill"] = queue.num_filled / queue.keys.shape[1]
        for name, value in logs.items():
            self.log_sums[name] = self.log_sums.get(name, 0.0) + value.double()
        self._update(stepped)
        for stage, queue in self.queues.items():
            self.queues[stage] = queue.enqueue(keys[stage], self.alive)
        self.step_number += 1

    def _backward(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Losses and sums of InfoNCE, (K,), and the new keys; the gradients are in `flat`."""
        state = self.state | _views(self.flat, self.trained)

        def loss_parts(own: dict[str, Tensor], *inputs: Any) -> Any:
            return functional_call(self.loss, own, inputs)

        images = 0 if batch.labels.ndim > 1 else None
        parts = vmap(loss_parts, in_dims=(0, images, images, 0))
        task, nce, keys = parts(state, batch.views, batch.labels, self.temperature)
        losses = task + self.loss_weight * nce
        torch.autograd.backward(losses.sum())
        return losses.detach(), nce.detach(), keys

    @torch.no_grad()
    def _judge(self, losses: Tensor) -> Tensor:
        """Which of them step, (K,); the others skip this one, or have diverged. No wait."""
        assert self.flat.grad is not None
        finite = losses.isfinite()
        usable: Tensor = torch.linalg.vector_norm(self.flat.grad, dim=1) <= self.max_norm
        counted = self.alive & finite
        row = torch.where(usable, 0, self.in_a_row + 1)
        self.in_a_row = torch.where(counted, row, self.in_a_row)
        self.skipped += counted & ~usable
        dies = self.alive & (~finite | (self.in_a_row >= self.max_in_a_row))
        self.last_loss = torch.where(self.alive, losses, self.last_loss)
        self.lived += self.alive
        self.alive = self.alive & ~dies
        return self.alive & usable

    @torch.no_grad()
    def _update(self, stepped: Tensor) -> None:
        """SGD in its form, and the EMA of the projection heads, of those that step."""
        assert self.flat.grad is not None
        gradient = self.flat.grad.addcmul_(self.flat, self.weight_decay)
        rates = self.rates[self.step_number].repeat_interleave(
            self.group_sizes, dim=1, output_size=self.flat.shape[1]
        )
        former, lane = self.momentum_buffers * self.momentum, stepped.unsqueeze(1)
        if self.trainings[0].config.train.sgd_form == "lr_in_buffer":
            buffers = former.addcmul_(rates, gradient)
            moved = self.flat - buffers
        else:
            buffers = former.add_(gradient)
            moved = torch.addcmul(self.flat, rates, buffers, value=-1)
        # In place: the stacked weights and heads are what the forward pass is given.
        self.momentum_buffers.copy_(torch.where(lane, buffers, self.momentum_buffers))
        self.flat.copy_(torch.where(lane, moved, self.flat))
        self.flat.grad = None
        self.stepped |= stepped
        if self.ema_heads.numel() > 0:
            heads = self.flat[:, -self.ema_heads.shape[1] :]
            self.ema_heads.lerp_(heads, self.ema_step * self.alive.unsqueeze(1))

    @torch.no_grad()
    def commit(self, outcomes: Outcomes) -> None:
        """Write everything back; those that diverged go into the outcomes."""
        counts = [self.lived, self.in_a_row, self.skipped, self.stepped.long(), self.alive.long()]
        numbers = torch.stack(counts)
        queues = {
            stage: torch.stack([queue.pointers, queue.num_filled]).T.tolist()
            for stage, queue in self.queues.items()
        }
        losses = self.last_loss.tolist()
        for k, (training, own) in enumerate(zip(self.trainings, numbers.T.tolist(), strict=True)):
            lived, in_a_row, skipped, stepped, alive = own
            training.step += lived
            training.guard.take_over(skipped, in_a_row)
            training.log_sums = {
                name: value[k]
                for name, value in self.log_sums.items()
                if name == "loss" or name in training.method.worst_logs
            }
            self._write_weights(training, k, bool(stepped))
            for stage, queue in self.queues.items():
                own_queue = _queues(training)[stage]
                own_queue.keys.copy_(queue.keys[k])
                own_queue.pointer, own_queue.num_filled = queues[stage][k]
            if not alive:
                outcomes[training] = _divergence(training, losses[k])

    def _write_weights(self, training: Training, k: int, stepped: bool) -> None:
        _scatter(self.flat[k], _trained(training))
        _scatter(self.ema_heads[k], _ema_heads(training))
        if not stepped or training.config.train.momentum == 0:
            return  # as SGD has no buffer before its first step, and none without momentum
        pieces = torch.split(self.momentum_buffers[k], self.sizes)
        for param, piece in zip(_trained(training), pieces, strict=True):
            state = training.optimizer.state[param]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.empty_like(param)
            # Copied, so that the buffer has the parameter's memory format.
            state["momentum_buffer"].copy_(piece.view_as(param))

    def _gather(self, of: Callable[[Training], Sequence[Tensor]]) -> Tensor:
        """All elements of every training's tensors, (K, P)."""
        empty = torch.empty(0, device=self.trainings[0].device)
        rows = [[each.detach().flatten() for each in of(one)] for one in self.trainings]
        return torch.stack([torch.cat([empty, *row]) for row in rows])

    def _gather_queue(self, stage: str) -> _Queue:
        own = [_queues(training)[stage] for training in self.trainings]
        keys = torch.stack([queue.keys for queue in own])
        pointers = torch.tensor([queue.pointer for queue in own], device=keys.device)
        filled = torch.tensor([queue.num_filled for queue in own], device=keys.device)
        return _Queue(keys, pointers, filled)

    def _numbers(self, values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.flat.device)


def _trained(training: Training) -> list[nn.Parameter]:
    """In the order of the optimizer's groups, of which that of projection heads is the last."""
    return [param for group in training.optimizer.param_groups for param in group["params"]]


def _momentum_buffers(training: Training) -> list[Tensor]:
    """Zeros where there is none yet, from which SGD's first step follows, too."""
    states = training.optimizer.state
    buffers = [
        states[p].get("momentum_buffer") if p in states else None for p in _trained(training)
    ]
    pairs = zip(buffers, _trained(training), strict=True)
    return [torch.zeros_like(param) if buffer is None else buffer for buffer, param in pairs]


def _ema_heads(training: Training) -> list[nn.Parameter]:
    """Those that follow trained projection heads, in their order."""
    method = training.method
    if not isinstance(method, CSG) or not method.settings.train_projection:
        return []
    return list(method.ema_projection_heads.parameters())


def _queues(training: Training) -> dict[str, NegativeQueue]:
    method = training.method
    queues = method.queues.items() if isinstance(method, CSG) else ()
    return {stage: queue for stage, queue in queues if isinstance(queue, NegativeQueue)}


def _all_tensors(training: Training) -> dict[str, Tensor]:
    """Parameters and buffers, named as `_Loss` names them."""
    method = training.method
    named = (*method.named_parameters(), *method.named_buffers())
    return {f"method.{name}": tensor.detach() for name, tensor in named}


def _rates(training: Training) -> list[list[float]]:
    """The learning rate of every group at every step of the coming epoch."""
    rates = []
    for step in range(training.step, training.step + training.steps_per_epoch):
        config, optimizer = training.config.train, training.optimizer
        schedule_learning_rate(optimizer, config, step, training.total_steps)
        rates.append([group["lr"] for group in optimizer.param_groups])
    return rates


def _views(flat: Tensor, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """The tensors (K, ...) that lie one after the other in the rows of (K, P), by name."""
    pieces = torch.split(flat, [shape.numel() for shape in shapes.values()], dim=1)
    named = zip(shapes.items(), pieces, strict=True)
    return {name: piece.view(-1, *shape) for (name, shape), piece in named}


def _scatter(row: Tensor, tensors: Sequence[Tensor]) -> None:
    pieces = torch.split(row, [tensor.numel() for tensor in tensors])
    for tensor, piece in zip(tensors, pieces, strict=True):
        tensor.copy_(piece.view_as(tensor))


def _divergence(training: Training, loss: float) -> DivergedError:
    if math.isfinite(loss):
        reason = f"{training.guard.skipped_in_a_row} gradients in a row were unusable"
    else:
        reason = f"the loss is {loss}"
    return DivergedError(f"{reason} at step {training.step}")
