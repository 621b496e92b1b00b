"""Starts the server: finds the runs, makes the indexes that are missing, and opens the page."""

from __future__ import annotations

import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable, Sequence

from tide.activations.source import Source
from tide.adapters import Adapter
from tide.adapters.sizes import image_grid
from tide.browser.guard import LOCAL
from tide.browser.jobs import Cancelled, Job, Jobs, reason
from tide.browser.runs import Run
from tide.browser.studio import Studio
from tide.errors import TideError
from tide.index import build_index, sizes_in_words
from tide.interpretation.gathered import MAP_SIDE
from tide.messages import one_line

#: Steps of the sampling run at whose timesteps an index is read.
TIMESTEPS = 10


def serve(
    runs: Sequence[Run],
    load: Callable[[Run], Adapter],
    open_data: Callable[[Run, Adapter], Source | None],
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
        load: the adapter of a run's pipeline; called in one thread.
        open_data: the images that a run's index is made on; None where that is not known.
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
    jobs = Jobs()
    studio = Studio(jobs, load, backend=backend)
    local = host in LOCAL
    token = None if local else secrets.token_urlsafe(24)
    number = listening.getsockname()[1]
    shown = _shown(host)
    address = f"http://{shown}:{number}/" + ("" if token is None else f"?token={token}")

    def on_start() -> None:
        say(f"Browse at {address} (Ctrl-C ends it)")
        for run in runs:
            if rebuild or run.state != "ready":
                _make_index(run, studio, jobs, open_data, say)
        if steering:
            for run in runs[:1]:
                if run.checkpoint is not None and run.state == "ready":
                    studio.warm(run)
        if open_page:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    names = frozenset({shown.strip("[]").lower(), socket.gethostname().lower()} - {"0.0.0.0", "::"})
    hosts = names if local else names | frozenset(_addresses())
    app = make_app(runs, jobs, studio if steering else None, hosts=hosts, token=token, on_start=on_start)
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listening])


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


def _make_index(
    run: Run,
    studio: Studio,
    jobs: Jobs,
    open_data: Callable[[Run, Adapter], Source | None],
    say: Callable[[str], None],
) -> None:
    """Puts the making of an index into the queue."""
    if run.checkpoint is None:
        run.state, run.message = "missing", f"the checkpoint of {run.name} is not here; give its folder"
        return
    run.state, run.message = "waiting", ""

    def make(job: Job) -> None:
        try:
            adapter = studio.adapter(run)
            source = open_data(run, adapter)
            if source is None:
                run.state, run.message = "missing", f"what images {run.name} is to be read on is not known; give --data"
                say(f"{run.name} has no index: {run.message}")
                return
            model, _ = studio.model(run)
            rows, columns = (min(MAP_SIDE, side) for side in image_grid(adapter, source.size))
            run.message = sizes_in_words(
                model.n_latents, source.n_images, TIMESTEPS, rows * columns, float(model.config.k or 64)
            )
            say(f"{run.message}.")
            run.state = "building"

            def progress(stage: str, done: int, total: int) -> None:
                run.stage, run.done, run.total = stage, done, total
                job.check()
                jobs.others()

            build_index(adapter, model, source, run.folder, on_progress=progress)
            run.state, run.message = "ready", ""
            say(f"The index of {run.name} is made")
        except Cancelled:
            run.state, run.message = "failed", "it was interrupted; start tide browse again to resume it"
            raise
        except BaseException as error:  # whatever a pipeline raises, the page and the terminal say it
            run.state, run.message = "failed", reason(error)
            say(f"The index of {run.name} was not made: {run.message}")
            raise

    jobs.submit(make, long=True)
