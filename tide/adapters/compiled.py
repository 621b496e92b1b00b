"""Transformers compiled by torch.compile: their code was made without our hooks and does not call them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from tide.adapters.standins import beneath, replaced


@contextmanager
def eagerly(*modules: nn.Module) -> Iterator[None]:
    """While open, the modules and their submodules run eagerly, so that hooks run; afterwards the compiled code is
    back, without another compilation.

    Covers ``module.compile()`` (and ``compile_repeated_blocks``), ``torch.compile(module)`` and a compiled ``forward``.
    """
    with ExitStack() as stack:
        for part in {id(part): part for module in modules for part in module.modules()}.values():
            for name, value in _eager(part):
                stack.enter_context(replaced(part, name, value))
        yield


def _eager(part: nn.Module) -> list[tuple[str, Any]]:
    """The attributes of a module through which compiled code is called, and what to call instead."""
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
