"""Asynchronous successive halving (ASHA, Li et al., MLSys 2020), the rule alone, without Ray."""

from __future__ import annotations

import bisect
import math


class SuccessiveHalving:
    """Decides from a trial's value at each rung whether it goes on.

    A trial that reaches a rung goes on if it is among the best 1/reduction_factor of all that have
    reached it, itself included, rounded up. Until `reduction_factor` peers are there it always goes
    on. NaN and infinite values are worst. Feeding old results again in their order restores it.

    Args:
        epochs: the full budget; a trial that reaches it is finished, not cut.
        grace_period: epochs before the first decision.
        reduction_factor: one in so many goes on.
        mode: `max` or `min`.
    """

    def __init__(self, epochs: int, grace_period: int, reduction_factor: int, mode: str) -> None:
        self.reduction_factor = reduction_factor
        self._sign = 1.0 if mode == "max" else -1.0
        self.rungs: dict[int, dict[str, float]] = {}
        self._sorted: dict[int, list[float]] = {}  # the scores of each rung, the worst first
        milestone = grace_period
        while milestone < epochs:
            self.rungs[milestone] = {}
            self._sorted[milestone] = []
            milestone *= reduction_factor

    def stops(self, trial_id: str, epoch: int, value: float) -> bool:
        """Record one report; True if the trial is to be cut now.

        A rung whose very epoch was not reported (a lost report) is filled by the next one.
        """
        reached = [milestone for milestone in self.rungs if milestone <= epoch]
        if not reached:
            return False
        rung, scores = self.rungs[max(reached)], self._sorted[max(reached)]
        if trial_id in rung:
            return False
        score = self._sign * value if math.isfinite(value) else -math.inf
        peers, better = len(scores), len(scores) - bisect.bisect_right(scores, score)
        rung[trial_id] = score
        bisect.insort(scores, score)
        if peers < self.reduction_factor:
            return False
        return score == -math.inf or better >= math.ceil((peers + 1) / self.reduction_factor)
