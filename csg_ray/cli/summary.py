"""How a search ends: the winner, what it beat, and what to do next."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from csg_ray.cli.board import LABELS, describe_metric, describe_reason, describe_value
from csg_ray.cli.board import describe_scores as describe_both
from csg_ray.cli.guard import command, fail
from csg_ray.config.data import has_sealed_split
from csg_ray.results.cost import study_cost, what_budget_left
from csg_ray.results.export import first_free, selected_with_target_labels
from csg_ray.results.selection import OBJECTIVE, final_value
from csg_ray.results.study import ENERGY, Study, Trial

STAMP = "selected with target labels"
ERROR_FILE = "error.txt"


def summarise(study: Study) -> None:
    """Print the end of a search."""
    rule = study.rule(OBJECTIVE)
    best = study.best_trial(rule.name)
    if best is None:
        fail(no_winner(study))
    stamp = f", {STAMP}" if selected_with_target_labels(study, rule.name) else ""
    print()
    print(f"Best trial: {best.id} of {study.directory} (by {rule.meaning}{stamp})")
    print(f"  {describe_scores(best)}")
    if rule.name == OBJECTIVE:
        print(f"  {rule.metric}: {describe_metric(best.last, rule.metric)}")
    for path, value in best.params.items():
        print(f"  {path}: {describe_value(value)}")
    print(compare_with_published(study, best))
    print_agreement(study)
    print_cost(study)
    if study.budget_spent:
        print(f"The {what_budget_left(study)}.")
    print_notes(study.space.notes)
    print()
    print("Next:")
    for line in next_commands(study):
        print(f"  {line}")


def no_winner(study: Study) -> str:
    """Why no trial of a study can win, and what to do."""
    if study.budget_spent:
        return (
            f"no trial of study {study.directory} has completed, so none can win; "
            f"the {what_budget_left(study)}; continue it with: {_more_budget(study)}"
        )
    if not study.trials:
        return f"study {study.directory} has no trial yet; continue it with: " + command(
            "restore", study.directory
        )
    counts: dict[str, int] = {}
    for trial in study.trials:
        counts[trial.state] = counts.get(trial.state, 0) + 1
    held = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    more = command("restore", study.directory, "--more", "4")
    return (
        f"no trial of study {study.directory} has completed ({held}), so none can win; "
        f"{_first_failure(study)}continue it with: {more}"
    )


def _more_budget(study: Study) -> str:
    return command("restore", study.directory, "--budget", study.space.search.budget)


def _first_failure(study: Study) -> str:
    failed = next((trial for trial in study.trials if trial.state == "failed"), None)
    if failed is None:
        return ""
    details = failed.directory / ERROR_FILE
    # A process that was killed could not write one.
    where = f" (see {details})" if details.is_file() else ""
    return f"trial {failed.id} failed: {describe_reason(failed.reason)}{where}; "


def describe_scores(trial: Trial) -> str:
    """Score and energy of the last epoch on one line."""
    return f"{describe_both(trial.last)} on target_val, epoch {trial.epoch}"


def compare_with_published(study: Study, best: Trial) -> str:
    """What the winner beat: the settings of the paper, run as the first trial."""
    published = study.published
    if published is None:
        return "No published settings were run to compare with (points_to_evaluate is empty)."
    if published.id == best.id:
        return f"The published settings, trial {published.id}, won: no trial beat them."
    score = study.score_metric
    if final_value(published, score) is None:
        return (
            f"The published settings, trial {published.id}, did not complete "
            f"({published.state}; {describe_scores(published)})."
        )
    gain = 100 * (best.last[score] - published.last[score])
    cooler = best.last[ENERGY] - published.last[ENERGY]
    return (
        f"Against the published settings, trial {published.id} ({describe_scores(published)}): "
        f"{LABELS[score]} {gain:+.1f} points, HSE {cooler:+.3f}."
    )


def print_agreement(study: Study) -> None:
    """The rank correlation of energy and accuracy, when there are trials enough."""
    found = study.energy_and_accuracy()
    if found is None:
        return
    print(f"HSE and {LABELS[study.score_metric]} over {found.count} completed trials: {found}.")


def print_cost(study: Study) -> None:
    """What all trials have cost, where that was measured."""
    cost = study_cost(study)
    if cost is not None:
        print(f"Cost: {cost.training} of training, {cost.busy}; {cost.work}.")


def print_notes(notes: Iterable[str]) -> None:
    """What every output about these data has to say."""
    for note in notes:
        print(f"note: {note}")


def next_commands(study: Study) -> list[str]:
    """Commands to paste that go on from here."""
    directory = study.directory
    out = first_free(Path(f"{directory.name}.yaml"))
    commands = [command(word, directory) for word in ("best", "report")]
    commands.append(command("export", directory, out))
    if study.budget_spent:
        commands.insert(0, _more_budget(study))
    if study.space.search.sampler == "grid":
        commands.insert(0, command("compare", directory))
    if has_sealed_split(study.space.first_config().data):
        commands.append(command("evaluate", directory))
    return commands
