"""Studies written by hand, as a search would leave them, on a disk or on a URI."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from csg_ray.storage.paths import StoragePath
from csg_ray.storage.records import append_result, write_atomically

SPACE = {
    "study": "digits",
    "base": {"data.name": "digits", "method.name": "csg", "train.epochs": 3},
    "space": {
        "method.loss_weight": {"loguniform": [0.01, 10.0]},
        "augment.magnitude": {"randint": [0, 25]},
    },
    "points_to_evaluate": [{"method.loss_weight": 0.1, "augment.magnitude": 6}],
    "search": {"metric": "target_val/mean_class_accuracy", "mode": "max", "num_trials": 6},
    "resources": {},
}
PROVENANCE = {
    "versions": {"python": "3.11.7", "csg_ray": "0.1.0", "torch": "2.11.0"},
    "git": {"commit": "c0ffee", "dirty": False},
    "code_sha256": "aa",
    "data_sha256": "bb",
    "host": "somewhere",
}


def write_study(
    directory: StoragePath,
    *trials: tuple[str, Sequence[tuple[float, float, float]]],
    search: Mapping[str, Any] | None = None,
    header: Mapping[str, Any] | None = None,
) -> None:
    """Write a study into a new directory.

    Each trial is (state, [(accuracy, HSE, source accuracy) of every epoch]); the first one is the
    warm start. `search` changes keys of that section, `header` those of study.yaml.
    """
    (directory / "trials").mkdir(parents=True)
    space: dict[str, Any] = copy.deepcopy(SPACE)
    space["search"] |= search or {}
    content = {"format": 1, "csg_ray": "0.1.0", "created": "2026-01-01T00:00:00+00:00"}
    content |= {"space": space, "provenance": PROVENANCE, "restores": []} | dict(header or {})
    write_atomically(directory / "study.yaml", yaml.safe_dump(content, sort_keys=False))
    for number, (state, epochs) in enumerate(trials, start=1):
        _write_trial(directory / "trials" / f"{number:04d}", number, state, epochs)


def _write_trial(
    folder: StoragePath, number: int, state: str, epochs: Sequence[tuple[float, float, float]]
) -> None:
    folder.mkdir()
    params = {"method.loss_weight": 0.1 * number, "augment.magnitude": 5 + number}
    origin = "warm start" if number == 1 else "sampler"
    record = {"id": folder.name, "params": params, "origin": origin, "created": 1.0}
    write_atomically(folder / "params.json", json.dumps(record))
    for epoch, (accuracy, energy, source) in enumerate(epochs, start=1):
        line = {
            "epoch": epoch,
            "diverged": int(state == "diverged" and epoch == len(epochs)),
            "target_val/mean_class_accuracy": accuracy,
            "target_val/hse": energy,
            "source_val/mean_class_accuracy": source,
            "seconds": 60.0,
            "timestamp": 100.0 * number + epoch,
        }
        append_result(folder, line)
    if state != "unfinished":
        ending = {"state": state, "reason": f"was {state}", "timestamp": 100.0 * number + 9}
        write_atomically(folder / "state.json", json.dumps(ending))
