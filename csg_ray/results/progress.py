"""What a running search tells whoever watches it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from csg_ray.results.cost import Meter
from csg_ray.storage.paths import StoragePath


@dataclass(frozen=True)
class TrialUpdate:
    """One trial as it stands now.

    Attributes:
        state: pending | running, or as in `Trial`.
        metrics: of the last finished epoch; empty when there is none.
        reason: why it ended as it did; empty while it has not.
        seconds: what its epochs have cost on each worker; None where that was not measured.
    """

    id: str
    state: str
    epoch: int = 0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    seconds: float | None = None


class Progress(Protocol):
    """The watcher of a search; called from one thread, must return at once."""

    def study_started(
        self,
        study: str,
        directory: StoragePath,
        num_trials: int,
        epochs: int,
        metric: str,
        mode: str,
        meter: Meter,
    ) -> None:
        """A search begins or goes on: `num_trials` in all, `epochs` each."""

    def trial_updated(self, update: TrialUpdate) -> None:
        """A trial was made, finished an epoch, or ended."""

    def message(self, text: str) -> None:
        """One sentence that the user should read."""

    def study_finished(self) -> None:
        """No more updates will come."""
