"""Tensors that stand for those of a device without float64."""

from __future__ import annotations

from typing import Any

import torch


class Single(torch.Tensor):
    """What is made of it is of that device too, and only ``cpu()`` and ``to(<device>)`` lead away. Results in
    float64 are refused, as on Apple's GPUs."""

    @classmethod
    def __torch_function__(cls, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(func, kinds, args, kwargs or {})
        if func is torch.Tensor.cpu or any(isinstance(each, torch.device) for each in args):
            return found.as_subclass(torch.Tensor)
        if isinstance(found, torch.Tensor) and found.dtype == torch.float64 and isinstance(found, Single):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return found


def single(x: torch.Tensor) -> torch.Tensor:
    return x.as_subclass(Single)
