from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from csg_ray.seeding import rng_state, seed_everything, seeded, set_rng_state, sub_seed


def _draws() -> tuple[float, float, float, float]:
    """One number of each global generator, and a normal one, of which NumPy keeps a spare."""
    return (
        random.random(),
        float(np.random.random()),  # noqa: NPY002
        float(torch.rand(())),
        float(np.random.standard_normal()),  # noqa: NPY002
    )


def test_sub_seeds_are_the_hash_of_seed_and_name() -> None:
    # printf 7/head | sha256sum: the first 8 bytes as a little-endian number, halved.
    assert sub_seed(7, "head") == 3_855_873_869_006_564_604
    names = [(seed, name) for seed in range(50) for name in ("head", "head/1", "1/head")]
    seeds = {sub_seed(seed, name) for seed, name in names}
    assert len(seeds) == len(names)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_decides_the_draws_of_every_generator() -> None:
    seed_everything(5)
    first = _draws()
    seed_everything(5)
    assert _draws() == first
    seed_everything(6)
    assert all(one != other for one, other in zip(_draws(), first, strict=True))
    # The generators do not share one stream.
    assert len(set(first)) == 4


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)  # noqa: TID251 - what a checkpoint does
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)  # noqa: TID251
    return loaded


def test_every_generator_goes_on_from_a_saved_state() -> None:
    seed_everything(5)
    random.gauss(0, 1)
    _draws()
    state = _through_a_file(rng_state())
    # The spare normal number is part of the state, so two rounds.
    expected = [_draws(), _draws(), random.gauss(0, 1)]
    seed_everything(6)
    set_rng_state(state)
    assert [_draws(), _draws(), random.gauss(0, 1)] == expected


def test_seeded_draws_have_their_own_seed_and_leave_the_generator_alone() -> None:
    def inside(seed: int, name: str) -> Tensor:
        with seeded(seed, name):
            return torch.rand(3)

    before = torch.get_rng_state()
    first = inside(1, "head")
    assert torch.get_rng_state().equal(before)
    torch.rand(5)
    assert inside(1, "head").equal(first)
    assert not inside(1, "tail").equal(first)
    assert not inside(2, "head").equal(first)
    before = torch.get_rng_state()
    with pytest.raises(KeyError), seeded(1, "head"):
        raise KeyError
    assert torch.get_rng_state().equal(before)


def test_seeded_leaves_the_generators_of_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(seed: int) -> None:
        raise AssertionError("CUDA's generators were seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    monkeypatch.setattr(torch.cuda, "manual_seed", refuse)
    with seeded(1, "head"):
        torch.rand(3)


def test_the_state_of_cuda_is_that_of_the_current_device(monkeypatch: pytest.MonkeyPatch) -> None:
    put_back: list[Tensor] = []
    here = torch.arange(16, dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: here)
    monkeypatch.setattr(torch.cuda, "set_rng_state", put_back.append)
    state = _through_a_file(rng_state())
    set_rng_state(state)
    assert len(put_back) == 1
    assert put_back[0].equal(here)
    # A checkpoint of a machine without CUDA says nothing about its generators.
    del state["cuda"]
    set_rng_state(state)
    assert len(put_back) == 1
