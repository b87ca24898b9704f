"""How many trials one process trains: as `search.fuse` says, or as a measurement finds."""

from __future__ import annotations

from csg_ray.methods import METHODS
from csg_ray.methods.base import Method
from csg_ray.search_space import SearchSpace

CANDIDATES = (2, 4, 8, 16)
# Settings that give each trial images of its own.
_OF_THE_IMAGES = ("augment.", "data.", "seed", "train.batch_size", "train.steps_per_epoch")


def fuse_at_most(space: SearchSpace) -> int:
    """The trials that one process may have; with auto, the most that are tried."""
    if space.search.fuse != "auto":
        return space.search.fuse
    return CANDIDATES[-1] if why_alone(space) is None else 1


def why_alone(space: SearchSpace) -> str | None:
    """Why `search.fuse` auto is 1 here without a measurement; None if one has to tell."""
    if space.resources.workers_per_trial > 1:
        return "each trial has several workers"
    if space.resources.gpus_per_worker > 0:
        return None
    searched = {*space.space, *space.branch_paths()}
    images = sorted(path for path in searched if path.startswith(_OF_THE_IMAGES))
    if images:
        return f"{images[0]} is searched, so that trials on CPUs have nothing to share"
    for name in space.methods:
        if METHODS[name].training_data is not Method.training_data:
            return f"method {name} gives each trial images of its own"
    return None
