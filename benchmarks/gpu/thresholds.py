"""How the primitives of threshold activations are run alone, and the bytes that each has to move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.primitives import Operands, Run
from benchmarks.shapes import GROUPS, Shape
from benchmarks.threshold_steps import BANDWIDTH
from tide_kernels.options import default_capacity


@dataclass(frozen=True)
class Work:
    run: Run
    moved: float  # bytes of the large tensors that it reads or writes at least once


def level_of(pre: Tensor, k: int) -> Tensor:
    """The threshold that about k entries of a row exceed."""
    rows = pre[:64]
    return rows.flatten().float().kthvalue(len(rows) * (pre.shape[1] - k)).values


def works(bench: Bench, shape: Shape) -> dict[str, Work]:
    """The primitives that the backend has, by name and kind of threshold: one number, by latent, by group and latent.
    With a cut, entries equal to the threshold pass as well, as ties of BatchTopK do."""
    o = Operands(bench, shape)
    ops, pre, out, n_latents = o.ops, o.pre, o.scratch, shape.n_latents
    level, capacity = level_of(pre, shape.k), min(n_latents, default_capacity(shape.k))
    number, latent = level.expand(1, n_latents), level.expand(1, n_latents).contiguous()
    table, group = level.expand(GROUPS, n_latents).contiguous(), o.group
    cut = torch.full((shape.n_tokens,), n_latents - 1, dtype=torch.int32, device=bench.device)
    bits = 15 if pre.element_size() == 2 else 16
    counts, shift = torch.zeros(2**bits, dtype=torch.int64, device=bench.device), 15 * (bits == 16)
    sums, near = o.sums(GROUPS, n_latents), torch.zeros(GROUPS, n_latents, dtype=torch.int64, device=bench.device)
    z = torch.empty_like(pre)
    ops.keep_above(pre, latent, None, None, z)
    u, indices, _ = ops.select_above(pre, latent - BANDWIDTH / 2, None, None, capacity)
    layout, slopes = (ops.transpose_selected or ops.transpose)(indices, n_latents), torch.ones_like(u).to(o.sum_dtype)
    dense, code = pre.numel() * pre.element_size(), u.numel() * (u.element_size() + 4)
    by_latent, by_group = (latent, None, BANDWIDTH, sums[:1], near[:1]), (table, group, BANDWIDTH, sums, near)

    def gradient(*thresholds: object) -> Run:
        return lambda: ops.near_gradient(o.grad, o.W, z, 0.0, o.latent_sums, o.fired, pre, *thresholds)

    found = {
        "copy": Work(lambda: out.copy_(pre), 2 * dense),
        "product": Work(lambda: F.linear(o.grad, o.W), dense),
        "near_gradient, by latent": Work(gradient(*by_latent), 4 * dense),
        "near_gradient, by group": Work(gradient(*by_group), 4 * dense),
        "key_histogram_": Work(lambda: ops.key_histogram_(pre, counts, shift, None), dense),
        "count_equal": Work(lambda: ops.count_equal(pre, level.to(pre.dtype)), dense),
        "select_above, overflow": Work(lambda: ops.select_above(pre, latent, None, None, shape.k // 2), dense),
    }
    kinds = {"number": (number, None, None), "number, cut": (number, None, cut), "by latent": (latent, None, None)}
    for kind, threshold in (kinds | {"by group": (table, group, None)}).items():
        found[f"select_above, {kind}"] = Work(_bind(ops.select_above, pre, *threshold, capacity), dense + code)
        found[f"keep_above, {kind}"] = Work(_bind(ops.keep_above, pre, *threshold, out), 2 * dense)
    if ops.rank_histogram_ is not None:
        wanted = shape.n_tokens * shape.k
        found["rank_histogram_"] = Work(_bind(ops.rank_histogram_, pre, counts, shift, wanted), dense)
    if ops.add_near_places is not None:
        for kind, options in (("by latent", by_latent), ("by group", by_group)):
            found[f"add_near_places, {kind}"] = Work(
                _bind(ops.add_near_places, slopes, u, indices, layout, *options), 2 * code
            )
    return found


def _bind(call: Callable[..., object], *arguments: object) -> Run:
    return lambda: call(*arguments)
