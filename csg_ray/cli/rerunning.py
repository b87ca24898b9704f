"""`best --rerun-seeds`: the first few trials trained again before one is called the winner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from csg_ray.cli.board import LABELS, describe_metric
from csg_ray.cli.console import watch_search
from csg_ray.cli.guard import command, continued_by, fail, say
from csg_ray.cli.preparing import prepare_study
from csg_ray.cli.searching import CHECKING
from csg_ray.cli.summary import STAMP, no_winner, print_notes
from csg_ray.results.export import first_free, selected_with_target_labels
from csg_ray.results.reruns import (
    FOLDER,
    Rerun,
    distinct_settings,
    lead,
    pair_up,
    rerun_space,
    reruns_of,
    winner,
)
from csg_ray.results.selection import OBJECTIVE, Rule
from csg_ray.results.study import ENERGY, Study, load_study
from csg_ray.search_space import Changes, SearchSpace
from csg_ray.storage.paths import StoragePath


def rerun_best(directory: StoragePath, top: int, by: str | None, seeds: int, verbose: bool) -> None:
    """Train the best trials again over `seeds` new seeds, or go on with that; then say who won."""
    study = load_study(directory)
    rule = study.rule(by or OBJECTIVE)
    study.refuse_unfinished()
    trials = distinct_settings(study.top(len(study.trials), rule.name), top)
    if not trials:
        fail(no_winner(study))
    space = rerun_space(study, trials, seeds)
    reruns = _run(study, space, reruns_of(study, space), verbose)
    _print_outcome(study, reruns, rule, seeds)


def _run(study: Study, space: SearchSpace, begun: Study | None, verbose: bool) -> Study:
    """Run what is left of the reruns, which may be all or nothing."""
    from csg_ray.scale.tuner import restore_study, run_study

    if begun is not None and _is_done(begun):
        return begun
    place = begun.directory if begun is not None else first_free(study.directory / FOLDER)
    say(CHECKING)
    with continued_by(place, "study.yaml"):
        prepare_study(space)
        if begun is None:
            run_study(space, place, watch_search(verbose), verbose)
        else:
            restore_study(place, Changes(), watch_search(verbose), verbose)
    return load_study(place)


def _is_done(reruns: Study) -> bool:
    ended = all(trial.state != "unfinished" for trial in reruns.trials)
    return ended and len(reruns.trials) == reruns.space.search.num_trials


def _print_outcome(study: Study, reruns: Study, rule: Rule, seeds: int) -> None:
    from rich.console import Console

    pairs = pair_up(study, reruns)
    best = winner(pairs, rule)
    if best is None:
        fail(no_winner(reruns))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 240
    print()
    console.print(_table(study, pairs, rule, seeds))
    stamp = f", {STAMP}" if selected_with_target_labels(study, rule.name) else ""
    print(
        f"Winner over {seeds} new seeds: trial {best.original.id} (by {rule.meaning}{stamp}); "
        f"{describe_lead(pairs, rule, seeds)}"
    )
    print_notes(study.space.notes)
    out = first_free(Path(f"{study.directory.name}.yaml"))
    print(f"next: {command('export', study.directory, out, '--trial', best.original.id)}")


def describe_lead(pairs: list[Rerun], rule: Rule, seeds: int) -> str:
    """Whether the lead of the winner is more than chance would give it."""
    found = lead(pairs, rule, seeds)
    if found is None:
        return "there is no second one to compare it with"
    gap, error = found
    told = "more" if gap > 2 * error else "not more"
    return (
        f"it leads the second by {gap:.3f}, which is {told} than two standard errors "
        f"({error:.3f} each)"
    )


def _table(study: Study, pairs: list[Rerun], rule: Rule, seeds: int) -> Any:
    from rich.table import Table

    table = Table(
        title=f"study {study.name}: {len(pairs)} trials again, {seeds} new seeds each",
        caption="mean and deviation over the new seeds; the last epoch counts",
    )
    metrics = [rule.metric, study.score_metric, ENERGY]
    metrics += [each.metric for each in study.rules.values()]
    label = LABELS.get(rule.metric, rule.metric)
    table.add_column("trial")
    table.add_column("state")
    table.add_column(f"{label} in the search", justify="right")
    columns = {metric: LABELS.get(metric, metric) for metric in metrics}
    for header in columns.values():
        table.add_column(header, justify="right")
    for pair in pairs:
        cells = (describe_spread(pair.again.last, metric) for metric in columns)
        searched = describe_metric(pair.original.last, rule.metric)
        table.add_row(pair.original.id, pair.again.state, searched, *cells)
    return table


def describe_spread(metrics: Any, name: str) -> str:
    """A mean with its deviation, such as 0.667 +- 0.012."""
    mean, spread = describe_metric(metrics, name), metrics.get(f"{name}_std")
    return mean if spread is None else f"{mean} +- {spread:.3f}"
