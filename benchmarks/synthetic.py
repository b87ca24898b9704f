"""Made-up learning curves over the five settings of CSG, for benchmarks that train nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from csg_ray.search_space import Choice, Domain, Integer

STAGES = {"4": 0.0, "3,4": 0.02, "2,3,4": 0.04, "1,2,3,4": 0.01}
MOMENTA = {0.9: 0.0, 0.99: 0.01, 0.999: 0.02, 0.9999: -0.02}
NOISE = 0.01


def draw(domain: Domain, draws: random.Random) -> Any:
    """A value of a searched setting."""
    if isinstance(domain, Choice):
        return draws.choice(domain.values)
    if isinstance(domain, Integer):
        return draws.randint(domain.low, domain.high)
    if domain.log:
        return math.exp(draws.uniform(math.log(domain.low), math.log(domain.high)))
    return draws.uniform(domain.low, domain.high)


def accuracy(params: Mapping[str, Any]) -> float:
    """Accuracy of a setting after infinitely many epochs, without noise; 0.80 at the very best.

    A ridge between lambda and tau, a valley in M that moves with G, and a cliff: a large lambda
    with a small tau ends near chance.
    """
    weight = math.log10(params["method.loss_weight"])
    temperature = math.log10(params["method.temperature"])
    stages, momentum = params["method.stages"], params["method.ema_momentum"]
    if weight - 2 * temperature > 3.2:
        return 0.12
    ridge = 0.15 * (temperature + 0.9 - 0.25 * weight) ** 2
    slope = 0.03 * (weight - 0.4) ** 2
    magnitude = 0.0006 * (params["augment.magnitude"] - 10 - 2 * len(stages.split(","))) ** 2
    return 0.74 + STAGES[stages] + MOMENTA[momentum] - ridge - slope - magnitude


def energy(params: Mapping[str, Any]) -> float:
    """Energy of a setting without noise; lower with lambda, tau and G, so at odds with accuracy."""
    weight = math.log10(params["method.loss_weight"])
    temperature = math.log10(params["method.temperature"])
    stages = len(params["method.stages"].split(","))
    return 0.8 - 0.15 * weight - 0.3 * temperature - 0.05 * stages + 0.01 * abs(weight)


def learning_curve(params: Mapping[str, Any], epochs: int, seed: str) -> list[float]:
    """Accuracies after each epoch; a small tau learns slowly, so early ranks mislead."""
    draws = random.Random(seed)
    speed = 0.5 + params["method.temperature"]
    top = accuracy(params)
    clean = (0.1 + (top - 0.1) * (1 - math.exp(-speed * epoch)) for epoch in range(1, epochs + 1))
    return [min(1.0, max(0.0, value + draws.gauss(0, NOISE))) for value in clean]


def epoch_seconds(params: Mapping[str, Any], seed: str) -> float:
    """Duration of an epoch: about a minute, more with more stages, and no two machines alike."""
    stages = len(params["method.stages"].split(","))
    return 50 * (1 + 0.1 * stages) * random.Random(f"{seed}/speed").lognormvariate(0, 0.2)
