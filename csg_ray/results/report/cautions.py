"""What a reader of a report should know before believing it; found without being asked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from csg_ray.config.data import has_sealed_split
from csg_ray.config.errors import UserError
from csg_ray.results.cost import what_budget_left
from csg_ray.results.picks import RulePick, read_test_results
from csg_ray.results.report.plots import short
from csg_ray.results.reruns import pair_up, winner
from csg_ray.results.selection import final_value
from csg_ray.results.study import FINAL_STATES, Study, Trial
from csg_ray.search_space import Choice, Domain, Float, Integer

NEAR_EDGE = 0.05  # of the range, on its own scale
MANY_FAILED = 0.2
FEW_COMPLETED = 10
FEW_SEEDS = 3


@dataclass(frozen=True)
class Caution:
    """One thing to know, and what can be done about it."""

    what: str
    advice: str


def find_cautions(
    study: Study, best: Trial | None, picks: Sequence[RulePick], reruns: Sequence[Study]
) -> list[Caution]:
    """Everything that holds of a study, the weightiest first.

    Args:
        study: as read from its files.
        best: the trial that the study's own rule picks.
        picks: what each rule picks.
        reruns: the studies in which its best trials were trained again.
    """
    return [
        *_labels_used(study, picks),
        *_beaten_over_new_seeds(study, best, reruns),
        *_too_few_seeds(study, best, reruns),
        *_at_an_edge(study, best),
        *_still_rising(study, best),
        *_out_of_budget(study),
        *_ended_badly(study),
        *_few_completed(study),
        *_ties(picks),
        *_published_missing(study),
        *_test_opened_again(study),
        *_changed_on_the_way(study),
    ]


def _labels_used(study: Study, picks: Sequence[RulePick]) -> Iterator[Caution]:
    if all(pick.uses_target_labels for pick in picks) and picks:
        yield Caution(
            "Selection used target labels: the search itself was steered by them, so every pick "
            "below has seen them, and its score on target_val is too good.",
            _sealed_advice(study)
            + "A search by source_val or hse (search.metric) sees none of them.",
        )
    elif any(pick.uses_target_labels for pick in picks):
        yield Caution(
            "The pick by target_val used target labels; its score on target_val is too good.",
            _sealed_advice(study) + "The other rules need none.",
        )


def _sealed_advice(study: Study) -> str:
    if not has_sealed_split(study.space.first_config().data):
        return ""
    return f"Quote target_test (csg-ray evaluate {study.directory}). "


def _beaten_over_new_seeds(
    study: Study, best: Trial | None, reruns: Sequence[Study]
) -> Iterator[Caution]:
    """The best trial was lucky: trained again, another one of the first few is better."""
    if best is None or not reruns:
        return
    rule = study.rule(study.default_rule)
    first = winner(pair_up(study, reruns[-1]), rule)
    if first is None or first.original.id == best.id:
        return
    yield Caution(
        f"Trained again over {reruns[-1].space.search.repeats} new seeds, trial "
        f"{first.original.id} is better than the best trial of the search, {best.id}: that one "
        "was lucky.",
        f"csg-ray export {study.directory} OUT.yaml --trial {first.original.id} exports the other.",
    )


def _too_few_seeds(study: Study, best: Trial | None, reruns: Sequence[Study]) -> Iterator[Caution]:
    if best is None:
        return
    seeds = max([study.space.search.repeats, *(each.space.search.repeats for each in reruns)])
    if seeds >= FEW_SEEDS:
        return
    yield Caution(
        f"Each setting was trained with {seeds} seed{'s' if seeds > 1 else ''}: the best of "
        f"{len(study.trials)} trials owes a part of its lead to luck.",
        f"csg-ray best {study.directory} --rerun-seeds 3 trains the first few again.",
    )


def _at_an_edge(study: Study, best: Trial | None) -> Iterator[Caution]:
    if best is None:
        return
    for path, domain in study.space.active_domains(best.params).items():
        edge = _edge(domain, best.params.get(path))
        if edge is None or not _can_go_on(study, best, path, domain, edge):
            continue
        yield Caution(
            f"The best trial has {path} {short(best.params[path])}, at the {edge} end of what was "
            f"searched ({_range(domain)}).",
            "Widen the range at that end and search on: the best value may lie outside.",
        )


def _edge(domain: Domain, value: Any) -> str | None:
    """`lower` or `upper` when a value lies within 5 % of an end; None elsewhere, or for names."""
    if isinstance(domain, Choice):
        numbers = [each for each in domain.values if _is_number(each)]
        if len(numbers) < len(domain.values) or len(numbers) < 3:
            return None
        ends = {min(numbers): "lower", max(numbers): "upper"}
        return ends.get(value)
    position = _position(domain, value)
    if position <= NEAR_EDGE:
        return "lower"
    return "upper" if position >= 1 - NEAR_EDGE else None


def _position(domain: Float | Integer, value: float) -> float:
    """0 at the lower end, 1 at the upper, on the domain's scale."""
    if domain.log:
        return math.log(value / domain.low) / math.log(domain.high / domain.low)
    return (value - domain.low) / (domain.high - domain.low)


