"""Transformers that torch.compile has compiled: their code was made without our hooks and does not look for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from tide.adapters.standins import beneath, replaced


@contextmanager
def eagerly(*modules: nn.Module) -> Iterator[None]:
    """While open, the modules and all that is in them run as they are written, so that hooks run; afterwards the
    compiled code that was there is back, without being compiled anew.

    ``module.compile()`` (``compile_repeated_blocks`` too), ``torch.compile(module)`` and a compiled ``forward``.
    """
    with ExitStack() as stack:
        for part in {id(part): part for module in modules for part in module.modules()}.values():
            for name, value in _eager(part):
                stack.enter_context(replaced(part, name, value))
        yield


def _eager(part: nn.Module) -> list[tuple[str, Any]]:
    """The attributes of a module by which compiled code is called, and what to call instead."""
    found: list[tuple[str, Any]] = []
    if beneath(part, "_compiled_call_impl") is not None:
        found.append(("_compiled_call_impl", None))
    inner = part._modules.get("_orig_mod")
    written = getattr(beneath(part, "forward"), "_torchdynamo_orig_callable", None)
    if inner is not None:  # torch.compile(module), a module around the other one
        found.append(("forward", inner.__call__))
    elif written is not None:
        found.append(("forward", written))
    return found
