"""Places and rounds of a process that trains several trials: no Ray, no training."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Coroutine
from typing import Any, TypeVar

import pytest

from csg_ray.scale import lane_worker
from csg_ray.scale.lane_trial import Joined, Report
from csg_ray.scale.lane_worker import LaneWorker

Result = TypeVar("Result")


class Keeper:
    """Writes down who is trained with whom; an epoch takes until it is let go."""

    def __init__(self) -> None:
        self.epochs: dict[str, int] = {}
        self.rounds: list[list[str]] = []
        self.threads: set[int] = set()
        self.broken: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()

    def join(self, assignment: dict[str, Any]) -> Joined:
        self.threads.add(threading.get_ident())
        if assignment.get("raises"):
            raise OSError("no room for the reason")
        self.epochs[assignment["id"]] = assignment.get("epoch", 0)
        return Joined([], assignment.get("finished", False))

    def leave(self, name: str) -> None:
        self.threads.add(threading.get_ident())
        self.epochs.pop(name, None)

    def train(self, names: Collection[str]) -> dict[str, Report]:
        self.threads.add(threading.get_ident())
        self.rounds.append(list(names))
        assert self.gate.wait(5)
        if "worst" in self.broken:
            raise OSError("no room for the reason")
        for name in names:
            self.epochs[name] += 1
        return {
            name: {"error": "its own"} if name in self.broken else {"epoch": self.epochs[name]}
            for name in names
        }


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_worker, "PATIENCE_SECONDS", 0.2)


def run(steps: Coroutine[Any, Any, Result]) -> Result:
    return asyncio.run(asyncio.wait_for(steps, 8))


async def join(worker: LaneWorker, name: str, alone: bool = False, **more: Any) -> Joined | None:
    return await worker.join({"id": name, **more}, alone)


async def epoch(worker: LaneWorker, name: str) -> Report | None:
    return await worker.end(name) if await worker.begin(name) else None


async def epochs(worker: LaneWorker, names: str) -> list[Report | None]:
    """One of each trial, asked for at the same time."""
    return list(await asyncio.gather(*(epoch(worker, name) for name in names)))


def test_trials_that_come_together_are_trained_together() -> None:
    keeper = Keeper()

    async def steps() -> None:
        worker = LaneWorker(3, lambda: keeper)  # type: ignore[arg-type, return-value]
        await asyncio.gather(*(join(worker, name) for name in "abc"))
        for number in (1, 2):
            reports = await epochs(worker, "abc")
            assert reports == [{"epoch": number}] * 3

    run(steps())
    assert keeper.rounds == [["a", "b", "c"]] * 2
    assert len(keeper.threads) == 1, "torch's random generators are the process's"


def test_a_trial_that_does_not_ask_is_not_trained_and_holds_nobody_up() -> None:
    """b's report is being judged; a goes on without it."""
    keeper = Keeper()

    async def steps() -> None:
        worker = LaneWorker(2, lambda: keeper)  # type: ignore[arg-type, return-value]
        await asyncio.gather(join(worker, "a"), join(worker, "b"))
        await epochs(worker, "ab")
        await epoch(worker, "a")
        assert keeper.epochs == {"a": 2, "b": 1}
        assert await epochs(worker, "ab") == [
            {"epoch": 3},
            {"epoch": 2},
        ]

    run(steps())
    assert keeper.rounds == [["a", "b"], ["a"], ["a", "b"]]


def test_a_round_waits_for_a_lane_that_is_being_made() -> None:
    keeper = Keeper()
    make = keeper.join

    def slowly(assignment: dict[str, Any]) -> Joined:
        if assignment["id"] == "b":
            assert keeper.gate.wait(5)
        return make(assignment)

    keeper.join = slowly  # type: ignore[method-assign]

    async def steps() -> None:
        worker = LaneWorker(3, lambda: keeper)  # type: ignore[arg-type, return-value]
        await join(worker, "a")
        keeper.gate.clear()
        first = asyncio.create_task(epoch(worker, "a"))
        second = asyncio.create_task(join(worker, "b"))
        await asyncio.sleep(0.5)
        assert not keeper.rounds
        keeper.gate.set()
        await second
        await asyncio.gather(first, epoch(worker, "b"))

    run(steps())
    assert keeper.rounds == [["a", "b"]]


