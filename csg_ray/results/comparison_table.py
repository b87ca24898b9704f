"""A comparison in words: the columns of its tables, and what has to be said below them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from csg_ray.config.data import has_sealed_split
from csg_ray.config.methods import SEES_TARGET
from csg_ray.results.comparison import (
    ENERGIES,
    REFERENCE,
    Compared,
    Comparison,
    Row,
    Value,
    describe_settings,
)
from csg_ray.results.cost import describe_seconds
from csg_ray.results.published import Beside
from csg_ray.results.selection import SCORE_NAMES, spearman

SELF_TRAINING = (
    "self-training: sees unlabelled images of the target; no rival of methods that do not"
)
CLASSES = "target_val/class_iou/"
DAGGER = "\N{DAGGER}"
_EMPTY = "-"
# How long a column stays when the terminal is narrow: the highest numbers go first.
(_ALWAYS, _HSE, _PAPER, _COUNTS, _COST, _REFERENCE, _SOURCE, _PAPER_HSE, _POWERS, _PAPER_REST) = (
    range(10)
)
_STATES = {"stopped": "stopped by the scheduler"}


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        header: its lines.
        cells: one for each row.
        short: the same for a narrow terminal, without the deviations of all but the score.
        rank: 0 stays on every terminal; of the others the highest go first.
        is_number: set to the right.
        best: the numbers of the rows that are best in it.
    """

    header: tuple[str, ...]
    cells: tuple[str, ...]
    short: tuple[str, ...]
    rank: int = _ALWAYS
    is_number: bool = True
    best: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Section:
    """The rows of a comparison whose methods all see images of the target, or all see none."""

    comparison: Comparison
    rows: tuple[Row, ...]
    beside: tuple[Beside | None, ...]

    def columns(self) -> list[Column]:
        """The table as the paper has it: energies, score, what was published."""
        comparison = self.comparison
        word = SCORE_NAMES[comparison.score]
        found = [
            *self._naming(),
            *(
                self._values(metric, ("HSE", f"power {power}"), _POWERS if power else _HSE, "min")
                for power, metric in enumerate(ENERGIES)
            ),
            self._values(f"target_val/{comparison.score}", (word, "%"), _ALWAYS, "max"),
            self._values(f"source_val/{comparison.score}", ("source", f"{word} %"), _SOURCE),
            self._values(REFERENCE, ("reference", "accuracy %"), _REFERENCE),
            self._cost(),
            *self._paper(word),
        ]
        return [column for column in found if set(column.cells) != {_EMPTY}]

    def class_columns(self) -> list[Column]:
        """The IoU of each class, in the order of the classes; nothing in classification."""
        metrics = dict.fromkeys(
            key for row in self.rows for key in row.members[0].last if key.startswith(CLASSES)
        )
        classes = [
            self._values(metric, tuple(metric.removeprefix(CLASSES).split(" ")), rank)
            for rank, metric in enumerate(metrics, start=1)
        ]
        names = tuple(row_name(self.comparison, row) for row in self.rows)
        return [Column(("row",), names, names, is_number=False), *classes] if classes else []

    def _naming(self) -> list[Column]:
        """What tells the rows apart, in both sections alike."""
        comparison = self.comparison
        words = {
            "method": lambda row: row.method,
            "augmentation": comparison.augmentation_of,
            "settings": lambda row: ", ".join(comparison.settings_of(row)),
        }
        counts = {"epochs": lambda row: str(row.epochs), "seeds": _seeds}
        columns = []
        for name, tell in {**words, **counts}.items():
            if name == "method" or len(set(map(tell, comparison.rows))) > 1:
                cells = tuple(map(tell, self.rows))
                rank = _COUNTS if name in counts else _ALWAYS
                columns.append(Column((name,), cells, cells, rank, is_number=name in counts))
        return columns

    def _values(
        self, metric: str, header: tuple[str, ...], rank: int, best: str | None = None
    ) -> Column:
        values = [row.value(metric) for row in self.rows]
        means = [value.mean for value in values if value is not None]
        bold: list[int] = []
        if best is not None and len(means) > 1:
            extreme = max(means) if best == "max" else min(means)
            bold = [at for at, value in enumerate(values) if value and value.mean == extreme]
        cells = [_format(value, metric) for value in values]
        short = [_format(value and Value(value.mean, None), metric) for value in values]
        if metric == f"target_val/{self.comparison.score}":
            cells = [
                cell if row.seeds else "diverged"
                for row, cell in zip(self.rows, cells, strict=True)
            ]
            short = cells
        return Column(header, tuple(cells), tuple(short), rank, best=frozenset(bold))

    def _cost(self) -> Column:
        cells = tuple(
            _EMPTY if row.seconds is None else describe_seconds(row.seconds) for row in self.rows
        )
        return Column(("time of a", "training"), cells, cells, _COST)

    def _paper(self, word: str) -> list[Column]:
        paper = ("paper,", *self.comparison.published.title)
        cells: dict[str, list[str]] = {
            **{
                f"HSE power {power}": [_energy(each, power) for each in self.beside]
                for power in range(3)
            },
            f"{word} %": [_published_score(each) for each in self.beside],
            "ImageNet %": [_published_reference(each) for each in self.beside],
        }
        ranks = (_PAPER_HSE, _PAPER_REST, _PAPER_REST, _PAPER, _PAPER_REST)
        return [
            Column((*paper, name), tuple(found), tuple(found), rank)
            for (name, found), rank in zip(cells.items(), ranks, strict=True)
        ]


