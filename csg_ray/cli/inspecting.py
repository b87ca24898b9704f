"""`best`, `export`, `evaluate`: what a study found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csg_ray.cli.board import LABELS, describe_metric, describe_value, score_of
from csg_ray.cli.guard import command, fail
from csg_ray.cli.summary import STAMP, no_winner, print_agreement, print_cost, print_notes
from csg_ray.config.data import has_sealed_split
from csg_ray.config.errors import UserError
from csg_ray.results.cost import describe_cost
from csg_ray.results.export import (
    check_new_file,
    export_config,
    first_free,
    selected_with_target_labels,
    write_config,
)
from csg_ray.results.picks import TIES, RulePick, rule_picks
from csg_ray.results.selection import OBJECTIVE, SCORE_NAMES, Rule
from csg_ray.results.study import ENERGY, Study, Trial, load_study
from csg_ray.storage.paths import StoragePath


def show_best(directory: StoragePath, top: int, by: str | None) -> None:
    """Print the best trials by a rule, with the settings that were searched."""
    study = load_study(directory)
    rule = study.rule(by or OBJECTIVE)
    trials = study.top(top, rule.name)
    if not trials:
        fail(no_winner(study))
    # Rich costs a tenth of a second, and only a table needs it.
    from rich.console import Console

    # In a pipe there is no edge to wrap at, and a wrapped table cannot be read by a program.
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 240
    console.print(_best_table(study, trials, rule))
    console.print(_picks_table(study, rule_picks(study)))
    if selected_with_target_labels(study, rule.name):
        print(STAMP)
    print_agreement(study)
    print_cost(study)
    print_notes(study.space.notes)
    choice = [] if rule.name == OBJECTIVE else ["--by", rule.name]
    out = first_free(Path(f"{directory.name}.yaml"))
    print(f"next: {command('export', directory, out, *choice)}")


def _best_table(study: Study, trials: list[Trial], rule: Rule) -> Any:
    from rich.table import Table

    done = sum(trial.state == "completed" for trial in study.trials)
    table = Table(
        title=f"study {study.name}: {len(study.trials)} trials, {done} completed",
        caption=f"by {rule.meaning}; the last epoch counts",
    )
    metrics = [study.score_metric, ENERGY, *(each.metric for each in study.rules.values())]
    columns = {metric: LABELS.get(metric, metric) for metric in [*metrics, rule.metric]}
    for header in ("trial", "state", "epoch", *columns.values(), "cost"):
        table.add_column(header, justify="left" if header in ("trial", "state") else "right")
    paths = list(study.space.space) + [
        path
        for path in dict.fromkeys(path for trial in trials for path in trial.params)
        if path not in study.space.space
    ]
    for path in paths:
        header = "method" if path == "method.name" else path.rpartition(".")[2]
        table.add_column(header, justify="right", overflow="fold")
    for trial in trials:
        warm = f"{trial.id} (warm start)" if trial.origin == "warm start" else trial.id
        scores = (describe_metric(trial.last, key) for key in columns)
        settings = (describe_value(trial.params.get(path)) for path in paths)
        cost = describe_cost(trial.seconds, study.space.resources)
        table.add_row(warm, trial.state, str(trial.epoch), *scores, cost, *settings)
    return table


def _picks_table(study: Study, picks: list[RulePick]) -> Any:
    from rich.table import Table

    table = Table(title="what each rule picks", caption=TIES)
    metrics = [study.score_metric, ENERGY, *(each.metric for each in study.rules.values())]
    columns = {metric: LABELS.get(metric, metric) for metric in metrics}
    sealed = has_sealed_split(study.space.first_config().data)
    tests = ("target_test",) if sealed else ()
    for header in ("rule", "trial", *columns.values(), *tests, STAMP):
        table.add_column(header, justify="left" if header in ("rule", "trial") else "right")
    for pick in picks:
        tested = describe_metric(pick.tested, study.space.score) if pick.tested else "sealed"
        table.add_row(
            pick.rule.name,
            f"{pick.trial.id} (of {len(pick.equals) + 1} equal)" if pick.equals else pick.trial.id,
            *(describe_metric(pick.trial.last, metric) for metric in columns),
            *((tested,) if sealed else ()),
            "yes" if pick.uses_target_labels else "no",
        )
    return table


def export_trial(
    directory: StoragePath, out: StoragePath, trial_id: str | None, by: str | None
) -> None:
    """Write one trial as a run config."""
    if trial_id is not None and by is not None:
        raise UserError("--trial and --by exclude each other; give one")
    study = load_study(directory)
    rule = None if trial_id is not None else by or study.default_rule
    trial = study.trial(trial_id) if trial_id is not None else study.best_trial(rule or "")
    if trial is None:
        fail(no_winner(study))
    check_new_file(out)
    write_config(export_config(study, trial, rule), out)
    stamp = f", {STAMP}" if selected_with_target_labels(study, rule) else ""
    chosen = f"by {study.rule(rule).meaning}" if rule else "chosen by id"
    print(f"trial {trial.id} of {directory} ({chosen}{stamp}) written to {out}")
    print_notes(study.space.notes)
    print(f"next: {command('train', out)}")


def evaluate_on_test(directory: StoragePath) -> None:
    """Open the sealed test split for all rules at once and print what they got."""
    from csg_ray.results.sealed import evaluate_run, evaluate_study

    is_run = (directory / "run.yaml").is_file()
    outcome = evaluate_run(directory) if is_run else evaluate_study(directory)
    print_outcome(outcome)
    print(f"written to {directory / 'test_results.json'}")


def print_outcome(outcome: Mapping[str, Any]) -> None:
    """A table of rules and results, and who opened the split before."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="target_test")
    score = score_of(outcome["picks"][0]["metrics"], "")
    for header in ("rule", "trial", SCORE_NAMES[score], "HSE", STAMP):
        table.add_column(header, justify="left" if header == "rule" else "right")
    for pick in outcome["picks"]:
        table.add_row(
            pick["rule"],
            pick["trial"],
            describe_metric(pick["metrics"], score),
            describe_metric(pick["metrics"], "hse"),
            "yes" if pick["selected with target labels"] else "no",
        )
    Console(highlight=False).print(table)
    print_notes(outcome["notes"])
    for opening in outcome["earlier_openings"]:
        print(
            f"target_test was opened before: {opening['opened_at']} by {opening['user']} "
            f"({opening['reason']})"
        )
