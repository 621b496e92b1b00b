"""Checks of the public ops' arguments. Each error is one line that names the argument and the remedy.

Only data in the CPU's memory is read: reading a GPU's would wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tide_kernels.losses import LossWeights
from tide_kernels.options import ACTIVATIONS
from tide_kernels.ranks import ALONE, Ranks

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTS = (torch.int32, torch.int64)


def _kind(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else type(value).__name__


def floating(name: str, tensor: Any, shape: Sequence[int | str], device: torch.device | None = None) -> None:
    """``tensor`` is a float tensor of ``shape``, whose strings name free sizes, on ``device``."""
    _typed(name, tensor, _FLOATS, "float16, bfloat16, float32 or float64")
    _shaped(name, tensor, shape, device)


def _typed(name: str, tensor: Any, dtypes: tuple[torch.dtype, ...], remedy: str) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype not in dtypes:
        raise TypeError(f"{name} is {_kind(tensor)}: pass a tensor of {remedy}")


def _shaped(name: str, tensor: Tensor, shape: Sequence[int | str], device: torch.device | None) -> None:
    fits = len(tensor.shape) == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name} has shape {list(tensor.shape)}: reshape it to [{wanted}]")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device} and not on {device} like the rest: move it with .to()")


def count(name: str, value: Any, low: int, high: int | None = None) -> None:
    """``value`` is an int, at least ``low`` and at most ``high``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a {type(value).__name__}: pass an int")
    if value < low or (high is not None and value > high):
        wanted = f"at least {low}" if high is None else f"from {low} to n_latents = {high}"
        raise ValueError(f"{name} = {value} is out of range: pass one {wanted}")


def finite(name: str, value: float) -> None:
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} = {value} is out of range: pass a finite number")


def number(name: str, value: Any) -> None:
    """``value`` is a finite number, where a tensor would do as well."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is {_kind(value)}: pass a number or a tensor")
    finite(name, value)


def within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} = {value} is out of range: pass one from {low:g} to {high:g}")


def positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} = {value} is out of range: pass a finite number above 0")


def encoder(x: Tensor, W_enc: Tensor, b_enc: Tensor | None, k: int, ranks: Ranks = ALONE) -> None:
    floating("x", x, ("n_tokens", "d_model"))
    floating("W_enc", W_enc, ("n_latents", x.shape[1]), x.device)
    if b_enc is not None:
        floating("b_enc", b_enc, (len(W_enc),), x.device)
    count("k", k, 1, ranks.n_latents(len(W_enc)))


def modulation(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, group: Tensor | None, threshold: Tensor | None = None
) -> Tensor | None:
    """Checks the modulation of ``x``; returns each token's group as int64, or None for a single group.

    ``threshold`` may have a row per group as well. On a GPU, groups out of range are clamped; on a CPU, `group_range`
    checks them inside the ops.
    """
    for name, table in (("scale", scale), ("shift", shift)):
        if table is not None:
            floating(name, table, ("groups", x.shape[1]), x.device)
    if scale is not None and shift is not None and len(scale) != len(shift):
        raise ValueError(f"scale has {len(scale)} groups, shift {len(shift)}: give both a row per group")
    table = scale if scale is not None else shift
    if threshold is not None and threshold.dim() == 2:
        if table is not None and len(table) != len(threshold):
            raise ValueError(
                f"threshold has {len(threshold)} groups, scale and shift {len(table)}: give all a row per group"
            )
        table = threshold
    if table is None:
        return None
    if group is None:
        if len(table) != 1:
            name = "threshold has" if table is threshold else "scale and shift have"
            raise ValueError(f"{name} {len(table)} groups: pass group, an index per token")
        return None
    _typed("group", group, _INTS, "int32 or int64")
    _shaped("group", group, (len(x),), x.device)
    return group.long() if group.device.type == "cpu" else group.long().clamp(0, len(table) - 1)


def group_range(
    group: Tensor | None, scale: Tensor | None, shift: Tensor | None, threshold: Tensor | None = None
) -> None:
    table = scale if scale is not None else shift
    if table is None and threshold is not None and threshold.dim() == 2:
        table = threshold
    if group is None or table is None or group.device.type != "cpu":
        return
    outside = _outside(group, 0, len(table))
    if outside is not None:
        name = "threshold" if table is threshold else "scale and shift"
        raise ValueError(f"group holds {outside}, {name} {len(table)} rows: number groups from 0")


def threshold(value: Any, n_latents: int, device: torch.device) -> None:
    """``value`` is a float tensor that fits a code of so many latents; `threshold_range` checks what it holds."""
    shape: dict[int, tuple[int | str, ...]] = {0: (), 1: (n_latents,), 2: ("groups", n_latents)}
    _typed("threshold", value, _FLOATS, "float16, bfloat16, float32 or float64")
    if value.dim() not in shape:
        wanted = f"[], [{n_latents}] or [groups, {n_latents}]"
        raise ValueError(f"threshold has shape {list(value.shape)}: reshape it to {wanted}")
    _shaped("threshold", value, shape[value.dim()], device)


def threshold_range(value: Tensor, divides: bool = False) -> None:
    """Refuses negative thresholds and NaN in the CPU's memory; where a threshold ``divides``, also 0 and infinity."""
    if value.device.type != "cpu" or not value.numel():
        return
    value = value.detach()
    bad = value[~((value > 0) & (value < math.inf))] if divides else value[~(value >= 0)]
    if bad.numel():
        remedy = "pass finite numbers above 0" if divides else "pass numbers of at least 0"
        raise ValueError(f"threshold holds {float(bad.flatten()[0]):g}: {remedy}")


