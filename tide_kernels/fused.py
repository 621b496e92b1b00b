"""The fused training step: encode, decode, all loss terms and gradients, one chunk of tokens at a time.

No ``[n_tokens, n_latents]`` tensor exists for more than a chunk of tokens. Gradients are formed along with
the loss, as if the loss were the end of the graph, and scaled by its incoming gradient in the backward pass.
Until then they carry a common factor, the gain: in float16 the gradient of a mean over millions of elements
would vanish before the matrix products see it.

All terms but one are sums over tokens (or over pairs, which no chunk splits). The exception is the sparsity
term: its gradient has the factor Huber'(S - s_target), which needs the mean S of the whole batch. S depends
on the codes alone, so with a sparsity weight all chunks are encoded first, and what is kept of them is the
codes and the modulated tokens: ``O(n_tokens (k + d_model))`` memory, and nothing computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tide_kernels.dispatch import Choice
from tide_kernels.losses import (
    LossTerms,
    LossWeights,
    cosine_distance,
    huber,
    pair_differences,
    soft_count,
    soft_count_gradient,
    squared_error,
)
from tide_kernels.products import Products, add_by_group, pre_activations, products
from tide_kernels.reference import accumulator, normalised


@dataclass(frozen=True)
class Settings:
    """What is not a tensor."""

    k: int
    k_aux: int
    layer_norm: bool
    paired: bool
    weights: LossWeights
    s_target: float
    delta: float
    soft_eps: float
    chunk: int  # even if paired
    dtype: torch.dtype  # of the operands of matrix products
    choice: Choice


class Code(NamedTuple):
    values: Tensor
    indices: Tensor


class Chunk(NamedTuple):
    """The encoded tokens ``rows`` of the batch."""

    rows: slice
    x_mod: Tensor
    code: Code
    dead_code: Code | None  # the top k_aux of the dead latents


class FusedStep:
    """One training step. ``wanted`` names the parameters whose gradients are to be formed."""

    def __init__(
        self,
        settings: Settings,
        x: Tensor,
        parameters: dict[str, Tensor | None],
        group: Tensor | None,
        dead: Tensor | None,
        wanted: frozenset[str],
    ) -> None:
        self.settings, self.x, self.group, self.dead = settings, x, group, dead
        self.sum_dtype = accumulator(settings.dtype)
        self.scale, self.shift, self.b_dec = (parameters[name] for name in ("scale", "shift", "b_dec"))
        cast = {name: p.to(settings.dtype) for name, p in parameters.items() if p is not None}
        self.W_enc, self.W_dec, self.b_enc = cast["W_enc"], cast["W_dec"], cast.get("b_enc")
        self.n_tokens, self.d_model = x.shape
        self.n_latents = len(self.W_enc)
        # A power of two, so that it costs no rounding; its size brings the gradients of all terms near 1.
        self.gain = 2.0 ** round(math.log2(max(self.n_tokens, 1) * self.d_model**0.5))
        self.gradients = {
            name: p.new_zeros(p.shape, dtype=self.sum_dtype)
            for name, p in parameters.items()
            if p is not None and name in wanted
        }
        self.fired = torch.zeros(self.n_latents, dtype=torch.int64, device=x.device)
        self.sums = {
            name: torch.zeros((), dtype=self.sum_dtype, device=x.device)
            for name in ("mse", "cosine", "temporal", "sparsity", "auxk")
        }

    def run(self) -> LossTerms:
        """The loss terms; afterwards ``gradients`` holds ``gain`` times the gradients of ``total``."""
        s, n = self.settings, max(self.n_tokens, 1)
        chunks: Iterator[Chunk] = (self.encode(start) for start in range(0, self.n_tokens, s.chunk))
        sparsity_slope = None
        if s.weights.sparsity and self.gradients:
            kept = list(chunks)
            counts = [soft_count(c.code.values.to(self.sum_dtype), self.n_latents, s.soft_eps) for c in kept]
            excess = sum(counts, self.sums["sparsity"]) / n - s.s_target
            sparsity_slope = excess.clamp(-s.delta, s.delta) * (s.weights.sparsity * self.gain / n)
            chunks = iter(kept)
        for chunk in chunks:
            self.accumulate(chunk, sparsity_slope)
        return self.terms()

    def encode(self, start: int) -> Chunk:
        s, ops = self.settings, self.settings.choice.ops
        rows = slice(start, start + s.chunk)
        group = self.group_of(rows)
        x_mod = ops.modulate(self.x[rows], self.scale, self.shift, group, s.layer_norm, s.dtype)
        pre = pre_activations(x_mod, self.W_enc, self.b_enc)
        code = Code(*ops.select(pre, s.k))
        dead_code = None
        if self.dead is not None and s.k_aux:
            # Masking instead of compressing keeps shapes free of the data: nothing is read back from a GPU.
            dead_code = Code(*ops.select(pre.masked_fill_(~self.dead, 0), s.k_aux))
        return Chunk(rows, x_mod, code, dead_code)

    def group_of(self, rows: slice) -> Tensor | None:
        return None if self.group is None else self.group[rows]

    def accumulate(self, chunk: Chunk, sparsity_slope: Tensor | None) -> None:
        """Adds a chunk's part of every sum and every gradient."""
        s, weights = self.settings, self.settings.weights
        values, indices = chunk.code.values.to(self.sum_dtype), chunk.code.indices
        used = (indices >= 0).to(torch.int64)
        self.fired.scatter_add_(0, indices.clamp(min=0).long().flatten(), used.flatten())

        z_products = products(s.choice, indices, self.n_latents, s.dtype)
        z = z_products.operand(chunk.code.values)
        x = self.x[chunk.rows].to(self.sum_dtype)
        x_hat = z_products.gather(z, self.W_dec)
        if self.b_dec is not None:
            x_hat += self.b_dec.to(self.sum_dtype)

        error, squared = squared_error(x, x_hat)
        self.sums["mse"] += squared
        cosine_factor = weights.cosine * self.gain / self.n_tokens if self.gradients else 0.0
        distance, grad = cosine_distance(x, x_hat, cosine_factor)
        self.sums["cosine"] += distance
        self.sums["sparsity"] += soft_count(values, self.n_latents, s.soft_eps)
        extra = None
        if s.paired:
            squared, differences = pair_differences(values, indices, self.n_latents)
            self.sums["temporal"] += squared
            if weights.temporal:
                extra = differences.mul_(weights.temporal * self.gain * 4 / self.n_tokens)
        if self.gradients:
            mse_factor = weights.mse * self.gain * 2 / self.x.numel()
            grad = error * mse_factor if grad is None else grad.add_(error, alpha=mse_factor)
            if sparsity_slope is not None:
                slope = soft_count_gradient(values, self.n_latents, s.soft_eps) * sparsity_slope
                extra = slope if extra is None else extra + slope
            if "b_dec" in self.gradients:
                self.gradients["b_dec"] += grad.sum(0)
            if "W_dec" in self.gradients:
                z_products.scatter(z, grad, self.gradients["W_dec"])
            del z  # before its gradient, as large in the dense regime, is formed
            self.backward_encoder(chunk, z_products, grad, extra)
        if chunk.dead_code is not None:
            self.accumulate_auxk(chunk, chunk.dead_code, error)

    def accumulate_auxk(self, chunk: Chunk, code: Code, error: Tensor) -> None:
        """The dead latents' reconstruction of what is missing, x - x_hat, a constant to this term."""
        z_products = products(self.settings.choice, code.indices, self.n_latents, self.settings.dtype)
        z = z_products.operand(code.values)
        misfit = z_products.gather(z, self.W_dec).add_(error)  # the reconstruction less (x - x_hat)
        self.sums["auxk"] += misfit.square().sum()
        if self.gradients and self.settings.weights.auxk:
            grad = misfit.mul_(self.settings.weights.auxk * self.gain * 2 / self.x.numel())
            if "W_dec" in self.gradients:
                z_products.scatter(z, grad, self.gradients["W_dec"])
            del z
            self.backward_encoder(chunk, z_products, grad, None)

    def backward_encoder(self, chunk: Chunk, z_products: Products, grad: Tensor, extra: Tensor | None) -> None:
        """From the gradient of a reconstruction to those of all that its code came from.

        ``extra`` is a gradient of the code's values that does not come through the decoder.
        """
        gradients = self.gradients
        if gradients.keys() <= {"W_dec", "b_dec"}:
            return
        grad_values = z_products.sampled(grad, self.W_dec)
        if extra is not None:
            grad_values += extra
        # Only selected places are in the code, so this is the gradient before the ReLU and the TopK as well.
        grad_pre = z_products.operand(grad_values)
        if "W_enc" in gradients:
            z_products.scatter(grad_pre, chunk.x_mod, gradients["W_enc"])
        if "b_enc" in gradients:
            z_products.column_sum(grad_pre, gradients["b_enc"])
        if "scale" in gradients or "shift" in gradients:
            self.modulation_gradients(chunk.rows, z_products.gather(grad_pre, self.W_enc))

    def modulation_gradients(self, rows: slice, grad_x_mod: Tensor) -> None:
        group, ops = self.group_of(rows), self.settings.choice.ops
        if "shift" in self.gradients:
            add_by_group(ops, grad_x_mod, group, self.gradients["shift"])
        if "scale" in self.gradients:
            u = normalised(self.x[rows], self.settings.layer_norm).to(self.sum_dtype)
            add_by_group(ops, grad_x_mod * u, group, self.gradients["scale"])

    def terms(self) -> LossTerms:
        s, sums, n = self.settings, self.sums, max(self.n_tokens, 1)
        elements = max(self.x.numel(), 1)
        mse, cosine = sums["mse"] / elements, sums["cosine"] / n
        temporal = sums["temporal"] * (2 / n)
        sparsity = huber(sums["sparsity"] / n - s.s_target, s.delta) * (self.n_tokens > 0)
        auxk = sums["auxk"] / elements
        if self.dead is not None:
            auxk = torch.where(self.dead.any(), auxk, 0)  # without dead latents there is nothing to revive
        total = torch.zeros_like(mse)
        for weight, term in zip(s.weights, (mse, cosine, temporal, sparsity, auxk), strict=True):
            if weight:  # a term that is not asked for must not bring its NaN into the total
                total = total + weight * term
        return LossTerms(total, mse, cosine, temporal, sparsity, self.fired, auxk)
