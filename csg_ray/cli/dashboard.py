"""`dashboard`: optuna-dashboard on studies, from their files and as they grow."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from csg_ray.cli.guard import say
from csg_ray.config.errors import UserError
from csg_ray.results.study import Study, load_study
from csg_ray.storage.paths import StoragePath
from csg_ray.storage.stores import StorageError

if TYPE_CHECKING:
    from csg_ray.results.followed import FollowedStudy

REFRESH_SECONDS = 3.0
# Reading must not keep a machine busy that is searching.
SHARE_OF_TIME = 0.1


def show_dashboard(directories: Sequence[StoragePath], host: str, port: int) -> None:
    """Serve the dashboard of some studies until Ctrl-C.

    Args:
        directories: studies.
        host: the address to listen on.
        port: its port; 0: any free one.

    Raises:
        UserError: there is no optuna-dashboard, a directory is not a study, or the port is taken.
    """
    if importlib.util.find_spec("optuna_dashboard") is None:
        raise UserError(
            "there is no optuna-dashboard here; install it with: pip install 'csg-ray[dashboard]'"
        )
    studies = [load_study(directory) for directory in dict.fromkeys(directories)]
    import optuna
    import optuna_dashboard

    from csg_ray.results.followed import FollowedStudy

    storage = optuna.storages.InMemoryStorage()
    followed = [
        FollowedStudy(study, storage, name)
        for study, name in zip(studies, _names(studies), strict=True)
    ]
    with _listening(optuna_dashboard.wsgi(storage), host, port) as server, _refreshed(followed):
        names = ", ".join(study.name for study in followed)
        address = f"http://{_in_url(host)}:{server.server_port}/"
        say(f"study {names} at {address} (Ctrl-C ends it)")
        say("what is written on the page, notes too, is forgotten then; the study is only read")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("")


def _names(studies: Sequence[Study]) -> list[str]:
    """One name each: the study's own, or its directory where two studies share a name."""
    counts = Counter(study.name for study in studies)
    return [study.name if counts[study.name] == 1 else str(study.directory) for study in studies]


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each request: a browser keeps several connections open."""

    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing: the page asks every few seconds."""


@contextmanager
def _listening(app: Any, host: str, port: int) -> Iterator[_Server]:
    try:
        server = make_server(host, port, app, _Server, _QuietHandler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"the dashboard cannot listen on {_in_url(host)}:{port}: {reason.lower()}; choose "
            "another --port (0: any free one) or --host"
        ) from None
    with server:
        yield server


@contextmanager
def _refreshed(studies: Sequence[FollowedStudy]) -> Iterator[None]:
    """Keep the studies up to date in a thread."""
    ended = threading.Event()
    thread = threading.Thread(target=_keep_up, args=(studies, ended.wait), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


def _keep_up(studies: Sequence[FollowedStudy], ended_within: Callable[[float], bool]) -> None:
    """Refresh again and again; what cannot be read for a while is said once and tried again."""
    unreadable: set[str] = set()
    took = 0.0
    while not ended_within(max(REFRESH_SECONDS, took / SHARE_OF_TIME)):
        began = time.monotonic()
        for study in studies:
            try:
                study.refresh()
            except (UserError, StorageError) as error:
                if study.name not in unreadable:
                    say(f"study {study.name} shows what it was, for now: {error}")
                unreadable.add(study.name)
            else:
                unreadable.discard(study.name)
        took = time.monotonic() - began
