"""Where a study or a run lies: a folder, or a URI with what we use of pathlib."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import quote, unquote

from csg_ray.config.errors import UserError, nearest
from csg_ray.storage.objects import (
    delete_folder,
    list_folder,
    read_object,
    read_object_once,
    write_object,
)
from csg_ray.storage.stores import NO_BUCKET, SCHEMES, StorageError, connect

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

Result = TypeVar("Result")

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?]*)/?([^?]*)\??(.*)", re.DOTALL)


@dataclass(frozen=True)
class RemotePath:
    """A place in an object store. Folders are only the first parts of the names of objects.

    Args:
        scheme: for example s3.
        bucket: what the URI has before its path.
        key: the path, without a slash at either end, not percent-encoded.
        query: options of the connection (`endpoint_override=http://host:port&region=...`).
    """

    scheme: str
    bucket: str
    key: str
    query: str = ""

    def __str__(self) -> str:
        query = f"?{self.query}" if self.query else ""
        return f"{self.scheme}://{self.bucket}/{quote(self.key)}{query}"

    def __truediv__(self, name: str) -> RemotePath:
        return replace(self, key=posixpath.join(self.key, name.strip("/")))

    @property
    def name(self) -> str:
        """The last part; empty for the bucket itself."""
        return posixpath.basename(self.key)

    @property
    def suffix(self) -> str:
        """For example `.yaml`."""
        return posixpath.splitext(self.key)[1]

    @property
    def parent(self) -> RemotePath:
        """One folder up; the bucket is its own parent."""
        return replace(self, key=posixpath.dirname(self.key))

    def with_name(self, name: str) -> RemotePath:
        """A neighbour."""
        return self.parent / name

    def resolve(self) -> RemotePath:
        """Itself: a URI is absolute."""
        return self

    def exists(self) -> bool:
        """Whether there is an object of this name, or one below it."""
        from pyarrow.fs import FileType

        return bool(self._info().type != FileType.NotFound)

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        return bool(self._info().is_file)

    def is_dir(self) -> bool:
        """Whether there is an object below this name."""
        from pyarrow.fs import FileType

        return bool(self._info().type == FileType.Directory)

    def iterdir(self) -> Iterator[RemotePath]:
        """The paths directly below, by name; none when nothing is there."""
        return (self / name for name in self._run(list_folder))

    def subfolders(self) -> list[RemotePath]:
        """The paths directly below that have objects below them, by name."""
        return [self / name for name, is_folder in self._run(list_folder).items() if is_folder]

    def read_bytes(self) -> bytes:
        """The object's content.

        Raises:
            FileNotFoundError: there is no such object.
        """
        return self._run(read_object)

    def read_json(self) -> Any:
        """The object's content as JSON; with a request less, since what is torn is not JSON.

        Raises:
            FileNotFoundError: there is no such object.
            ValueError: it is not JSON.
        """
        try:
            return json.loads(self._run(read_object_once))
        except ValueError:
            return json.loads(self.read_bytes())

    def read_text(self, encoding: str = "utf-8") -> str:
        """The object's content as text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes | memoryview) -> None:
        """Make the object appear whole, or not at all; an older one stays until then."""
        # In a thread, where no signal can break in and publish a half of it.
        with ThreadPoolExecutor(1) as thread:
            write = partial(write_object, content=content)
            try:
                thread.submit(self._run, write).result()
            except FileNotFoundError:  # of GCS; S3 says it in other words
                raise StorageError(NO_BUCKET, str(self)) from None

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        try:
            self._run(lambda system, place: system.delete_file(place))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def delete_tree(self) -> None:
        """Delete every object below this name.

        Raises:
            FileNotFoundError: there is none.
        """
        self._run(delete_folder)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder is there as soon as an object is in it."""

    def _info(self) -> FileInfo:
        return self._run(lambda system, place: system.get_file_info(place))

    def _run(self, operation: Callable[[FileSystem, str], Result]) -> Result:
        store = connect(self.scheme, self.bucket, self.query)
        return store.run(operation, self.key, str(self))


StoragePath: TypeAlias = Path | RemotePath


def open_path(text: str | StoragePath) -> StoragePath:
    """The place that a user named: a local path, file:///..., or a URI such as s3://bucket/folder.

    Raises:
        UserError: an unknown scheme, no bucket, credentials in the URI, an unknown option.
    """
    if not isinstance(text, str):
        return text
    found = _URI.fullmatch(text)
    if found is None:
        _refuse_half_a_uri(text)
        return Path(text)
    scheme, bucket, key, query = found.groups()
    scheme = scheme.lower()
    if scheme == "file":
        if bucket:
            raise UserError(f"{text} names a host; write file:///{bucket}/{key} for a local path")
        return Path("/" + unquote(key))
    if scheme not in SCHEMES:
        raise UserError(
            f"unknown scheme '{scheme}' in {text}: {nearest(scheme, (*SCHEMES, 'file'))}"
        )
    if scheme == "s3" and "@" in bucket:
        raise UserError(
            f"the URI of s3://{bucket.rpartition('@')[2]} holds credentials, which would be "
            "written into every study; leave them out and give them by the environment"
        )
    if not bucket:
        raise UserError(f"{text} names no bucket; write {scheme}://BUCKET/FOLDER")
    connect(scheme, bucket, query)
    parts = [part for part in unquote(key).split("/") if part not in ("", ".")]
    return RemotePath(scheme, bucket, "/".join(parts), query)


def _refuse_half_a_uri(text: str) -> None:
    scheme, _, rest = text.partition(":/")
    if rest and scheme in SCHEMES:
        raise UserError(f"{text} is neither a URI nor a path; write {scheme}://{rest.lstrip('/')}")
