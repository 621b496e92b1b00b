"""The custom backward passes, written once over the primitives; a backend brings none of its own.

With g = dL/dx_hat, z the sparse code and x_mod the encoder's input (eqs 1, 2, 8):

* decode:  dW_dec = z^T g,  db_dec = sum g,  dz = g W_dec^T at the selected places;
* encode:  dpre = dz there and 0 elsewhere (TopK and ReLU both pass what they select),
  dW_enc = dpre^T x_mod,  db_enc = sum dpre,  dx_mod = dpre W_enc;
* modulate:  du = dx_mod (1 + scale),  dscale_g = sum over group g of dx_mod u,  dshift_g = sum of dx_mod.

Operands of matrix products are rounded to the compute dtype; sums are held in float32 (float64 for float64)
and returned in the dtype of the tensor they belong to. Derivatives of derivatives are not provided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from tide_kernels.dispatch import Choice
from tide_kernels.fused import FusedStep, Settings
from tide_kernels.products import add_by_group, pre_activations, products
from tide_kernels.reference import LAYER_NORM_EPS, accumulator, normalised, rows_of

_F = TypeVar("_F", bound=Callable[..., Any])

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec", "scale", "shift")


def _explicit_dtypes(function: _F) -> _F:
    """Runs ``function(ctx, first, ...)`` without autocast: every dtype in here is chosen already."""

    @wraps(function)
    def wrapped(ctx: Any, first: Tensor, *rest: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return function(ctx, first, *rest)

    return wrapped  # type: ignore[return-value]


def _blocks(n_tokens: int, chunk: int) -> Iterator[slice]:
    return (slice(start, start + chunk) for start in range(0, n_tokens, chunk))


def _as(gradient: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    return None if gradient is None or parameter is None else gradient.to(parameter.dtype)


class Modulate(Function):
    @staticmethod
    @_explicit_dtypes
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        group: Tensor | None,
        layer_norm: bool,
        out_dtype: torch.dtype,
        choice: Choice,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, shift, group)
        ctx.layer_norm, ctx.ops = layer_norm, choice.ops
        return choice.ops.modulate(x, scale, shift, group, layer_norm, out_dtype)

    @staticmethod
    @once_differentiable
    @_explicit_dtypes
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, group = ctx.saved_tensors
        wants_x, wants_scale, wants_shift = ctx.needs_input_grad[:3]
        u = normalised(x, ctx.layer_norm)
        grad = grad.to(u.dtype)
        grad_x = grad_scale = grad_shift = None
        if wants_shift:
            grad_shift = shift.new_zeros(shift.shape, dtype=u.dtype)
            add_by_group(ctx.ops, grad, group, grad_shift)
        if wants_scale:
            grad_scale = scale.new_zeros(scale.shape, dtype=u.dtype)
            add_by_group(ctx.ops, grad * u, group, grad_scale)
        if wants_x:
            grad_u = grad if scale is None else grad * (1 + rows_of(scale, group).to(u.dtype))
            grad_x = _layer_norm_backward(grad_u, x, u) if ctx.layer_norm else grad_u
        return _as(grad_x, x), _as(grad_scale, scale), _as(grad_shift, shift), None, None, None, None


def _layer_norm_backward(grad: Tensor, x: Tensor, normed: Tensor) -> Tensor:
    x = x.to(normed.dtype)
    variance = (x - x.mean(1, keepdim=True)).square().mean(1, keepdim=True)
    projected = grad - grad.mean(1, keepdim=True) - normed * (grad * normed).mean(1, keepdim=True)
    return projected * (variance + LAYER_NORM_EPS).rsqrt()


class EncodeTopK(Function):
    @staticmethod
    @_explicit_dtypes
    def forward(
        ctx: Any, x_mod: Tensor, W_enc: Tensor, b_enc: Tensor | None, k: int, chunk: int, choice: Choice
    ) -> tuple[Tensor, Tensor]:
        n_tokens, dtype = len(x_mod), x_mod.dtype
        weight, bias = W_enc.to(dtype), None if b_enc is None else b_enc.to(dtype)
        values = x_mod.new_empty(n_tokens, k)
        indices = torch.empty(n_tokens, k, dtype=torch.int32, device=x_mod.device)
        for rows in _blocks(n_tokens, chunk):
            values[rows], indices[rows] = choice.ops.select(pre_activations(x_mod[rows], weight, bias), k)
        ctx.mark_non_differentiable(indices)
        ctx.save_for_backward(x_mod, W_enc, b_enc, indices)
        ctx.chunk, ctx.choice = chunk, choice
        return values, indices

    @staticmethod
    @once_differentiable
    @_explicit_dtypes
    def backward(ctx: Any, grad_values: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        x_mod, W_enc, b_enc, indices = ctx.saved_tensors
        wants_x, wants_W, wants_b = ctx.needs_input_grad[:3]
        dtype, sum_dtype = x_mod.dtype, accumulator(x_mod.dtype)
        grad_x = torch.empty_like(x_mod) if wants_x else None
        grad_W = W_enc.new_zeros(W_enc.shape, dtype=sum_dtype) if wants_W else None
        grad_b = b_enc.new_zeros(b_enc.shape, dtype=sum_dtype) if wants_b else None
        weight = W_enc.to(dtype)
        for rows in _blocks(len(x_mod), ctx.chunk):
            code = products(ctx.choice, indices[rows], len(W_enc), dtype)
            grad_pre = code.operand(grad_values[rows])
            if grad_x is not None:
                grad_x[rows] = code.gather(grad_pre, weight)
            if grad_W is not None:
                code.scatter(grad_pre, x_mod[rows], grad_W)
            if grad_b is not None:
                code.column_sum(grad_pre, grad_b)
        return grad_x, _as(grad_W, W_enc), _as(grad_b, b_enc), None, None, None


class Decode(Function):
    @staticmethod
    @_explicit_dtypes
    def forward(
        ctx: Any,
        values: Tensor,
        indices: Tensor,
        W_dec: Tensor,
        b_dec: Tensor | None,
        dtype: torch.dtype,
        chunk: int,
        choice: Choice,
    ) -> Tensor:
        n_latents, d_model = W_dec.shape
        x_hat = torch.empty(len(values), d_model, dtype=dtype, device=values.device)
        weight = W_dec.to(dtype)
        for rows in _blocks(len(values), chunk):
            code = products(choice, indices[rows], n_latents, dtype)
            out = code.gather(code.operand(values[rows].to(dtype)), weight)
            x_hat[rows] = out if b_dec is None else out + b_dec
        ctx.save_for_backward(values, indices, W_dec, b_dec)
        ctx.dtype, ctx.chunk, ctx.choice = dtype, chunk, choice
        return x_hat

    @staticmethod
    @once_differentiable
    @_explicit_dtypes
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, W_dec, b_dec = ctx.saved_tensors
        wants_values, _, wants_W, wants_b = ctx.needs_input_grad[:4]
        dtype, sum_dtype = ctx.dtype, accumulator(ctx.dtype)
        grad_values = torch.empty_like(values) if wants_values else None
        grad_W = W_dec.new_zeros(W_dec.shape, dtype=sum_dtype) if wants_W else None
        grad_b = grad.sum(0, dtype=sum_dtype) if wants_b else None
        weight = W_dec.to(dtype)
        for rows in _blocks(len(values), ctx.chunk):
            code = products(ctx.choice, indices[rows], len(W_dec), dtype)
            if grad_W is not None:
                code.scatter(code.operand(values[rows].to(dtype)), grad[rows], grad_W)
            if grad_values is not None:
                grad_values[rows] = code.sampled(grad[rows], weight)
        return grad_values, None, _as(grad_W, W_dec), _as(grad_b, b_dec), None, None, None


class TideLoss(Function):
    """`FusedStep` as one node of the graph: forward forms the gradients, backward scales them."""

    @staticmethod
    @_explicit_dtypes
    def forward(
        ctx: Any,
        x: Tensor,
        group: Tensor | None,
        dead: Tensor | None,
        settings: Settings,
        wanted: frozenset[str],
        *parameters: Tensor | None,
    ) -> tuple[Tensor, ...]:
        named = dict(zip(PARAMETERS, parameters, strict=True))
        step = FusedStep(settings, x, named, group, dead, wanted)
        terms = step.run()
        ctx.mark_non_differentiable(*terms[1:])
        ctx.names, ctx.gain = tuple(step.gradients), step.gain
        ctx.dtypes = {name: p.dtype for name, p in named.items() if p is not None}
        ctx.save_for_backward(*step.gradients.values())
        return tuple(terms)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        factor = grad_total / ctx.gain
        gradients = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        scaled = ((gradients[name] * factor).to(ctx.dtypes[name]) if name in gradients else None for name in PARAMETERS)
        return None, None, None, None, None, *scaled
