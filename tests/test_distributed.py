"""Several ranks are one process, seen from outside: the same losses, queues, metrics, files."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ranks
from csg_ray.distributed import gather_features, gather_rows, on_rank_zero, shares, sum_over_ranks

SCRIPT = Path(ranks.__file__)
# Sums over shards round otherwise than sums over the batch, and six steps of SGD carry it on.
RTOL, ATOL = 1e-4, 1e-5


EVERY_GROUP = pytest.mark.parametrize("size", ranks.GROUPS)
pytestmark = [pytest.mark.ranks, pytest.mark.timeout(600)]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four processes, in groups of 2, 3 and 4, left behind."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(number), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(max(ranks.GROUPS))
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return folder


@pytest.fixture(scope="session")
def alone() -> dict[str, Any]:
    """The same trainings in this process."""
    return {name: ranks.train(name) for name in ranks.TRAININGS}


def read(folder: Path, size: int, number: int) -> dict[str, Any]:
    found: dict[str, Any] = pickle.loads((folder / f"{size}-{number}.pickle").read_bytes())
    return found


@EVERY_GROUP
@pytest.mark.parametrize("name", ranks.TRAININGS)
def test_a_group_trains_as_one_process_does(
    folder: Path, alone: dict[str, Any], size: int, name: str
) -> None:
    """The loss of every step, the metrics of every epoch, all weights, the queue's keys."""
    group = read(folder, size, 0)["trainings"][name]
    single = alone[name]
    assert group["losses"] == pytest.approx(single["losses"], rel=1e-4)
    assert len(single["losses"]) == 6
    for ours, theirs in zip(group["metrics"], single["metrics"], strict=True):
        assert ours.keys() == theirs.keys()
        assert ours == pytest.approx(theirs, rel=2e-3, abs=1e-4)
    assert group["state"].keys() == single["state"].keys()
    for key, value in single["state"].items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(group["state"][key], value, rtol=RTOL, atol=ATOL, msg=key)
        else:
            assert group["state"][key] == value


@EVERY_GROUP
@pytest.mark.parametrize("name", ranks.TRAININGS)
def test_every_rank_ends_with_the_same_bits(folder: Path, size: int, name: str) -> None:
    first = read(folder, size, 0)["trainings"][name]
    for number in range(1, size):
        other = read(folder, size, number)["trainings"][name]
        assert other["losses"] == first["losses"]
        assert other["metrics"] == first["metrics"]
        for key, value in first["state"].items():
            same = value.equal(other["state"][key]) if isinstance(value, torch.Tensor) else True
            assert same, (number, key)


def test_the_queue_was_really_filled_by_all(alone: dict[str, Any]) -> None:
    """Else the comparisons above would compare nothing."""
    keys = [key for key in alone["csg"]["state"] if key.endswith("queues.4.keys")]
    assert keys == ["queues.4.keys"]
    pointer = alone["csg-dense"]["state"]["queues.3._extra_state"]
    assert pointer.tolist() == [6 * 32 * 4 % 300, 300, 0]


@EVERY_GROUP
def test_rows_come_back_in_the_order_of_the_ranks(folder: Path, size: int) -> None:
    rows = torch.arange(20.0).view(10, 2)
    without_rank_zero = rows[-(-10 // size) :]
    for number in range(size):
        found = read(folder, size, number)
        assert found["gathered"].equal(rows)
        assert found["features"].equal(without_rank_zero), "rank 0 had none and knew no width"
        assert found["told"] == {"rank": 0}


@EVERY_GROUP
def test_what_ends_one_rank_ends_all_alike(folder: Path, size: int) -> None:
    for number in range(size):
        found = read(folder, size, number)
        assert found["refused"] == "UserError: no"
        assert found["disk"] == "OSError: [Errno 28] No space left on device"
        assert found["poisoned"] == "DivergedError: the loss is nan at step 1"
        assert found["thawed"].startswith("UserError: model.freeze_batch_norm is false, but on CPU")
        assert found["batch"].startswith("UserError: train.batch_size is 1, fewer images than the")


def test_a_training_goes_on_with_another_number_of_ranks(folder: Path) -> None:
    """One epoch by two ranks and one by four are two epochs by two; rank 0 alone reports."""
    whole = read(folder, 2, 0)["reports"]
    assert [report["epoch"] for report in whole] == [1, 2]
    assert read(folder, 2, 1)["reports"] == []
    resumed = pickle.loads((folder / "resumed-0.pickle").read_bytes())
    assert [report.pop("workers") for report in (*whole, *resumed)] == [2, 2, 4]
    for report in (*whole, *resumed):
        del report["images_per_second"], report["seconds"]
    assert resumed[0] == pytest.approx(whole[1], rel=2e-3, abs=1e-4)
    assert pickle.loads((folder / "resumed-3.pickle").read_bytes()) == []


def test_a_process_alone_is_a_group_of_one() -> None:
    rows = torch.ones(3, 2)
    assert shares(5) == [5]
    assert gather_rows(rows, [3]) is rows
    assert gather_features([rows, rows], torch.device("cpu")).shape == (6, 2)
    assert sum_over_ranks(rows) is rows
    assert on_rank_zero(lambda: 3) == 3
