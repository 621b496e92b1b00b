"""The terms of a compact code of its own: the differences within pairs (eq. 15) and the soft count (eq. 16).

The contracts are those of `tide_kernels.losses`. A code has few places, so each of these is one short launch instead
of a chain of them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tide_kernels.triton import launch
from tide_kernels.triton.configs import static
from tide_kernels.triton.specs import ARCHS, Spec, spec, without


@triton.jit
def _row(values, indices, i_row, o_place, k):
    mask = o_place < k
    latents = tl.load(indices + i_row * k + o_place, mask=mask, other=-1)
    return tl.load(values + i_row * k + o_place, mask=mask & (latents >= 0), other=0), latents


@triton.jit
def _facing(values, indices, i_row, latents, k, PLACES: tl.constexpr):
    """The values that a row has for the given latents, 0 where it lacks one, and whether it has them: a value may be 0
    in the code of a threshold."""
    facing, has = tl.zeros([PLACES], tl.float32), tl.zeros([PLACES], tl.int32)
    for start in range(0, k, PLACES):
        others, held = _row(values, indices, i_row, start + tl.arange(0, PLACES), k)
        same = (latents[:, None] == held[None, :]) & (latents >= 0)[:, None]
        facing += tl.sum(tl.where(same, others[None, :], 0), 1)
        has += tl.sum(same.to(tl.int32), 1)
    return facing, has


@triton.jit(do_not_specialize=["k"])
def pair_differences_kernel(
    values,  # [n_tokens, k] float32
    indices,  # [n_tokens, k] int32, no latent twice in a row
    differences,  # [n_tokens, k] float32
    sums,  # [n_tokens / 2] float32
    k,
    PLACES: tl.constexpr,
):
    """One program: a pair of rows."""
    i_first = tl.program_id(0).to(tl.int64) * 2
    i_second = i_first + 1
    total = tl.zeros([PLACES], tl.float32)
    for start in range(0, k, PLACES):
        o_place = start + tl.arange(0, PLACES)
        mask = o_place < k
        own, latents = _row(values, indices, i_first, o_place, k)
        facing, _ = _facing(values, indices, i_second, latents, k, PLACES)
        difference = own - facing
        tl.store(differences + i_first * k + o_place, difference, mask=mask)
        total += difference * difference
        own, latents = _row(values, indices, i_second, o_place, k)
        facing, has = _facing(values, indices, i_first, latents, k, PLACES)
        tl.store(differences + i_second * k + o_place, own - facing, mask=mask)
        total += tl.where(has != 0, 0, own * own)  # latents of both rows were counted above
    tl.store(sums + tl.program_id(0), tl.sum(total, 0))


def pair_differences(values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over pairs of |F_2i - F_2i+1|^2, and each latent's value minus that of its pair's other row, float32
    ``[n_tokens, k]``."""
    n_tokens, k = values.shape
    values, indices = launch.contiguous(values), launch.contiguous(indices)
    differences = launch.empty(n_tokens, k, dtype=torch.float32, device=values.device)
    sums = launch.empty(n_tokens // 2, dtype=torch.float32, device=values.device)
    config = launch.config("pair_differences", values, k)
    grid, block = (n_tokens // 2,), {"PLACES": config["PLACES"]}
    operands = (values, indices, differences, sums, k)
    launch.launch(pair_differences_kernel, grid, values.device, *operands, **block, **launch.options(config))
    return sums.sum(), differences


@triton.jit
def soft_count_kernel(values, sums, size, soft_eps, n_latents, BLOCK: tl.constexpr):
    """One program: the share of BLOCK values of the soft count."""
    o_place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(values + o_place, mask=o_place < size, other=0).to(tl.float32)
    square = value * value
    tl.store(sums + tl.program_id(0), tl.sum(square / (square + soft_eps * soft_eps), 0) / n_latents)


def soft_count(values: Tensor, n_latents: int, soft_eps: float) -> Tensor:
    """``sum v^2 / (v^2 + e^2) / n``, a float32 scalar."""
    values = launch.contiguous(values)
    config = launch.config("code_terms", values, values.shape[1])
    programs, block = launch.cdiv(values.numel(), config["BLOCK"]), {"BLOCK": config["BLOCK"]}
    sums = launch.empty(programs, dtype=torch.float32, device=values.device)
    operands = (values, sums, values.numel(), float(soft_eps), float(n_latents))
    launch.launch(soft_count_kernel, (programs,), values.device, *operands, **block, **launch.options(config))
    return sums.sum()


@triton.jit
def code_slopes_kernel(
    values,  # [size]
    differences,  # [size] float32 or None
    soft,  # [] float32 or None
    out,  # [size] float32
    size,
    pair,
    soft_eps,
    n_latents,
    BLOCK: tl.constexpr,
):
    o_place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = o_place < size
    slope = tl.zeros([BLOCK], tl.float32)
    if differences is not None:
        slope += pair * tl.load(differences + o_place, mask=mask, other=0)
    if soft is not None:
        value = tl.load(values + o_place, mask=mask, other=0).to(tl.float32)
        square = soft_eps * soft_eps
        reach = value * value + square
        slope += tl.load(soft) * (value * (2 * square / n_latents) / (reach * reach))
    tl.store(out + o_place, slope, mask=mask)


def code_slopes(
    values: Tensor, differences: Tensor | None, pair: float, soft: Tensor | None, soft_eps: float, n_latents: int
) -> Tensor:
    """``pair differences + soft d(soft count)/dv``, float32 ``[n_tokens, k]``; None leaves its term out."""
    values = launch.contiguous(values)
    differences = None if differences is None else launch.contiguous(differences)
    out = launch.empty(*values.shape, dtype=torch.float32, device=values.device)
    config = launch.config("code_terms", values, values.shape[1])
    launch.launch(
        code_slopes_kernel,
        (launch.cdiv(values.numel(), config["BLOCK"]),),
        values.device,
        values,
        differences,
        None if soft is None else launch.contiguous(soft),
        out,
        values.numel(),
        float(pair),
        float(soft_eps),
        float(n_latents),
        BLOCK=config["BLOCK"],
        **launch.options(config),
    )
    return out


def _specs(arch: str) -> list[Spec]:
    config = static("pair_differences", arch, torch.float32, 32)
    tensors = {"values": "*fp32", "indices": "*i32", "differences": "*fp32", "sums": "*fp32", "k": "i32"}
    records = [spec("pair_differences", arch, pair_differences_kernel, tensors, {}, config)]
    config = static("code_terms", arch, torch.float32, 32)
    numbers = {"size": "i32", "soft_eps": "fp32", "n_latents": "fp32"}
    tensors = {"values": "*fp32", "sums": "*fp32"} | numbers
    records.append(spec("soft_count", arch, soft_count_kernel, tensors, {}, config, ("size",)))
    tensors = {"values": "*fp32", "differences": "*fp32", "soft": "*fp32", "out": "*fp32", "pair": "fp32"} | numbers
    whole = spec("code_slopes", arch, code_slopes_kernel, tensors, {}, config, ("size",))
    return [*records, whole, without(whole, "soft"), without(whole, "differences")]


AOT = [record for arch in ARCHS for record in _specs(arch)]