def sections(comparison: Comparison) -> list[Section]:
    """The methods that see no image of the target, then those that do; of both only if any."""
    found = []
    for sees_target in (False, True):
        picked = [
            (row, beside)
            for row, beside in zip(comparison.rows, comparison.beside, strict=True)
            if row.sees_target == sees_target
        ]
        if picked:
            rows, beside = zip(*picked, strict=True)
            found.append(Section(comparison, rows, beside))
    return found


def _format(value: Value | None, metric: str) -> str:
    """A mean and its deviation: energies to four places, shares in %."""
    if value is None:
        return _EMPTY
    scale, digits = (1, 4) if "/hse" in metric else (100, 1)
    spread = "" if value.std is None else f" ± {scale * value.std:.{digits}f}"
    return f"{scale * value.mean:.{digits}f}{spread}"


def _published_score(beside: Beside | None) -> str:
    if beside is None:
        return _EMPTY
    mark = DAGGER if beside.differences else ""
    return f"{beside.row.score:g} {beside.row.aside}".rstrip() + mark


def _published_reference(beside: Beside | None) -> str:
    if beside is None or beside.row.reference is None:
        return _EMPTY
    return f"{beside.row.reference:g}"


def _energy(beside: Beside | None, power: int) -> str:
    if beside is None or not beside.row.energies:
        return _EMPTY
    return f"{beside.row.energies[power]:.4f}"


def _seeds(row: Row) -> str:
    if not row.seeds:
        return str(row.diverged)
    return f"{row.seeds}, {row.diverged} diverged" if row.diverged else str(row.seeds)


def row_name(comparison: Comparison, row: Row) -> str:
    """A row's method and whatever tells it from the others: `csg, RandAugment M=6, stages 4`."""
    augmentation = comparison.augmentation_of(row)
    differs = len({comparison.augmentation_of(each) for each in comparison.rows}) > 1
    words = ["no augmentation" if augmentation == "none" else augmentation] if differs else []
    return ", ".join([row.method, *words, *comparison.settings_of(row)])


def remarks(comparison: Comparison) -> list[str]:
    """What has to be said about a table, a sentence each."""
    return [
        _how_measured(comparison),
        *_of_published(comparison),
        *_agreement(comparison),
        *_common_settings(comparison),
        *_selection(comparison),
        *_cost(comparison),
        *_warnings(comparison),
        *_notes(comparison),
    ]


def remarks_on_all(compared: Compared) -> list[str]:
    """What is not in any of the tables, and why."""
    counts = [
        f"{count} {_STATES.get(state, state)}"
        for state, count in sorted(compared.left_out.items())
        if count
    ]
    return [
        *([f"left out: {', '.join(counts)}"] if counts else []),
        *(
            f"left out: {one}, which is {other} again: the same settings and seed"
            for one, other in compared.repeated
        ),
    ]


def sources(comparison: Comparison) -> list[str]:
    """Where the published numbers of a table were read, in a sentence if there are any."""
    by_source: dict[str, dict[str, None]] = {}
    for beside in comparison.beside:
        if beside is not None:
            by_source.setdefault(beside.row.source, {})[beside.row.method] = None
    listed = "; ".join(f"{source}: {', '.join(of)}" for source, of in by_source.items())
    return [f"Sources of the published numbers: {listed}."] if listed else []


def _how_measured(comparison: Comparison) -> str:
    seeds = {row.seeds for row in comparison.rows if row.seeds}
    epochs = {row.epochs for row in comparison.rows}
    last = f"the last epoch ({epochs.pop()})" if len(epochs) == 1 else "the last epoch"
    over = f"{max(seeds)} seeds" if len(seeds) == 1 else "the seeds of each row"
    what = "One seed a row" if seeds == {1} else f"Mean ± sample deviation over {over}"
    return f"{what}, on target_val after {last}; nothing was selected inside a row."


