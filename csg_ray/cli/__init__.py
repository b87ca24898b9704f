"""The command line. `--help` and `best` load neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Sequence

from csg_ray.cli.app import app


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 (bad input), 130 (Ctrl-C), 143 (SIGTERM)."""
    try:
        app(args=argv if argv is None else list(argv), prog_name="csg-ray")
    except SystemExit as end:
        return int(end.code or 0)
    return 0
