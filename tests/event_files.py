"""TensorBoard's event files, read without TensorBoard."""

from __future__ import annotations

from typing import Any

from tensorboardX.proto.event_pb2 import Event

from csg_ray.storage.paths import StoragePath


def read_events(content: bytes) -> list[Any]:
    """The events of a file: records of length, its checksum, data, checksum."""
    found = []
    while content:
        length = int.from_bytes(content[:8], "little")
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[length + 16 :]
    return found


def read_scalars(content: bytes) -> list[tuple[int, str, float]]:
    """(step, tag, value) of an event file."""
    return [
        (event.step, value.tag, value.simple_value)
        for event in read_events(content)
        for value in event.summary.value
    ]


def event_files(directory: StoragePath) -> list[StoragePath]:
    """The event files of one training, in the order of their making."""
    found = [path for path in directory.iterdir() if path.name.startswith("events.out.tfevents.")]
    return sorted(found, key=lambda path: path.name)
