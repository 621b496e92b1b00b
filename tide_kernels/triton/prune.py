"""Selection of few of many: only groups of columns that hold one of the k largest entries are searched.

A row is divided into groups of L columns. Order entries by value, and equal ones by index; order groups by their first
entry in this order. The k largest entries lie in the first k groups: an entry of another group is behind the first
entries of k groups. As groups are contiguous, a group's place in the order follows from its maximum and its index, so
that the first k groups are what `select` takes from the row of maxima. It then takes the k largest entries from the
k L columns of these groups. Each search is of n / L and k L entries instead of n, and the row is read once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from tide_kernels.triton import launch
from tide_kernels.triton.configs import static
from tide_kernels.triton.keys import INFINITY_BITS, INTEGERS
from tide_kernels.triton.specs import ARCHS, TYPES, Spec, spec

Selection = Callable[[Tensor, int], tuple[Tensor, Tensor]]

_GAIN = 4  # of the entries searched, below which a direct search is faster
_LONGEST = 64  # columns of a group


def group_length(n_latents: int, k: int) -> int | None:
    """L, near sqrt(n / k), where n / L + k L is the least; None where pruning does not spare enough."""
    lengths = [1 << i for i in range(1, _LONGEST.bit_length())]
    cost, length = min((-(-n_latents // length) + k * length, length) for length in lengths)
    return length if cost * _GAIN <= n_latents else None


@triton.jit
def group_maxima_kernel(
    pre,  # [n_tokens, n] as integers of the same bits
    maxima,  # [n_tokens, groups], likewise
    n,
    groups,
    stride_pre,
    INFINITY: tl.constexpr,
    LENGTH: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """The largest entry of each group: 0 if none is positive, a NaN if one is."""
    SIZE: tl.constexpr = 0x7FFF if INFINITY < 0x10000 else 0x7FFFFFFF
    i_token = tl.program_id(0).to(tl.int64)
    o_group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    o_latent = o_group[:, None] * LENGTH + tl.arange(0, LENGTH)[None, :]
    bits = tl.load(pre + i_token * stride_pre + o_latent, mask=o_latent < n, other=0).to(tl.int32)
    keys = tl.where((bits & SIZE) > INFINITY, INFINITY + 1, bits)
    largest = tl.maximum(tl.max(keys, 1), 0)
    tl.store(maxima + i_token * groups + o_group, largest.to(maxima.dtype.element_ty), mask=o_group < groups)


@triton.jit
def candidates_kernel(
    pre,  # [n_tokens, n]
    chosen,  # [n_tokens, k] int32: groups, or -1
    candidates,  # [n_tokens, k * LENGTH]
    n,
    stride_pre,
    k,
    LENGTH: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """The entries of the chosen groups next to each other; 0 where there are no more groups."""
    i_token = tl.program_id(0).to(tl.int64)
    o_place = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    group = tl.load(chosen + i_token * k + o_place, mask=o_place < k, other=-1)
    o_inside = tl.arange(0, LENGTH)[None, :]
    o_latent = group[:, None] * LENGTH + o_inside
    mask = (group >= 0)[:, None] & (o_latent < n)
    entries = tl.load(pre + i_token * stride_pre + o_latent, mask=mask, other=0)
    o_out = o_place[:, None] * LENGTH + o_inside
    tl.store(candidates + i_token * k * LENGTH + o_out, entries, mask=(o_place < k)[:, None])


@triton.jit(do_not_specialize=["size"])
def ungroup_kernel(
    indices,  # [n_tokens, k] int32: places among the candidates, or -1; becomes columns of the row
    chosen,  # [n_tokens, k] int32
    size,
    k,
    LENGTH: tl.constexpr,
    PLACES: tl.constexpr,
):
    o_place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    index = tl.load(indices + o_place, mask=o_place < size, other=-1)
    used = index >= 0
    group = tl.load(chosen + o_place // k * k + index // LENGTH, mask=used, other=0)
    tl.store(indices + o_place, group * LENGTH + index % LENGTH, mask=used)


def select_pruned(pre: Tensor, k: int, length: int, select: Selection) -> tuple[Tensor, Tensor]:
    """What ``select(pre, k)`` gives, by groups of ``length`` columns; rows of pre are contiguous."""
    n_tokens, n_latents = pre.shape
    groups, integers = launch.cdiv(n_latents, length), INTEGERS[pre.dtype]
    config = launch.config("prune", pre, length)
    block, options = config["ENTRIES"] // length, launch.options(config)
    bits = pre.view(integers)
    maxima = launch.empty(n_tokens, groups, dtype=pre.dtype, device=pre.device)
    launch.launch(
        group_maxima_kernel,
        (n_tokens, launch.cdiv(groups, block)),
        pre.device,
        bits,
        maxima.view(integers),
        n_latents,
        groups,
        pre.stride(0),
        INFINITY=INFINITY_BITS[pre.dtype],
        LENGTH=length,
        GROUPS=block,
        **options,
    )
    _, chosen = select(maxima, k)
    candidates = launch.empty(n_tokens, k * length, dtype=pre.dtype, device=pre.device)
    launch.launch(
        candidates_kernel,
        (n_tokens, launch.cdiv(k, block)),
        pre.device,
        bits,
        chosen,
        candidates.view(integers),
        n_latents,
        pre.stride(0),
        k,
        LENGTH=length,
        GROUPS=block,
        **options,
    )
    values, indices = select(candidates, k)
    places = config["ENTRIES"]
    launch.launch(
        ungroup_kernel,
        (launch.cdiv(indices.numel(), places),),
        pre.device,
        indices,
        chosen,
        indices.numel(),
        k,
        LENGTH=length,
        PLACES=places,
        **options,
    )
    return values, indices


def _specs(arch: str, dtype: torch.dtype) -> list[Spec]:
    kind, integer = TYPES[dtype], "*i16" if dtype.itemsize == 2 else "*i32"
    config, length = static("prune", arch, dtype, 32), 32
    sizes = {name: "i32" for name in ("n", "groups", "stride_pre", "k", "size")}
    pointers = {"pre": integer, "maxima": integer, "chosen": "*i32", "candidates": integer, "indices": "*i32"}
    constants = {"INFINITY": INFINITY_BITS[dtype], "LENGTH": length, "GROUPS": config["ENTRIES"] // length}
    constants["PLACES"] = config["ENTRIES"]
    found = []
    for kernel in (group_maxima_kernel, candidates_kernel, ungroup_kernel):
        names = kernel.arg_names
        signature = {name: kind for name, kind in (pointers | sizes).items() if name in names}
        used = {name: value for name, value in constants.items() if name in names}
        title = f"{kernel.__name__.removesuffix('_kernel')} {kind}"
        found.append(spec(title, arch, kernel, signature, used, config, ("n", "stride_pre")[: 2 * ("n" in names)]))
    return found


AOT = [
    record
    for arch in ARCHS
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
    for record in _specs(arch, dtype)
]
