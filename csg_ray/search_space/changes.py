"""What may be another way when a study goes on."""

from __future__ import annotations

from dataclasses import dataclass

from csg_ray.search_space.space import SearchSpace


@dataclass(frozen=True)
class Changes:
    """None of them changes what a trial is; what is None stays as it was.

    Attributes:
        more: trials on top of the study's total.
        budget: a new `search.budget`, which counts from now on.
        fuse: another `search.fuse`.
    """

    more: int = 0
    budget: str | None = None
    fuse: int | str | None = None

    def applied_to(self, space: SearchSpace) -> SearchSpace:
        """The space as it is searched from now on.

        Raises:
            UserError: more trials than a grid has, not a budget, not a number of trials.
        """
        changed = space.with_num_trials(space.search.num_trials + self.more)
        if self.budget is not None:
            changed = changed.with_budget(self.budget)
        return changed if self.fuse is None else changed.with_fuse(self.fuse)