def _of_published(comparison: Comparison) -> list[str]:
    beside = [each for each in comparison.beside if each is not None]
    if not beside:
        return []
    task = comparison.published
    told = [f"paper: {_comparability(comparison)}"]
    if any(each.row.aside for each in beside):
        told.append(f"In brackets: {task.asides}.")
    differing: dict[str, dict[str, None]] = {}
    for each in beside:
        for setting in describe_settings(each.row.settings, each.differences):
            differing.setdefault(setting, {})[each.row.method] = None
    if differing:
        listed = "; ".join(
            f"{setting} ({', '.join(methods)})" for setting, methods in differing.items()
        )
        told.append(f"{DAGGER} the paper's row differs: {listed}.")
    return told


def _comparability(comparison: Comparison) -> str:
    task = comparison.published
    paper = f"{' '.join(task.title[:-1])} with {task.title[-1]}"
    configs = [row.config for row in comparison.rows]
    if any(
        (config.data.name, config.model.name, config.model.weights)
        != (task.data, task.model, "imagenet")
        for config in configs
    ):
        ours = f"{comparison.data} with {', '.join(comparison.models)}"
        return f"{paper}, not {ours}; compare the order of the methods, not the numbers."
    if any(has_sealed_split(config.data) for config in configs):
        return (
            f"{paper} as here, but on the whole target set (data.protocol published), of which "
            "target_val is a part."
        )
    return (
        f"{paper} as here, so that the numbers compare; CSG's are of one seed and of the best "
        "epoch on the target, as far as its code shows."
    )


def _agreement(comparison: Comparison) -> list[str]:
    word = SCORE_NAMES[comparison.score]
    energies = [row for row in comparison.published.rows if row.energies]
    paper = spearman([row.energies[0] for row in energies], [row.score for row in energies])
    ours = comparison.agreement()
    told = []
    if ours is not None:
        told.append(f"HSE and {word} over {ours.count} rows: {ours}.")
    # A frozen encoder keeps its energy whatever it is trained on, and the paper gives it none.
    trained = comparison.agreement(without="oracle")
    if trained is not None and trained != ours:
        told.append(
            f"HSE and {word} over the {trained.count} rows without oracle, for which the paper has "
            f"no HSE: {trained}."
        )
    if paper is not None:
        told.append(f"HSE and {word} over the paper's {paper.count} methods: {paper}.")
    return told


def _common_settings(comparison: Comparison) -> list[str]:
    """The settings that no column tells and that are no defaults."""
    groups = {"all rows": comparison.shared()}
    augmentations = {comparison.augmentation_of(row) for row in comparison.rows}
    if len(augmentations) == 1:
        groups["all rows"].append(f"augmentation {augmentations.pop()}")
    methods = dict.fromkeys(row.method for row in comparison.rows)
    groups |= {method: comparison.shared(method) for method in methods}
    told = [f"{group}: {', '.join(settings)}" for group, settings in groups.items() if settings]
    return [f"Settings of {'; '.join(told)}."] if told else []


def _selection(comparison: Comparison) -> list[str]:
    chosen = [row for row in comparison.rows if row.selected_with_target_labels]
    names = "; ".join(row_name(comparison, row) for row in chosen)
    so_far = f" The settings of these were: {names}." if chosen else ""
    return [f"Whoever picks a row by these numbers selects with target labels.{so_far}"]


def _cost(comparison: Comparison) -> list[str]:
    costs = [member.seconds for row in comparison.rows for member in row.members]
    known = [seconds for seconds in costs if seconds is not None]
    if not known or len(known) < len(costs):
        return []
    return [f"All trainings of these rows took {describe_seconds(math.fsum(known))}."]


def _warnings(comparison: Comparison) -> list[str]:
    told = []
    counts = {
        "seeds": [row.seeds for row in comparison.rows if row.seeds],
        "epochs": [row.epochs for row in comparison.rows],
    }
    uneven = [
        f"{what} ({min(numbers)} to {max(numbers)})"
        for what, numbers in counts.items()
        if len(set(numbers)) > 1
    ]
    if uneven:
        told.append(f"warning: the rows differ in their numbers of {' and '.join(uneven)}.")
    for row in comparison.rows:
        if row.seeds and row.diverged:
            told.append(
                f"warning: {row_name(comparison, row)}: {row.diverged} of "
                f"{row.seeds + row.diverged} trainings diverged and are not in the means."
            )
    if comparison.data_differ:
        told.append(
            "warning: not all rows have the same data (their data_sha256 differs), so that "
            "target_val may differ, too."
        )
    return told


def _notes(comparison: Comparison) -> list[str]:
    """What the configurations have to say, and whose they are when not of all."""
    methods: dict[str, dict[str, None]] = {}
    for row in comparison.rows:
        for note in row.config.notes:
            methods.setdefault(note, {})[row.method] = None
    count = len({row.method for row in comparison.rows})
    return [
        f"note: {note}"
        if len(of) == count or note.startswith(tuple(of))
        else f"note on {', '.join(of)}: {note}"
        for note, of in methods.items()
        if note != SEES_TARGET
    ]
