"""Replaces attributes of foreign objects temporarily; overlapping uses may end in any order."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

#: Means that the object has no such attribute (any more).
_ENDED = object()


@dataclass(eq=False)
class _Listener:
    """Callbacks of a call: one gets its arguments before it, the other its result after it."""

    before: Callable[..., None] | None
    after: Callable[[Any], None] | None


@dataclass(eq=False)
class _StandIn:
    """The replacement of an attribute, for as long as it has users."""

    owner: Any
    name: str
    original: Any
    #: Whether the object itself, rather than its class, holds the original.
    own: bool
    value: Any = _ENDED
    n_users: int = 0
    listeners: list[_Listener] = field(default_factory=list)

    @property
    def in_place(self) -> bool:
        return self.name in vars(self.owner) and vars(self.owner)[self.name] is self.value

    def put_back(self) -> None:
        """Restores the original, unless someone else has replaced the attribute meanwhile."""
        if not self.in_place:
            return
        if self.own:
            setattr(self.owner, self.name, self.original)
        else:
            delattr(self.owner, self.name)

    def listening(self) -> Callable[..., Any]:
        """The original with listeners; its signature can still be inspected."""
        return _Listening(self)


class _Listening:
    """Calls the original of a stand-in and its listeners. In a deep copy of the owner it is the copy's own method, and
    nobody listens to that (LTX-2 copies its scheduler for the sound)."""

    def __init__(self, stand_in: _StandIn) -> None:
        functools.update_wrapper(self, stand_in.original)
        self._stand_in = stand_in

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        stand_in = self._stand_in
        for listener in list(stand_in.listeners):
            if listener.before is not None:
                listener.before(*args, **kwargs)
        result = stand_in.original(*args, **kwargs)
        for listener in list(stand_in.listeners):
            if listener.after is not None:
                listener.after(result)
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._stand_in.original, memo)


#: The newest stand-in by owner and name.
_STAND_INS: dict[tuple[int, str], _StandIn] = {}


def _current(owner: Any, name: str) -> _StandIn | None:
    """The stand-in that is currently in place."""
    found = _STAND_INS.get((id(owner), name))
    return found if found is not None and found.in_place else None


def beneath(owner: Any, name: str) -> Any:
    """What the object itself holds as ``name``, beneath any stand-in; None if it holds nothing."""
    found = _current(owner, name)
    if found is not None:
        return found.original if found.own else None
    return vars(owner).get(name)


@contextmanager
def _used(owner: Any, name: str, make: Callable[[_StandIn], Any]) -> Iterator[_StandIn]:
    stand_in = _current(owner, name)
    if stand_in is None:
        stand_in = _StandIn(owner, name, getattr(owner, name), name in vars(owner))
        stand_in.value = make(stand_in)
        _STAND_INS[id(owner), name] = stand_in
    stand_in.n_users += 1
    try:
        if stand_in.n_users == 1:
            setattr(owner, name, stand_in.value)
        yield stand_in
    finally:
        stand_in.n_users -= 1
        if not stand_in.n_users:
            stand_in.put_back()
            stand_in.value = _ENDED  # which refers to the stand-in, and so to the owner
            if _STAND_INS.get((id(owner), name)) is stand_in:
                del _STAND_INS[id(owner), name]


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """While open, ``owner.name`` is ``value``. If uses overlap, the value of the first one holds until the last one
    ends."""
    with _used(owner, name, lambda _: value):
        yield


@contextmanager
def listened(
    owner: Any,
    name: str,
    *,
    before: Callable[..., None] | None = None,
    after: Callable[[Any], None] | None = None,
) -> Iterator[None]:
    """While open, every call of the method ``owner.name`` calls ``before`` with its arguments and ``after`` with its
    result. Uses may overlap in any way."""
    listener = _Listener(before, after)
    with _used(owner, name, _StandIn.listening) as stand_in:
        stand_in.listeners.append(listener)
        try:
            yield
        finally:
            stand_in.listeners.remove(listener)
