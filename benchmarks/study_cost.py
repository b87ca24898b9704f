"""Epochs that a search trains until it has a good trial at full budget, replayed over a table.

    python benchmarks/study_cost.py benchmarks/results/digits_table_2026-11-26.jsonl [--seeds 200]
    python benchmarks/study_cost.py --made-up tables [--settings 64] [--seeds 200]
    python benchmarks/study_cost.py --made-up anywhere [--settings 64] [--seeds 200]

Good is a trial that, at its last epoch, has come 95 % of the way from the published settings'
value to the best in the table (`record_table.py`). The searcher and ASHA are the project's; nothing
trains. What is asked for is answered by the nearest row that has not been used yet, so that a
search ends with the table at the latest; all contenders begin with the published settings. Printed
are

- `expected`: epochs of all runs by the number of runs that got there, what it costs to begin anew
  until one does; and its ratio to random search without stopping;
- `median`, where a run that never gets there counts as endless; and the share of those that do;
- `rank`: how many trials were begun until the good one was, in the mean of the runs that got there.

`--made-up tables` draws a table from `synthetic.py` for every seed. `--made-up anywhere` answers
with exactly what is asked for, as many trials as a table has rows; good is then the value that the
best of so many random settings has in the mean.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.samplers import RandomSampler
from scipy.stats import spearmanr
from synthetic import learning_curve

from csg_ray.scale.halving import SuccessiveHalving
from csg_ray.scale.suggestions import Suggestion, Suggestions, _suggest
from csg_ray.scale.tpe import RememberingTPE
from csg_ray.search_space import Choice, SearchSpace, load_search_space, parse_search_space

SPACE = Path(__file__).parents[1] / "search_spaces" / "digits.yaml"
METRIC = "target_val/mean_class_accuracy"
WAY = 0.95


@dataclass(frozen=True)
class Row:
    """A setting and its value after each epoch."""

    params: dict[str, Any]
    curve: tuple[float, ...]


class Problem(Protocol):
    """What a search is run on."""

    good: float

    def take(self, params: Mapping[str, Any]) -> Row | None:
        """What comes of a setting; None when there is no more."""


class Table:
    """Answers with the nearest row that has not been used."""

    def __init__(self, space: SearchSpace, rows: list[Row]) -> None:
        self._space = space
        self._left = list(rows)
        self._places = [place(space, row.params) for row in rows]
        published = rows[0].curve[-1]
        self.good = published + WAY * (max(row.curve[-1] for row in rows) - published)
        self.distances: list[float] = []

    def take(self, params: Mapping[str, Any]) -> Row | None:
        """The nearest row; it is used from now on."""
        if not self._left:
            return None
        away = np.linalg.norm(np.array(self._places) - place(self._space, params), axis=1)
        nearest = int(away.argmin())
        self.distances.append(float(away[nearest]))
        del self._places[nearest]
        return self._left.pop(nearest)


class Anywhere:
    """Answers with a made-up curve of the very setting, so many times."""

    def __init__(self, good: float, trials: int, seed: int) -> None:
        self.good, self._left, self._seed = good, trials, seed

    def take(self, params: Mapping[str, Any]) -> Row | None:
        """Its curve."""
        if self._left == 0:
            return None
        self._left -= 1
        return made_up(params, f"{self._seed}/{self._left}")


def place(space: SearchSpace, params: Mapping[str, Any]) -> np.ndarray:
    """Where a setting is in the unit cube; two choices are as far apart as the ends of a range."""
    found: list[float] = []
    for path, domain in space.space.items():
        value = params[path]
        if isinstance(domain, Choice):
            found += [(value == known) / math.sqrt(2) for known in domain.values]
            continue
        low, high, value = (
            (math.log(each) if domain.log else each) for each in (domain.low, domain.high, value)
        )
        found.append((value - low) / (high - low))
    return np.array(found)


@dataclass(frozen=True)
class Contender:
    """A searcher with a scheduler."""

    name: str
    sampler: str = "tpe"
    stops: bool = True
    grace: int = 3
    reduction: int = 3
    tpe: dict[str, Any] | None = None  # Optuna's arguments; None: as shipped
    eager: bool = False  # decides from the second trial of a rung on
    told: str = "stopped"  # what TPE is told of a cut trial
    smooth: int = 1  # ASHA compares means of so many last epochs
    ends: bool = False  # goes on with cut trials, the best first, when there are no new ones

    def suggestions(self, space: SearchSpace, seed: int, trials: int) -> Suggestions:
        """Those of the project."""
        mapping = space.to_mapping()
        mapping["search"] |= {"seed": seed, "num_trials": trials, "sampler": self.sampler}
        suggestions = Suggestions(parse_search_space(mapping))
        if self.tpe is not None:
            suggestions._study.sampler = RememberingTPE(seed=seed, **self.tpe)
        return suggestions

    def halving(self, epochs: int) -> SuccessiveHalving:
        """ASHA's rule."""
        rule = Eager if self.eager else SuccessiveHalving
        return rule(epochs, self.grace if self.stops else epochs, self.reduction, "max")


