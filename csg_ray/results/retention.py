"""Which checkpoints of a study stay: those of the best few trials under every rule of selection."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Sequence

from csg_ray.results.selection import Candidate, Rule, objective_rule, rank_key, rules_for
from csg_ray.search_space import Objective


def retention_rules(objectives: Iterable[Objective], score: str) -> tuple[Rule, ...]:
    """The rules that a trial may win by: those of the task's score, and the study's objectives."""
    rules = rules_for(score)
    own = (objective_rule(goal.metric, goal.mode, rules) for goal in objectives)
    return tuple(dict.fromkeys((*rules.values(), *own)))


class BestTrials:
    """The best `count` completed trials under each rule, kept up as trials end.

    A trial that has dropped out never comes back, because a state is final and the trials only
    become more. So what is dropped along the way is what a look at all trials at once would drop.

    Args:
        rules: the rules, each with a ranking of its own.
        count: places of each ranking.
    """

    def __init__(self, rules: Sequence[Rule], count: int) -> None:
        self._count = count
        self._rankings: dict[Rule, list[tuple[float, int, str]]] = {rule: [] for rule in rules}
        self._places: Counter[str] = Counter()

    def add(self, trial: Candidate) -> set[str]:
        """Take a trial that has ended; the ids, its own included, that are without a place now."""
        touched = {trial.id}
        for rule, ranking in self._rankings.items():
            key = rank_key(trial, rule.metric, rule.mode)
            if key is None:
                continue
            bisect.insort(ranking, key)
            self._places[trial.id] += 1
            if len(ranking) > self._count:
                *_, last = ranking.pop()
                self._places[last] -= 1
                touched.add(last)
        return {trial_id for trial_id in touched if not self._places[trial_id]}
