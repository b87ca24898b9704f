"""Fixtures shared by several test files."""

from __future__ import annotations

import copy
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from csg_ray.storage.paths import RemotePath, StoragePath, open_path
from csg_ray.storage.records import append_result, write_atomically

if TYPE_CHECKING:
    from s3_server import S3Server

# Before torch starts: its threads cost more than they bring on images this small.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nobody's real credentials, and no search for some.
os.environ |= {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_EC2_METADATA_DISABLED": "true",
}

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


@pytest.fixture(scope="session")
def shared_s3() -> Iterator[S3Server]:
    from s3_server import S3Server

    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3(shared_s3: S3Server) -> Iterator[S3Server]:
    """A server on which nothing goes wrong any more when the test is over."""
    from s3_server import let_pass

    yield shared_s3
    shared_s3.fault = let_pass


@pytest.fixture
def uri(s3: S3Server) -> RemotePath:
    """An empty folder on an S3-compatible server."""
    place = open_path(s3.uri(f"{secrets.token_hex(4)}/deep down"))
    assert isinstance(place, RemotePath)
    return place


@pytest.fixture(params=["disk", "uri"])
def place(request: pytest.FixtureRequest) -> StoragePath:
    """An empty folder of either kind."""
    fixture = {"disk": "tmp_path", "uri": "uri"}[request.param]
    found: StoragePath = request.getfixturevalue(fixture)
    return found


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., Path]:
    """As `make_study_at`, in tmp_path/studies/digits."""

    def make(*trials: Any, **changes: Any) -> Path:
        directory = tmp_path / "studies" / "digits"
        write_study(directory, *trials, **changes)
        return directory

    return make


@pytest.fixture
def make_study_at(place: StoragePath) -> Callable[..., StoragePath]:
    """Writes a study by hand, as a search would leave it, into studies/digits of `place`.

    Each trial is (state, [(accuracy, HSE, source accuracy) of every epoch]); the first one is the
    warm start. `search` changes keys of that section, `header` those of study.yaml.
    """

    def make(*trials: Any, **changes: Any) -> StoragePath:
        directory = place / "studies" / "digits"
        write_study(directory, *trials, **changes)
        return directory

    return make


def write_study(
    directory: StoragePath,
    *trials: tuple[str, Sequence[tuple[float, float, float]]],
    search: Mapping[str, Any] | None = None,
    header: Mapping[str, Any] | None = None,
) -> None:
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
            "timestamp": 100.0 * number + epoch,
        }
        append_result(folder, line)
    if state != "unfinished":
        ending = {"state": state, "reason": f"was {state}", "timestamp": 100.0 * number + 9}
        write_atomically(folder / "state.json", json.dumps(ending))
