"""Tables written by hand, as a grid at full budget would leave them, and runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csg_ray.config.load import config_to_mapping, override_config
from csg_ray.config.reader import dump_yaml
from csg_ray.config.run import RunConfig

ACCURACY, HSE = "target_val/mean_class_accuracy", "target_val/hse"
SELF_TRAINING: dict[str, Any] = {
    "method__name": "cbst",
    "method__start": "runs/csg",
    "train__steps_per_epoch": 3,
}


def scored(accuracy: float, hse: float, **more: float) -> dict[str, float]:
    return {
        ACCURACY: accuracy,
        HSE: hse,
        "target_val/hse_power1": hse + 1,
        "target_val/hse_power2": hse + 2,
        "source_val/mean_class_accuracy": 0.9,
        **{name.replace("__", "/"): value for name, value in more.items()},
    }


def write_table(
    folder: Path,
    space: Mapping[str, Any],
    trials: list[tuple[dict[str, Any], str, dict[str, float]]],
    base: Mapping[str, Any] | None = None,
    repeats: int = 1,
    metric: str = ACCURACY,
) -> Path:
    """A grid study; each trial is (params, state, metrics of its last epoch)."""
    mapping = {
        "study": "table",
        "base": {"train.epochs": 2, **(base or {})},
        "space": space,
        "points_to_evaluate": [],
        "search": {
            "metric": metric,
            "mode": "max",
            "num_trials": len(trials),
            "sampler": "tpe" if "randint" in str(space) else "grid",
            "scheduler": "none",
            "repeats": repeats,
        },
        "resources": {},
    }
    header = {"format": 1, "space": mapping, "provenance": {"data_sha256": "bb"}}
    (folder / "trials").mkdir(parents=True)
    (folder / "study.yaml").write_text(dump_yaml(header))
    for number, (params, state, metrics) in enumerate(trials, start=1):
        trial = folder / "trials" / f"{number:04d}"
        trial.mkdir()
        record = {"id": trial.name, "params": params, "origin": "grid", "created": 1.0}
        (trial / "params.json").write_text(json.dumps(record))
        lines = [
            {"epoch": epoch, "diverged": int(state == "diverged" and epoch == 2), **metrics}
            for epoch in (1, 2)
        ]
        (trial / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if state != "unfinished":
            (trial / "state.json").write_text(json.dumps({"state": state, "reason": ""}))
    return folder


def write_run(
    folder: Path, metrics: dict[str, float], epoch: int = 2, data: str = "bb", **settings: Any
) -> Path:
    folder.mkdir()
    named = {name.replace("__", "."): value for name, value in settings.items()}
    config = override_config(RunConfig(), {"train.epochs": 2, **named})
    text = dump_yaml(config_to_mapping(config) | {"provenance": {"data_sha256": data}})
    (folder / "run.yaml").write_text(text)
    line = {"epoch": epoch, "diverged": 0, **metrics}
    (folder / "result.json").write_text(json.dumps(line) + "\n")
    return folder


METHODS_SPACE = {
    "method.name": {"choice": ["csg", "vanilla", "oracle"]},
    "augment.num_ops": {"choice": [0, 1]},
}


def table_of_methods(folder: Path) -> Path:
    """Three methods with and without augmentation, out of the paper's order; one diverged."""
    trials = []
    for place, name in enumerate(("csg", "vanilla", "oracle")):
        for num_ops in (0, 1):
            accuracy, hse = 0.6 - 0.1 * place + 0.01 * num_ops, 0.3 + 0.1 * place
            metrics = scored(accuracy, hse, reference_task__accuracy=0.8)
            stds = {f"{ACCURACY}_std": 0.02, f"{HSE}_std": 0.03}
            state = "diverged" if (name, num_ops) == ("vanilla", 1) else "completed"
            trials.append(
                ({"method.name": name, "augment.num_ops": num_ops}, state, metrics | stds)
            )
    return write_table(folder, METHODS_SPACE, trials, repeats=3)
