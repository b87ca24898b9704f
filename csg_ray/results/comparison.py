"""Methods side by side, as the paper has them: rows out of the trials of studies, and of runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from csg_ray.config.data import Task
from csg_ray.config.effects import AUGMENT_SETTINGS
from csg_ray.config.errors import UserError
from csg_ray.config.load import setting_fields
from csg_ray.config.methods import SEES_TARGET
from csg_ray.config.places import PLACES
from csg_ray.config.run import RunConfig
from csg_ray.results.ended import DATA_HASH, DATA_PLACES, Ended, drop_repeated, read_ended
from csg_ray.results.published import (
    AUGMENTATION,
    Beside,
    PublishedTask,
    published_task,
    stand_beside,
)
from csg_ray.results.selection import Spearman, spearman
from csg_ray.results.study import ENERGY
from csg_ray.storage.paths import StoragePath
from csg_ray.storage.records import CHECKPOINT_FILE

ENERGIES = (ENERGY, "target_val/hse_power1", "target_val/hse_power2")
REFERENCE = "reference_task/accuracy"
# The order of the paper's Table 1; methods that it does not have follow as given.
METHOD_ORDER = (
    "oracle",
    "vanilla",
    "weight_l2",
    "synaptic_intelligence",
    "feature_l2",
    "asg",
    "asg_l2o",
    "csg",
)
_AUGMENT = tuple(f"augment.{name}" for name in AUGMENT_SETTINGS)
_MORE_AUGMENTATION = ("augment.translate", "augment.views")  # what `Row.augmentation` leaves out


@dataclass(frozen=True)
class Value:
    """A mean over seeds, and the sample deviation; None for one seed, or where not recorded."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Row:
    """Trials and runs that are equal in every setting but the seed; at least one."""

    members: tuple[Ended, ...]

    @property
    def config(self) -> RunConfig:
        """The configuration, with the seed of the first member."""
        return self.members[0].config

    @property
    def settings(self) -> Mapping[str, Any]:
        """Dotted path -> value of what has an effect; not the seed, the method, the epochs."""
        return self.members[0].settings

    @property
    def method(self) -> str:
        """`method.name`."""
        return self.config.method.name

    @property
    def epochs(self) -> int:
        """The budget of each training."""
        return self.config.train.epochs

    @property
    def seeds(self) -> int:
        """Trainings that the means are taken over: those that did not diverge."""
        return sum(member.repeats for member in self._completed)

    @property
    def diverged(self) -> int:
        """Trainings that diverged, or were given up since another repeat of their trial did."""
        return sum(member.repeats for member in self.members) - self.seeds

    @property
    def sees_target(self) -> bool:
        """Whether the method sees images of the target, so that it is no rival of the others."""
        return SEES_TARGET in self.config.method.notes

    @property
    def selected_with_target_labels(self) -> bool:
        """Whether a run among them has settings that were."""
        return any(member.selected_with_target_labels for member in self.members)

    @property
    def augmentation(self) -> str:
        """`none`, `RandAugment M=6`, `colour jitter 0.4`."""
        implementation = self.settings.get("augment.implementation")
        if implementation is None:  # without effect: nothing is augmented
            return "none"
        if implementation == "color_jitter":
            return f"colour jitter {self.settings['augment.jitter']:g}"
        kind = "torchvision RandAugment" if implementation == "torchvision" else "RandAugment"
        count = self.settings["augment.num_ops"]
        times = "" if count == 1 else f" N={count}"
        return f"{kind}{times} M={self.settings['augment.magnitude']:g}"

    @property
    def seconds(self) -> float | None:
        """What a training to the end has cost on each worker: the mean over `seeds`."""
        costs = [member.seconds for member in self._completed if member.seconds is not None]
        if not costs or len(costs) < len(self._completed):
            return None
        return math.fsum(costs) / self.seeds

    def value(self, metric: str) -> Value | None:
        """A metric over the seeds; None where a member lacks it, or when all of them diverged."""
        members = self._completed
        if not members or any(member.last.get(metric) is None for member in members):
            return None
        return pool(
            [(m.repeats, float(m.last[metric]), m.last.get(f"{metric}_std")) for m in members]
        )

    @property
    def _completed(self) -> list[Ended]:
        return [member for member in self.members if not member.diverged]


def pool(groups: Sequence[tuple[int, float, float | None]]) -> Value:
    """Mean and sample deviation of all values together, from those of groups of them.

    Args:
        groups: number of values, their mean, their sample deviation (None: not known, and of one
            value not needed).
    """
    count = sum(number for number, _, _ in groups)
    mean = math.fsum(number * own for number, own, _ in groups) / count
    if count == 1 or any(number > 1 and std is None for number, _, std in groups):
        return Value(mean, None)
    squares = [
        number * (own - mean) ** 2 + (number - 1) * (std or 0.0) ** 2 for number, own, std in groups
    ]
    return Value(mean, math.sqrt(math.fsum(squares) / (count - 1)))