class Eager(SuccessiveHalving):
    """Cuts whoever is not among the best, however few have come to the rung."""

    def stops(self, trial_id: str, epoch: int, value: float) -> bool:
        """Whether it is cut."""
        reached = [milestone for milestone in self.rungs if milestone <= epoch]
        if not reached or trial_id in self.rungs[max(reached)]:
            return False
        rung = self.rungs[max(reached)]
        super().stops(trial_id, epoch, value)
        better = sum(score > rung[trial_id] for score in rung.values())
        return better >= math.ceil(len(rung) / self.reduction_factor)


SHIPPED = Contender("shipped: TPE and ASHA")
MAIN = [
    Contender("random, no stopping", sampler="random", stops=False),
    Contender("TPE, no stopping", stops=False),
    SHIPPED,
]
VARIANTS = [
    Contender("random and ASHA", sampler="random"),
    Contender("grace 1", grace=1),
    Contender("grace 2", grace=2),
    Contender("grace 5", grace=5),
    Contender("reduction 2", reduction=2),
    Contender("reduction 4", reduction=4),
    Contender("means of two epochs", smooth=2),
    Contender("means of two epochs, eager", smooth=2, eager=True),
    Contender("4 random first", tpe={"n_startup_trials": 4}),
    Contender("20 random first", tpe={"n_startup_trials": 20}),
    Contender("settings apart", tpe={"multivariate": False}),
    Contender("apart, 4 first", tpe={"multivariate": False, "n_startup_trials": 4}),
    Contender("100 candidates", tpe={"n_ei_candidates": 100}),
    Contender("cut trials told as complete", told="completed"),
    Contender("cut ones go on at the end", ends=True),
    Contender("eager", eager=True),
    Contender("eager, cut ones go on", eager=True, ends=True),
    Contender("eager, grace 1", eager=True, grace=1),
    Contender("eager, grace 1, ends", eager=True, grace=1, ends=True),
    Contender("eager, 4 random first", eager=True, tpe={"n_startup_trials": 4}),
]


@dataclass
class Live:
    """A trial at work."""

    name: str
    suggestion: Suggestion
    row: Row
    epoch: int = 0

    def results(self) -> list[dict[str, Any]]:
        """Its reports so far."""
        values = self.row.curve[: self.epoch]
        return [{"epoch": i, METRIC: value} for i, value in enumerate(values, start=1)]


@dataclass(frozen=True)
class Outcome:
    """What a search cost, whether it got there, with the how-manieth trial."""

    epochs: int
    there: bool
    rank: int


class Search:
    """One search: so many trials at a time, all epochs of equal length."""

    def __init__(
        self, contender: Contender, problem: Problem, suggestions: Suggestions, epochs: int
    ) -> None:
        self._contender, self._problem = contender, problem
        self._suggestions, self._epochs = suggestions, epochs
        self._halving = contender.halving(epochs)
        self._begun, self._trained = 0, 0
        self._cut: list[Live] = []

    def run(self, at_a_time: int) -> Outcome:
        """Until there is a good trial, or no more to try."""
        work: list[tuple[int, int, Live]] = []
        turn, now = 0, 0
        while True:
            while len(work) < at_a_time and (live := self._next()) is not None:
                turn += 1
                heapq.heappush(work, (now + 1, turn, live))
            if not work:
                return Outcome(self._trained, False, self._begun)
            now, order, live = heapq.heappop(work)
            self._trained += 1
            live.epoch += 1
            if live.epoch == self._epochs and live.row.curve[-1] >= self._problem.good:
                return Outcome(self._trained, True, int(live.name))
            if not self._ends(live):
                heapq.heappush(work, (now + 1, order, live))

    def _next(self) -> Live | None:
        suggestion = self._suggestions.ask()
        assert suggestion is not None
        row = self._problem.take(suggestion.params)
        if row is not None:
            self._begun += 1
            return Live(str(self._begun), suggestion, row)
        if not self._contender.ends or not self._cut:
            return None
        self._cut.sort(key=lambda live: (live.epoch, live.row.curve[live.epoch - 1]))
        return self._cut.pop()

    def _ends(self, live: Live) -> bool:
        number = live.suggestion.number
        if number not in self._suggestions._open:  # cut before, and going on
            return live.epoch == self._epochs
        if live.epoch == self._epochs:
            self._suggestions.tell(number, "completed", live.results())
            return True
        values = live.row.curve[max(0, live.epoch - self._contender.smooth) : live.epoch]
        if self._halving.stops(live.name, live.epoch, statistics.fmean(values)):
            self._suggestions.tell(number, self._contender.told, live.results())
            self._cut.append(live)
            return True
        return False


def made_up(params: Mapping[str, Any], name: str, epochs: int = 9) -> Row:
    """A row of `synthetic.py`."""
    return Row(dict(params), tuple(learning_curve(params, epochs, name)))


