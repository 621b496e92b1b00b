"""Values that modules get and return: tensors in nested tuples, lists and mappings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

#: How far two results of the same products may lie apart, relative to their size; half precision rounds coarsely.
_CLOSE = {"torch.float32": 2e-3, "torch.float64": 1e-6}


def mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """``value`` with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: mapped(each, change) for name, each in value.items()}
    if type(value) in (tuple, list):
        return type(value)(mapped(each, change) for each in value)
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from tensors_in(each)


def apart(found: Tensor, expected: Tensor) -> float:
    """The relative distance of two tensors of one shape."""
    found, expected = found.detach().float(), expected.detach().float().to(found.device)
    return float((found - expected).norm() / expected.norm().clamp(min=1e-6))


def close(found: Tensor, expected: Tensor, *, factor: float = 1.0) -> bool:
    """Whether two tensors are one but for rounding."""
    if found.shape != expected.shape:
        return False
    most = max(_CLOSE.get(str(each.dtype), 5e-2) for each in (found, expected) if each.is_floating_point())
    return apart(found, expected) < factor * most


def rounding(model: Any) -> float:
    """How many times as coarsely as in float32 the results of a model are rounded, as tolerances go."""
    return 1.0 if model.dtype in (torch.float32, torch.float64) else 10.0


def shape_of(value: Any) -> str:
    """``[2, 8, 32]``, ``([2, 8, 32], [2, 5, 32])`` or the name of the type."""
    if isinstance(value, Tensor):
        return str(list(value.shape))
    if isinstance(value, tuple | list):
        return f"({', '.join(shape_of(each) for each in value)})"
    return type(value).__name__


def sample_of(output: Any) -> Any:
    """The tensor in what a transformer returns: itself, the first of a tuple, or ``sample``."""
    if isinstance(output, tuple | list):
        return output[0]
    if isinstance(output, Mapping):
        return next(iter(output.values()))
    return getattr(output, "sample", output)
