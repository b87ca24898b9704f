"""The figures of a report, as plotly figures: Optuna's, and those that only this study has."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import optuna.visualization as optuna_plots
import plotly.graph_objects as go

from csg_ray.results.optuna_study import build_optuna_study, named_domains, optuna_params
from csg_ray.results.selection import SCORE_NAMES, final_value
from csg_ray.results.study import ENERGY, Study, Trial
from csg_ray.search_space import Choice, Domain

COLOURS = {
    "completed": "#2a6f97",
    "stopped": "#c9a227",
    "diverged": "#c0392b",
    "failed": "#7f8c8d",
    "unfinished": "#95a5a6",
}
BEST, PUBLISHED, FRONT = "#d1495b", "#2d6a4f", "#6c757d"
FEWEST_FOR_IMPORTANCE = 8


@dataclass(frozen=True)
class Figure:
    """A figure with its name (for files), its title, and what it shows and how to read it."""

    name: str
    title: str
    caption: str
    plot: go.Figure


def build_figures(study: Study, best: Trial | None) -> list[Figure]:
    """All figures that the study has enough trials for, in the order of the page.

    Args:
        study: as read from its files.
        best: the trial that the study's own rule picks.
    """
    figures = [_energy_and_score(study, best), _learning_curves(study, best), _cost(study)]
    completed = _completed(study)
    if len(completed.trials) > 1:
        figures += [
            _history(completed),
            *_importances(completed),
            *_slices(completed, best),
            _parallel(completed),
        ]
    return [figure for figure in figures if figure is not None]


def score_label(study: Study) -> str:
    """The word for the score on target_val: accuracy or mIoU."""
    return SCORE_NAMES[study.space.score]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which (energy, score) points no other point beats: less energy or more score, no worse.

    Returns:
        Their positions, the energy rising.
    """
    front: list[int] = []
    best = float("-inf")
    for position in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[position][1] > best:
            best = points[position][1]
            front.append(position)
    return front


def _completed(study: Study) -> Study:
    """The study without the trials that were cut, diverged or failed.

    A cut one has no value at full budget, and the worst value of one that diverged would squeeze
    all others into a corner.
    """
    score = study.score_metric
    whole = tuple(trial for trial in study.trials if final_value(trial, score) is not None)
    return replace(study, trials=whole)


def _energy_and_score(study: Study, best: Trial | None) -> Figure | None:
    score = study.score_metric
    trials = [
        trial
        for trial in study.trials
        if final_value(trial, ENERGY) is not None and final_value(trial, score) is not None
    ]
    if not trials:
        return None
    points = [(float(trial.last[ENERGY]), float(trial.last[score])) for trial in trials]
    front = [points[position] for position in pareto_front(points)]
    plot = go.Figure()
    plot.add_scatter(
        x=[energy for energy, _ in front],
        y=[value for _, value in front],
        mode="lines",
        line={"shape": "hv", "dash": "dot", "color": FRONT},
        name="Pareto front",
        hoverinfo="skip",
    )
    plot.add_scatter(
        x=[energy for energy, _ in points],
        y=[value for _, value in points],
        mode="markers",
        marker={"color": COLOURS["completed"], "size": 9, "opacity": 0.8},
        text=[describe(trial) for trial in trials],
        hovertemplate="HSE %{x:.3f}, score %{y:.3f}<br>%{text}<extra></extra>",
        name="completed trials",
    )
    _mark(plot, study, best, _at_energy)
    plot.update_xaxes(title=metric_label(ENERGY))
    plot.update_yaxes(title=f"{score_label(study)} on target_val")
    agreement = study.energy_and_accuracy()
    told = f"{agreement}" if agreement else "Fewer than four completed trials: no correlation"
    return Figure(
        "energy_and_score",
        f"Hyperspherical energy against {score_label(study)}",
        f"{told}, over {len(trials)} completed trials. Lower energy is more diverse, so up and to "
        "the left is better; the dotted line is the Pareto front.",
        _styled(plot),
    )


def _at_energy(trial: Trial, study: Study) -> tuple[Any, Any]:
    return trial.last[ENERGY], trial.last[study.score_metric]


def _mark(
    plot: go.Figure,
    study: Study,
    best: Trial | None,
    at: Callable[[Trial, Study], tuple[Any, Any] | None],
) -> None:
    """Mark the published settings and the best trial, when they have completed and a place."""
    marks = (
        (study.published, "published settings", PUBLISHED, "diamond"),
        (best, "best", BEST, "star"),
    )
    for trial, name, colour, symbol in marks:
        if trial is None or final_value(trial, study.score_metric) is None:
            continue
        if (place := at(trial, study)) is None:
            continue
        x, y = place
        plot.add_scatter(
            x=[x],
            y=[y],
            mode="markers",
            marker={
                "color": colour,
                "size": 14,
                "symbol": symbol,
                "line": {"width": 1, "color": "white"},
            },
            name=f"{name} ({trial.id})",
            text=[describe(trial)],
            hovertemplate="%{text}<extra></extra>",
        )


