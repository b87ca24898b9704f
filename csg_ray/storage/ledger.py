"""Entries that are only ever added: lines of a file, or on a URI one object each."""

from __future__ import annotations

import json
import os
import secrets
from datetime import UTC, datetime
from typing import Any

from csg_ray.storage.paths import RemotePath, StoragePath
from csg_ray.storage.records import write_atomically


def read_ledger(ledger: StoragePath) -> list[dict[str, Any]]:
    """All entries, oldest first; what a crash has torn is left out.

    On a URI they are the objects in a folder of the ledger's name.
    """
    if isinstance(ledger, RemotePath):
        texts = [path.read_text() for path in _folder(ledger).iterdir()]
    else:
        texts = ledger.read_text(encoding="utf-8").splitlines() if ledger.exists() else []
    entries = []
    for text in texts:
        try:
            entries.append(json.loads(text))
        except json.JSONDecodeError:
            # Torn by a crash before whoever wrote it went on: it stands for nothing.
            continue
    return entries


def append_to_ledger(ledger: StoragePath, entry: dict[str, str]) -> None:
    """Add an entry; it is on the disk, or in the store, when this returns."""
    line = json.dumps(entry)
    if isinstance(ledger, RemotePath):
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        write_atomically(_folder(ledger) / f"{now}-{secrets.token_hex(4)}.json", line)
        return
    with ledger.open("a+b") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _folder(ledger: RemotePath) -> RemotePath:
    return ledger.with_name(ledger.name.removesuffix(ledger.suffix))
