"""Connections to object stores: quick to fail at first, patient once a store has answered."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl

from csg_ray.config.errors import UserError, nearest

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs")
S3_OPTIONS = ("endpoint_override", "region", "scheme", "tls_ca_file_path")
CONNECT_SECONDS = 5.0

Result = TypeVar("Result")


@dataclass(frozen=True)
class Patience:
    """How long a store may take: attempts and seconds of silence (S3), seconds in all (GCS)."""

    attempts: int
    silence: float
    total: int


# A wrong address must be told within seconds; half a minute of outage must not end a search.
FIRST = Patience(attempts=2, silence=3.0, total=5)
LATER = Patience(attempts=7, silence=10.0, total=60)

NO_BUCKET = "there is no such bucket; create it, or correct the URI"
_REASONS = (
    (
        r"NO_SUCH_BUCKET|Bucket '.*' not found|specified bucket does not exist",
        NO_BUCKET,
    ),
    (
        r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|PERMISSION_DENIED"
        r"|UNAUTHENTICATED|OAuth2|HTTP status 40[13]",
        "access is denied; check the credentials of this process (of S3: AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or a profile) and what they may do",
    ),
    (
        r"NETWORK_CONNECTION|CURL error|UNAVAILABLE|SLOW_DOWN|HTTP status 5",
        "the store cannot be reached; check its address and the network",
    ),
)


class StorageError(OSError):
    """A store did not do what was asked: `filename` is the URI, `strerror` the reason."""

    def __init__(self, reason: str, uri: str) -> None:
        super().__init__(errno.EIO, reason, uri)

    def __reduce__(self) -> tuple[type[StorageError], tuple[str, str]]:
        return StorageError, (str(self.strerror), str(self.filename))

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


class Store:
    """One bucket, or what is its like elsewhere.

    Args:
        scheme: one of `SCHEMES`.
        bucket: what a URI has before its path.
        query: options of the connection, as a URI has them behind its path.

    Raises:
        UserError: an option of S3 that does not exist.
    """

    def __init__(self, scheme: str, bucket: str, query: str) -> None:
        self._scheme = scheme
        self._bucket = bucket
        self._query = query
        self._options = dict(parse_qsl(query))
        self._answered = False
        for option in self._options if scheme == "s3" else ():
            if option not in S3_OPTIONS:
                raise UserError(
                    f"unknown option '{option}' in the URI of {scheme}://{bucket}: "
                    f"{nearest(option, S3_OPTIONS)}"
                )

    def run(self, operation: Callable[[FileSystem, str], Result], key: str, uri: str) -> Result:
        """Call `operation` with a file system and the place of `key` in it.

        Raises:
            FileNotFoundError: there is no such object.
            StorageError: anything else that went wrong.
        """
        from pyarrow import ArrowException

        try:
            system, root = self._patient if self._answered else self._quick
            result = operation(system, f"{root}/{key}" if key else root)
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), uri) from None
        except (OSError, ArrowException) as error:
            raise StorageError(_reason(str(error)), uri) from error
        self._answered = True
        return result

    @cached_property
    def _quick(self) -> tuple[FileSystem, str]:
        return self._connect(FIRST)

    @cached_property
    def _patient(self) -> tuple[FileSystem, str]:
        return self._connect(LATER)

    def _connect(self, patience: Patience) -> tuple[FileSystem, str]:
        from pyarrow.fs import FileSystem

        if self._scheme == "s3":
            return self._connect_s3(patience), self._bucket
        query = self._query
        if self._scheme in ("gs", "gcs") and "retry_limit_seconds" not in self._options:
            query = "&".join([*filter(None, [query]), f"retry_limit_seconds={patience.total}"])
        system, root = FileSystem.from_uri(f"{self._scheme}://{self._bucket}/?{query}".rstrip("?"))
        return system, root.rstrip("/")

    def _connect_s3(self, patience: Patience) -> FileSystem:
        from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

        options: dict[str, Any] = {"endpoint_override": self._endpoint, "region": self._region}
        return S3FileSystem(
            **options | self._options,
            connect_timeout=CONNECT_SECONDS,
            request_timeout=patience.silence,
            retry_strategy=AwsStandardS3RetryStrategy(max_attempts=patience.attempts),
            allow_delayed_open=True,  # one request for a small object in the place of three
        )

    @cached_property
    def _endpoint(self) -> str | None:
        names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
        found = (os.environ.get(name) for name in names)
        return self._options.get("endpoint_override") or next(filter(None, found), None)

    @cached_property
    def _region(self) -> str | None:
        """Of a bucket of AWS, where the environment may name another region than the bucket's."""
        from pyarrow.fs import resolve_s3_region

        if self._endpoint or "region" in self._options:
            return self._options.get("region")
        return str(resolve_s3_region(self._bucket))


@lru_cache
def connect(scheme: str, bucket: str, query: str) -> Store:
    """The connection of this process to a bucket; never pickled."""
    return Store(scheme, bucket, query)


def _reason(message: str) -> str:
    for pattern, reason in _REASONS:
        if re.search(pattern, message):
            return reason
    return message.partition("\n")[0].strip()
