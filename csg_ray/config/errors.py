"""The one exception for what a user can mend."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input: one clear sentence that names the setting, the value, what is allowed, the fix.

    The command line prints it without a traceback and exits with code 2.
    """


def nearest(word: str, allowed: Iterable[str]) -> str:
    """A hint with the nearest legal word, or the whole list when none is near."""
    allowed = sorted(allowed)
    near = get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"allowed: {', '.join(allowed)}"
