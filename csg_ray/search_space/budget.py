"""`search.budget`: how much a search may take."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from csg_ray.config.explain import shown

NO_BUDGET = "none"
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "cpuh": 3600, "gpuh": 3600}
_WRITTEN = re.compile(rf"([0-9]+(?:\.[0-9]+)?)({'|'.join(SECONDS)})")


@dataclass(frozen=True)
class Budget:
    """A time that passes on the wall, or that trials keep CPUs or GPUs busy.

    Attributes:
        text: as it was written.
        unit: s | m | h | d | cpuh | gpuh.
        seconds: of the clock on the wall, or of one CPU or GPU.
    """

    text: str
    unit: str
    seconds: float

    def __str__(self) -> str:
        return self.text

    @property
    def is_wall_clock(self) -> bool:
        """Whether it passes on the wall."""
        return self.unit not in ("cpuh", "gpuh")

    @property
    def meaning(self) -> str:
        """What it counts."""
        if self.is_wall_clock:
            return f"{self.text} on the wall"
        return f"{self.text}, the hours that trials keep {self.unit[:3].upper()}s busy"


def parse_budget(value: Any) -> Budget | None:
    """A budget as it is written: 90s, 45m, 2h, 1.5d, 16cpuh, 4gpuh; None for `none`.

    Raises:
        ValueError: it is none of these, or not above 0.
    """
    if value == NO_BUDGET:
        return None
    found = _WRITTEN.fullmatch(value) if isinstance(value, str) else None
    seconds = float(found[1]) * SECONDS[found[2]] if found else 0.0
    if found is None or seconds <= 0 or math.isinf(seconds):
        raise ValueError(
            "must be a time above 0 with its unit, such as 90s, 45m, 2h or 1.5d, the hours that "
            f"trials keep busy, such as 16cpuh or 4gpuh, or none, not {shown(value)}"
        )
    return Budget(value, found[2], seconds)
