"""Work that takes seconds, one piece at a time in one thread: drawing on the pipeline, and making indexes."""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tide.errors import TideError, out_of_memory
from tide.files import finite
from tide.messages import one_line

#: Jobs whose events, pictures among them, are kept after their end for a page that has not read them yet.
KEPT = 4
#: Jobs that wait at most.
MOST_WAITING = 16


class Cancelled(Exception):
    """Raised inside a job that was cancelled."""


@dataclass(eq=False)
class Job:
    """A piece of work and what it has told so far. Events are JSON values; the last is ``done``, ``cancelled`` or
    ``failed``. A ``long`` one lets others be done in between (:meth:`Jobs.others`). ``owner``: the page that asked for
    it, or None."""

    id: str
    run: Callable[[Job], None]
    long: bool = False
    owner: str | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False
    cancelled: bool = False
    #: Called when it is cancelled while it runs.
    on_cancel: Callable[[], None] | None = None
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _listeners: list[Callable[[], None]] = field(default_factory=list)

    def tell(self, kind: str, **said: Any) -> None:
        """Adds an event. Raises :class:`Cancelled` in a job that was cancelled, so that it ends here."""
        self.add(kind, **said)
        self.check()

    def add(self, kind: str, **said: Any) -> None:
        """Adds an event, also in a job that was cancelled."""
        self._add(kind, said)

    @property
    def heard(self) -> bool:
        """Whether anybody listens."""
        return bool(self._listeners)

    def check(self) -> None:
        """Raises :class:`Cancelled` if the job was cancelled."""
        if self.cancelled:
            raise Cancelled

    def end(self, kind: str, **said: Any) -> None:
        """Adds the last event."""
        self._add(kind, said, ends=True)

    def _add(self, kind: str, said: dict[str, Any], *, ends: bool = False) -> None:
        with self._changed:
            self.events.append(finite({"event": kind, **said}))
            self.ended = ends
            self._changed.notify_all()
            for each in self._listeners:
                each()

    def wait(self, n: int, seconds: float) -> list[dict[str, Any]]:
        """The events after the first ``n``, once there are any or ``seconds`` have passed."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.events) > n or self.ended, seconds)
            return self.events[n:]

    @contextmanager
    def listened(self, listener: Callable[[], None]) -> Iterator[None]:
        """While open, ``listener`` is called after every event, in the job's thread; it must not raise."""
        with self._changed:
            self._listeners.append(listener)
        try:
            yield
        finally:
            with self._changed:
                self._listeners.remove(listener)


class Jobs:
    """The queue. One thread works on it, so that two drawings never share the GPU or a pipeline's hooks."""

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._known: OrderedDict[str, Job] = OrderedDict()
        self._running: list[Job] = []  # the last is worked on; those before it are long and wait for it
        self._changed = threading.Condition()
        self._numbers = itertools.count(1)
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="tide-jobs", daemon=True)
        self._thread.start()

    def submit(
        self, run: Callable[[Job], None], *, long: bool = False, owner: str | None = None, replace: bool = False
    ) -> Job:
        """Adds a job at the end; ``replace`` cancels those that its ``owner`` asked for earlier. Raises
        :class:`~tide.errors.TideError` if too many wait, and once the server ends."""
        with self._changed:
            if self._stopped:
                raise TideError("the server is ending; start tide browse again")
            for job in (*self._waiting, *self._running):
                if replace and owner is not None and job.owner == owner:
                    self._cancel(job)
            if not long and sum(not each.long for each in self._waiting) >= MOST_WAITING:
                raise TideError(f"{MOST_WAITING} drawings wait already; cancel some, or wait")
            job = Job(f"{next(self._numbers)}-{time.time_ns():x}", run, long, owner)
            self._waiting.append(job)
            self._known[job.id] = job
            ended = [each.id for each in self._known.values() if each.ended]
            for each in ended[: max(0, len(ended) - KEPT)]:
                del self._known[each]
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
        if (tell := job.on_cancel) is not None:
            tell()
        if job in self._waiting:
            self._waiting.remove(job)
            job.end("cancelled")

    def place(self, job: Job) -> int:
        """How many jobs are before this one."""
        with self._changed:
            return 0 if job not in self._waiting else self._waiting.index(job) + bool(self._running)

    def stop(self) -> None:
        """Cancels everything and waits for the thread's end."""
        with self._changed:
            self._stopped = True
            for job in list(self._waiting):
                self._cancel(job)
            for job in self._running:
                self._cancel(job)
            self._changed.notify_all()
        self._thread.join(timeout=10)

    def _next(self) -> Iterator[Job]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopped)
                if self._stopped:
                    return
                job = self._waiting.popleft()
                self._running.append(job)
            yield job
            with self._changed:
                self._running.remove(job)

    def others(self) -> None:
        """Called by a long job where it can pause: does the short ones that wait."""
        while True:
            with self._changed:
                job = next((each for each in self._waiting if not each.long), None)
                if job is None or self._stopped:
                    return
                self._waiting.remove(job)
                self._running.append(job)
            _do(job)
            with self._changed:
                self._running.remove(job)

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
    except BaseException as error:  # a pipeline may raise anything, and the thread must live
        job.end("failed", message=reason(error))


def reason(error: BaseException) -> str:
    """Why a job failed, for the page."""
    if isinstance(error, TideError | OSError):
        return one_line(error, 1000)
    if out_of_memory(error):
        return "the memory is used up; draw a smaller image, or start tide browse with --dtype bf16 or --offload"
    return (
        f"the pipeline failed ({type(error).__name__}: {one_line(error, 500)}); draw again, or start tide browse anew"
    )
