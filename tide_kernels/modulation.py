"""The backward pass of the timestep modulation ``x_mod_i = u_i (1 + scale[group_i]) + shift[group_i]`` (eq. 8).

u is x or LayerNorm(x). With g = dL/dx_mod: ``du = g (1 + scale)``, ``dscale_g = sum over group g of g u`` and
``dshift_g = sum over group g of g``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tide_kernels.dispatch import Primitives
from tide_kernels.reference import LAYER_NORM_EPS, normalised, rows_of


def modulated(
    ops: Primitives,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    group: Tensor | None,
    layer_norm: bool,
    dtype: torch.dtype,
) -> Tensor:
    """x_mod in ``dtype``; where there is nothing to modulate, x itself if it has that dtype already."""
    if scale is None and shift is None and not layer_norm:
        return x.to(dtype)
    return ops.modulate(x, scale, shift, group, layer_norm, dtype)


def by_group(ops: Primitives, group: Tensor | None, groups: int) -> Any:
    """The tokens ordered by group, for `add_by_group`; None for a single group."""
    if group is None:
        return None
    return (ops.transpose_selected or ops.transpose)(group.to(torch.int32).unsqueeze(1), groups)


def add_by_group(ops: Primitives, rows: Tensor, ordered: Any, out: Tensor) -> None:
    """``out_g += sum over the tokens of group g of rows``, in a fixed order; ``ordered`` as from `by_group`."""
    if ordered is None:
        out += rows.sum(0, keepdim=True, dtype=out.dtype)
    else:
        ops.scatter(out.new_ones(len(rows), 1), ordered, rows, out)


def add_modulation_gradients(
    ops: Primitives,
    grad: Tensor,
    x: Tensor,
    group: Tensor | None,
    layer_norm: bool,
    grad_scale: Tensor | None,
    grad_shift: Tensor | None,
) -> None:
    """Adds the gradients of scale and shift, from that of x_mod in the accumulation dtype."""
    table = grad_shift if grad_shift is not None else grad_scale
    if table is None:
        return
    u = None
    if grad_scale is not None:
        u = ops.modulate(x, None, None, None, True, grad.dtype) if layer_norm else x
    if ops.modulation_gradients is not None:
        ops.modulation_gradients(grad, u, group, grad_scale, grad_shift)
        return
    ordered = by_group(ops, group, len(table))
    if grad_shift is not None:
        add_by_group(ops, grad, ordered, grad_shift)
    if grad_scale is not None and u is not None:
        add_by_group(ops, (grad * u).to(grad.dtype), ordered, grad_scale)


def input_gradient(grad: Tensor, x: Tensor, scale: Tensor | None, group: Tensor | None, layer_norm: bool) -> Tensor:
    """The gradient of x, in the accumulation dtype, from that of x_mod."""
    if scale is not None:
        grad = grad * (1 + rows_of(scale, group).to(grad.dtype))
    if not layer_norm:
        return grad
    normed = normalised(x, layer_norm).to(grad.dtype)
    x = x.to(grad.dtype)
    variance = (x - x.mean(1, keepdim=True)).square().mean(1, keepdim=True)
    projected = grad - grad.mean(1, keepdim=True) - normed * (grad * normed).mean(1, keepdim=True)
    return projected * (variance + LAYER_NORM_EPS).rsqrt()
