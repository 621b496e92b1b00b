"""The process that loads pipelines, draws and makes indexes: the server stays small, and lives if that process dies."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Protocol

from tide.browser.jobs import Cancelled, Job, reason
from tide.errors import TideError

#: Seconds of steps in one message: each wakes processes that the drawing's threads may have to wait for.
TOGETHER = 0.05
#: Tasks that can be nested: a drawing inside the making of an index.
DEPTH = 2


class Teller(Protocol):
    """What a task tells while it is done. Either method raises :class:`~tide.browser.jobs.Cancelled` once the task was
    cancelled."""

    def tell(self, kind: str, **said: Any) -> None:
        """An event for the page."""

    def pause(self, **said: Any) -> None:
        """How far a long task is; another one may be done before this returns."""

    def check(self) -> None: ...


class Tasks(Protocol):
    """What the process can do: ``handle`` does the task ``what`` and returns its result, which can be pickled."""

    def handle(self, what: str, arguments: dict[str, Any], teller: Teller) -> Any: ...


class Worker:
    """The server's end. The process is started by the first task, and again after it died.

    ``make`` builds the :class:`Tasks` in the process; it can be pickled.
    """

    def __init__(self, make: Callable[[], Tasks]) -> None:
        self._make = make
        self._context = multiprocessing.get_context("spawn")
        self._process: Any = None
        self._pipe: Connection
        self._depth = 0

    def call(
        self, job: Job, what: str, on_pause: Callable[[dict[str, Any]], None] = lambda said: None, **arguments: Any
    ) -> Any:
        """Does a task in the process, telling its events to ``job``; called by the jobs' thread alone, also from
        ``on_pause``.

        Raises:
            Cancelled: the job was cancelled.
            TideError: the task failed, or the process died.
        """
        self._start()
        cancelled = self._cancelled[self._depth]
        cancelled.clear()
        job.on_cancel = cancelled.set
        if job.cancelled:
            cancelled.set()
        self._depth += 1
        try:
            self._pipe.send((what, arguments))
            while True:
                kind, said = self._pipe.recv()
                if kind == "tell":
                    for each in said:
                        job.add(**each)
                elif kind == "pause":
                    on_pause(said)
                    self._pipe.send(None)
                elif kind == "done":
                    return said
                elif kind == "cancelled":
                    raise Cancelled
                else:
                    raise TideError(said)
        except (EOFError, OSError) as error:
            raise self._died() from error
        finally:
            self._depth -= 1
            job.on_cancel = None

    def _start(self) -> None:
        if self._process is not None and self._process.is_alive():
            return
        self._cancelled = [self._context.Event() for _ in range(DEPTH)]
        self._pipe, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(theirs, self._cancelled, self._make), name="tide-worker", daemon=True
        )
        process.start()
        self._process = process
        theirs.close()

    def _died(self) -> TideError:
        process, self._process = self._process, None
        if process is None:
            return TideError("the server is ending; start tide browse again")
        process.join(timeout=5)
        code = process.exitcode
        killed = code is not None and code < 0
        how = f"by {signal.Signals(-code).name}" if killed else f"with status {code}"
        return TideError(
            f"the process that draws ended {how}; draw again, and if it ends again, a smaller image or --dtype bf16"
        )

    def stop(self) -> None:
        """Ends the process."""
        process, self._process = self._process, None  # at the end the jobs' thread may find it dead meanwhile
        if process is not None:
            process.terminate()
            process.join(timeout=5)


@dataclass
class _Telling:
    """The process's end of a task. Steps that follow each other within :data:`TOGETHER` are sent in one message."""

    pipe: Connection
    cancelled: Any
    between: Callable[[], bool]
    waiting: list[dict[str, Any]] = field(default_factory=list)
    sent: float = 0.0

    def check(self) -> None:
        if self.cancelled.is_set():
            raise Cancelled

    def tell(self, kind: str, **said: Any) -> None:
        self.check()
        self.waiting.append({"kind": kind, **said})
        if kind != "step" or time.monotonic() - self.sent > TOGETHER:
            self.send()

    def send(self) -> None:
        """Sends what waits."""
        if self.waiting:
            self.pipe.send(("tell", self.waiting))
            self.waiting, self.sent = [], time.monotonic()

    def pause(self, **said: Any) -> None:
        self.check()
        self.send()
        self.pipe.send(("pause", said))
        while self.between():
            pass
        self.check()


def _work(pipe: Connection, cancelled: list[Any], make: Callable[[], Tasks]) -> None:
    """Does tasks until the server's end of the pipe is closed."""
    # Ctrl-C goes to the server, too, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tasks: Tasks | None = None
    depth = 0

    def next_task() -> bool:
        """Does what comes; False where that is the word to go on with the task around."""
        nonlocal tasks, depth
        asked = pipe.recv()
        if asked is None:
            return False
        what, arguments = asked
        teller = _Telling(pipe, cancelled[depth], next_task)
        depth += 1
        try:
            if tasks is None:
                tasks = make()
            answer = "done", tasks.handle(what, arguments, teller)
        except Cancelled:
            teller.waiting.clear()
            answer = "cancelled", None
        except Exception as error:  # a pipeline may raise anything, and this process must live
            answer = "failed", reason(error)
        finally:
            depth -= 1
        teller.send()
        pipe.send(answer)
        return True

    with suppress(EOFError, OSError):
        while next_task():
            pass
