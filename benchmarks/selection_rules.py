"""What each way to choose a trial is worth on images that no search has seen.

    python benchmarks/selection_rules.py OUT
    python benchmarks/selection_rules.py OUT --metric source_val/mean_class_accuracy

Searches search_spaces/digits.yaml once for each study seed, 16 trials each, opens target_test once
a study for the picks of all three rules (`csg-ray evaluate`), and prints a Markdown table: the
accuracy on target_test of each rule's pick, and its regret, which is how far it stays behind the
pick by target_val, whose rule sees target labels. With the default metric target labels also steer
the search (TPE and ASHA); with the second command nothing does but source_val, and the picks by
source_val and by HSE are those of somebody who has no label at all. A second call goes on where the
first one was stopped. About six minutes a study on two CPU cores.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
from pathlib import Path

from csg_ray.results.picks import RulePick, rule_picks
from csg_ray.results.study import Study, is_study, load_study

SPACE = Path(__file__).parents[1] / "search_spaces" / "digits.yaml"
TARGET = "target_val/mean_class_accuracy"
SEEDS = (0, 1, 2, 3, 4)
T_95 = {5: 2.776, 8: 2.365}  # Student's t, 97.5 %, by sample size


def search(directory: Path, seed: int, metric: str) -> None:
    """One study, begun or gone on with; one that has ended is left alone."""
    if is_study(directory) and _has_ended(load_study(directory)):
        return
    settings = (f"search.seed={seed}", f"search.metric={metric}")
    words = ["search", SPACE, "--trials", 16, "--study", directory, "--resume"]
    words += [word for setting in settings for word in ("--set", setting)]
    run(*words)


def _has_ended(study: Study) -> bool:
    ended = [trial for trial in study.trials if trial.state != "unfinished"]
    return len(ended) == study.space.search.num_trials


def run(*words: object) -> None:
    """A command of csg_ray."""
    subprocess.run([sys.executable, "-m", "csg_ray", *map(str, words)], check=True)


def tested_picks(directory: Path) -> list[RulePick]:
    """The picks of a study with what they reached on target_test, which is opened if it is not."""
    picks = rule_picks(load_study(directory))
    if any(pick.tested is None for pick in picks):
        run("evaluate", directory)
        picks = rule_picks(load_study(directory))
    return picks


def accuracy(pick: RulePick) -> float:
    """On target_test."""
    assert pick.tested is not None
    return float(pick.tested["mean_class_accuracy"])


def table(studies: dict[int, list[RulePick]]) -> list[str]:
    """A row a study, then means with 95 % intervals (Student's t over the studies)."""
    rules = [pick.rule.name for pick in next(iter(studies.values()))]
    others = [rule for rule in rules if rule != "target_val"]
    headers = ["study seed", *(f"{rule}: trial, target_test" for rule in rules)]
    headers += [f"regret of {rule}" for rule in others]
    lines = [f"| {' | '.join(headers)} |", f"|{'---|' * len(headers)}"]
    regrets: dict[str, list[float]] = {rule: [] for rule in others}
    for seed, picks in studies.items():
        by_rule = {pick.rule.name: pick for pick in picks}
        cells = [f"{by_rule[rule].trial.id}, {accuracy(by_rule[rule]):.3f}" for rule in rules]
        for rule in others:
            regrets[rule].append(accuracy(by_rule["target_val"]) - accuracy(by_rule[rule]))
        cells += [f"{regrets[rule][-1]:+.3f}" for rule in others]
        lines.append(f"| {seed} | {' | '.join(cells)} |")
    means = [
        interval(
            [
                accuracy(pick)
                for picks in studies.values()
                for pick in picks
                if pick.rule.name == rule
            ]
        )
        for rule in rules
    ]
    means += [interval(regrets[rule], "+.3f") for rule in others]
    lines.append(f"| mean +- 95 % | {' | '.join(means)} |")
    return lines


def interval(values: list[float], form: str = ".3f") -> str:
    """Mean and half the 95 % interval."""
    half = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):{form}} +- {half:.3f}"


def main() -> None:
    """Search, test, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--metric", default=TARGET)
    args = parser.parse_args()
    name = "seed" if args.metric == TARGET else "source"
    studies = {}
    for seed in SEEDS:
        directory = args.out / f"{name}-{seed}"
        search(directory, seed, args.metric)
        studies[seed] = tested_picks(directory)
    lines = table(studies)
    (args.out / f"{name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
