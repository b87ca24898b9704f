"""Objects of a store: read, written, listed and deleted alike, whatever pyarrow makes of each."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_SAYS_NOTHING = "Failed to flush response stream|NO_SUCH_KEY|RESOURCE_NOT_FOUND"
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)


def read_object(system: FileSystem, place: str) -> bytes:
    """The content of an object, all of one version.

    The size is asked for before the content: of an object that is written anew in between, the old
    number of bytes of the new content would come.

    Raises:
        FileNotFoundError: there is no such object.
    """
    while True:
        content = read_object_once(system, place)
        if system.get_file_info(place).size == len(content):
            return content


def read_object_once(system: FileSystem, place: str) -> bytes:
    """As `read_object`, with a request less, for whoever notices that the end is missing."""
    for pause in PAUSES:
        try:
            return _read(system, place)
        except OSError as error:
            # What a store says instead of the content must fit where that should go. When it does
            # not, pyarrow knows neither what it was (too many requests, no such object) nor that it
            # should try again.
            if not re.search(_SAYS_NOTHING, str(error)):
                raise
        _check_there(system, place)
        time.sleep(pause)
    return _read(system, place)


def _read(system: FileSystem, place: str) -> bytes:
    # Not as a stream, which asks for every quarter of a megabyte by itself.
    with system.open_input_file(place) as file:
        return bytes(file.read())


def _check_there(system: FileSystem, place: str) -> None:
    from pyarrow.fs import FileType

    if system.get_file_info(place).type == FileType.NotFound:
        raise FileNotFoundError(place)


def write_object(system: FileSystem, place: str, content: bytes | memoryview) -> None:
    """Make an object appear whole, or not at all; an older one stays until then.

    A stream of pyarrow publishes what was written so far when it is closed, by an exception or by
    being forgotten too. So all is written at once; call this where no signal can come between
    opening, writing and closing: not in the main thread.
    """
    with system.open_output_stream(place) as stream:
        stream.write(content)


def list_folder(system: FileSystem, place: str) -> dict[str, bool]:
    """Name -> whether it is a folder, of all that is directly below; empty when nothing is."""
    from pyarrow.fs import FileSelector, FileType

    # pyarrow shows a folder of GCS only where somebody made an object that stands for it.
    deep = _is_gcs(system)
    selector = FileSelector(place, allow_not_found=True, recursive=deep)
    found: dict[str, bool] = {}
    for info in system.get_file_info(selector):
        name, _, rest = info.path.removeprefix(place).strip("/").partition("/")
        found[name] = found.get(name, False) or bool(rest) or info.type == FileType.Directory
    return dict(sorted(found.items()))


def delete_folder(system: FileSystem, place: str) -> None:
    """Delete every object below.

    Raises:
        FileNotFoundError: there is none.
    """
    if _is_gcs(system):
        _check_there(system, place)
        system.delete_dir_contents(place, missing_dir_ok=True)
    else:
        system.delete_dir(place)


def _is_gcs(system: FileSystem) -> bool:
    return bool(system.type_name == "gcs")
