"""A process that trains several trials: who has a place in it, and when an epoch begins.

Free of torch: Ray imports it in the process of every trial, too, as it holds a handle.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from csg_ray.scale.lane_trial import Joined, Report

if TYPE_CHECKING:
    from csg_ray.scale.lane_keeper import LaneKeeper

# Trials that train together save work, so that an epoch waits a little for all places to be taken
# and to have asked: so long after the last of them came, went or asked, and never longer than a
# part of what the last epoch took.
PATIENCE_SECONDS = 1.0
PATIENCE_SHARE = 0.1


@dataclass
class _Place:
    """One trial's, with what it waits for.

    Attributes:
        alone: its next epoch is trained without company.
        has_lane: whether it can ask; until then its lane is being made.
        begun: whether the epoch that it asked for was begun, or the place was lost.
        ended: the report of that epoch; None when the place was lost.
    """

    alone: bool
    has_lane: bool = False
    begun: asyncio.Future[bool] | None = None
    ended: asyncio.Future[Report | None] = field(default_factory=asyncio.Future)

    @property
    def asks(self) -> bool:
        return self.begun is not None and not self.begun.done()

    @property
    def is_trained(self) -> bool:
        return self.begun is not None and self.begun.done() and not self.ended.done()

    def ask(self) -> asyncio.Future[bool]:
        self.begun, self.ended = asyncio.Future(), asyncio.Future()
        return self.begun

    def finish(self, report: Report | None) -> None:
        self.alone = False
        if not self.ended.done():
            self.ended.set_result(report)

    def fail(self, error: Exception) -> None:
        if not self.ended.done():
            self.ended.set_exception(error)

    def vacate(self) -> None:
        """Tell whoever still waits."""
        if self.begun is not None and not self.begun.done():
            self.begun.set_result(False)
        self.finish(None)


class LaneWorker:
    """Trains up to `size` trials together; each asks for its epochs one by one.

    No trial is trained beyond what it has asked for: while its last report is being judged it
    stands still. All calls come from one event loop, and all training is in one thread.

    Args:
        size: how many trials have a place.
        build: makes the keeper of their lanes, in the thread of the training.
    """

    def __init__(self, size: int, build: Callable[[], LaneKeeper]) -> None:
        self._size = size
        self._build = build
        self._keeper: LaneKeeper | None = None
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._places: dict[str, _Place] = {}
        self._changed = asyncio.Event()
        self._patience = PATIENCE_SECONDS
        self._rounds: asyncio.Task[None] | None = None

    async def join(self, assignment: dict[str, Any], alone: bool) -> Joined | None:
        """Take a place and give the trial its lane there; None if all are taken.

        Args:
            assignment: as `train_trial` takes it.
            alone: train the first epoch without company, as the trial may be what has ended the
                process that it was in.
        """
        name = assignment["id"]
        await self.leave(name)
        if len(self._places) >= self._size:
            return None
        self._rounds = self._rounds or asyncio.create_task(self._run())
        self._places[name] = place = _Place(alone)
        try:
            joined: Joined = await self._in_thread(lambda keeper: keeper.join(assignment))
        except BaseException:
            self._clear(name, place)
            raise
        if joined.finished:
            self._clear(name, place)
        place.has_lane = True
        self._changed.set()
        return joined

    async def leave(self, name: str) -> int:
        """Give up the place of a trial, if it has one; how many are taken now.

        It returns when nothing here writes the trial's files any more.
        """
        place = self._places.pop(name, None)
        if place is not None:
            is_trained = place.is_trained
            place.vacate()
            self._changed.set()
            left = self._in_thread(lambda keeper: keeper.leave(name))
            # An epoch of the others alone is not waited for.
            if is_trained:
                await left
        return len(self._places)

    async def begin(self, name: str) -> bool:
        """Ask for one more epoch, and wait until it begins; False if there is no place."""
        if name not in self._places:
            return False
        begun = self._places[name].ask()
        self._changed.set()
        return await begun

    async def end(self, name: str) -> Report | None:
        """The report of the epoch that has begun; None if there is no place (any more)."""
        place = self._places.get(name)
        if place is None:
            return None
        report = await place.ended
        if report is not None and "epoch" not in report:
            self._clear(name, place)
        return report

    def _clear(self, name: str, place: _Place) -> None:
        """Free a place without a lane, unless the trial has a new one."""
        if self._places.get(name) is place:
            del self._places[name]
            self._changed.set()

    def _in_thread(self, work: Callable[[LaneKeeper], Any]) -> asyncio.Future[Any]:
        """Have something done after all that was asked for before."""

        def do() -> Any:
            self._keeper = self._keeper or self._build()
            return work(self._keeper)

        return asyncio.get_running_loop().run_in_executor(self._thread, do)

    async def _run(self) -> None:
        while True:
            names = await self._gather()
            places = [self._places[name] for name in names]
            for place in places:
                assert place.begun is not None
                place.begun.set_result(True)
            await self._train(dict(zip(names, places, strict=True)))

    async def _train(self, places: dict[str, _Place]) -> None:
        started = time.perf_counter()
        try:
            reports = await self._in_thread(lambda keeper: keeper.train(list(places)))
        except Exception as error:  # not even the reason could be written down
            for place in places.values():
                place.fail(error)
            return
        self._patience = min(PATIENCE_SECONDS, PATIENCE_SHARE * (time.perf_counter() - started))
        for name, place in places.items():
            place.finish(reports[name])

    async def _gather(self) -> list[str]:
        """Who trains the next epoch: all that have asked, or the first that is to be alone."""
        while not (self._alone or len(self._asking) == self._size):
            self._changed.clear()
            at_rest = self._asking and all(place.has_lane for place in self._places.values())
            try:
                await asyncio.wait_for(self._changed.wait(), self._patience if at_rest else None)
            except TimeoutError:
                if self._asking:
                    break
        return self._alone[:1] or self._asking

    @property
    def _asking(self) -> list[str]:
        return [name for name, place in self._places.items() if place.asks]

    @property
    def _alone(self) -> list[str]:
        return [name for name in self._asking if self._places[name].alone]
