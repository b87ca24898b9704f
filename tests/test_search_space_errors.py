"""Each kind of bad input: one clear sentence, and nothing else is raised."""

from __future__ import annotations

import copy
import random
import re
from pathlib import Path
from typing import Any

import pytest

from csg_ray.config import UserError
from csg_ray.config.methods import METHOD_CONFIGS
from csg_ray.search_space import load_search_space, parse_override, parse_search_space

DIGITS = Path(__file__).parents[1] / "search_spaces" / "digits.yaml"
BRANCHES = {
    "csg": {"space": {"method.temperature": {"loguniform": [0.02, 0.5]}}},
    "vanilla": {"space": {"train.learning_rate": {"loguniform": [0.001, 0.1]}}},
}


def _mapping(**changes: Any) -> dict[str, Any]:
    """A small legal file with some of its keys changed."""
    mapping: dict[str, Any] = {
        "study": "small",
        "base": {"train.epochs": 4},
        "space": {
            "method.temperature": {"loguniform": [0.02, 0.5]},
            "augment.magnitude": {"randint": [0, 25]},
            "method.stages": {"choice": ["4", "3,4"]},
        },
        "search": {"metric": "target_val/mean_class_accuracy", "mode": "max"},
    }
    return copy.deepcopy(mapping | changes)


def _search(**changes: Any) -> dict[str, Any]:
    return {"metric": "target_val/mean_class_accuracy", "mode": "max"} | changes


POINT = {"method.temperature": 0.07, "augment.magnitude": 6, "method.stages": "3,4"}


def _space(**domains: Any) -> dict[str, Any]:
    return _mapping(space={path.replace("__", "."): domain for path, domain in domains.items()})


def _base(base: dict[str, Any], **domains: Any) -> dict[str, Any]:
    return _space(**domains) | {"base": base}


def _points(*points: Any, **search: Any) -> dict[str, Any]:
    return _mapping(points_to_evaluate=list(points), search=_search(**search))


def _branches(**changes: Any) -> dict[str, Any]:
    return _mapping(space={"method.name": {"choice": BRANCHES | changes}})


