"""The watchers of a search: one live table on a terminal, calm lines everywhere else."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from csg_ray.cli.board import (
    LABELS,
    RUNNING_STATES,
    Board,
    describe_metric,
    describe_reason,
    describe_scores,
    score_of,
)
from csg_ray.cli.guard import say
from csg_ray.results.cost import Meter
from csg_ray.results.progress import Progress, TrialUpdate
from csg_ray.results.study import ENERGY
from csg_ray.storage.paths import StoragePath

HEARTBEAT_SECONDS = 30.0
ROWS_OF_FRAME = 8
COLOURS = {
    "running": "cyan",
    "completed": "green",
    "stopped": "yellow",
    "diverged": "red",
    "failed": "red",
}


def watch_search(verbose: bool) -> Progress:
    """The watcher that fits where the output goes; logs and a live table do not go together."""
    if sys.stdout.isatty() and not verbose:
        return LiveProgress(Console())
    return PlainProgress()


class PlainProgress:
    """One line for every trial that ends, and a sign of life at most every 30 s."""

    def __init__(
        self,
        write: Callable[[str], None] = say,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._board = Board(clock)
        self._write = write
        self._clock = clock
        self._last_line = clock()

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
        """Say what begins."""
        self._board.start(study, directory, num_trials, epochs, metric, mode, meter)
        budget = "" if meter.budget is None else f", budget {meter.budget.meaning}"
        self._say(
            f"study {study} in {directory}: {num_trials} trials of up to {epochs} epochs{budget}"
        )

    def trial_updated(self, update: TrialUpdate) -> None:
        """A line when a trial ends, or when there has been none for a while."""
        ended = self._board.take(update)
        if ended:
            self._say(
                f"trial {update.id} {update.state} at epoch {update.epoch}/{self._board.epochs}: "
                f"{self._outcome(update)} | {self._board.standing()}"
            )
        elif self._clock() - self._last_line >= HEARTBEAT_SECONDS:
            self._say(self._board.standing())

    def _outcome(self, update: TrialUpdate) -> str:
        if update.state == "failed":
            return describe_reason(update.reason)
        best = self._board.best()
        star = " *" if best is not None and best.id == update.id else ""
        return f"{describe_scores(update.metrics)}, {self._board.cost(update)}{star}"

    def message(self, text: str) -> None:
        """Pass a sentence on."""
        self._say(text)

    def study_finished(self) -> None:
        """Nothing: the command sums up."""

    def _say(self, line: str) -> None:
        self._last_line = self._clock()
        self._write(line)


class LiveProgress:
    """One table that stays in place and fits the terminal."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._board = Board(clock)
        self._live = Live(
            console=console,
            get_renderable=self.render,
            refresh_per_second=2,
            vertical_overflow="crop",
        )

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
        """Show the empty table."""
        self._board.start(study, directory, num_trials, epochs, metric, mode, meter)
        self._live.start()

    def trial_updated(self, update: TrialUpdate) -> None:
        """Keep the update; the table is drawn on its own beat, a failure above it for good."""
        if self._board.take(update) and update.state == "failed":
            self.message(f"trial {update.id} failed: {describe_reason(update.reason)}")

    def message(self, text: str) -> None:
        """A line above the table."""
        self._console.print(text, markup=False, highlight=False)

    def study_finished(self) -> None:
        """Leave the last table on the screen."""
        self._live.stop()

    def render(self) -> Table:
        """The table as it stands now."""
        board = self._board
        first = board.metric
        if first == ENERGY:
            first = score_of(next((u.metrics for u in board.known() if u.metrics), {}))
        table = Table(
            title=escape(f"study {board.study} in {board.directory}"), caption=board.standing()
        )
        table.add_column("trial")
        table.add_column("state")
        table.add_column("epoch", justify="right")
        table.add_column(LABELS.get(first, first), justify="right")
        table.add_column("HSE", justify="right")
        table.add_column("cost", justify="right")
        best = board.best()
        rows = max(3, self._console.height - ROWS_OF_FRAME)
        known = board.known()
        shown = choose_rows(known, best, rows)
        for update in shown:
            colour = COLOURS.get(update.state, "dim")
            table.add_row(
                f"{update.id} *" if best is not None and best.id == update.id else update.id,
                f"[{colour}]{update.state}[/{colour}]",
                f"{update.epoch}/{board.epochs}",
                describe_metric(update.metrics, first),
                describe_metric(update.metrics, ENERGY),
                board.cost(update),
            )
        hidden = len(known) - len(shown)
        if hidden:
            table.add_row("...", f"[dim]{hidden} more[/dim]", "", "", "", "")
        return table


def choose_rows(
    updates: list[TrialUpdate], best: TrialUpdate | None, rows: int
) -> list[TrialUpdate]:
    """The updates worth a row: those at work, the leader, then the newest; in order of id."""
    urgent = [update for update in updates if update.state in RUNNING_STATES]
    first = urgent if best is None else [best, *urgent]
    taken = {update.id for update in first}
    rest = (update for update in reversed(updates) if update.id not in taken)
    chosen = list(itertools.islice(itertools.chain(first, rest), rows))
    return sorted(chosen, key=lambda update: (len(update.id), update.id))