@dataclass(frozen=True)
class Comparison:
    """The rows of one data set, in the paper's order.

    Attributes:
        data: what it is called: `digits`, `visda17, published protocol`, `sketch -> photo`.
    """

    data: str
    rows: tuple[Row, ...]

    @property
    def task(self) -> Task:
        """Of all rows."""
        return self.rows[0].config.data.task

    @property
    def score(self) -> str:
        """The task's metric, without a split."""
        return self.rows[0].config.score

    @property
    def models(self) -> tuple[str, ...]:
        """The encoders, by `model.name`."""
        return tuple(dict.fromkeys(row.config.model.name for row in self.rows))

    @property
    def published(self) -> PublishedTask:
        """The task whose published rows stand beside."""
        return published_task(self.task, self.models[0] if len(self.models) == 1 else "")

    @cached_property
    def beside(self) -> list[Beside | None]:
        """The published row for each of the rows."""
        ours = [(row.method, {**row.settings, AUGMENTATION: row.augmentation}) for row in self.rows]
        return stand_beside(self.published, ours)

    @property
    def data_differ(self) -> bool:
        """Whether not all rows were measured on the same data."""
        return DATA_HASH in self.differing

    @cached_property
    def differing(self) -> list[str]:
        """The settings in which rows differ, or those of a method in which its own rows do."""
        paths = dict.fromkeys(path for row in self.rows for path in row.settings)
        differ = {path for (_, path), counts in self._values.items() if len(counts) > 1}
        return [path for path in paths if path in differ]

    def settings_of(self, row: Row) -> list[str]:
        """What tells a row from the others, such as `temperature 0.2`; not the augmentation.

        A value that more than half of the rows have is left out, and so is the hash of the data
        unless nothing else tells two rows apart.
        """
        hash_too = [DATA_HASH] if self._names[self._name(row)] > 1 else []
        return describe_settings(self._short(row.settings), [*self._telling(row), *hash_too])

    def augmentation_of(self, row: Row) -> str:
        """A row's augmentation, with whatever else of it differs between rows."""
        more = [path for path in _MORE_AUGMENTATION if path in self.differing]
        return ", ".join([row.augmentation, *describe_settings(row.settings, more)])

    def shared(self, method: str = "") -> list[str]:
        """The settings that all rows have in common, or those of a method its own rows.

        Without the augmentation and without defaults, but with what more than half of the rows
        have, since `settings_of` shows it with the others alone.
        """
        usual = {
            path: counts.most_common(1)[0]
            for (group, path), counts in self._values.items()
            if group == method and path not in (*_AUGMENT, *DATA_PLACES, DATA_HASH)
        }
        short = self._short({path: value for path, (value, _) in usual.items()})
        told = []
        for path, (value, count) in usual.items():
            total = self._values[method, path].total()
            (setting,) = describe_settings(short, [path])
            if total / 2 < count < total:
                told.append(f"{setting} unless shown")
            elif count == total and value != self._default(method, path):
                told.append(setting)
        return told

    def agreement(self, *, without: str = "") -> Spearman | None:
        """How energy and score go together over the rows that see no image of the target.

        Args:
            without: a method whose rows are left out.
        """
        pairs = [
            (energy.mean, score.mean)
            for row in self.rows
            if not row.sees_target
            and row.method != without
            and (energy := row.value(ENERGY)) is not None
            and (score := row.value(f"target_val/{self.score}")) is not None
        ]
        return spearman([pair[0] for pair in pairs], [pair[1] for pair in pairs])

    def _short(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The same with names of places in the stead of their paths."""
        names = {path: self._place_names.get(path, {}) for path in settings}
        return {path: names[path].get(value, value) for path, value in settings.items()}

    @cached_property
    def _place_names(self) -> dict[str, dict[Any, str]]:
        found: dict[str, dict[str, None]] = {}
        for row in self.rows:
            for path in PLACES:
                if isinstance(value := row.settings.get(path), str):
                    found.setdefault(path, {})[value] = None
        return {path: name_places(values) for path, values in found.items()}

    @cached_property
    def _names(self) -> Counter[tuple[Any, ...]]:
        return Counter(self._name(row) for row in self.rows)

    def _name(self, row: Row) -> tuple[Any, ...]:
        told = describe_settings(self._short(row.settings), self._telling(row))
        return (row.method, row.epochs, self.augmentation_of(row), *told)

    def _telling(self, row: Row) -> list[str]:
        return [
            path
            for path, value in row.settings.items()
            if path not in (*_AUGMENT, DATA_HASH)
            and 2 * self._counts(row, path)[value] <= self._counts(row, path).total()
        ]

    def _default(self, method: str, path: str) -> Any:
        having = (row for row in self.rows if path in row.settings)
        row = next(row for row in having if _group(row, path) == method)
        return setting_fields(row.method, row.config.data.name)[path].default

    def _counts(self, row: Row, path: str) -> Counter[Any]:
        return self._values[_group(row, path), path]

    @cached_property
    def _values(self) -> dict[tuple[str, str], Counter[Any]]:
        values: dict[tuple[str, str], Counter[Any]] = {}
        for row in self.rows:
            for path, value in row.settings.items():
                values.setdefault((_group(row, path), path), Counter())[value] += 1
        return values


def _group(row: Row, path: str) -> str:
    """Among whose rows a setting is compared: the loss_weight of each method is another one."""
    return row.method if path.startswith("method.") else ""


@dataclass(frozen=True)
class Compared:
    """What several directories hold.

    Attributes:
        comparisons: one for each data set.
        left_out: how many trials and runs are not in it, by their state.
        repeated: pairs of names: one that is not in it, and the one that equals it, seed and all.
    """

    comparisons: tuple[Comparison, ...]
    left_out: Mapping[str, int]
    repeated: tuple[tuple[str, str], ...]


def compare(directories: Sequence[StoragePath]) -> Compared:
    """Read studies and runs and put them side by side.

    Raises:
        UserError: a directory twice, or neither a study nor a run; nothing completed;
            classification and segmentation.
    """
    ended, left_out = read_ended(directories)
    if all(each.diverged for each in ended):
        states = {**left_out, "diverged": len(ended)}
        held = ", ".join(f"{count} {state}" for state, count in sorted(states.items()) if count)
        raise UserError(
            f"no trial and no run of {', '.join(map(str, directories))} has completed "
            f"({held or 'there is none'}), so there is nothing to compare"
        )
    _refuse_both_tasks(ended)
    kept, repeated = drop_repeated(ended)
    by_data: dict[str, list[Ended]] = {}
    for each in kept:
        by_data.setdefault(each.data_name, []).append(each)
    comparisons = tuple(Comparison(name, _rows(members)) for name, members in by_data.items())
    return Compared(comparisons, left_out, tuple(repeated))


def describe_settings(settings: Mapping[str, Any], paths: Iterable[str]) -> list[str]:
    """Those of `settings` that are among `paths`, short: `temperature 0.2`, `norm ibn_a`."""
    return [
        f"{_short_name(path, settings)} {_describe_setting(path, settings[path])}"
        for path in paths
        if path in settings
    ]


def name_places(places: Iterable[str]) -> dict[str, str]:
    """The last two parts of each path, or as many more as tell the paths apart.

    A trial is named as everywhere, by its study and its id: without `trials` and `checkpoint.pt`.
    """
    parts = {
        place: [part for part in place.split("/") if part not in ("", "trials", CHECKPOINT_FILE)]
        for place in places
    }
    for length in range(2, max(map(len, parts.values()), default=0) + 1):
        tails = {place: "/".join(own[-length:]) for place, own in parts.items()}
        if len(set(tails.values())) == len(tails):
            return tails
    return {place: place for place in parts}


def _describe_setting(path: str, value: Any) -> str:
    """A value as short as it is clear."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if path == DATA_HASH:
        return str(value)[:8]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short_name(path: str, others: Iterable[str]) -> str:
    """A dotted path without its section where that is clear, or the section instead of `name`."""
    section, _, name = path.rpartition(".")
    if name == "name":
        return section
    clashes = sum(other.endswith(f".{name}") for other in others) > 1
    return path if clashes or name == "seed" else name


def _refuse_both_tasks(ended: Sequence[Ended]) -> None:
    first = ended[0]
    for other in ended:
        if other.config.data.task != first.config.data.task:
            raise UserError(
                f"{first.directory} is a task of {first.config.data.task} and {other.directory} "
                f"one of {other.config.data.task}, whose scores do not compare; "
                "put them into two calls"
            )


def _rows(members: Iterable[Ended]) -> tuple[Row, ...]:
    groups: dict[tuple[Any, ...], list[Ended]] = {}
    for member in members:
        groups.setdefault(member.key, []).append(member)
    order = {name: number for number, name in enumerate(METHOD_ORDER)}
    rows = [Row(tuple(group)) for group in groups.values()]
    return tuple(sorted(rows, key=lambda row: order.get(row.method, len(order))))
