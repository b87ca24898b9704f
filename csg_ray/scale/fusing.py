"""How many trials one process trains: as `search.fuse` says, or as a short measurement finds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from csg_ray.config.run import RunConfig
from csg_ray.data.load import load_splits
from csg_ray.methods import METHODS
from csg_ray.scale.gpu_share import CurrentGpu, claim
from csg_ray.search_space import SearchSpace
from csg_ray.training.lanes import Lane, Way
from csg_ray.training.ways import measure_ways

CANDIDATES = (2, 4, 8, 16)
# Twice as many trials have to make a step of each cheaper by so much.
GAIN = 0.1
# Settings that give each trial images of its own.
_OF_THE_IMAGES = ("augment.", "data.", "seed", "train.batch_size", "train.steps_per_epoch")


@dataclass(frozen=True)
class Fusing:
    """How many trials a process trains, in which way, and a sentence that says why."""

    count: int
    way: Way
    reason: str


def fuse_at_most(space: SearchSpace) -> int:
    """The trials that one process may have; with auto, the most that are tried."""
    if space.search.fuse != "auto":
        return space.search.fuse
    return CANDIDATES[-1] if why_alone(space) is None else 1


def why_alone(space: SearchSpace) -> str | None:
    """Why `search.fuse` auto is 1 here without a measurement; None if one has to tell."""
    if space.resources.workers_per_trial > 1:
        return "each trial has several workers"
    for name in space.methods:
        if not METHODS[name].takes_turns:
            return f"method {name} shares nothing with other trials"
    if space.resources.gpus_per_worker > 0:
        return None
    searched = {*space.space, *space.branch_paths()}
    images = sorted(path for path in searched if path.startswith(_OF_THE_IMAGES))
    if images:
        return f"{images[0]} is searched, so that trials on CPUs have no images in common"
    return None


def find_fusing(space: SearchSpace, most: int) -> Fusing:
    """What `search.fuse` comes to on these machines; measured by a task of Ray's where need be.

    Args:
        space: what is searched.
        most: trials that one process can have, as there are only so many.
    """
    auto, resources = space.search.fuse == "auto", space.resources
    alone = why_alone(space) if auto else None
    if alone is not None or most == 1:
        why = alone or "there are no more trials than processes"
        return Fusing(1, "in_turn", f"search.fuse auto: each trial by itself, as {why}")
    if not auto and resources.gpus_per_worker == 0:
        return Fusing(most, "in_turn", f"search.fuse {most}")
    counts = [count for count in CANDIDATES if count <= most] if auto else [most]
    return _ask_a_worker(space, counts)


def _ask_a_worker(space: SearchSpace, counts: Sequence[int]) -> Fusing:
    """Measure with what one trial has."""
    # Both take seconds to import, and most studies need neither here.
    import ray

    from csg_ray.scale.suggestions import Suggestions

    resources, suggestions = space.resources, Suggestions(space)
    asked = itertools.islice(iter(suggestions.ask, None), counts[-1])
    configs = [space.config_for(suggestion.params).model_dump() for suggestion in asked]
    task = ray.remote(
        num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker, max_calls=1
    )(measure_fusing)
    auto = space.search.fuse == "auto"
    share = resources.cpus_per_worker, resources.gpus_per_worker
    found: Fusing = ray.get(task.remote(configs, counts, *share, auto))
    return found


def measure_fusing(
    configs: Sequence[dict[str, Any]],
    counts: Sequence[int],
    cpus: int,
    gpus: float,
    auto: bool,
) -> Fusing:
    """Measure on this machine, with the first trials of a study.

    Args:
        configs: RunConfigs as mappings, of as many trials as the last of `counts`.
        counts: of trials in one process, in ascending order; without `auto` only one.
        cpus: threads of torch.
        gpus: the share of a GPU that all of them will have.
        auto: whether the count is to be chosen, or only the way.
    """
    torch.set_num_threads(cpus)
    if gpus != int(gpus):
        claim(gpus, CurrentGpu())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lanes: list[Lane] = []

    def measure(count: int) -> dict[str, float]:
        try:
            for mapping in configs[len(lanes) : count]:
                config = RunConfig.model_validate(mapping)
                lanes.append(Lane(config, load_splits(config.data), device))
        except torch.OutOfMemoryError:
            return {}
        return measure_ways(lanes)

    return choose_count(measure, counts) if auto else choose_way(measure(counts[0]), counts[0])


def choose_way(seconds: dict[str, float], count: int) -> Fusing:
    """The faster way of so many; in turn, if nothing could be measured."""
    ways: tuple[Way, ...] = ("in_turn", "stacked")
    way = min(ways, key=lambda each: seconds.get(each, float("inf")))
    return Fusing(count, way, f"search.fuse {count}: {way}")


def choose_count(measure: Callable[[int], dict[str, float]], counts: Sequence[int]) -> Fusing:
    """The largest count up to which each step upward gains.

    Args:
        measure: from a number of trials to seconds as `measure_ways` gives them.
        counts: to be tried, in ascending order.
    """
    best = Fusing(1, "in_turn", "")
    alone = so_far = float("nan")
    verdict = "twice as many do not fit in memory"
    for count in counts:
        seconds = measure(count)
        tried = choose_way(seconds, count)
        if "alone" not in seconds or tried.way not in seconds:
            break
        if best.count == 1:
            alone = so_far = seconds["alone"]
        if seconds[tried.way] > (1 - GAIN) * so_far:
            verdict = f"{count} would gain less than {GAIN:.0%} more"
            break
        best, so_far = tried, seconds[tried.way]
    else:
        verdict = "more are not tried"
    if best.count == 1:
        return Fusing(1, "in_turn", f"search.fuse auto: each trial by itself, as {verdict}")
    way = {"in_turn": "in turn", "stacked": "stacked"}[best.way]
    return Fusing(
        best.count,
        best.way,
        f"search.fuse auto: {best.count} trials in one process, {way}, "
        f"{alone / so_far:.1f} times as fast as each by itself; {verdict}",
    )
