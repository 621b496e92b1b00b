"""Passes that a background thread runs, kept apart from what other threads do with the same transformer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

#: How often, in seconds, a background thread that waits for its turn looks whether it has to end.
_LOOK = 0.1


class Gate:
    """Of one transformer: taps of any threads may be open side by side, but a background pass runs beside none.

    Hooks and patched pipelines know no threads, so a tap would see the background's passes, and change them.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        #: The threads that opened the taps that are open.
        self._tappers: list[int] = []
        self._passing: int | None = None

    @contextmanager
    def tapped(self) -> Iterator[None]:
        """While a tap is open. Waits until the background pass of another thread has ended."""
        me = threading.get_ident()
        if self._passing == me:  # the tap of the background pass itself
            yield
            return
        with self._changed:
            self._tappers.append(me)  # first, so that no other pass begins
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._passing is None)
            yield
        finally:
            with self._changed:
                self._tappers.remove(me)
                self._changed.notify_all()

    @contextmanager
    def passing(self, ended: Callable[[], bool]) -> Iterator[bool]:
        """While a background pass runs. Waits until no tap is open and no other background pass runs; whether that
        came before ``ended()``."""
        with self._changed:
            while (waits := self._tappers or self._passing is not None) and not ended():
                self._changed.wait(_LOOK)
            if not waits:
                self._passing = threading.get_ident()
        try:
            yield not waits
        finally:
            if not waits:
                with self._changed:
                    self._passing = None
                    self._changed.notify_all()

    @property
    def is_tapped(self) -> bool:
        return bool(self._tappers)

    @property
    def is_tapped_here(self) -> bool:
        """Whether this thread has opened one of the taps."""
        return threading.get_ident() in self._tappers


_gates: WeakKeyDictionary[nn.Module, Gate] = WeakKeyDictionary()


def gate_of(transformer: nn.Module) -> Gate:
    """The one gate of a transformer."""
    return _gates.setdefault(transformer, Gate())
