"""Ctrl-C and SIGTERM during a training: the first signal lets the step finish, a second one ends it at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tide.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """What the signals have asked for. ``asked`` is the number of the first signal."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self.at_once = False
        self._waits = False

    def check(self) -> None:
        """Raises :class:`~tide.errors.Interrupted` if a signal has come."""
        if self.asked is not None:
            raise Interrupted(number=self.asked)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A time in which no step is half done, so the first signal ends it at once."""
        self.check()
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        self.at_once = self.asked is not None
        self.asked = number
        if self.at_once or self._waits:
            self._waits = False
            raise Interrupted(number=number)


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Handles both signals while the block runs, then restores their former handlers.

    A signal that is ignored stays ignored. Outside the main thread, where Python allows no handlers, none is set.
    """
    stop = Stop()
    former = {}
    try:
        for number in _SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                former[number] = signal.signal(number, stop.receive)
    except ValueError:  # not the main thread
        pass
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
