"""List files: a relative path a line, and behind it a class number where the task wants one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from csg_ray.config.errors import UserError


def read_list(path: Path) -> list[str]:
    """The lines of a list file, stripped, without empty ones.

    Raises:
        UserError: the file is missing, not text, or empty.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"the list file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the list file {path} cannot be read: {error}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"the list file {path} is empty")
    return lines


def parse_labelled(path: Path, num_classes: int) -> list[tuple[str, int]]:
    """The lines `relative/path number` of a list file.

    Raises:
        UserError: as of `read_list`, or a line that has no number from 0 to `num_classes` - 1.
    """
    entries: list[tuple[str, int]] = []
    for number, line in enumerate(read_list(path), start=1):
        name, _, label = line.rpartition(" ")
        if not name or not label.isdecimal() or int(label) >= num_classes:
            raise UserError(
                f"{path}, entry {number}: '{line}' must be a path and a class number from 0 to "
                f"{num_classes - 1}, with a space between"
            )
        entries.append((name.strip(), int(label)))
    return entries


def check_listed(root: Path, paths: Iterable[str], listed_in: Path) -> None:
    """Refuse a list that names a file which does not exist, or one file twice.

    Raises:
        UserError: names the first such file, and how many there are.
    """
    names = list(paths)
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise UserError(f"{listed_in} names {twice} twice; remove one of the lines")
    # A look at each folder is many times faster than one at each file.
    folders = {name.rpartition("/")[0] for name in names}
    there = {
        f"{folder}/{entry.name}" if folder else entry.name
        for folder in folders
        if (root / folder).is_dir()
        for entry in os.scandir(root / folder)
        if not entry.is_dir()
    }
    missing = [name for name in names if name not in there]
    if missing:
        raise UserError(
            f"{listed_in} names files that do not exist, {len(missing)} in all, the first is "
            f"{root / missing[0]}; unpack the data again, or correct the list"
        )