def activation(name: Any, given: Tensor | None) -> None:
    """Refuses an unknown activation, thresholds for TopK and JumpReLU without thresholds."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is unknown: use one of {', '.join(ACTIVATIONS)}")
    if name != "batch_topk" and (given is not None) != (name == "jumprelu"):
        remedy = "pass threshold" if given is None else "leave threshold out"
        raise ValueError(f"activation {name!r} {'needs' if given is None else 'has no'} thresholds: {remedy}")


def code(values: Tensor, indices: Tensor, device: torch.device) -> None:
    """Checks a compact code, except for the range of its indices (see `index_range`)."""
    floating("values", values, ("n_tokens", "k"), device)
    if not values.shape[1]:
        raise ValueError("values has no places: pass at least one, index -1 where it is unused")
    _typed("indices", indices, _INTS, "int32 or int64")
    _shaped("indices", indices, tuple(values.shape), device)


def index_range(indices: Tensor, n_latents: int) -> Tensor:
    """The indices as int32. Those out of range raise on a CPU and become unused places elsewhere."""
    if indices.device.type != "cpu":
        return indices.to(torch.int32).masked_fill((indices < 0) | (indices >= n_latents), -1)
    outside = _outside(indices, -1, n_latents)
    if outside is not None:
        raise ValueError(f"indices holds {outside} of {n_latents} latents: mark unused places by -1")
    return indices.to(torch.int32)


def _outside(indices: Tensor, low: int, end: int) -> int | None:
    """An entry outside [low, end), if there is one."""
    if not indices.numel():
        return None
    least, most = (int(bound) for bound in indices.aminmax())
    if least < low:
        return least
    return most if most >= end else None


def prefixes(values: Any, n_latents: int, ranks: Ranks) -> None:
    """``values`` is a tuple of ascending numbers of latents, each a part of all."""
    if not isinstance(values, tuple):
        raise TypeError(f"prefixes is a {type(values).__name__}: pass a tuple of ints")
    if values and ranks.latents.several:
        raise ValueError("prefixes cannot be cut where ranks share the latents: pass ranks that share the tokens alone")
    for place, value in enumerate(values):
        count(f"prefixes[{place}]", value, 1, n_latents)
    if any(low >= high for low, high in pairwise((*values, n_latents))):
        raise ValueError(f"prefixes = {values} do not ascend to less than n_latents = {n_latents}: pass sizes that do")


def dead_latents(
    dead: Tensor | None, k_aux: int, weight: float, n_latents: int, device: torch.device, ranks: Ranks
) -> None:
    count("k_aux", k_aux, 0, ranks.n_latents(n_latents))
    if dead is not None:
        _typed("dead", dead, (torch.bool,), "bool, True for a dead latent")
        _shaped("dead", dead, (n_latents,), device)
    if weight and (dead is None or not k_aux):
        raise ValueError("weights.auxk is not 0 and there is no auxiliary term: pass dead and k_aux >= 1")


def loss_weights(weights: Any) -> None:
    if not isinstance(weights, LossWeights):
        raise TypeError(f"weights is a {type(weights).__name__}: pass LossWeights")
    for name, value in weights._asdict().items():
        finite(f"weights.{name}", value)


def gradients(
    buffers: dict[str, Tensor],
    parameters: dict[str, Tensor | None],
    others: dict[str, Tensor | None],
    dtype: torch.dtype,
) -> None:
    """Checks that each buffer is named after a parameter that is there, has its shape, is contiguous and of ``dtype``,
    and shares no memory with parameters, ``others`` or other buffers."""
    taken = {name: _span(tensor) for name, tensor in (parameters | others).items() if tensor is not None}
    for name, buffer in buffers.items():
        parameter = parameters.get(name)
        if parameter is None:
            known = ", ".join(each for each, value in parameters.items() if value is not None)
            raise ValueError(f"gradients names {name!r}, which is not a parameter of this loss: use {known}")
        _typed(f"gradients[{name!r}]", buffer, (dtype,), str(dtype).removeprefix("torch."))
        _shaped(f"gradients[{name!r}]", buffer, tuple(parameter.shape), parameter.device)
        if not buffer.is_contiguous():
            raise ValueError(f"gradients[{name!r}] is not contiguous: pass memory of its own")
        if buffer.is_neg():
            raise ValueError(f"gradients[{name!r}] is a negated view: pass memory of its own")
        first, end = _span(buffer)
        for other, (other_first, other_end) in taken.items():
            if first < other_end and other_first < end:
                raise ValueError(f"gradients[{name!r}] lies in the memory of {other}: pass memory of its own")
        taken[f"gradients[{name!r}]"] = (first, end)


def of_buffers(buffers: dict[str, Tensor] | None, start: float | None, squares: Tensor | None, ranks: Any) -> None:
    """Refuses ``start``, ``squares`` and ``ranks`` without buffers, a start that is not finite, and squares and ranks
    of another kind."""
    for name, value in (("start", start), ("squares", squares), ("ranks", ranks)):
        if value is not None and buffers is None:
            raise ValueError(f"{name} is about the buffers of gradients and there are none: pass gradients")
    if start is not None:
        finite("start", start)
    if squares is not None:
        _typed("squares", squares, (torch.float64,), "float64")
        _shaped("squares", squares, (), torch.device("cpu"))
    if ranks is not None and not isinstance(ranks, Ranks):
        raise TypeError(f"ranks is a {type(ranks).__name__}: pass tide_kernels.Ranks")


def _span(tensor: Tensor) -> tuple[int, int]:
    """The address of the first byte and of the one after the last, with gaps included; a range that meets no other for
    a tensor without memory."""
    if not tensor.numel() or type(tensor) not in (Tensor, torch.nn.Parameter):  # a compiler's fake tensor, for example
        return -1, -1
    if tensor.is_contiguous():
        return tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
