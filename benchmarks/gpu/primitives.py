"""How each primitive of a backend is run alone: its operands at a shape, and a call."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.bench import Bench
from benchmarks.shapes import GROUPS, Shape
from tide_kernels.reference import accumulator

Run = Callable[[], object]


class Operands:
    """The tensors that kernels of a shape take, each made on first use."""

    def __init__(self, bench: Bench, shape: Shape) -> None:
        self.bench, self.shape, self.ops = bench, shape, bench.ops(shape)
        self.sum_dtype = accumulator(bench.dtype)

    @cached_property
    def x(self) -> Tensor:
        return self.bench.normal(self.shape.n_tokens, self.shape.d_model)

    @cached_property
    def grad(self) -> Tensor:
        return self.bench.normal(self.shape.n_tokens, self.shape.d_model, seed=1, scale=0.1)

    @cached_property
    def x_hat(self) -> Tensor:
        return self.grad.to(self.sum_dtype)

    @cached_property
    def W(self) -> Tensor:
        return self.bench.normal(self.shape.n_latents, self.shape.d_model, seed=2, scale=self.shape.d_model**-0.5)

    @cached_property
    def bias(self) -> Tensor:
        return self.bench.normal(self.shape.n_latents, seed=3, scale=0.1)

    @cached_property
    def scale(self) -> Tensor:
        return self.bench.normal(GROUPS, self.shape.d_model, seed=4, scale=0.1)

    @cached_property
    def group(self) -> Tensor:
        return torch.arange(self.shape.n_tokens, device=self.bench.device) * GROUPS // self.shape.n_tokens

    @cached_property
    def pre(self) -> Tensor:
        return F.linear(self.x, self.W, self.bias)

    @cached_property
    def scratch(self) -> Tensor:
        return torch.empty_like(self.pre)

    @cached_property
    def z(self) -> Tensor:
        z = self.pre.clone()
        self.ops.keep_top_(z, self.shape.k)
        return z

    @cached_property
    def code(self) -> tuple[Tensor, Tensor]:
        return self.ops.select(self.pre, self.shape.k)

    @cached_property
    def layout(self) -> Any:
        return self.ops.transpose(self.code[1], self.shape.n_latents)

    def sums(self, *size: int) -> Tensor:
        return torch.zeros(*size, dtype=self.sum_dtype, device=self.bench.device)

    @cached_property
    def weight_sums(self) -> Tensor:
        return self.sums(self.shape.n_latents, self.shape.d_model)

    @cached_property
    def latent_sums(self) -> Tensor:
        return self.sums(self.shape.n_latents)

    @cached_property
    def fired(self) -> Tensor:
        return torch.zeros(self.shape.n_latents, dtype=torch.int64, device=self.bench.device)


def _modulate(o: Operands) -> Run:
    x, scale, group, dtype = o.x, o.scale, o.group, o.bench.dtype
    return lambda: o.ops.modulate(x, scale, scale, group, False, dtype)


def _pre_activations(o: Operands) -> Run:
    x, W, bias = o.x, o.W, o.bias
    return lambda: o.ops.pre_activations(x, W, bias)


def _encode(o: Operands) -> Run | None:
    fused = o.ops.encode
    return None if fused is None else partial(fused, o.x, o.scale, o.scale, o.group, False, o.W, o.bias, o.shape.k)


def _keep_top(o: Operands) -> Run:
    scratch, k = o.scratch, o.shape.k
    return lambda: o.ops.keep_top_(scratch, k)


def _keep_top_with_sums(o: Operands) -> Run | None:
    fused, scratch, k = o.ops.keep_top_with_sums_, o.scratch, o.shape.k
    return None if fused is None else lambda: fused(scratch, k, True, 0.1)


def _select(o: Operands) -> Run:
    pre, k = o.pre, o.shape.k
    return lambda: o.ops.select(pre, k)


def _code_sums(o: Operands) -> Run:
    z = o.z
    return lambda: o.ops.code_sums(z, True, 0.1)


def _decode_dense(o: Operands) -> Run:
    z, W = o.z, o.W
    return lambda: o.ops.decode_dense(z, W)


def _reconstruction_loss(o: Operands) -> Run:
    x, x_hat, dtype = o.x, o.x_hat, o.bench.dtype
    bias = o.sums(o.shape.d_model)
    return lambda: o.ops.reconstruction_loss(x, x_hat, bias, 1.0, 1.0, dtype, False)


def _add_product(o: Operands) -> Run:
    total, z, grad = o.weight_sums, o.z, o.grad
    return lambda: o.ops.add_product_(total, z, grad)


def _masked_gradient(o: Operands) -> Run:
    grad, W, z, sums, fired = o.grad, o.W, o.z, o.latent_sums, o.fired
    return lambda: o.ops.masked_gradient(grad, W, z, 0.0, None, 1.0, sums, fired)


def _encoder_gradients(o: Operands) -> Run | None:
    fused, tables = o.ops.encoder_gradients, [o.sums(*o.scale.shape) for _ in range(2)]
    if fused is None:
        return None
    arguments = (o.z, o.x, o.x, o.scale, o.scale, o.group, False, o.W, o.weight_sums, *tables)
    return lambda: fused(*arguments)


def _gather(o: Operands) -> Run:
    code, W = o.code, o.W
    return lambda: o.ops.gather(*code, W)


def _sampled(o: Operands) -> Run:
    grad, W, indices = o.grad, o.W, o.code[1]
    return lambda: o.ops.sampled(grad, W, indices)


def _transpose(o: Operands) -> Run:
    indices, n_latents = o.code[1], o.shape.n_latents
    return lambda: o.ops.transpose(indices, n_latents)


def _transpose_selected(o: Operands) -> Run | None:
    fused, indices, n_latents = o.ops.transpose_selected, o.code[1], o.shape.n_latents
    return None if fused is None else lambda: fused(indices, n_latents)


def _scatter(o: Operands) -> Run:
    values, layout, grad, total = o.code[0], o.layout, o.grad, o.weight_sums
    return lambda: o.ops.scatter(values, layout, grad, total)


def _backward_latents(o: Operands) -> Run | None:
    fused = o.ops.backward_latents
    if fused is None:
        return None
    # As in the sparse regime, whose gradient of the output keeps the precision of the sums.
    sums = (o.weight_sums, torch.zeros_like(o.weight_sums), o.latent_sums)
    arguments = (*o.code, o.layout, o.x_hat, o.x, o.W, None, *sums)
    return lambda: fused(*arguments)


# By the names of the primitives; None where a backend has no such fusion.
DENSE: dict[str, Callable[[Operands], Run | None]] = {
    "keep_top_": _keep_top,
    "keep_top_with_sums_": _keep_top_with_sums,
    "masked_gradient": _masked_gradient,
    "encoder_gradients": _encoder_gradients,
    "pre_activations": _pre_activations,
    "decode_dense": _decode_dense,
    "add_product_": _add_product,
    "code_sums": _code_sums,
    "reconstruction_loss": _reconstruction_loss,
    "modulate": _modulate,
}
SPARSE_KERNELS: dict[str, Callable[[Operands], Run | None]] = {
    "select": _select,
    "gather": _gather,
    "backward_latents": _backward_latents,
    "transpose": _transpose,
    "transpose_selected": _transpose_selected,
    "sampled": _sampled,
    "scatter": _scatter,
    "encode": _encode,  # the last: its programs wait for one another, and a hang costs what comes after
}
