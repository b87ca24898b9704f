from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest
import torch

from csg_ray.config.data import DigitsConfig
from csg_ray.config.errors import UserError
from csg_ray.config.methods import VanillaConfig
from csg_ray.config.run import ComputeConfig, ModelConfig, RunConfig
from csg_ray.storage.checkpoint import (
    config_differences,
    load_checkpoint,
    parse_checkpoint,
    save_checkpoint,
)
from csg_ray.storage.paths import StoragePath


def test_a_state_comes_back_as_it_was(place: StoragePath) -> None:
    path = place / "checkpoint.pt"
    weights = torch.randn(3, 4)
    save_checkpoint(path, {"weights": weights, "rng": [1, 2**40], "name": "csg"})
    state = load_checkpoint(path)
    assert state["weights"].equal(weights)
    assert (state["rng"], state["name"], state["format"]) == ([1, 2**40], "csg", 1)
    assert list(place.iterdir()) == [path]
    assert parse_checkpoint(path.read_bytes(), "rank 0's").keys() == state.keys()


def test_a_full_disk_leaves_the_old_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"epoch": 1})
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        save_checkpoint(path, {"epoch": 2})
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_really_full_device_reports_its_errno(tmp_path: Path) -> None:
    link = tmp_path / ".checkpoint.pt.tmp"
    link.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        save_checkpoint(tmp_path / "checkpoint.pt", {"weights": torch.zeros(100_000)})
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_checkpoint_is_an_error(place: StoragePath) -> None:
    path = place / "checkpoint.pt"
    with pytest.raises(UserError, match="does not exist"):
        load_checkpoint(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_checkpoint(path)
    foreign = io.BytesIO()
    torch.save({"weight": torch.zeros(1)}, foreign)  # noqa: TID251 - a file of someone else
    path.write_bytes(foreign.getvalue())
    with pytest.raises(UserError, match="not a checkpoint of csg_ray"):
        load_checkpoint(path)
    with pytest.raises(UserError, match="rank 0's is not a checkpoint of csg_ray"):
        parse_checkpoint(foreign.getvalue(), "rank 0's")


def test_a_truncated_checkpoint_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"weights": torch.randn(1000)})
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_checkpoint(path)


def test_a_newer_format_is_an_error_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"format": 2})
    with pytest.raises(UserError, match=r"checkpoint format 2.*newer csg_ray"):
        load_checkpoint(path)


def test_differences_name_path_and_values() -> None:
    saved = RunConfig(seed=3).model_dump()
    assert config_differences(saved, RunConfig(seed=3)) == []
    assert config_differences(saved, RunConfig()) == ["seed 3 there, 0 here"]


def test_another_model_or_method_is_all_that_is_said() -> None:
    saved = RunConfig(model=ModelConfig(name="resnet18", weights="none")).model_dump()
    here = RunConfig(method=VanillaConfig(), seed=5)
    assert config_differences(saved, here) == [
        "method.name 'csg' there, 'vanilla' here",
        "model.name 'resnet18' there, 'mini' here",
    ]


def test_loader_processes_are_free_to_differ() -> None:
    assert (
        config_differences(RunConfig(data=DigitsConfig(workers=3)).model_dump(), RunConfig()) == []
    )


def test_how_it_is_computed_is_free_to_differ_and_to_be_older_than_its_settings() -> None:
    saved = RunConfig(compute=ComputeConfig(precision="bf16")).model_dump()
    assert config_differences(saved, RunConfig()) == []
    del saved["compute"]
    assert config_differences(saved, RunConfig()) == []