def _can_go_on(study: Study, best: Trial, path: str, domain: Domain, edge: str) -> bool:
    """Whether there are legal values beyond the end: no one can go below M = 0."""
    numbers = domain.values if isinstance(domain, Choice) else (domain.low, domain.high)
    low, high = min(numbers), max(numbers)
    end, step = (low, low - high) if edge == "lower" else (high, high - low)
    beyond = end + 0.01 * step
    if isinstance(domain, Integer):
        beyond = end + (1 if edge == "upper" else -1)
    elif not isinstance(domain, Choice) and domain.log:
        beyond = end * (1.01 if edge == "upper" else 0.99)
    try:
        study.space.config_for(dict(best.params) | {path: beyond})
    except UserError:
        return False
    return True


def _range(domain: Domain) -> str:
    if isinstance(domain, Choice):
        return ", ".join(str(value) for value in domain.values)
    return f"{short(domain.low)} to {short(domain.high)}"


def _still_rising(study: Study, best: Trial | None) -> Iterator[Caution]:
    """The best trial is best at its last epoch: it may not be done."""
    if best is None:
        return
    objective = study.space.objectives[0]
    sign = 1 if objective.mode == "max" else -1
    curve = [sign * float(line[objective.metric]) for line in best.results]
    if len(curve) > 1 and curve[-1] > max(curve[:-1]):
        yield Caution(
            f"The best trial is at its best in its last epoch ({best.epoch}): it may not be done.",
            "Search with more train.epochs.",
        )


def _out_of_budget(study: Study) -> Iterator[Caution]:
    if study.budget_spent:
        budget = study.space.search.budget
        yield Caution(
            f"The {what_budget_left(study)}.",
            f"csg-ray restore {study.directory} --budget {budget} goes on with them.",
        )


def _ended_badly(study: Study) -> Iterator[Caution]:
    ended = [trial for trial in study.trials if trial.state in FINAL_STATES]
    bad = [trial for trial in ended if trial.state in ("failed", "diverged")]
    if not ended or len(bad) <= MANY_FAILED * len(ended):
        return
    failed = sum(trial.state == "failed" for trial in bad)
    yield Caution(
        f"{len(bad)} of {len(ended)} trials ended badly ({failed} failed, {len(bad) - failed} "
        "diverged): large parts of the space were not searched.",
        "The table of trials has the reasons; narrow the ranges that they share, such as the "
        "learning rate or lambda.",
    )


def _few_completed(study: Study) -> Iterator[Caution]:
    done = sum(final_value(trial, study.score_metric) is not None for trial in study.trials)
    if done >= FEW_COMPLETED:
        return
    yield Caution(
        f"{done} trial{'s' if done != 1 else ''} had the full budget: correlation, importances and "
        "slices rest on little.",
        f"csg-ray restore {study.directory} --more 20 adds trials.",
    )


def _ties(picks: Sequence[RulePick]) -> Iterator[Caution]:
    for pick in picks:
        if pick.equals:
            yield Caution(
                f"{len(pick.equals) + 1} trials are equal by {pick.rule.name}; the earliest, "
                f"{pick.trial.id}, is its pick by that alone.",
                "A rule that cannot tell trials apart says little of them.",
            )


def _published_missing(study: Study) -> Iterator[Caution]:
    published = study.published
    if published is None:
        yield Caution(
            "The published settings were not run, so there is nothing to beat.",
            "Name them in points_to_evaluate.",
        )
    elif final_value(published, study.score_metric) is None:
        yield Caution(
            f"The published settings, trial {published.id}, did not complete ({published.state}).",
            "Compare with a run of their own: csg-ray export --trial, csg-ray train.",
        )


def _test_opened_again(study: Study) -> Iterator[Caution]:
    looks = read_test_results(study.directory)
    if len(looks) > 1 or any(look["earlier_openings"] for look in looks):
        count = max(len(looks), *(len(look["earlier_openings"]) + 1 for look in looks))
        yield Caution(
            f"target_test was opened {count} times: what was chosen after the first look has "
            "seen it.",
            f"{study.directory}/test_ledger.jsonl says by whom and when; quote the first.",
        )


def _changed_on_the_way(study: Study) -> Iterator[Caution]:
    names = sorted({name for restore in study.restores for name in restore.get("changed") or {}})
    if names:
        yield Caution(
            f"The study was restored under other conditions: {', '.join(names)} changed.",
            "study.yaml says from what to what; trials before and after may differ.",
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
