"""The one look at the sealed test split: all picks are frozen, then it opens for them all."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from csg_ray.config.data import NO_SEALED_SPLIT, has_sealed_split
from csg_ray.config.errors import UserError
from csg_ray.config.load import load_config
from csg_ray.config.reader import read_yaml
from csg_ray.config.run import RunConfig
from csg_ray.results.export import export_behind
from csg_ray.results.picks import RESULTS_FILE, read_test_results, rule_picks
from csg_ray.results.reruns import parent_of
from csg_ray.results.study import Study, is_study, load_study
from csg_ray.storage.folders import check_writable
from csg_ray.storage.paths import StoragePath, open_path
from csg_ray.storage.records import CHECKPOINT_FILE, read_results, write_atomically

if TYPE_CHECKING:
    from csg_ray.data.splits import SealedSplit, Split
    from csg_ray.methods.base import Method

PICKS_FILE = "test_picks.json"
LEDGER_FILE = "test_ledger.jsonl"


@dataclass(frozen=True)
class Pick:
    """What one selection rule chose.

    Attributes:
        rule: the rule's name, or `run` for a run, where nothing was left to choose.
        trial: the trial's id; empty for a run.
        epoch: the last epoch in the results, which the checkpoint must be of.
    """

    rule: str
    trial: str
    config: RunConfig
    checkpoint: StoragePath
    epoch: int
    used_target_labels: bool

    def describe(self) -> dict[str, Any]:
        """The pick in plain types."""
        return {
            "rule": self.rule,
            "trial": self.trial,
            "epoch": self.epoch,
            "selected with target labels": self.used_target_labels,
        }


def evaluate_study(directory: StoragePath) -> dict[str, Any]:
    """Measure the picks of all selection rules of a study on target_test.

    Returns:
        What `test_results.json` then holds: `picks` (rule, trial, metrics, ...), `notes` on the
        data, `earlier_openings` of the split, `earlier_results` of this command.

    Raises:
        UserError: unfinished trials, nothing to pick, a checkpoint that is not the trial's, data
            that have changed.
    """
    study = load_study(directory)
    study.refuse_unfinished()
    picks = _study_picks(study)
    if not picks:
        raise UserError(f"no trial of study {directory} has completed, so there is nothing to test")
    searches_data = any(path.startswith("data.") for path in study.space.space)
    expected = None if searches_data else study.provenance.get("data_sha256")
    # Reruns look at the split that the study they belong to has, and neither may hide its look.
    keeper = parent_of(directory) or directory
    return _evaluate(directory, picks, expected, keeper / LEDGER_FILE)


def evaluate_run(directory: StoragePath) -> dict[str, Any]:
    """Measure a run's checkpoint on target_test; otherwise as `evaluate_study`.

    A run of an exported config writes into the ledger of its study while that is still there, so
    that neither hides the other's look at the same split.
    """
    config = load_config(directory / "run.yaml")
    epoch = _last_epoch(directory, config)
    provenance = read_yaml(directory / "run.yaml").get("provenance") or {}
    exported = export_behind(provenance)
    study = exported.get("study_directory")
    keeper = open_path(study) if study and is_study(open_path(study)) else directory
    pick = Pick(
        rule="run",
        trial="",
        config=config,
        checkpoint=directory / CHECKPOINT_FILE,
        epoch=epoch,
        used_target_labels=bool(exported.get("selected with target labels", False)),
    )
    return _evaluate(directory, [pick], provenance.get("data_sha256"), keeper / LEDGER_FILE)


def _last_epoch(directory: StoragePath, config: RunConfig) -> int:
    """The epoch that a run ended at; a run that has not got there must not be tested."""
    results = read_results(directory)
    if not results:
        raise UserError(
            f"run {directory} has no finished epoch, so there is nothing to test; "
            "continue it with csg-ray restore first"
        )
    epoch, epochs = int(results[-1]["epoch"]), config.train.epochs
    if results[-1].get("diverged"):
        raise UserError(
            f"run {directory} diverged in epoch {epoch}, so there is nothing to test; "
            "train other settings in a new run"
        )
    if epoch < epochs:
        raise UserError(
            f"run {directory} has finished {epoch} of {epochs} epochs; "
            "continue it with csg-ray restore first"
        )
    return epoch


def _study_picks(study: Study) -> list[Pick]:
    return [
        Pick(
            rule=pick.rule.name,
            trial=pick.trial.id,
            config=study.space.config_for(dict(pick.trial.params)),
            checkpoint=pick.trial.checkpoint,
            epoch=pick.trial.epoch,
            used_target_labels=pick.uses_target_labels,
        )
        for pick in rule_picks(study)
    ]


def _evaluate(
    directory: StoragePath, picks: Sequence[Pick], data_sha256: str | None, ledger: StoragePath
) -> dict[str, Any]:
    """Everything that can go wrong is tried before the seal is broken."""
    check_writable(directory)
    check_writable(ledger.parent)
    states = {pick.trial: _load_state(pick) for pick in picks}
    sealed = _sealed_split(directory, picks, data_sha256)
    methods = {pick.trial: _load_methods(pick, states[pick.trial]) for pick in picks}
    earlier_results = read_test_results(directory)
    frozen = {"frozen_at": _now(), "picks": [pick.describe() for pick in picks]}
    write_atomically(directory / PICKS_FILE, json.dumps(frozen, indent=1))

    reason = "evaluate " + ", ".join(f"{pick.rule} {pick.trial or directory}" for pick in picks)
    split, earlier_openings = sealed.open(ledger, reason)
    measured: dict[str, dict[str, Any]] = {}
    for pick in picks:
        if pick.trial not in measured:
            measured[pick.trial] = _measure(pick.config, methods[pick.trial], split)
    outcome = {
        **frozen,
        "picks": [pick.describe() | {"metrics": measured[pick.trial]} for pick in picks],
        "notes": list(dict.fromkeys(note for pick in picks for note in pick.config.notes)),
        "target_test_sha256": sealed.fingerprint,
        "earlier_openings": earlier_openings,
        "earlier_results": earlier_results,
    }
    write_atomically(directory / RESULTS_FILE, json.dumps(outcome, indent=1))
    return outcome


def _load_state(pick: Pick) -> dict[str, Any]:
    from csg_ray.storage.checkpoint import config_differences, load_checkpoint

    if pick.trial and not pick.checkpoint.is_file():
        raise UserError(
            f"{pick.checkpoint} does not exist, but {pick.rule} picks trial {pick.trial}; bring it "
            f"back from a copy, or csg-ray export the trial with --trial {pick.trial}, train it "
            "and evaluate its run"
        )
    state = load_checkpoint(pick.checkpoint)
    if differences := config_differences(state["config"], pick.config):
        raise UserError(
            f"{pick.checkpoint} is a checkpoint of another training ({'; '.join(differences)}); "
            "put the right one back"
        )
    if state["epoch"] != pick.epoch:
        raise UserError(
            f"{pick.checkpoint} is of epoch {state['epoch']}, but the results beside it end at "
            f"epoch {pick.epoch}; continue the training with csg-ray restore first"
        )
    return state


def _sealed_split(
    directory: StoragePath, picks: Sequence[Pick], data_sha256: str | None
) -> SealedSplit:
    from csg_ray.data.load import load_splits

    if not all(has_sealed_split(pick.config.data) for pick in picks):
        raise UserError(
            f"{directory} has no target_test to open ({NO_SEALED_SPLIT}); its numbers on "
            "target_val are the ones to compare with the paper, and data.protocol sealed keeps "
            "a test set"
        )
    splits = [load_splits(pick.config.data) for pick in picks]
    if data_sha256 is not None and any(each.fingerprint != data_sha256 for each in splits):
        raise UserError(
            f"the data are not those that {directory} was trained on; target_test stays sealed, "
            "since its images may have been seen; bring the former data back"
        )
    sealed = [each.target_test for each in splits]
    first = sealed[0]
    assert first is not None  # without the published protocol there is one
    if any(each is None or each.fingerprint != first.fingerprint for each in sealed):
        raise UserError(
            f"the picks of {directory} differ in their data settings and share no target_test; "
            "export each trial, train it, and evaluate its run"
        )
    return first


def _load_methods(pick: Pick, state: dict[str, Any]) -> list[Method]:
    import torch

    from csg_ray.data.load import load_splits
    from csg_ray.training.evaluate import load_trained

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return load_trained(pick.config, load_splits(pick.config.data), state, device)


def _measure(config: RunConfig, methods: Sequence[Method], split: Split) -> dict[str, Any]:
    """Means over the repeats in a checkpoint, with `<metric>_std` when there are several."""
    import torch

    from csg_ray.training.evaluate import evaluate_split

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    repeats = [evaluate_split(method, split, config, device) for method in methods]
    metrics = {name: statistics.fmean(each[name] for each in repeats) for name in repeats[0]}
    if len(repeats) > 1:
        for name in (config.score, "hse"):
            metrics[f"{name}_std"] = statistics.stdev(each[name] for each in repeats)
    return metrics


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
