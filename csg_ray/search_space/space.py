"""A study's search space: what is fixed, what is searched, how, on what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from csg_ray.config.data import DATA_CONFIGS
from csg_ray.config.errors import UserError
from csg_ray.config.explain import validate
from csg_ray.config.load import override_config, setting_fields
from csg_ray.config.methods import METHOD_CONFIGS
from csg_ray.config.places import absolute
from csg_ray.config.run import SCORES, RunConfig
from csg_ray.search_space.budget import Budget, parse_budget
from csg_ray.search_space.domains import Branch, Choice, Domain, grid_size
from csg_ray.search_space.settings import Objective, ResourcesConfig, SearchConfig, check_fuse


@dataclass(frozen=True)
class SearchSpace:
    """A checked search-space file. Paths are dotted config paths."""

    study: str
    base: dict[str, Any]
    space: dict[str, Domain]
    points_to_evaluate: tuple[dict[str, Any], ...]
    search: SearchConfig
    resources: ResourcesConfig

    @property
    def data_name(self) -> str:
        """The task, the same in every trial."""
        return str(self.base.get("data.name", RunConfig().data.name))

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that may be drawn: those searched, or the one in base."""
        names = self.space.get("method.name")
        if names is None:
            return (self.base.get("method.name", RunConfig().method.name),)
        return names.ends()

    @property
    def score(self) -> str:
        """The metric of the task: `mean_class_accuracy` or `mean_iou`."""
        return SCORES[DATA_CONFIGS[self.data_name].task]

    def config_for(self, params: Mapping[str, Any]) -> RunConfig:
        """The run configuration of a trial.

        A fixed setting of another method than the trial's is left out, and one of the trial's own
        branch wins over the one for all.

        Args:
            params: dotted path -> value, as sampled.
        """
        default = self.base.get("method.name", RunConfig().method.name)
        method = params.get("method.name", default)
        legal = setting_fields(method, self.data_name)
        fixed = {path: value for path, value in self.base.items() if path in legal}
        return override_config(RunConfig(), {**fixed, **self.branch(method).base, **params})

    def branch(self, method: str) -> Branch:
        """What comes with one of the methods that are searched."""
        names = self.space.get("method.name")
        return names.branch(method) if isinstance(names, Choice) else Branch()

    def active_domains(self, params: Mapping[str, Any]) -> dict[str, Domain]:
        """The searched settings of a trial, those of its branch included."""
        method = params.get("method.name")
        return dict(self.space) if method is None else self.space | self.branch(method).space

    def branch_paths(self) -> set[str]:
        """The settings that are searched in some branch only."""
        names = self.space.get("method.name")
        branches = names.branches.values() if isinstance(names, Choice) else ()
        return {path for branch in branches for path in branch.space}

    def complete(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """`params`, and the first end of every other searched setting of their branch."""
        top = {path: domain.ends()[0] for path, domain in self.space.items()} | dict(params)
        return {path: domain.ends()[0] for path, domain in self.active_domains(top).items()} | top

    def first_point(self) -> dict[str, Any]:
        """One setting of the searched paths: the first warm-start point, or the first ends."""
        return dict(self.points_to_evaluate[0]) if self.points_to_evaluate else self.complete({})

    def first_config(self) -> RunConfig:
        """The run configuration of `first_point`."""
        return self.config_for(self.first_point())

    @property
    def notes(self) -> tuple[str, ...]:
        """What every output about this study has to say: of its data, and of its methods."""
        of_methods = [METHOD_CONFIGS[method].notes for method in self.methods]
        return tuple(dict.fromkeys([*self.first_config().data.notes, *chain(*of_methods)]))

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What is optimised, the first one by ASHA too."""
        if self.search.objectives:
            return self.search.objectives
        assert self.search.metric is not None  # parse_search asks for one of the two
        assert self.search.mode is not None
        return (Objective(metric=self.search.metric, mode=self.search.mode),)

    @property
    def budget(self) -> Budget | None:
        """How much a search may take; None: as much as its trials need."""
        return parse_budget(self.search.budget)

    def with_absolute_paths(self) -> SearchSpace:
        """The same study with the files that its settings name found from this folder."""
        points = [
            {path: absolute(path, value) for path, value in point.items()}
            for point in self.points_to_evaluate
        ]
        return replace(
            self,
            base={path: absolute(path, value) for path, value in self.base.items()},
            space={path: _absolute_domain(path, domain) for path, domain in self.space.items()},
            points_to_evaluate=tuple(points),
        )

    def with_num_trials(self, num_trials: int) -> SearchSpace:
        """The same study with another number of trials in all.

        Raises:
            UserError: fewer than one or than the warm-start points, more than a grid holds.
        """
        validate(SearchConfig, {"num_trials": num_trials}, "search.")
        search = self.search.model_copy(update={"num_trials": num_trials})
        return replace(self, search=search).check_num_trials()

    def with_budget(self, budget: str) -> SearchSpace:
        """The same study with another budget.

        Raises:
            UserError: not a budget, or one of GPUs that no trial has.
        """
        validate(SearchConfig, {"budget": budget}, "search.")
        search = self.search.model_copy(update={"budget": budget})
        return replace(self, search=search).check_budget()

    def check_budget(self) -> SearchSpace:
        """Itself, if trials can spend the budget; else UserError."""
        budget = self.budget
        if budget is not None and budget.unit == "gpuh" and self.resources.gpus_per_worker == 0:
            raise UserError(
                f"search.budget is {budget.text}, but resources.gpus_per_worker is 0, so that no "
                "trial would ever spend it; give it in cpuh, or as a time such as 2h"
            )
        return self

    def with_fuse(self, fuse: int | str) -> SearchSpace:
        """The same study with another `search.fuse`, on which no result depends.

        Raises:
            UserError: neither auto nor a whole number from 1 on, or trials have several workers.
        """
        validate(SearchConfig, {"fuse": fuse}, "search.")
        search = self.search.model_copy(update={"fuse": fuse})
        check_fuse(search, self.resources)
        return replace(self, search=search)

    def check_num_trials(self) -> SearchSpace:
        """Itself, if the number of trials fits the points and the grid; else UserError."""
        trials, points = self.search.num_trials, len(self.points_to_evaluate)
        if points > trials:
            raise UserError(
                f"points_to_evaluate holds {points} points, more than search.num_trials "
                f"{trials}; remove some, or raise num_trials"
            )
        if self.search.sampler == "grid" and trials > (size := grid_size(self.space)):
            raise UserError(
                f"search.num_trials is {trials}, but the grid has {size} combinations; "
                f"set it to at most {size}"
            )
        return self

    def to_mapping(self) -> dict[str, Any]:
        """The file with every default filled in, in plain types."""
        search = self.search.model_dump(mode="json", exclude_none=True)
        if not search["objectives"]:
            del search["objectives"]
        return {
            "study": self.study,
            "base": dict(self.base),
            "space": {path: domain.to_mapping() for path, domain in self.space.items()},
            "points_to_evaluate": [dict(point) for point in self.points_to_evaluate],
            "search": search,
            "resources": self.resources.model_dump(),
        }


def _absolute_domain(path: str, domain: Domain) -> Domain:
    if not isinstance(domain, Choice):
        return domain
    branches = {
        name: Branch(
            {inner: absolute(inner, value) for inner, value in branch.base.items()},
            {inner: _absolute_domain(inner, each) for inner, each in branch.space.items()},
        )
        for name, branch in domain.branches.items()
    }
    values = tuple(absolute(path, value) for value in domain.values)
    return replace(domain, values=values, branches=branches)
