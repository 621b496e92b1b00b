"""Ctrl-C and SIGTERM during a training: the first signal lets the step finish, a second one ends it at once."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tide.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Seconds within which several signals to one of several ranks are one.
APART = 2.0


class Stop:
    """What the signals have asked for. ``asked`` is the number of the first signal.

    Of several ranks none ends alone, since the others would wait for it: the first signal ends all of them after the
    same step (:class:`tide.world.StopVote`), also while a batch is awaited. A launcher passes on the signal that a
    terminal has sent to all its processes already; what comes within :data:`APART` seconds is one signal.
    """

    def __init__(self, *, several: bool = False) -> None:
        self.several = several
        self._at = -math.inf
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
        if self.several:
            yield
            return
        self.check()
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        again, self._at = time.monotonic() - self._at > APART, time.monotonic()
        self.at_once = self.asked is not None and (again or not self.several)
        self.asked = number
        if self.at_once or self._waits:
            self._waits = False
            raise Interrupted(number=number)


@contextmanager
def stop_signals(*, several: bool = False) -> Iterator[Stop]:
    """Handles both signals while the block runs, then restores their former handlers.

    A signal that is ignored stays ignored. Outside the main thread, where Python allows no handlers, none is set.
    """
    stop = Stop(several=several)
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