def _learning_curves(study: Study, best: Trial | None) -> Figure | None:
    metric = study.space.objectives[0].metric
    plot = go.Figure()
    for state, colour in COLOURS.items():
        trials = [trial for trial in study.trials if trial.state == state and trial.results]
        if not trials:
            continue
        epochs, values, texts = _joined(trials, metric)
        faded = state != "completed"
        plot.add_scatter(
            x=epochs,
            y=values,
            text=texts,
            mode="lines+markers" if len(trials) <= 100 else "lines",
            line={"color": colour, "width": 1 if faded else 1.5},
            marker={"size": 4},
            opacity=0.5 if faded else 0.8,
            name=f"{state} ({len(trials)})",
            hovertemplate="epoch %{x}: %{y:.3f}<br>%{text}<extra></extra>",
        )
        if state == "stopped":
            plot.add_scatter(
                x=[trial.epoch for trial in trials],
                y=[trial.last.get(metric) for trial in trials],
                mode="markers",
                marker={"symbol": "x", "size": 8, "color": colour},
                name="cut by ASHA",
                text=[trial.id for trial in trials],
                hovertemplate="trial %{text} cut after epoch %{x}<extra></extra>",
            )
    for trial, name, colour in (
        (study.published, "published settings", PUBLISHED),
        (best, "best", BEST),
    ):
        if trial is not None and trial.results:
            epochs, values, _ = _joined([trial], metric)
            plot.add_scatter(
                x=epochs,
                y=values,
                mode="lines",
                line={"color": colour, "width": 3},
                name=f"{name} ({trial.id})",
            )
    if not plot.data:
        return None
    plot.update_xaxes(title="epoch")
    plot.update_yaxes(title=_goal(study))
    cut = sum(trial.state == "stopped" for trial in study.trials)
    diverged = sum(trial.state == "diverged" for trial in study.trials)
    return Figure(
        "learning_curves",
        "Learning curves",
        f"What is optimised, after every epoch. ASHA cut {cut} of {len(study.trials)} trials, "
        f"each at its cross; {diverged} diverged, each where its curve ends.",
        _styled(plot),
    )


def _joined(
    trials: Iterable[Trial], metric: str
) -> tuple[list[int | None], list[float | None], list[str]]:
    """The curves of many trials as one line with gaps: a thousand lines would freeze a browser."""
    epochs: list[int | None] = []
    values: list[float | None] = []
    texts: list[str] = []
    for trial in trials:
        for line in trial.results:
            if line.get("diverged"):
                continue  # the worst there is, by convention: it would squeeze all other curves
            epochs.append(int(line["epoch"]))
            values.append(line.get(metric))
            texts.append(f"trial {trial.id}")
        epochs.append(None)
        values.append(None)
        texts.append("")
    return epochs, values, texts


def _cost(study: Study) -> Figure | None:
    timed = [(trial, seconds) for trial in study.trials if (seconds := trial.seconds) is not None]
    if not timed:
        return None
    plot = go.Figure()
    for state, colour in COLOURS.items():
        rows = [(trial, seconds) for trial, seconds in timed if trial.state == state]
        if rows:
            plot.add_bar(
                x=[trial.id for trial, _ in rows],
                y=[seconds / 60 for _, seconds in rows],
                marker={"color": colour, "line": {"width": 0}},
                name=state,
                text=[f"{trial.epoch} epochs" for trial, _ in rows],
                textposition="none",
                hovertemplate="trial %{x}: %{y:.1f} min, %{text}<extra></extra>",
            )
    order = [trial.id for trial, _ in timed]
    plot.update_xaxes(
        title="trial", type="category", categoryorder="array", categoryarray=order, nticks=12
    )
    plot.update_yaxes(title="minutes")
    plot.update_layout(bargap=0.15 if len(timed) < 100 else 0)
    return Figure(
        "cost",
        "Cost of each trial",
        "Minutes of training and measuring on each of its workers; time in a queue does not count.",
        _styled(plot),
    )


def _history(completed: Study) -> Figure:
    plot = optuna_plots.plot_optimization_history(
        build_optuna_study(completed), target=_target(completed), target_name=_goal(completed)
    )
    plot.update_layout(title=None)
    plot.update_xaxes(title="completed trials, in order")
    return Figure(
        "history",
        "Progress of the search",
        "Each completed trial, and the best one so far.",
        _styled(plot),
    )


def _importances(completed: Study) -> list[Figure]:
    """Which settings matter; none when there are too few trials to tell."""
    if len(completed.trials) < FEWEST_FOR_IMPORTANCE:
        return []
    plot = optuna_plots.plot_param_importances(
        build_optuna_study(completed), target=_target(completed), target_name=_goal(completed)
    )
    plot.update_layout(title=None)
    plot.update_traces(marker={"color": COLOURS["completed"]})
    plot.update_xaxes(title="share of the variance")
    plot.update_yaxes(title=None, automargin=True)
    count = len(completed.trials)
    return [
        Figure(
            "importances",
            "Which settings matter",
            f"fANOVA (Hutter et al., ICML 2014) as Optuna computes it, over {count} completed "
            "trials; with fewer than some thirty, read it as a hint.",
            _styled(plot),
        )
    ]


