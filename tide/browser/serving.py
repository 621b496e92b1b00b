"""Starts the server: finds the runs, makes the indexes that are missing, and opens the page."""

from __future__ import annotations

import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from tide.browser.guard import LOCAL
from tide.browser.jobs import Jobs
from tide.browser.runs import Run
from tide.browser.steering import Steering
from tide.browser.worker import Tasks, Worker
from tide.errors import TideError
from tide.messages import one_line

if TYPE_CHECKING:
    from tide.browser.tasks import Opening


def serve(
    runs: Sequence[Run],
    opening: Opening,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    steering: bool = True,
    rebuild: bool = False,
    open_page: bool = True,
    backend: str = "auto",
    say: Callable[[str], None] = print,
) -> None:
    """Serves runs until it is interrupted.

    Args:
        runs: of :func:`~tide.browser.runs.find_runs`.
        opening: how pipelines and images are opened, in a process of its own; it can be pickled.
        host: address to listen at; elsewhere than on this machine a token is needed, which the printed address holds.
        port: 0 takes a free one.
        steering: draw, too.
        rebuild: make indexes anew.
        open_page: open the address in the browser.
        backend: of the autoencoders' kernels.
        say: prints a line.

    Raises:
        TideError: the port is taken, or the server's packages are missing.
    """
    try:
        import uvicorn

        from tide.browser.app import make_app
    except ImportError as error:
        raise TideError(f"tide browse needs {error.name}; pip install 'tide-sae[browse]'") from None
    listening = _listening(host, port)
    jobs, worker = Jobs(), Worker(partial(_tasks, opening, backend))
    asked = Steering(jobs, worker)
    local = host in LOCAL
    token = None if local else secrets.token_urlsafe(24)
    number = listening.getsockname()[1]
    shown = _shown(host)
    address = f"http://{shown}:{number}/" + ("" if token is None else f"?token={token}")

    def on_start() -> None:
        say(f"Browse at {address} (Ctrl-C ends it)")
        _make_missing(runs, asked, rebuild, say)
        if steering:
            for run in runs[:1]:
                if run.checkpoint is not None and run.state == "ready":
                    asked.warm(run)
        if open_page:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    names = frozenset({shown.strip("[]").lower(), socket.gethostname().lower()} - {"0.0.0.0", "::"})
    hosts = names if local else names | frozenset(_addresses())
    app = make_app(runs, jobs, asked if steering else None, hosts=hosts, token=token, on_start=on_start)
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=2)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        worker.stop()


def _make_missing(runs: Sequence[Run], asked: Steering, rebuild: bool, say: Callable[[str], None]) -> None:
    """Puts the making of indexes that are not there, or with ``rebuild`` of all, into the queue."""
    for run in runs:
        if not rebuild and run.state == "ready":
            continue
        if run.checkpoint is None:
            run.state, run.message = "missing", f"the checkpoint of {run.name} is not here; give its folder"
        else:
            asked.make_index(run, say)


def _tasks(opening: Opening, backend: str) -> Tasks:
    from tide.browser.tasks import StudioTasks

    return StudioTasks(opening, backend)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen()  # which alone takes the port from another that was started at the same time
    except (OSError, OverflowError, UnicodeError) as error:
        found.close()
        why = one_line(getattr(error, "strerror", None) or error)
        raise TideError(
            f"{one_line(host, 100)}:{port} cannot be listened at ({why}); give another --port or --host"
        ) from None
    return found


def _shown(host: str) -> str:
    """A host as it stands in an address."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _addresses() -> set[str]:
    """The addresses of this machine, under which a server that listens at all of them may be asked."""
    try:
        return {each[4][0] for each in socket.getaddrinfo(socket.gethostname(), None)}  # type: ignore[misc]
    except OSError:
        return set()