METHOD_NAMES = ", ".join(METHOD_CONFIGS)
VISDA17 = {"data.name": "visda17", "data.root": "VisDA-17"}
SCENES = {"data.name": "digit_scenes", "model.head": "fcn"}
SOME_METRICS = "must be one of source_val/mean_class_accuracy, source_val/accuracy, source_val/hse,"
TEMPERATURE = "space: method.temperature"
BAD: dict[str, tuple[dict[Any, Any], list[str]]] = {
    # keys and names
    "key": (_mapping(serach={}), ["unknown key 'serach': did you mean 'search'?"]),
    "number as key": (_mapping() | {5: 1}, ["unknown key '5': allowed: base, "]),
    "section": (_mapping(base=[1]), ["base must be a mapping of settings, not [1]"]),
    "search section": (_mapping(search="tpe"), ["search must be a mapping of settings, not 'tpe'"]),
    "no study": (_mapping(study=None), ["study must be a name for a folder", "not null"]),
    "study path": (_mapping(study="a/b"), ["letters, digits, '-', '_' and '.'", "not 'a/b'"]),
    "study dots": (_mapping(study=".."), ["a letter or digit first, not '..'"]),
    "study line": (_mapping(study="a\n"), ["study must be a name"]),
    "study number": (_mapping(study=5), ["study must be a name for a folder", "not 5"]),
    # base
    "base path": (
        _mapping(base={"train.epoch": 4}),
        ["unknown setting 'train.epoch': did you mean 'train.epochs'?"],
    ),
    "base value": (
        _mapping(base={"train.epochs": 0}),
        ["train.epochs must be an integer from 1 to 100000, not 0"],
    ),
    "base twice": (
        _mapping(base={"train.epochs": 4, "train": {"epochs": 4}}),
        ["train.epochs is given twice"],
    ),
    "base method": (
        _mapping(base={"method.name": "cgs"}),
        [f"method.name must be one of {METHOD_NAMES}, not 'cgs'"],
    ),
    "other method": (
        _base({"method.name": "vanilla", "method.temperature": 1}, seed={"randint": [0, 9]}),
        ["method.temperature is a setting of method csg, but method.name is vanilla"],
    ),
    "base and space": (
        _mapping(base={"method.temperature": 0.1}),
        ["method.temperature is searched in space and fixed in base (or by --set); remove one"],
    ),
    "base and branch": (
        _branches() | {"base": {"method.temperature": 0.1}},
        ["method.temperature is searched in space and fixed in base"],
    ),
    "method in base and space": (
        _branches() | {"base": {"method.name": "csg"}},
        ["method.name is searched in space and fixed in base"],
    ),
    # samplers
    "no space": (_mapping(space={}), ["space searches nothing", "csg-ray train"]),
    "path": (
        _space(method__temprature={"uniform": [0, 1]}),
        ["space: unknown setting 'method.temprature': did you mean 'method.temperature'?"],
    ),
    "sampler": (
        _space(method__temperature={"loguniforn": [0.1, 1]}),
        [f"{TEMPERATURE} has an unknown sampler 'loguniforn': did you mean 'loguniform'?"],
    ),
    "fixed": (
        _space(method__temperature=0.1),
        [f"{TEMPERATURE} must be one sampler", "not 0.1; a fixed value goes into base"],
    ),
    "two samplers": (
        _space(method__temperature={"uniform": [0, 1], "choice": [1]}),
        [f"{TEMPERATURE} must be one sampler with its arguments such as {{uniform: [0, 1]}}"],
    ),
    "inverted": (
        _space(method__temperature={"loguniform": [0.5, 0.02]}),
        [f"{TEMPERATURE}: loguniform [0.5, 0.02] is inverted; write the lower end first"],
    ),
    "empty": (
        _space(method__temperature={"uniform": [0.5, 0.5]}),
        [f"{TEMPERATURE}: uniform [0.5, 0.5] is empty; put a single value into base"],
    ),
    "one integer": (
        _space(augment__magnitude={"randint": [3, 4]}),
        ["augment.magnitude: randint [3, 4] holds 3 alone, the upper end is exclusive"],
    ),
    "three ends": (
        _space(method__temperature={"uniform": [0.1, 0.5, 1]}),
        [f"{TEMPERATURE}: uniform takes numbers [low, high], not [0.1, 0.5, 1]"],
    ),
    "no list": (
        _space(method__temperature={"uniform": 0.1}),
        [f"{TEMPERATURE}: uniform takes numbers [low, high], not 0.1"],
    ),
    "text as end": (
        _space(method__temperature={"uniform": ["0.1", 1]}),
        [f"{TEMPERATURE}: uniform takes numbers [low, high], not ['0.1', 1]"],
    ),
    "bool as end": (
        _space(method__temperature={"uniform": [True, 2]}),
        [f"{TEMPERATURE}: uniform takes numbers"],
    ),
    "infinite end": (
        _space(method__temperature={"uniform": [0.1, float("inf")]}),
        [f"{TEMPERATURE}: uniform takes numbers [low, high], not [0.1, inf]"],
    ),
    "fraction as integer": (
        _space(augment__magnitude={"randint": [0, 2.5]}),
        ["augment.magnitude: randint takes whole numbers [low, high], not [0, 2.5]"],
    ),
    "log of zero": (
        _space(method__loss_weight={"loguniform": [0, 1]}),
        ["method.loss_weight: loguniform [0, 1] must start above 0"],
    ),
    "log of zero, integers": (
        _space(augment__magnitude={"lograndint": [0, 9]}),
        ["augment.magnitude: lograndint [0, 9] must start above 0"],
    ),
    "step": (
        _space(method__loss_weight={"quniform": [0, 1, 2]}),
        ["method.loss_weight: quniform [0, 1, 2] needs a step > 0 and <= 1, not 2"],
    ),
    "negative step": (
        _space(method__loss_weight={"quniform": [0, 1, -0.5]}),
        ["quniform [0, 1, -0.5] needs a step > 0"],
    ),
    "off the steps": (
        _space(method__loss_weight={"quniform": [0.05, 1.05, 0.2]}),
        ["method.loss_weight: quniform [0.05, 1.05, 0.2] needs ends that are multiples of 0.2"],
    ),
    "lower end": (
        _space(method__temperature={"uniform": [0, 1]}),
        ["method.temperature must be a number > 0 and <= 100, not 0.0"],
    ),
    "upper end": (
        _space(method__temperature={"uniform": [0.1, 101]}),
        ["method.temperature must be a number > 0 and <= 100, not 101.0"],
    ),
    "upper integer": (
        _space(augment__magnitude={"randint": [0, 32]}),
        ["augment.magnitude must be a number from 0 to 30, not 31"],
    ),
    "fractions for an integer": (
        _space(train__batch_size={"uniform": [16, 64]}),
        [
            "space: train.batch_size must be an integer from 1 to 65536, "
            "but uniform draws fractions; use randint"
        ],
    ),
    "numbers for text": (
        _space(augment__views={"randint": [0, 2]}, method__temperature={"uniform": [0.1, 1]}),
        ["augment.views must be one of independent, shared, not 0"],
    ),
    # choices
    "choice value": (
        _space(method__ema_momentum={"choice": [0.9, 1.5]}),
        ["method.ema_momentum must be a number from 0 to 1, not 1.5"],
    ),
    "list in a choice": (
        _space(method__stages={"choice": ["4", [3, 4]]}),
        ["method.stages: choice has the list [3, 4] as a value", 'a string such as "3,4"'],
    ),
    "mapping in a choice": (
        _space(method__stages={"choice": ["4", {"a": 1}]}),
        ["method.stages: choice has the mapping {'a': 1} as a value"],
    ),
    "choice of text": (
        _space(method__stages={"choice": "3,4"}),
        ["method.stages: choice takes a list of values, not '3,4'"],
    ),
    "one choice": (
        _space(method__stages={"choice": ["4"]}),
        ["method.stages: choice ['4'] needs at least two values; put a single value into base"],
    ),
    "no choice": (_space(method__stages={"choice": []}), ["choice [] needs at least two values"]),
    "same choice": (
        _space(method__ema_momentum={"choice": [0.9, 0.99, 0.9]}),
        ["method.ema_momentum: choice has 0.9 and 0.9, which are the same; remove one"],
    ),
    "same meaning": (
        _space(method__stages={"choice": ["3,4", "4, 3"]}),
        ["method.stages: choice has '3,4' and '4, 3', which are the same; remove one"],
    ),
    "same method": (
        _space(method__name={"choice": ["csg", "csg"]}),
        ["method.name: choice has 'csg' and 'csg'"],
    ),
    "illegal pair": (
        _space(
            model__name={"choice": ["mini", "resnet18"]},
            model__weights={"choice": ["bundled", "none"]},
        ),
        ["model.weights 'bundled' exists for model.name 'mini' only, not 'resnet18'"],
    ),
    # branches
    "branches elsewhere": (
        _space(augment__views={"choice": {"shared": {}, "independent": {}}}),
        ["augment.views: only method.name may have branches; write choice as a list"],
    ),
    "branch name": (
        _branches(cgs={}),
        [f"method.name must be one of {METHOD_NAMES}, not 'cgs'"],
    ),
    "branch key": (
        _branches(csg={"fixed": {}}),
        ["method.name: branch 'csg' must be {base: {...}, space: {...}}, either left out, not"],
    ),
    "branch base": (
        _branches(csg={"base": [1]}),
        ["branch 'csg': base must be a mapping of fixed settings, not [1]"],
    ),
    "unknown in a branch base": (
        _branches(vanilla={"base": {"method.temperature": 0.1}}),
        ["branch vanilla: method.temperature is a setting of method csg"],
    ),
    "bad value in a branch base": (
        _branches(csg={"base": {"method.temperature": 0}}),
        ["method.temperature must be a number > 0 and <= 100, not 0"],
    ),
    "fixed and searched in a branch": (
        _branches(
            csg={
                "base": {"method.temperature": 0.1},
                "space": {"method.temperature": {"uniform": [0.1, 1]}},
            }
        ),
        ["method.temperature is fixed in branch csg and searched there; remove one"],
    ),
    "budget of a branch": (
        _branches(csg={"base": {"train.epochs": 3}}),
        ["branch csg fixes train.epochs, which must be the same in all trials; put it into base"],
    ),
    "data of a branch": (
        _branches(csg={"base": {"data.num_train": 30}}),
        ["branch csg fixes data.num_train, which must be the same in all trials; put it into base"],
    ),
    "branch space": (
        _branches(csg={"space": [1]}),
        ["branch 'csg': space must be a mapping of searched settings, not [1]"],
    ),
    "branch in branch": (
        _branches(csg={"space": {"method.name": {"choice": ["csg", "vanilla"]}}}),
        ["branch 'csg' gives method.name again"],
    ),
    "branch sampler": (
        _branches(csg={"space": {"method.temperature": {"uniform": [1, 0.1]}}}),
        ["method.temperature: uniform [1, 0.1] is inverted"],
    ),
    "branch end": (
        _branches(csg={"space": {"method.temperature": {"uniform": [0, 1]}}}),
        ["method.temperature must be a number > 0 and <= 100, not 0.0"],
    ),
    "wrong branch": (
        _branches(vanilla={"space": {"method.temperature": {"uniform": [0.1, 1]}}}),
        ["branch vanilla: method.temperature is a setting of method csg"],
    ),
    "one branch": (
        _mapping(space={"method.name": {"choice": {"csg": {}}}}),
        ["method.name: choice ['csg'] needs at least two values"],
    ),
    "range of methods": (
        _space(method__name={"randint": [0, 2]}),
        ["space: method.name takes a choice, not a range"],
    ),
    "shared by some": (
        _space(
            method__name={"choice": ["csg", "vanilla"]},
            method__temperature={"uniform": [0.1, 1]},
        ),
        ["method.temperature is no setting of every method", "branch csg of method.name"],
    ),
    "inside and outside": (
        _mapping(
            space={
                "method.name": {"choice": BRANCHES},
                "train.learning_rate": {"uniform": [0.1, 1]},
            }
        ),
        ["space: train.learning_rate is searched in branch vanilla and outside; remove one"],
    ),
    # settings without effect
    "inert by base": (
        _base({"augment.num_ops": 0}, augment__magnitude={"randint": [0, 25]}),
        ["space: augment.magnitude has no effect, because augment.num_ops is 0; take it out"],
    ),
    "inert by method": (
        _base({"method.name": "vanilla"}, augment__views={"choice": ["independent", "shared"]}),
        ["space: augment.views has no effect, because method vanilla uses one view"],
    ),
    "inert in its branch": (
        _branches(vanilla={"space": {"augment.views": {"choice": ["independent", "shared"]}}}),
        ["space: augment.views has no effect, because method vanilla uses one view"],
    ),
    "inert for every choice": (
        _base(
            {"method.pooling": "mean"},
            method__loss_weight={"choice": [0, 1.0]},
            method__attention_from={"choice": ["encoder", "self"]},
        ),
        ["space: method.attention_from has no effect, because method."],
    ),
    "speed": (
        _space(data__workers={"randint": [0, 4]}),
        ["space: data.workers changes the speed, not the result; put it into base"],
    ),
    # the task
    "task searched": (
        _space(data__name={"choice": ["digits", "digit_scenes"]}),
        ["space: data.name is the task at which trials are compared; put it into base"],
    ),
    "task": (
        _mapping(base={"data.name": "digit"}),
        ["data.name must be one of digits, digit_scenes, image_folder, visda17", "not 'digit'"],
    ),
    "protocol searched": (
        _base(VISDA17, data__protocol={"choice": ["sealed", "published"]}),
        ["space: data.protocol says on which images trials are compared; put it into base"],
    ),
    "setting of another task": (
        _mapping(base={"data.root": "VisDA-17"}),
        ["data.root is a setting of data visda17, but data.name is digits"],
    ),
    "crop of scenes": (
        _base(SCENES, data__min_scale={"uniform": [0.5, 1.0]}),
        ["data.image_size is 48, but a scene has 32 pixels a side at data.min_scale 0.5"],
    ),
    # what is measured
    "mIoU of classes": (
        _mapping(search=_search(metric="source_val/mean_iou")),
        [
            "search.metric source_val/mean_iou is of segmentation, but data.name digits is a task",
            "use source_val/mean_class_accuracy",
        ],
    ),
    "source that is not held out": (
        _mapping(
            base=VISDA17 | {"data.protocol": "published"}, search=_search(metric="source_val/hse")
        ),
        ["search.metric source_val/hse is not measured: with data.protocol published"],
    ),
    "second objective that is not measured": (
        _mapping(
            base=VISDA17 | {"data.protocol": "published"},
            search={
                "objectives": [
                    {"metric": "target_val/hse", "mode": "min"},
                    {"metric": "source_val/mean_class_accuracy", "mode": "max"},
                ]
            },
        ),
        ["search.metric source_val/mean_class_accuracy is not measured"],
    ),
    # search
    "search key": (
        _mapping(search=_search(num_trails=3)),
        ["unknown setting 'search.num_trails': did you mean 'search.num_trials'?"],
    ),
    "epochs": (
        _mapping(base={}, space={"train.epochs": {"randint": [2, 9]}}),
        ["space: train.epochs is the budget", "put it into base"],
    ),
    "more trials than the grid": (
        _mapping(
            space={"method.stages": {"choice": ["4", "3,4"]}},
            search=_search(sampler="grid", num_trials=3),
        ),
        ["search.num_trials is 3, but the grid has 2 combinations; set it to at most 2"],
    ),
    "no metric": (_mapping(search={}), ["search.metric is missing; it", SOME_METRICS]),
    "no mode": (
        _mapping(search={"metric": "target_val/hse"}),
        ["search.mode is missing; it must be one of min, max"],
    ),
    "metric": (
        _mapping(search=_search(metric="target_val/acuracy")),
        ["search.metric 'target_val/acuracy' is unknown: did you mean 'target_val/accuracy'?"],
    ),
    "split": (
        _mapping(search=_search(metric="target_dev/accuracy")),
        ["search.metric 'target_dev/accuracy' is of no known split", "source_val and target_val"],
    ),
    "metric type": (_mapping(search=_search(metric=3)), ["search.metric must be text"]),
    "sealed": (
        _mapping(search=_search(metric="target_test/accuracy")),
        ["search.metric must not be target_test/accuracy: target_test is sealed"],
    ),
    "nce": (
        _mapping(search=_search(metric="train/nce")),
        ["search.metric must not be train/nce: the scale of a training loss changes with lambda"],
    ),
    "mode": (
        _mapping(search=_search(mode="maximum")),
        ["search.mode must be one of min, max", "not 'maximum'"],
    ),
    "both": (
        _mapping(search=_search(objectives=[{"metric": "target_val/hse", "mode": "min"}])),
        ["search.metric and search.objectives are both given; remove one"],
    ),
    "mode and objectives": (
        _mapping(
            search={"mode": "max", "objectives": [{"metric": "target_val/hse", "mode": "min"}]}
        ),
        ["search.mode and search.objectives are both given; remove one"],
    ),
    "no objectives": (_mapping(search={"objectives": []}), ["search.objectives must be a list"]),
    "objective as text": (
        _mapping(search={"objectives": ["target_val/hse"]}),
        ["search.objectives[0] must be {metric: ..., mode: ...}, not 'target_val/hse'"],
    ),
    "objective key": (
        _mapping(search={"objectives": [{"metrics": "target_val/hse", "mode": "min"}]}),
        ["unknown setting 'search.objectives[0].metrics': did you mean"],
    ),
    "objective without mode": (
        _mapping(search={"objectives": [{"metric": "target_val/hse"}]}),
        ["search.objectives[0].mode is missing; it must be one of min, max"],
    ),
    "objective mode": (
        _mapping(search={"objectives": [{"metric": "target_val/hse", "mode": "up"}]}),
        ["search.objectives[0].mode must be one of min, max, not 'up'"],
    ),
    "sealed objective": (
        _mapping(search={"objectives": [{"metric": "target_test/hse", "mode": "min"}]}),
        ["search.objectives[0].metric must not be target_test/hse: target_test is sealed"],
    ),
    "objective twice": (
        _mapping(search={"objectives": [{"metric": "target_val/hse", "mode": "min"}] * 2}),
        ["search.objectives names target_val/hse twice; remove one"],
    ),
    "objectives and sampler": (
        _mapping(
            search={
                "sampler": "random",
                "objectives": [
                    {"metric": "target_val/hse", "mode": "min"},
                    {"metric": "target_val/accuracy", "mode": "max"},
                ],
            }
        ),
        ["search.sampler must be tpe or nsga2 with several objectives, not random"],
    ),
    "sampler name": (
        _mapping(search=_search(sampler="tpf")),
        ["search.sampler must be one of tpe, random, grid, nsga2, not 'tpf'"],
    ),
    "scheduler name": (
        _mapping(search=_search(scheduler=None)),
        ["search.scheduler must be one of asha, none, not null"],
    ),
    "trials": (
        _mapping(search=_search(num_trials=0)),
        ["search.num_trials must be an integer from 1 to 1000000, not 0"],
    ),
    "trials type": (_mapping(search=_search(num_trials="9")), ["search.num_trials", "not '9'"]),
    "reduction": (
        _mapping(search=_search(reduction_factor=1)),
        ["search.reduction_factor must be an integer >= 2, not 1"],
    ),
    "grace": (
        _mapping(search=_search(grace_period=0)),
        ["search.grace_period must be an integer >= 1, not 0"],
    ),
    "long grace": (
        _mapping(search=_search(grace_period=5)),
        ["search.grace_period must be at most train.epochs, 4, not 5"],
    ),
    "repeats": (
        _mapping(search=_search(repeats=0)),
        ["search.repeats must be an integer from 1 to 1000, not 0"],
    ),
    "repeats and seed": (
        _space(seed={"randint": [0, 9]}) | {"search": _search(repeats=2)},
        ["search.repeats 2 trains with several seeds, so seed cannot be searched"],
    ),
    "kept checkpoints": (
        _mapping(search=_search(keep_checkpoints=0)),
        ["search.keep_checkpoints must be an integer >= 1, not 0"],
    ),
    "concurrency": (
        _mapping(search=_search(max_concurrent=0)),
        ["search.max_concurrent must be an integer >= 1 or null, not 0"],
    ),
    "grid over a range": (
        _mapping(search=_search(sampler="grid")),
        ["search.sampler grid needs choice everywhere, but method.temperature has loguniform"],
    ),
    "grid over a branch": (
        _branches() | {"search": _search(sampler="grid")},
        ["search.sampler grid needs choice everywhere, but method.temperature has loguniform"],
    ),
    # resources
    "resource key": (
        _mapping(resources={"gpus": 1}),
        ["unknown setting 'resources.gpus': did you mean 'resources.gpus_per_worker'?"],
    ),
    "workers": (
        _mapping(resources={"workers_per_trial": 0}),
        ["resources.workers_per_trial must be an integer from 1 to 100000, not 0"],
    ),
    "fuse": (
        _mapping(search=_search(fuse=0)),
        ["search.fuse must be an integer from 1 to 1000 or 'auto', not 0"],
    ),
    "fuse with several workers": (
        _mapping(search=_search(fuse=4), resources={"workers_per_trial": 2}),
        ["search.fuse is 4, but resources.workers_per_trial is 2: ", "set one of the two to 1"],
    ),
    "gpus": (
        _mapping(resources={"gpus_per_worker": -1}),
        ["resources.gpus_per_worker must be a number from 0 to 1000, not -1"],
    ),
    "gpus and a half": (
        _mapping(resources={"gpus_per_worker": 1.5}),
        ["resources.gpus_per_worker must be whole above 1, not 1.5; round it"],
    ),
    # warm-start points
    "points": (
        _mapping(points_to_evaluate=POINT),
        ["points_to_evaluate must be a list of points, not {"],
    ),
    "point": (_points(3), ["points_to_evaluate, point 1 must be a mapping", "not 3"]),
    "incomplete": (
        _points(POINT, {"augment.magnitude": 6, "method.temperature": 0.1}),
        ["points_to_evaluate, point 2: method.stages is missing; a point names every searched"],
    ),
    "fixed in a point": (
        _points(POINT | {"train.epochs": 4}),
        ["points_to_evaluate, point 1: train.epochs is fixed in base; take it out of the point"],
    ),
    "not searched": (
        _points(POINT | {"method.temprature": 4}),
        ["point 1: method.temprature is not searched: did you mean 'method.temperature'?"],
    ),
    "outside": (
        _points(POINT | {"method.temperature": 0.9}),
        ["point 1: method.temperature 0.9 lies outside loguniform [0.02, 0.5]; change"],
    ),
    "at the exclusive end": (
        _points(POINT | {"augment.magnitude": 25}),
        ["point 1: augment.magnitude 25 lies outside randint [0, 25]"],
    ),
    "fraction among integers": (
        _points(POINT | {"augment.magnitude": 6.5}),
        ["point 1: augment.magnitude 6.5 lies outside randint [0, 25]"],
    ),
    "text among numbers": (
        _points(POINT | {"method.temperature": "0.1"}),
        ["point 1: method.temperature '0.1' lies outside loguniform [0.02, 0.5]"],
    ),
    "nan": (
        _points(POINT | {"method.temperature": float("nan")}),
        ["point 1: method.temperature nan lies outside"],
    ),
    "no such choice": (
        _points(POINT | {"method.stages": "2,3"}),
        ["point 1: method.stages '2,3' lies outside choice ['4', '3,4']"],
    ),
    "illegal in a point": (
        _points(POINT | {"method.stages": [3, 4]}),
        ["point 1: method.stages must be stage numbers such as '3,4', not [3, 4]"],
    ),
    "between the steps": (
        _space(method__loss_weight={"quniform": [0, 1, 0.25]})
        | {"points_to_evaluate": [{"method.loss_weight": 0.3}]},
        ["point 1: method.loss_weight 0.3 lies outside quniform [0.0, 1.0, 0.25]"],
    ),
    "point twice": (
        _points(POINT, dict(reversed(POINT.items()))),
        ["points_to_evaluate, point 2 is the same as point 1; remove one"],
    ),
    "more points than trials": (
        _points(POINT, POINT | {"augment.magnitude": 7}, num_trials=1),
        ["points_to_evaluate holds 2 points, more than search.num_trials 1; remove some"],
    ),
    "point without method": (
        _branches() | {"points_to_evaluate": [{"method.temperature": 0.1}]},
        ["point 1: method.name is missing; a point names every searched setting"],
    ),
    "point of another method": (
        _branches() | {"points_to_evaluate": [{"method.name": "asg"}]},
        ["point 1: method.name 'asg' lies outside choice ['csg', 'vanilla']"],
    ),
    "point of another branch": (
        _branches()
        | {"points_to_evaluate": [{"method.name": "vanilla", "method.temperature": 0.1}]},
        ["point 1: method.temperature is not searched under method vanilla; remove it"],
    ),
    "point without its branch": (
        _branches() | {"points_to_evaluate": [{"method.name": "csg"}]},
        ["point 1: method.temperature is missing"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case: str) -> None:
    mapping, fragments = BAD[case]
    with pytest.raises(UserError) as caught:
        parse_search_space(mapping)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


def test_the_file_that_bad_input_starts_from_is_good() -> None:
    for mapping in (_mapping(), _branches(), _points(POINT), _mapping(resources={})):
        parse_search_space(mapping)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("train.epochs", "--set train.epochs: write path=value, such as train.epochs=3"),
        ("=3", "--set =3: write path=value"),
        ("train.epochs=[3", "--set train.epochs=[3: line 1: not YAML"),
    ],
)
def test_bad_override_text(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        parse_override(text)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            {"method.temperature": 0.1},
            "method.temperature is searched in space and fixed in base (or",
        ),
        ({"train.epoch": 1}, "unknown setting 'train.epoch': did you mean 'train.epochs'?"),
        ({"train.epochs": "two"}, "train.epochs must be an integer from 1 to 100000, not 'two'"),
        ({"serch.num_trials": 1}, "unknown setting 'serch.num_trials': did you mean 'search.num_t"),
        ({"search.num_trails": 1}, "unknown setting 'search.num_trails': did you mean"),
        ({"search": 1}, "'search' is a group of settings; name one of search.metric"),
        ({"zzz": 1}, "unknown setting 'zzz': allowed are seed, data.*,"),
        ({"train": {"epochs": 3}}, "'train' is a group of settings; name one of train.epochs"),
        ({"space.seed": 1}, "unknown setting 'space.seed'"),
        (
            {"search.grace_period": 1000},
            "search.grace_period must be at most train.epochs, ",
        ),
        ({"method.name": "vanilla"}, "method.loss_weight is a setting of method weight_l2, "),
        ({"search.num_trials": 0}, "search.num_trials must be an integer from 1 to 1000000, not 0"),
    ],
    ids=str,
)
def test_bad_overrides(override: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        load_search_space(DIGITS, override)
    assert sentence in str(caught.value)


def test_bad_files_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("study: a\nspace: {}\nstudy: b\n")
    with pytest.raises(UserError) as caught:
        load_search_space(path)
    assert str(caught.value).startswith(f"{path}: line 3: the key 'study' stands twice")
    path.write_text("study: [")
    with pytest.raises(UserError, match="not YAML"):
        load_search_space(str(path))


def _places(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside nested mappings and lists."""
    items = list(node.items()) if isinstance(node, dict) else list(enumerate(node))
    inner = [
        place for _, child in items if isinstance(child, dict | list) for place in _places(child)
    ]
    return [(node, key) for key, _ in items] + inner


def test_nothing_but_user_errors() -> None:
    generator = random.Random(0)
    oddities: list[Any] = [
        *(None, True, 0, -1, 10**19, 1.5, float("nan"), float("inf"), "", "csg", "a.b"),
        *([], [[]], [None], {}, {"": 0}, {1: 2}, {"choice": [[]]}, {"uniform": [1, "a"]}),
    ]
    refused: list[str] = []
    for _ in range(400):
        mapping = generator.choice([_points(POINT), _branches(), _mapping(resources={}, base={})])
        for _ in range(generator.randint(1, 2)):
            container, key = generator.choice(_places(mapping))
            if isinstance(container, dict) and generator.random() < 0.3:
                value = container.pop(key)
                container[generator.choice(["x", 5, None, "train", "method.stages"])] = value
            else:
                container[key] = copy.deepcopy(generator.choice(oddities))
        try:
            parse_search_space(mapping)
        except UserError as error:
            refused.append(str(error))
    assert 200 < len(refused) < 400
    assert not any("\n" in sentence for sentence in refused)


PUBLISHED_TASKS: dict[str, dict[str, Any]] = {
    "visda17": {"data.root": "a"},
    "gta5_cityscapes": {
        "data.gta5": "a",
        "data.cityscapes": "b",
        "model.name": "resnet50",
        "model.weights": "imagenet",
        "model.head": "aspp_v3",
        "train.batch_size": 6,
    },
}


@pytest.mark.parametrize("task", PUBLISHED_TASKS)
def test_the_published_protocol_measures_source_val_of_gta5_alone(task: str) -> None:
    score = "mean_iou" if task == "gta5_cityscapes" else "mean_class_accuracy"
    base = {"data.name": task, "data.protocol": "published", "train.epochs": 4}
    mapping = _base(base | PUBLISHED_TASKS[task], method__temperature={"uniform": [0.1, 0.5]})
    mapping["search"] = _search(metric=f"source_val/{score}")
    if task == "gta5_cityscapes":
        assert parse_search_space(mapping).objectives[0].metric == "source_val/mean_iou"
        return
    with pytest.raises(UserError, match=r"source_val/mean_class_accuracy is not measured"):
        parse_search_space(mapping)
