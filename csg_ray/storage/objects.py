"""Objects of a store, read and written whole, and what pyarrow needs for that."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

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
            unknown = "Failed to flush response stream" in str(error)
            if not unknown and "NO_SUCH_KEY" not in str(error):
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
