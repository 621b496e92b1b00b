"""Tensors in every memory layout: views of poisoned memory, which exposes reads and writes outside the view."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tide_kernels.testing import poisoned

_OFFSET = 3  # elements in front


def laid_out(values: Tensor, strides: tuple[int, ...]) -> Tensor:
    """A view with ``strides`` at an offset into its memory. Elements that share memory get the last value."""
    last = sum((size - 1) * stride for size, stride in zip(values.shape, strides, strict=True))
    # As much again after the last element: a read as if the tensor were contiguous hits the poison.
    memory = _poison(_OFFSET + last + 1 + values.numel(), values.dtype)
    view = memory.as_strided(values.shape, strides, _OFFSET)
    memory[places(view).flatten()] = values.detach().flatten()
    return view


def _poison(size: int, dtype: torch.dtype) -> Tensor:
    return torch.ones(size, dtype=dtype) if dtype == torch.bool else poisoned((size,), dtype)


Layout = Callable[[Tensor], Tensor]


def _by_dimensions(vector: tuple[int, ...], matrix: Callable[[int, int], tuple[int, int]]) -> Layout:
    def layout(values: Tensor) -> Tensor:
        return laid_out(values, (vector if values.dim() == 1 else matrix(*values.shape)) if values.dim() else ())

    return layout


def _negated(values: Tensor) -> Tensor:
    if values.dtype == torch.bool:
        return laid_out(values, (4,) * values.dim())
    return torch._neg_view(-values.detach())


#: Each takes a tensor and returns a view of its shape, with its values unless elements share memory.
LAYOUTS: dict[str, Layout] = {
    "at an offset": _by_dimensions((1,), lambda rows, columns: (columns, 1)),
    "every other element": _by_dimensions((2,), lambda rows, columns: (2 * columns, 2)),
    "rows apart": _by_dimensions((5,), lambda rows, columns: (columns + 2, 1)),
    "transposed": _by_dimensions((3,), lambda rows, columns: (1, rows)),
    "one row for all": _by_dimensions((0,), lambda rows, columns: (0, 1)),
    "one column for all": _by_dimensions((0,), lambda rows, columns: (1, 0)),
    "one element for all": _by_dimensions((0,), lambda rows, columns: (0, 0)),
    "overlapping rows": _by_dimensions((7,), lambda rows, columns: (1, 1)),
    "negated": _negated,
}


def places(tensor: Tensor) -> Tensor:
    """The position of each element in memory."""
    out = torch.full(tensor.shape, tensor.storage_offset())
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        out += (torch.arange(size) * stride).view([-1 if d == dim else 1 for d in range(tensor.dim())])
    return out


def overlaps_itself(tensor: Tensor) -> bool:
    return len(places(tensor).unique()) < tensor.numel()


def plain(tensor: Tensor) -> Tensor:
    """A contiguous copy without gradient."""
    return tensor.detach().resolve_neg().clone(memory_format=torch.contiguous_format)


def tensor_arguments(function: Callable[..., Any]) -> list[str]:
    """The names of the arguments that are annotated as tensors or as containers of tensors."""
    hints = typing.get_type_hints(inspect.unwrap(function))
    return [name for name in inspect.signature(function).parameters if "Tensor" in str(hints.get(name))]


def dyadic(*shape: int, seed: int, eighths: int = 12, dtype: torch.dtype = torch.float32) -> Tensor:
    """Multiples of 1/8 up to ``eighths``: sums of products are exact in any order, so ties are real."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-eighths, eighths + 1, shape, generator=generator) / 8).to(dtype)


class Calls(TorchDispatchMode):
    """Records the names of the ops that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.names.add(op.name())
        return op(*args, **(kwargs or {}))