def _slices(completed: Study, best: Trial | None) -> list[Figure]:
    """A figure for every searched setting; of a branch, over the trials of that branch."""
    rebuilt = build_optuna_study(completed)
    domains: dict[str, tuple[str, Domain]] = {}
    for trial in completed.trials:
        for name, path, domain in named_domains(completed.space.space, trial.params):
            domains.setdefault(name, (path, domain))
    figures = []
    for name, (path, domain) in domains.items():
        plot = optuna_plots.plot_slice(
            rebuilt, params=[name], target=_target(completed), target_name=_goal(completed)
        )
        plot.update_layout(title=None)
        plot.update_traces(marker={"showscale": False, "size": 8}, name="completed trials")
        _scale_axis(plot, domain)
        _mark(plot, completed, best, partial(_at_setting, name=name, path=path, domain=domain))
        figure = Figure("slice_" + re.sub(r"[^A-Za-z0-9.]+", "_", name), name, "", _styled(plot))
        figure.plot.update_layout(showlegend=False, margin={"t": 10, "l": 55})
        figure.plot.update_xaxes(title=None)
        figures.append(figure)
    return figures


def _scale_axis(plot: go.Figure, domain: Domain) -> None:
    """Show the whole range that was searched, so that a trial at its edge is seen to be there."""
    if isinstance(domain, Choice):
        # Optuna quotes text and leaves the order to the trials.
        names = [str(value) for value in domain.values]
        plot.data[0].x = [str(value).strip("'") for value in plot.data[0].x]
        plot.update_xaxes(
            type="category",
            categoryorder="array",
            categoryarray=names,
            range=[-0.5, len(names) - 0.5],
        )
    elif domain.log:
        low, high = math.log10(domain.low), math.log10(domain.high)
        steps = (1,) if high - low > 2 else (1, 2, 5)
        ticks = [
            step * 10.0**decade
            for decade in range(math.floor(low), math.ceil(high) + 1)
            for step in steps
        ]
        margin = 0.04 * (high - low)
        plot.update_xaxes(
            type="log",
            range=[low - margin, high + margin],
            tickvals=ticks,
            ticktext=[f"{tick:g}" for tick in ticks],
        )
    else:
        margin = 0.04 * (domain.high - domain.low)
        plot.update_xaxes(range=[domain.low - margin, domain.high + margin])


def _at_setting(
    trial: Trial, study: Study, name: str, path: str, domain: Domain
) -> tuple[Any, Any] | None:
    """Where a trial is in the slice of a setting; nowhere in that of another branch."""
    if name not in optuna_params(study.space, trial.params):
        return None
    value = trial.params[path]
    shown = str(value) if isinstance(domain, Choice) else value
    return shown, trial.last.get(study.space.objectives[0].metric)


def _parallel(completed: Study) -> Figure:
    plot = optuna_plots.plot_parallel_coordinate(
        build_optuna_study(completed), target=_target(completed), target_name=_goal(completed)
    )
    plot.update_layout(title=None)
    return Figure(
        "parallel_coordinates",
        "All settings at once",
        "A line for each completed trial, coloured by what is optimised, which is the first axis.",
        _styled(plot, margin={"l": 90, "r": 60, "t": 40, "b": 90}),
    )


def _target(study: Study) -> Callable[[Any], float] | None:
    """Of several objectives the first one is drawn; a single one Optuna finds by itself."""
    return _first_value if len(study.space.objectives) > 1 else None


def _first_value(trial: Any) -> float:
    return float(trial.values[0])


def _goal(study: Study) -> str:
    """What is optimised, in words."""
    return metric_label(study.space.objectives[0].metric)


def metric_label(metric: str) -> str:
    """`target_val/hse` in words: HSE on target_val."""
    split, _, name = metric.partition("/")
    words = SCORE_NAMES | {"hse": "HSE"}
    return f"{words[name]} on {split}" if name in words else metric


def describe(trial: Trial) -> str:
    """A trial and its settings, on lines of their own for a hover label."""
    settings = (f"{path}: {short(value)}" for path, value in trial.params.items())
    return "<br>".join([f"trial {trial.id}", *settings])


def short(value: Any) -> str:
    """A setting to four digits at most; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _styled(plot: go.Figure, margin: dict[str, int] | None = None) -> go.Figure:
    """The look that all figures share; the page gives the width."""
    plot.update_layout(
        template="plotly_white",
        autosize=True,
        width=None,
        height=420,
        margin=margin or {"l": 60, "r": 20, "t": 20, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hoverlabel={"align": "left"},
    )
    return plot
