"""From exceptions to one sentence and an exit code."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from csg_ray.config.errors import UserError
from csg_ray.storage.paths import StoragePath
from csg_ray.storage.records import DISK_FULL
from csg_ray.storage.stores import StorageError

BAD_INPUT = 2
INTERRUPTED = 130
TERMINATED = 143
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
_BAD_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


class GuardedGroup(TyperGroup):
    """Commands whose foreseeable failures are one sentence on stderr, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the arguments name."""
        try:
            return super().invoke(ctx)
        except (UserError, StorageError) as error:
            fail(str(error))
        except OSError as error:
            if error.errno not in DISK_FULL + _NO_PERMISSION + _BAD_NAME:
                raise
            fail(_describe(error))
        except KeyboardInterrupt:
            fail("stopped", INTERRUPTED)


def fail(sentence: str, code: int = BAD_INPUT) -> NoReturn:
    """Say why the command ends, and end it; of the ranks that torchrun started, one says it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["RANK"] == "0":
        print(f"csg-ray: {sentence}", file=sys.stderr, flush=True)
    raise typer.Exit(code)


def say(line: str) -> None:
    """Print a line at once; whoever reads the output may leave (`| head`) without ending the work.

    Hours of training must not be lost for that. From then on all output goes nowhere, also what is
    still buffered, which would fail again at the end.
    """
    try:
        print(line, flush=True)
    except BrokenPipeError:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


@contextmanager
def _terminable() -> Iterator[list[int]]:
    """Let SIGTERM, which Slurm and Kubernetes send before they kill, unwind as Ctrl-C does.

    Yields:
        The signals that came. A list, since Ray puts a plain KeyboardInterrupt in the place of
        whatever a handler raises.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        # A second one must not break what the first one has begun to put in order.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        received.append(number)
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield received
    except SystemExit as end:
        # Ray puts its own handler in the place of ours, which exits with the signal's number.
        if end.code != signal.SIGTERM:
            raise
        received.append(signal.SIGTERM)
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGTERM, former)


@contextmanager
def continued_by(directory: StoragePath, marker: str) -> Iterator[None]:
    """When stopped or out of disk, say how to go on; `marker` is the first file in `directory`."""
    received: list[int] = []
    try:
        with _terminable() as received:
            yield
    except KeyboardInterrupt:
        code = TERMINATED if received else INTERRUPTED
        if (directory / marker).is_file():
            fail(f"stopped; continue with: {command('restore', directory)}", code)
        fail("stopped before anything was written", code)
    except StorageError as error:
        fail(f"{error}; then continue with: {command('restore', directory)}")
    except OSError as error:
        if error.errno not in DISK_FULL or not (directory / marker).is_file():
            raise
        fail(
            f"no space left on the disk of {directory}; free some, "
            f"then continue with: {command('restore', directory)}"
        )


def command(*words: str | StoragePath) -> str:
    """A command to paste into the shell that this one came from."""
    return f"{_program()} {shlex.join(str(word) for word in words)}"


def _program() -> str:
    started_as = Path(sys.argv[0])
    if started_as.name == "__main__.py":
        return f"{_shown(Path(sys.executable))} -m csg_ray"
    found = shutil.which("csg-ray")
    if found is None and started_as.name == "csg-ray":
        return _shown(started_as)
    return "csg-ray"


def _shown(path: Path) -> str:
    """A path as short as it can be written from here."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _describe(error: OSError) -> str:
    if error.errno in _BAD_NAME:
        reason = os.strerror(error.errno).lower()
        return f"{error.filename} cannot be used: {reason}; choose another name or place"
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in DISK_FULL:
        return f"no space left on the disk{where}; free some and run the command again"
    return f"no permission to write or read{where}; change its permissions or choose another place"
