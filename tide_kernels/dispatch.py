"""Which backend and which regime serve a problem, and why the others do not.

A backend is a module (or any object) that has

* ``unavailable() -> str | None``: why it cannot run on this machine at all, or None;
* ``refuses(device, dtype, n_latents, k) -> str | None``: why it cannot serve this problem, or None;
* optionally ``dense_above(device) -> float``: the density above which its dense regime wins;
* any of the primitives named in `Primitives`, with the contracts of `tide_kernels.reference`. A primitive it
  lacks is taken from there; one whose ``transpose`` returns a layout of its own brings ``scatter`` too.

Adding one is one line in ``_SOURCES``, or a call of `register_backend`. Backends are imported when first
asked for, never by ``import tide_kernels``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tide_kernels import reference
from tide_kernels.reference import Transposed

REGIMES = ("auto", "sparse", "dense")

# In the order in which "auto" tries them; the reference serves everything, so it stands last.
_SOURCES: dict[str, Any] = {
    "triton": "tide_kernels.triton",
    "native": "tide_kernels.native",
    "reference": "tide_kernels.reference",
}


class BackendError(RuntimeError):
    """A backend asked for by name cannot serve; the message says why in one line."""


@dataclass(frozen=True)
class Primitives:
    """The primitives of one backend; contracts in `tide_kernels.reference`."""

    modulate: Callable[[Tensor, Tensor | None, Tensor | None, Tensor | None, bool, torch.dtype], Tensor]
    select: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    gather: Callable[[Tensor, Tensor, Tensor], Tensor]
    sampled: Callable[[Tensor, Tensor, Tensor], Tensor]
    transpose: Callable[[Tensor, int], Transposed]
    scatter: Callable[[Tensor, Transposed, Tensor, Tensor], None]

    @classmethod
    def of(cls, backend: Any) -> Primitives:
        """Those ``backend`` has, completed by the reference's."""
        return cls(**{name: getattr(backend, name, getattr(reference, name)) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Choice:
    """What serves a problem."""

    backend: str
    regime: str  # "sparse" or "dense"
    ops: Primitives
    refused: dict[str, str] = field(default_factory=dict)  # backends that "auto" passed over, and why


def register_backend(name: str, source: Any, *, first: bool = True) -> None:
    """Makes ``source`` (an object, or the dotted name of a module) known as the backend ``name``.

    "auto" tries it before all others if ``first``, else right before the reference.
    """
    if name == "auto" or name in _SOURCES:
        raise ValueError(f"the backend name {name!r} is taken: register another name")
    entries = list(_SOURCES.items())
    entries.insert(0 if first else len(entries) - 1, (name, source))
    _SOURCES.clear()
    _SOURCES.update(entries)


def _load(name: str) -> tuple[Any, str | None]:
    """The backend, or None and the reason there is none."""
    source = _SOURCES[name]
    backend, reason = _imported(source) if isinstance(source, str) else (source, None)
    return backend, reason or backend.unavailable()


@cache  # a failing import is dear to repeat at every call
def _imported(source: str) -> tuple[Any, str | None]:
    try:
        return importlib.import_module(source), None
    except ModuleNotFoundError as error:
        if error.name == source:
            return None, f"this installation has no {source}"
        return None, f"{source} needs the package {error.name}, which is not installed"
    except (ImportError, OSError) as error:
        return None, f"{source} cannot be imported: {' '.join(str(error).split())}"


def backend_status() -> dict[str, str | None]:
    """Each backend's name, and why it cannot run on this machine; None where it can."""
    return {name: _load(name)[1] for name in _SOURCES}


def choose(backend: str, regime: str, *, device: torch.device, dtype: torch.dtype, n_latents: int, k: int) -> Choice:
    """The backend and the regime for a problem of this shape. The data are never looked at.

    Raises:
        ValueError: ``backend`` or ``regime`` is no known name.
        BackendError: ``backend`` was asked for by name and cannot serve.
    """
    if regime not in REGIMES:
        raise ValueError(f"regime {regime!r} is unknown: use one of {', '.join(REGIMES)}")
    if backend != "auto" and backend not in _SOURCES:
        raise ValueError(f"backend {backend!r} is unknown: use one of auto, {', '.join(_SOURCES)}")
    refused: dict[str, str] = {}
    for name in _SOURCES if backend == "auto" else (backend,):
        module, reason = _load(name)
        reason = reason or module.refuses(device, dtype, n_latents, k)
        if reason is None:
            return Choice(name, _regime(module, regime, device, k / n_latents), Primitives.of(module), refused)
        refused[name] = reason
    reasons = "; ".join(f"{name!r}: {reason}" for name, reason in refused.items())
    raise BackendError(f"no backend can serve {backend!r}: {reasons}; backend='auto' takes one that can")


def _regime(module: Any, regime: str, device: torch.device, density: float) -> str:
    if regime != "auto":
        return regime
    dense_above = getattr(module, "dense_above", reference.dense_above)
    return "dense" if density > dense_above(device) else "sparse"
