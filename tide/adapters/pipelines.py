"""The pipeline classes, by name, that call their transformer as its adapter expects, and what they draw from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from tide.errors import TideError

#: Supported classes: what they draw from besides the prompt, by the names of the arguments. The specs of the families
#: fill both tables.
SUPPORTED: dict[str, tuple[str, ...]] = {}
#: Refused classes: why, and the class that runs the same parts in a way that is known, if there is one.
REFUSED: dict[str, tuple[str, str | None]] = {}
#: Why pipelines with perturbed attention guidance are refused.
PAG = "perturbed attention guidance puts rows of a third kind into each call"
#: What to do instead with the parts of those that no other class runs.
_OTHER_MODEL = "use a pipeline of docs/adapters.md"

_ALLOWED: set[type] = set()
_Class = TypeVar("_Class", bound=type)


def allow_pipeline(cls: _Class) -> _Class:
    """Admits a pipeline class that the families of TIDE do not know, and its subclasses; also a decorator.

    You thereby promise that the class calls the transformer as the family's own pipelines do: one row for each image
    and branch of guidance, in their order, with image tokens in theirs.
    """
    _ALLOWED.add(cls)
    return cls


def check_pipeline(pipe: Any, transformer: type) -> None:
    """Raises :class:`~tide.errors.TideError` unless the class of ``pipe``, or the nearest class of diffusers that it
    extends, is supported or allowed."""
    cls = type(pipe)
    if any(base in _ALLOWED for base in cls.__mro__):
        return
    name = known_as(cls) or ""
    if name in REFUSED:
        reason, instead = REFUSED[name]
        remedy = _OTHER_MODEL if instead is None else _same_parts(instead)
        raise TideError(f"{cls.__name__} is not supported ({reason}); {remedy}")
    if name not in SUPPORTED:
        raise TideError(
            f"how {cls.__name__} calls its {transformer.__name__} is not known; use a pipeline of "
            f"docs/adapters.md, or check rows and tokens and call tide.adapters.allow_pipeline({cls.__name__}), for a "
            "command in a module that --adapter names"
        )


def _same_parts(instead: str) -> str:
    made = f"diffusers.{instead}.from_pipe(pipe)"
    return f"use {made}, which draws with the same parts; for a command, save that: {made}.save_pretrained(folder)"


def known_as(cls: type) -> str | None:
    """The name of the nearest class of diffusers in the ancestry of ``cls``."""
    own = (base.__name__ for base in cls.__mro__ if base.__module__.startswith("diffusers."))
    return next(own, None)


def check_inputs(pipe: Any, given: Iterable[str]) -> None:
    """Raises :class:`~tide.errors.TideError` if what ``pipe`` draws from besides the prompt is not among ``given``."""
    given = set(given)
    missing = [name for name in SUPPORTED.get(known_as(type(pipe)) or "", ()) if name not in given]
    if missing:
        raise TideError(
            f"{type(pipe).__name__} draws from {' and '.join(missing)} besides the prompt; pass them to "
            "adapter.generate, or use a pipeline that draws from the prompt alone"
        )
