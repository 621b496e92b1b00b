"""Work that takes seconds, one piece at a time in one thread: drawing on the pipeline, and making indexes."""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tide.errors import TideError, out_of_memory
from tide.files import finite
from tide.messages import one_line

#: Jobs whose events are kept after their end, so that a page that reconnects learns how they ended.
KEPT = 32
#: Jobs that wait at most.
MOST_WAITING = 16


class Cancelled(Exception):
    """Raised inside a job that was cancelled."""


@dataclass
class Job:
    """A piece of work and what it has told so far. Events are JSON values; the last is ``done``, ``cancelled`` or
    ``failed``. A ``long`` one lets others be done in between (:meth:`Jobs.others`)."""

    id: str
    run: Callable[[Job], None]
    long: bool = False
    events: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False
    cancelled: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    def tell(self, kind: str, **said: Any) -> None:
        """Adds an event. Raises :class:`Cancelled` in a job that was cancelled, so that it ends here."""
        with self.changed:
            self.events.append(finite({"event": kind, **said}))
            self.changed.notify_all()
        self.check()

    def check(self) -> None:
        """Raises :class:`Cancelled` if the job was cancelled."""
        if self.cancelled:
            raise Cancelled

    def end(self, kind: str, **said: Any) -> None:
        with self.changed:
            self.events.append(finite({"event": kind, **said}))
            self.ended = True
            self.changed.notify_all()

    def wait(self, n: int, seconds: float) -> list[dict[str, Any]]:
        """The events after the first ``n``, once there are any or ``seconds`` have passed."""
        with self.changed:
            self.changed.wait_for(lambda: len(self.events) > n or self.ended, seconds)
            return self.events[n:]


class Jobs:
    """The queue. One thread works on it, so that two drawings never share the GPU or a pipeline's hooks."""

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._known: OrderedDict[str, Job] = OrderedDict()
        self._current: Job | None = None
        self._changed = threading.Condition()
        self._numbers = itertools.count(1)
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="tide-jobs", daemon=True)
        self._thread.start()

    def submit(
        self, run: Callable[[Job], None], *, long: bool = False, replace: Callable[[Job], bool] | None = None
    ) -> Job:
        """Adds a job at the end; ``replace`` says which of the earlier ones it cancels. Raises
        :class:`~tide.errors.TideError` if too many wait."""
        with self._changed:
            for job in (*self._waiting, *([self._current] if self._current else [])):
                if replace is not None and replace(job):
                    self._cancel(job)
            if len(self._waiting) >= MOST_WAITING:
                raise TideError(f"{MOST_WAITING} drawings wait already; cancel some, or wait")
            job = Job(f"{next(self._numbers)}-{time.time_ns():x}", run, long)
            self._waiting.append(job)
            self._known[job.id] = job
            while len(self._known) > KEPT + MOST_WAITING:
                self._known.popitem(last=False)
            self._changed.notify_all()
            return job

    def get(self, job: str) -> Job | None:
        return self._known.get(job)

    def cancel(self, job: Job) -> None:
        """Ends a job at its next event, or before it begins."""
        with self._changed:
            self._cancel(job)

    def _cancel(self, job: Job) -> None:
        job.cancelled = True
        if job in self._waiting:
            self._waiting.remove(job)
            job.end("cancelled")

    def place(self, job: Job) -> int:
        """How many jobs are before this one."""
        with self._changed:
            return 0 if job not in self._waiting else list(self._waiting).index(job) + (self._current is not None)

    def stop(self) -> None:
        """Cancels everything and waits for the thread's end."""
        with self._changed:
            self._stopped = True
            for job in list(self._waiting):
                self._cancel(job)
            if self._current is not None:
                self._current.cancelled = True
            self._changed.notify_all()
        self._thread.join(timeout=10)

    def _next(self) -> Iterator[Job]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopped)
                if self._stopped:
                    return
                self._current = self._waiting.popleft()
            yield self._current
            with self._changed:
                self._current = None

    def others(self) -> None:
        """Called by a long job where it can pause: does the short ones that wait."""
        while True:
            with self._changed:
                job = next((each for each in self._waiting if not each.long), None)
                if job is None or self._stopped:
                    return
                self._waiting.remove(job)
                paused, self._current = self._current, job
            _do(job)
            with self._changed:
                self._current = paused

    def _work(self) -> None:
        for job in self._next():
            _do(job)


def _do(job: Job) -> None:
    try:
        job.check()
        job.run(job)
        job.end("done")
    except Cancelled:
        job.end("cancelled")
    except Exception as error:  # a pipeline may raise anything, and the server must live
        job.end("failed", message=_reason(error))


def _reason(error: Exception) -> str:
    if isinstance(error, TideError | OSError):
        return one_line(error, 1000)
    if out_of_memory(error):
        return "the memory is used up; draw a smaller image, or start tide browse with --dtype bf16 or --offload"
    return (
        f"the pipeline failed ({type(error).__name__}: {one_line(error, 500)}); draw again, or start tide browse anew"
    )
