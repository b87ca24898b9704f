"""One process a study on a URI: a store has no lock, so each process puts a claim and watches.

Every process writes its claim before it looks at the others, and a store shows what has been
written to it: of two that start at once, at least one sees the other.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from csg_ray.config.errors import UserError
from csg_ray.scale.processes import describe, has_ended, this_process
from csg_ray.storage.paths import RemotePath
from csg_ray.storage.stores import StorageError

CLAIM_FOLDER = "driver.lock"
HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 30.0
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class _Claim:
    """What another process wrote."""

    path: RemotePath
    record: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.name


class ClaimLock:
    """Context manager that owns a study or a run on a URI.

    A claim is alive while it changes: its process counts it up every `HEARTBEAT_SECONDS`. One that
    stays the same for `STALE_SECONDS` under our eyes is dead, and one whose process is known to
    have ended on this machine is so at once. No clock is compared with another.

    Args:
        directory: the study or the run.
        say: told when it has to wait, and why.

    Attributes:
        lost: set once another process has taken this one for dead and gone on in its place.

    Raises:
        UserError: somebody else is at work there; nothing but the claim was written.
    """

    def __init__(self, directory: RemotePath, say: Callable[[str], None]) -> None:
        self.lost: UserError | None = None
        self._tell: Callable[[UserError], None] = lambda error: None
        self._directory = directory
        self._say = say
        self._folder = directory / CLAIM_FOLDER
        self._path = self._folder / f"{secrets.token_hex(8)}.json"
        self._record = {"beats": 0, "owns": False, "took": [], **this_process()}
        self._writing = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> ClaimLock:
        self._write()
        self._thread.start()
        try:
            dead = self._outlive_others()
            # Told before the dead claims go: whoever wakes up again must find that it was replaced.
            self._write(owns=True, took=[path.name for path in dead])
            for path in dead:
                path.unlink(missing_ok=True)
        except BaseException:
            self._withdraw()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._withdraw()

    def when_lost(self, tell: Callable[[UserError], None]) -> None:
        """Call `tell`, from another thread, once this process has been replaced."""
        self._tell = tell
        if self.lost is not None:
            tell(self.lost)

    def _outlive_others(self) -> list[RemotePath]:
        """Wait until every other claim has gone or is dead; the dead ones.

        Of several that wait, the one with the smallest name stays.
        """
        watched: dict[str, tuple[dict[str, Any], float]] = {}
        told = False
        while True:
            if self.lost is not None:
                raise self.lost
            dead, alive = [], []
            for claim in self._others():
                record, since = watched.setdefault(claim.name, (claim.record, time.monotonic()))
                if claim.record != record:
                    self._give_way(claim)
                    watched[claim.name] = (claim.record, time.monotonic())
                elif has_ended(claim.record) or time.monotonic() - since >= STALE_SECONDS:
                    dead.append(claim.path)
                    continue
                alive.append(claim)
            if not alive:
                return dead
            if not told:
                told = True
                self._say(
                    f"{describe(alive[0].record)} has a claim on {self._directory}; waiting up to "
                    f"{STALE_SECONDS:g} s to see whether it is still at work"
                )
            time.sleep(POLL_SECONDS)

    def _give_way(self, claim: _Claim) -> None:
        """To a living process that owns the study, or will."""
        if claim.record.get("owns") or claim.name < self._path.name:
            raise UserError(
                f"{self._directory} is being run by {describe(claim.record)}; "
                "wait for it or stop it first"
            )

    def _others(self) -> list[_Claim]:
        found = []
        for path in self._folder.iterdir():
            if path != self._path:
                # A claim that has been withdrawn since it was listed is no claim.
                with contextlib.suppress(FileNotFoundError):
                    found.append(_Claim(path, path.read_json()))
        return found

    def _write(self, **changes: Any) -> None:
        with self._writing:
            self._record |= changes
            self._path.write_bytes(json.dumps(self._record).encode())

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            # A store that is away for a while: the next beat may reach it. If it stays away, the
            # work itself fails and says so; if another process went on meanwhile, the next beat
            # finds out.
            with contextlib.suppress(StorageError):
                if (successor := self._successor()) is not None:
                    self.lost = UserError(
                        f"{self._directory} was taken over by {successor}, because this process "
                        f"had not been heard of for {STALE_SECONDS:g} s; it stops here, and that "
                        "one goes on"
                    )
                    self._tell(self.lost)
                    return
                self._write(beats=self._record["beats"] + 1)

    def _successor(self) -> str | None:
        """Who took this claim for dead; None while nobody did."""
        for claim in self._others():
            if self._path.name in claim.record["took"]:
                return describe(claim.record)
        return None if self._path.is_file() else "another process"

    def _withdraw(self) -> None:
        self._stop.set()
        self._thread.join()
        # Where the store is away, the claim stays and will be found dead.
        with contextlib.suppress(StorageError):
            self._path.unlink(missing_ok=True)
