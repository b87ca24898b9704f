"""The page of a report: everything about a study, in one file that opens without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.io
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from csg_ray.config.data import has_sealed_split
from csg_ray.results.cost import Cost, describe_cost, study_cost
from csg_ray.results.export import selected_with_target_labels
from csg_ray.results.picks import TIES, RulePick, rule_picks
from csg_ray.results.report.cautions import Caution, find_cautions
from csg_ray.results.report.plots import Figure, build_figures, score_label, short
from csg_ray.results.reruns import Rerun, find_reruns, pair_up, winner
from csg_ray.results.selection import OBJECTIVE, Rule, final_value
from csg_ray.results.study import ENERGY, Study, Trial

WIDE = ("parallel_coordinates",)  # figures that need the whole width of the page


@dataclass(frozen=True)
class Report:
    """All that a page says of a study.

    Attributes:
        best: the pick of the study's own rule; None when no trial has completed.
        reruns: each of the study's reruns, with its pairs of trials.
    """

    study: Study
    rule: Rule
    best: Trial | None
    picks: Sequence[RulePick]
    reruns: Sequence[tuple[Study, Sequence[Rerun]]]
    cautions: Sequence[Caution]
    cost: Cost | None
    figures: Sequence[Figure]


def build_report(study: Study) -> Report:
    """Read everything that the page of a study shows; writes nothing and opens no sealed split.

    Raises:
        UserError: a file of the study is damaged.
    """
    rule = study.rule(OBJECTIVE)
    best = next(iter(study.top(1, rule.name)), None)
    picks = rule_picks(study)
    reruns = find_reruns(study)
    return Report(
        study=study,
        rule=rule,
        best=best,
        picks=picks,
        reruns=[(each, pair_up(study, each)) for each in reruns],
        cautions=find_cautions(study, best, picks, reruns),
        cost=study_cost(study),
        figures=build_figures(study, best),
    )


def render_page(report: Report) -> str:
    """The report as HTML."""
    loader = PackageLoader("csg_ray.results.report", "")
    study = report.study

    def cost_of(seconds: float | None) -> str:
        return describe_cost(seconds, study.space.resources)

    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"metric": _metric, "value": short, "cost": cost_of}
    return environment.get_template("page.html.jinja").render(
        study=study,
        rule=report.rule,
        best=report.best,
        published=_completed_published(study),
        score=study.score_metric,
        score_label=score_label(study),
        source_metric=next((r.metric for r in study.rules.values() if r.name == "source_val"), ""),
        energy=ENERGY,
        stamped=selected_with_target_labels(study, report.rule.name),
        sealed=has_sealed_split(study.space.first_config().data),
        picks=report.picks,
        ties=TIES,
        reruns=[_rerun_context(each, pairs, report.rule) for each, pairs in report.reruns],
        cautions=report.cautions,
        cost=report.cost,
        states=_states(study),
        agreement=study.energy_and_accuracy(),
        figures=[_embedded(figure) for figure in report.figures],
        settings=_settings(study),
        trials=_best_first(study, report.rule),
        provenance=_flat(study.provenance),
        base=study.space.base,
        plotly_js=Markup(get_plotlyjs()),
    )


def _completed_published(study: Study) -> Trial | None:
    published = study.published
    if published is None or final_value(published, study.score_metric) is None:
        return None
    return published


def _rerun_context(reruns: Study, pairs: Sequence[Rerun], rule: Rule) -> dict[str, Any]:
    return {
        "study": reruns,
        "seeds": reruns.space.search.repeats,
        "pairs": pairs,
        "winner": winner(pairs, rule),
    }


def _states(study: Study) -> dict[str, int]:
    counts: dict[str, int] = {}
    for trial in study.trials:
        counts[trial.state] = counts.get(trial.state, 0) + 1
    return counts


def _embedded(figure: Figure) -> dict[str, Any]:
    # In a script element only "</" could end it early.
    spec = plotly.io.to_json(figure.plot, pretty=False).replace("</", "<\\/")
    return {
        "name": figure.name,
        "title": figure.title,
        "caption": figure.caption,
        "wide": figure.name in WIDE,
        "small": figure.name.startswith("slice_"),
        "spec": Markup(spec),
    }


def _settings(study: Study) -> list[str]:
    """The searched settings, those that some trials only have at the end."""
    searched = dict.fromkeys(study.space.space)
    return list(searched | dict.fromkeys(path for trial in study.trials for path in trial.params))


def _best_first(study: Study, rule: Rule) -> list[Trial]:
    """All trials: those that may win by the study's rule, best first, then the others."""
    ranked = study.top(len(study.trials), rule.name)
    able = {trial.id for trial in ranked}
    return [*ranked, *(trial for trial in study.trials if trial.id not in able)]


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
        )
    return flat


def _metric(metrics: Mapping[str, Any] | None, name: str) -> str:
    """A metric to three places, with its deviation over repeats; a dash where there is none."""
    value = None if metrics is None else metrics.get(name)
    if value is None:
        return "-"
    spread = (metrics or {}).get(f"{name}_std")
    return f"{value:.3f}" if spread is None else f"{value:.3f} ± {spread:.3f}"
