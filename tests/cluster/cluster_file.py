"""A cluster file for the machines of the lab, out of the one that users change."""

from __future__ import annotations

import re
from collections.abc import Mapping

MARK = re.compile(r"\s*# CHANGE: \S.*$")


def change_marked(text: str, values: Mapping[str, str]) -> str:
    """Set the values on the lines marked CHANGE, and take the marks away.

    Args:
        text: of the cluster file.
        values: the value that stands in the file -> the new one; each marked line has one of them.

    Raises:
        ValueError: a marked line without a new value, or a value on no marked line.
    """
    lines, unused = [], dict(values)
    for line in text.splitlines():
        setting = MARK.sub("", line)
        if setting != line:
            old = [value for value in unused if value in setting]
            if len(old) != 1:
                raise ValueError(f"{len(old)} new values for the marked line: {line.strip()}")
            setting = setting.replace(old[0], unused.pop(old[0]))
        lines.append(setting)
    if unused:
        raise ValueError(f"on no marked line: {', '.join(unused)}")
    return "\n".join(lines) + "\n"