def test_a_place_is_free_at_once_and_the_next_trial_takes_it() -> None:
    """While the other one is being trained."""
    keeper = Keeper()

    async def steps() -> None:
        worker = LaneWorker(2, lambda: keeper)  # type: ignore[arg-type, return-value]
        await asyncio.gather(join(worker, "a"), join(worker, "b"))
        assert await join(worker, "c") is None
        keeper.gate.clear()
        going_on = asyncio.create_task(epoch(worker, "a"))
        while not keeper.rounds:
            await asyncio.sleep(0.01)
        assert await worker.leave("b") == 1
        joining = asyncio.create_task(join(worker, "c"))
        await asyncio.sleep(0.05)
        assert await join(worker, "d") is None, "the place is c's already"
        keeper.gate.set()
        assert await joining == Joined([], False)
        assert await going_on == {"epoch": 1}
        await epochs(worker, "ac")

    run(steps())
    assert keeper.rounds == [["a"], ["a", "c"]]
    assert set(keeper.epochs) == {"a", "c"}


def test_whoever_waits_for_a_lost_place_is_told() -> None:
    """The process that follows a trial died and came back: its first one waits no longer."""
    keeper = Keeper()

    async def steps() -> None:
        worker = LaneWorker(2, lambda: keeper)  # type: ignore[arg-type, return-value]
        await asyncio.gather(join(worker, "a"), join(worker, "b"))
        keeper.gate.clear()
        ending = asyncio.create_task(epoch(worker, "a"))
        while not keeper.rounds:
            await asyncio.sleep(0.01)
        asking = asyncio.create_task(worker.begin("b"))
        await asyncio.sleep(0.01)
        await worker.leave("a")
        await worker.leave("b")
        assert await ending is None
        assert await asking is False
        keeper.gate.set()
        assert await worker.begin("a") is False
        assert await worker.end("a") is None

    run(steps())


def test_a_failed_trial_loses_its_place_and_the_other_goes_on() -> None:
    keeper = Keeper()

    async def steps() -> None:
        worker = LaneWorker(2, lambda: keeper)  # type: ignore[arg-type, return-value]
        await asyncio.gather(join(worker, "a"), join(worker, "b"))
        keeper.broken = {"a"}
        reports = await epochs(worker, "ab")
        assert reports == [{"error": "its own"}, {"epoch": 1}]
        assert await join(worker, "c") is not None
        assert await worker.leave("nobody") == 2

    run(steps())


def test_one_that_may_end_the_process_is_trained_alone_until_it_has_an_epoch() -> None:
    keeper = Keeper()

    async def steps() -> None:
        worker = LaneWorker(3, lambda: keeper)  # type: ignore[arg-type, return-value]
        await asyncio.gather(*(join(worker, name, alone=name != "a") for name in "abc"))
        for _ in range(2):
            await epochs(worker, "abc")

    run(steps())
    assert keeper.rounds == [["b"], ["c"], ["a"], ["a", "b", "c"]]


def test_what_is_nobodys_fault_is_raised_to_those_who_wait_and_the_rounds_go_on() -> None:
    keeper = Keeper()

    async def steps() -> None:
        worker = LaneWorker(2, lambda: keeper)  # type: ignore[arg-type, return-value]
        with pytest.raises(OSError, match="no room"):
            await join(worker, "z", raises=True)
        await asyncio.gather(join(worker, "a"), join(worker, "b"))
        keeper.broken = {"worst"}
        for result in await asyncio.gather(
            epoch(worker, "a"), epoch(worker, "b"), return_exceptions=True
        ):
            assert isinstance(result, OSError)
        keeper.broken = set()
        assert await epochs(worker, "ab") == [{"epoch": 1}] * 2

    run(steps())


def test_a_trial_with_nothing_left_to_train_takes_no_place() -> None:
    async def steps() -> None:
        worker = LaneWorker(1, Keeper)  # type: ignore[arg-type]
        assert await join(worker, "a", finished=True) == Joined([], True)
        assert await join(worker, "b") == Joined([], False)

    run(steps())


def test_a_trial_that_leaves_in_its_epoch_is_let_go_when_nothing_writes_its_files() -> None:
    keeper = Keeper()

    async def steps() -> None:
        worker = LaneWorker(2, lambda: keeper)  # type: ignore[arg-type, return-value]
        await asyncio.gather(join(worker, "a"), join(worker, "b"))
        keeper.gate.clear()
        asked = [asyncio.create_task(epoch(worker, name)) for name in "ab"]
        while not keeper.rounds:
            await asyncio.sleep(0.01)
        leaving = asyncio.create_task(worker.leave("a"))
        await asyncio.sleep(0.05)
        assert not leaving.done()
        keeper.gate.set()
        assert await leaving == 1
        assert keeper.epochs.keys() == {"b"}
        assert [await task for task in asked] == [None, {"epoch": 1}]

    run(steps())
