"""Fixtures shared by several test files."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from csg_ray.storage.paths import RemotePath, StoragePath, open_path
from written_study import write_study

if TYPE_CHECKING:
    from s3_server import S3Server

# Before torch starts: its threads cost more than they bring on images this small.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell lets its background jobs ignore Ctrl-C, and what they start ignores it, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Nobody's real credentials, and no search for some.
os.environ |= {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Glyphs are rendered once for all tests and the processes that they start."""
    os.environ["CSG_RAY_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[None]:
    """One Ray for all tests of the session; its start counts against no test's own time."""
    import ray

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
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
    """`write_study` into tmp_path/studies/digits."""

    def make(*trials: Any, **changes: Any) -> Path:
        directory = tmp_path / "studies" / "digits"
        write_study(directory, *trials, **changes)
        return directory

    return make


@pytest.fixture
def make_study_at(place: StoragePath) -> Callable[..., StoragePath]:
    """`write_study` into studies/digits of `place`."""

    def make(*trials: Any, **changes: Any) -> StoragePath:
        directory = place / "studies" / "digits"
        write_study(directory, *trials, **changes)
        return directory

    return make
