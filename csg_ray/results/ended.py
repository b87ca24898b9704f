"""Trials and runs that have ended, read from studies and runs so that they can be compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from csg_ray.config.data import ImageFolderConfig, has_sealed_split
from csg_ray.config.errors import UserError
from csg_ray.config.load import get_setting, load_config, setting_fields
from csg_ray.config.places import PLACES
from csg_ray.config.reader import read_yaml
from csg_ray.config.run import RunConfig
from csg_ray.results.export import export_behind
from csg_ray.results.study import cost_of, is_study, load_study
from csg_ray.storage.folders import in_parallel
from csg_ray.storage.paths import StoragePath
from csg_ray.storage.records import read_results

DATA_HASH = "data_sha256"
DATA_PLACES = tuple(path for path in PLACES if path.startswith("data."))
LEFT_OUT = ("stopped", "failed", "unfinished")
# What has no effect on what is compared, and what a comparison tells apart from the settings.
_APART = (
    "seed",
    "method.name",
    "train.epochs",
    "data.name",
    "data.workers",
    "data.cache",
    "evaluation.batch_size",
    "evaluation.reference_images",
)
_THREADS = 8  # that read directories from a store


@dataclass(frozen=True)
class Ended:
    """A trial or a run that had its full budget, or diverged.

    Attributes:
        last: the metrics of its last epoch: of several repeats their means.
        directory: of the study or the run.
        trial: the trial's id; empty for a run.
        data_sha256: of all splits; None where it is not known.
        selected_with_target_labels: whether it is a run of settings that were.
        seconds: what it has cost on each worker, all repeats; None where that was not measured.
    """

    config: RunConfig
    last: Mapping[str, Any]
    repeats: int
    diverged: bool
    directory: StoragePath
    trial: str = ""
    data_sha256: str | None = None
    selected_with_target_labels: bool = False
    seconds: float | None = None

    @property
    def name(self) -> str:
        """Where it comes from: `studies/digits 0003`, `runs/best`."""
        return f"{self.directory} {self.trial}".rstrip()

    @property
    def data_name(self) -> str:
        """What its data are called; numbers of one name can stand in one table."""
        data = self.config.data
        if isinstance(data, ImageFolderConfig):
            return f"{Path(data.source).name} -> {Path(data.target).name}"
        return data.name if has_sealed_split(data) else f"{data.name}, published protocol"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Dotted path -> value of what has an effect; not the seed, the method, the epochs.

        The hash of the data stands in the place of their folders, which are others on every
        machine.
        """
        config = self.config
        inert = config.inert_settings()
        settings = {
            path: get_setting(config, path)
            for path in setting_fields(config.method.name, config.data.name)
            if path not in _APART and path not in inert
        }
        if self.data_sha256 is None:
            return settings
        kept = {path: value for path, value in settings.items() if path not in DATA_PLACES}
        return kept | {DATA_HASH: self.data_sha256}

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for trainings that differ in nothing but the seed."""
        config = self.config
        return (config.method.name, config.train.epochs, *self.settings.items())


def read_ended(directories: Sequence[StoragePath]) -> tuple[list[Ended], Counter[str]]:
    """What has ended in studies and runs, in order, and how many have not, by `LEFT_OUT`.

    Raises:
        UserError: a directory twice, or neither a study nor a run.
    """
    places = [directory.resolve() for directory in directories]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise UserError(f"{directories[number]} is given twice; leave one out")
    found = in_parallel(_read, directories, _THREADS)
    ended = [each for members, _ in found for each in members]
    return ended, sum((left_out for _, left_out in found), Counter[str]())


def drop_repeated(ended: Iterable[Ended]) -> tuple[list[Ended], list[tuple[str, str]]]:
    """Each training once: the same seed again says nothing of the spread over seeds.

    Of equal ones that with the most repeats stays, else the first.

    Returns:
        Those that stay; pairs of names: one that goes, and the one that stays in its place.
    """
    kept: dict[tuple[Any, ...], Ended] = {}
    equal: list[tuple[Ended, tuple[Any, ...]]] = []
    for each in ended:
        key = (each.config.seed, *each.key)
        known = kept.setdefault(key, each)
        if known is each:
            continue
        if each.repeats > known.repeats:
            kept[key], each = each, known
        equal.append((each, key))
    return list(kept.values()), [(each.name, kept[key].name) for each, key in equal]


def _read(directory: StoragePath) -> tuple[list[Ended], Counter[str]]:
    if is_study(directory):
        return _read_study(directory)
    if (directory / "run.yaml").is_file():
        return _read_run(directory)
    what = "holds neither study.yaml nor run.yaml" if directory.exists() else "does not exist"
    raise UserError(f"{directory} is neither a study nor a run: it {what}")


def _read_study(directory: StoragePath) -> tuple[list[Ended], Counter[str]]:
    study = load_study(directory)
    searched = {*study.space.space, *study.space.branch_paths()}
    same_data = not any(path.startswith("data.") for path in searched)
    ended, left_out = [], Counter[str]()
    for trial in study.trials:
        if trial.state in LEFT_OUT or not trial.results:
            left_out[trial.state if trial.state in LEFT_OUT else "unfinished"] += 1
            continue
        ended.append(
            Ended(
                config=study.space.config_for(trial.params),
                last=trial.last,
                repeats=study.space.search.repeats,
                diverged=trial.state == "diverged" or bool(trial.last.get("diverged")),
                directory=directory,
                trial=trial.id,
                data_sha256=study.provenance.get(DATA_HASH) if same_data else None,
                seconds=trial.seconds,
            )
        )
    return ended, left_out


def _read_run(directory: StoragePath) -> tuple[list[Ended], Counter[str]]:
    config = load_config(directory / "run.yaml")
    results = read_results(directory)
    last = results[-1] if results else {}
    diverged = bool(last.get("diverged"))
    if not diverged and last.get("epoch", 0) < config.train.epochs:
        return [], Counter(unfinished=1)
    provenance = read_yaml(directory / "run.yaml").get("provenance") or {}
    run = Ended(
        config=config,
        last=last,
        repeats=1,
        diverged=diverged,
        directory=directory,
        data_sha256=provenance.get(DATA_HASH),
        seconds=cost_of(results),
        selected_with_target_labels=bool(
            export_behind(provenance).get("selected with target labels", False)
        ),
    )
    return [run], Counter()
