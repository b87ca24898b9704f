"""Fixtures shared by several test files."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

# Before torch starts: its threads cost more than they bring on images this small.
os.environ.setdefault("OMP_NUM_THREADS", "1")

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


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[None]:
    """One Ray for all tests of the session; its start counts against no test's own time."""
    import ray

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., Path]:
    """Writes a study directory by hand, as a search would leave it.

    Each trial is (state, [(accuracy, HSE, source accuracy) of every epoch]); the first one is the
    warm start. `search` changes keys of that section, `header` those of study.yaml.
    """

    def make(
        *trials: tuple[str, Sequence[tuple[float, float, float]]],
        search: Mapping[str, Any] | None = None,
        header: Mapping[str, Any] | None = None,
    ) -> Path:
        directory = tmp_path / "studies" / "digits"
        (directory / "trials").mkdir(parents=True)
        space: dict[str, Any] = copy.deepcopy(SPACE)
        space["search"] |= search or {}
        content = {"format": 1, "csg_ray": "0.1.0", "created": "2026-01-01T00:00:00+00:00"}
        content |= {"space": space, "provenance": PROVENANCE, "restores": []} | dict(header or {})
        (directory / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        for number, (state, epochs) in enumerate(trials, start=1):
            _write_trial(directory / "trials" / f"{number:04d}", number, state, epochs)
        return directory

    return make


def _write_trial(
    folder: Path, number: int, state: str, epochs: Sequence[tuple[float, float, float]]
) -> None:
    folder.mkdir()
    params = {"method.loss_weight": 0.1 * number, "augment.magnitude": 5 + number}
    origin = "warm start" if number == 1 else "sampler"
    record = {"id": folder.name, "params": params, "origin": origin, "created": 1.0}
    (folder / "params.json").write_text(json.dumps(record))
    lines = [
        {
            "epoch": epoch,
            "diverged": int(state == "diverged" and epoch == len(epochs)),
            "target_val/mean_class_accuracy": accuracy,
            "target_val/hse": energy,
            "source_val/mean_class_accuracy": source,
            "timestamp": 100.0 * number + epoch,
        }
        for epoch, (accuracy, energy, source) in enumerate(epochs, start=1)
    ]
    (folder / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if state != "unfinished":
        ending = {"state": state, "reason": f"was {state}", "timestamp": 100.0 * number + 9}
        (folder / "state.json").write_text(json.dumps(ending))