def drawn(space: SearchSpace, count: int, seed: int) -> list[Row]:
    """A made-up table, the published settings first."""
    study = optuna.create_study(sampler=RandomSampler(seed=seed))
    settings = [_suggest(study.ask(), space) for _ in range(count - 1)]
    points = [dict(space.points_to_evaluate[0]), *settings]
    return [made_up(params, f"{seed}/{i}") for i, params in enumerate(points)]


def recorded(path: Path) -> list[Row]:
    """The rows of a recorded table."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [Row(line["params"], tuple(epoch[METRIC] for epoch in line["epochs"])) for line in lines]


def make_problem(options: argparse.Namespace, space: SearchSpace) -> Callable[[int], Problem]:
    """The problem of each seed."""
    if options.made_up == "tables":
        return lambda seed: Table(space, drawn(space, options.settings, seed))
    if options.made_up == "anywhere":
        tables = [drawn(space, options.settings, 10**6 + seed) for seed in range(200)]
        good = statistics.fmean(max(row.curve[-1] for row in table) for table in tables)
        return lambda seed: Anywhere(good, options.settings, seed)
    rows = recorded(options.table)
    return lambda seed: Table(space, rows)


def describe(rows: list[Row]) -> None:
    """What a table holds, and what the best that could be done on it costs."""
    finals = [row.curve[-1] for row in rows]
    good = finals[0] + WAY * (max(finals) - finals[0])
    count = sum(value >= good for value in finals)
    epochs, others = len(rows[0].curve), len(rows) - 1
    print(
        f"{len(rows)} rows: published {finals[0]:.4f}, best {max(finals):.4f}, good from "
        f"{good:.4f} ({count} row(s)), median {statistics.median(finals):.4f}"
    )
    before = (others - count) / (count + 1)  # others drawn before the first good one, in the mean
    print(f"floors: the good row known at once {epochs}, after the published one {2 * epochs}")
    for grace in (1, 2):
        cost = 2 * epochs + grace * before
        print(f"  random order, each other row cut after epoch {grace} without fail: {cost:.0f}")
    jumps = [abs(row.curve[-1] - row.curve[-2]) for row in rows]
    print(
        f"a value changes by {statistics.fmean(jumps):.4f} in the mean from the last but one epoch"
    )
    for epoch in range(1, epochs):
        values = [row.curve[epoch - 1] for row in rows]
        better = [
            1 + sum(other > value for other in values)
            for value, final in zip(values, finals, strict=True)
            if final >= good
        ]
        correlation = spearmanr(values, finals).statistic
        print(
            f"  epoch {epoch}: Spearman {correlation:+.2f} with the last, good rows rank {better}"
        )


def compare(options: argparse.Namespace, contenders: list[Contender]) -> None:
    """Run all contenders on all seeds and print them."""
    space = load_search_space(SPACE)
    epochs = space.first_config().train.epochs
    make = make_problem(options, space)
    trials = options.settings
    if options.table is not None:
        rows = recorded(options.table)
        describe(rows)
        trials = len(rows)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    for at_a_time in options.at_a_time:
        base = 0.0
        print(f"\n{at_a_time} at a time   expected  ratio  median  there  rank  distance")
        for contender in contenders:
            outcomes, distances = [], list[float]()
            for seed in seeds:
                problem = make(seed)
                suggestions = contender.suggestions(space, seed, trials)
                outcomes.append(Search(contender, problem, suggestions, epochs).run(at_a_time))
                distances += getattr(problem, "distances", [])
            base = show(contender.name, outcomes, distances, base)


def show(name: str, outcomes: list[Outcome], distances: list[float], base: float) -> float:
    """Print one contender; the first one's expected cost, which all are compared with."""
    there = [outcome for outcome in outcomes if outcome.there]
    total = sum(outcome.epochs for outcome in outcomes)
    expected = total / len(there) if there else math.inf
    median = statistics.median(o.epochs if o.there else math.inf for o in outcomes)
    rank = statistics.fmean(outcome.rank for outcome in there) if there else math.nan
    away = f"{statistics.fmean(distances):.2f}" if distances else ""
    base = base or expected
    print(
        f"{name:<30} {expected:8.0f} {expected / base:6.2f} {median:7.0f} "
        f"{len(there) / len(outcomes):6.2f} {rank:5.1f} {away:>6}",
        flush=True,
    )
    return base


def main() -> None:
    """Compare the contenders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, nargs="?")
    parser.add_argument("--made-up", choices=["tables", "anywhere"])
    parser.add_argument("--settings", type=int, default=64, help="rows of a made-up table")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--at-a-time", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument(
        "--variants", nargs="*", help="by name, besides the first three; without names all"
    )
    options = parser.parse_args()
    if (options.table is None) == (options.made_up is None):
        parser.error("give a table, or --made-up")
    named = options.variants or [contender.name for contender in VARIANTS]
    chosen = [] if options.variants is None else [c for c in VARIANTS if c.name in named]
    compare(options, MAIN + chosen)


if __name__ == "__main__":
    main()
