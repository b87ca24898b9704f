"""What to tell Optuna of a diverged trial: FAIL, or COMPLETE with the worst value?

    python benchmarks/diverged_trials.py

A made-up space with a cliff: accuracy rises with the learning rate up to an edge that depends on
the loss weight; beyond it the training diverges. TPE with this project's settings searches it,
both ways on the same seeds; printed are the best accuracy found and the share of diverged trials.
"""

from __future__ import annotations

import math
import random
import statistics

import optuna
from optuna.samplers import TPESampler
from optuna.trial import TrialState

SEEDS = 60
WORST = 0.0

optuna.logging.set_verbosity(optuna.logging.ERROR)


def accuracy(log_rate: float, log_weight: float, magnitude: int) -> float | None:
    """Accuracy of one setting, None beyond the cliff."""
    edge = -1.0 - 0.4 * (log_weight + 2)
    if log_rate > edge:
        return None
    slope = 0.35 * math.exp(-((edge - log_rate) / 1.2))
    bumps = 0.15 * math.exp(-((log_weight - 0.2) ** 2)) + 0.1 * math.exp(
        -(((magnitude - 10) / 6) ** 2)
    )
    return 0.35 + slope + bumps


def search(seed: int, num_trials: int, state: str) -> tuple[float, float]:
    """Best accuracy and share of diverged trials of one search."""
    startup = max(4, min(10, num_trials // 3))
    study = optuna.create_study(
        direction="maximize", sampler=TPESampler(seed=seed, n_startup_trials=startup)
    )
    noise = random.Random(seed)
    best, diverged = 0.0, 0
    for _ in range(num_trials):
        trial = study.ask()
        value = accuracy(
            trial.suggest_float("log_rate", -4, 1),
            trial.suggest_float("log_weight", -2, 1),
            trial.suggest_int("magnitude", 0, 24),
        )
        if value is None:
            diverged += 1
            if state == "fail":
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, WORST)
            continue
        best = max(best, value)
        study.tell(trial, value + noise.gauss(0, 0.01))
    return best, diverged / num_trials


def main() -> None:
    """Compare both on 16, 32 and 64 trials."""
    print(
        f"{'trials':>6}  {'told':<6} {'best accuracy':>14} {'diverged':>9}   wins of {SEEDS} pairs"
    )
    for num_trials in (16, 32, 64):
        runs = {
            state: [search(seed, num_trials, state) for seed in range(SEEDS)]
            for state in ("fail", "worst")
        }
        pairs = list(zip(runs["fail"], runs["worst"], strict=True))
        wins = {
            "fail": sum(fail[0] > worst[0] for fail, worst in pairs),
            "worst": sum(worst[0] > fail[0] for fail, worst in pairs),
        }
        for state, results in runs.items():
            best = statistics.mean(accuracy for accuracy, _ in results)
            share = statistics.mean(share for _, share in results)
            print(f"{num_trials:>6}  {state:<6} {best:>14.4f} {share:>8.0%}   {wins[state]}")


if __name__ == "__main__":
    main()
