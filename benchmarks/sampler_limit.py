"""Is a search worse when TPE sees only a part of its finished trials, and how much time is saved?

    python benchmarks/sampler_limit.py [--trials 3000] [--seeds 10] [--limits 250 1000]
        [--at-a-time 100]
    python benchmarks/sampler_limit.py --two-objectives --trials 1500 --limits 250

Simulated studies (`synthetic.py`; ASHA) on equal seeds, once with every trial shown to TPE and once
for each limit on the finished ones. Printed are means with the 95 % interval
of the paired difference to `all` (Student's t): of `found`, the noise-free accuracy of the pick,
or, with two objectives, the area that the completed trials dominate; and of `late`, the mean
noise-free accuracy of the settings proposed in the last third, pruned ones included.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from typing import Any

from scipy.stats import t as student
from study_scale import METRIC, SPACE, simulate
from synthetic import NOISE, accuracy, energy

from csg_ray.scale import suggestions
from csg_ray.scale.halving import SuccessiveHalving
from csg_ray.search_space import SearchSpace, load_search_space, parse_search_space

ENERGY = "target_val/hse"
EPOCHS = 9
ALL = 10**9


class Light:
    """TPE and ASHA of the project without the driver and its files."""

    def __init__(self, space: SearchSpace, limit: int) -> None:
        suggestions.SHOWN_TRIALS = limit
        self._suggestions = suggestions.Suggestions(space)
        search = space.search
        self._asha = SuccessiveHalving(EPOCHS, search.grace_period, search.reduction_factor, "max")
        self._live: dict[str, tuple[suggestions.Suggestion, list[dict[str, Any]]]] = {}
        self.proposed: list[float] = []
        self.completed: list[tuple[float, float, float]] = []

    def ask(self, name: str) -> dict[str, Any] | None:
        """The next setting."""
        suggestion = self._suggestions.ask()
        assert suggestion is not None
        self._live[name] = suggestion, []
        self.proposed.append(accuracy(suggestion.params))
        return suggestion.params

    def train(self, name: str, epoch: int, value: float, now: float) -> None:
        """Nothing to write."""

    def report(self, name: str, epoch: int, value: float) -> bool:
        """Whether ASHA cuts."""
        suggestion, results = self._live[name]
        noise = random.Random(f"{name}/{epoch}").gauss(0, NOISE)
        results.append({"epoch": epoch, METRIC: value, ENERGY: energy(suggestion.params) + noise})
        return self._asha.stops(name, epoch, value)

    def finish(self, name: str, cut: bool) -> None:
        """Tell TPE."""
        suggestion, results = self._live.pop(name)
        self._suggestions.tell(suggestion.number, "stopped" if cut else "completed", results)
        if not cut:
            params = suggestion.params
            self.completed.append((results[-1][METRIC], accuracy(params), energy(params)))


def make_space(seed: int, trials: int, two: bool) -> SearchSpace:
    """The shipped space, with accuracy as the goal, or accuracy and energy."""
    mapping = load_search_space(SPACE).to_mapping()
    mapping["search"] |= {"seed": seed, "num_trials": trials}
    if two:
        del mapping["search"]["metric"], mapping["search"]["mode"]
        goals = [{"metric": METRIC, "mode": "max"}, {"metric": ENERGY, "mode": "min"}]
        mapping["search"]["objectives"] = goals
    return parse_search_space(mapping)


def dominated_area(points: list[tuple[float, float]]) -> float:
    """Area between (accuracy, energy) points and accuracy 0, energy 2."""
    area, lowest = 0.0, 2.0
    for high, low in sorted(points, key=lambda point: (-point[0], point[1])):
        area += high * max(0.0, lowest - low)
        lowest = min(lowest, low)
    return area


def search(limit: int, space: SearchSpace, at_a_time: int) -> tuple[float, float, float]:
    """What was found, what was proposed late, seconds of asking."""
    trials, two = space.search.num_trials, len(space.objectives) > 1
    light = Light(space, limit)
    clock = simulate(light, trials, at_a_time, EPOCHS)
    late = statistics.fmean(light.proposed[-trials // 3 :])
    found = max(light.completed)[1]
    if two:
        found = dominated_area([(high, low) for _, high, low in light.completed])
    return found, late, sum(clock.cpu["ask"])


def interval(differences: list[float]) -> str:
    """Mean and half-width of the 95 % interval."""
    count = len(differences)
    width = student.ppf(0.975, count - 1) * statistics.stdev(differences) / math.sqrt(count)
    return f"{statistics.fmean(differences):+.4f} +- {width:.4f}"


def main() -> None:
    """Run every limit on every seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--at-a-time", type=int, default=100)
    parser.add_argument("--limits", type=int, nargs="+", default=[250, 1000])
    parser.add_argument("--two-objectives", action="store_true")
    options = parser.parse_args()
    limits = [ALL, *options.limits]
    runs: dict[int, list[tuple[float, float, float]]] = {limit: [] for limit in limits}
    for seed in range(options.seeds):
        space = make_space(seed, options.trials, options.two_objectives)
        for limit in limits:
            runs[limit].append(search(limit, space, options.at_a_time))
            print(f"# seed {seed} limit {limit}: {runs[limit][-1]}", flush=True)
    print(f"{'shown':>8} {'found':>8} {'late':>8} {'ask ms':>8}   found - all's       late - all's")
    for limit in limits:
        found, late, seconds = zip(*runs[limit], strict=True)
        against = [
            interval([a[i] - b[i] for a, b in zip(runs[limit], runs[ALL], strict=True)])
            for i in (0, 1)
        ]
        name = "all" if limit == ALL else str(limit)
        print(
            f"{name:>8} {statistics.fmean(found):8.4f} {statistics.fmean(late):8.4f} "
            f"{1e3 * statistics.fmean(seconds) / options.trials:8.1f}   {against[0]:<19} "
            f"{against[1]}"
        )


if __name__ == "__main__":
    main()
