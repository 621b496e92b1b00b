"""Counts of keys, from which the threshold of a whole batch follows (`key_histogram_`, `rank_histogram_`).

Counts are integers and added atomically, so their order does not matter. Atomic sums in memory are slow: those of all
entries take many times as long as reading them. Where only the key of a certain rank is asked for, a sample of the rows
gives a window of keys that it is likely in. Entries above the window are counted in registers, those below not at all.
Should the counts show that it is not in there, another launch, which otherwise returns at once, counts everything.

Pre-activations share few keys, which many programs would have to add to at once: there are several copies of the
counts, for programs that run together.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tide_kernels.triton import launch
from tide_kernels.triton.configs import static
from tide_kernels.triton.select import INFINITY_BITS, INTEGERS
from tide_kernels.triton.specs import ARCHS, TYPES, Spec, spec


@triton.jit
def _pieces(p_row, start, n, PIECES: tl.constexpr, COLUMNS: tl.constexpr):
    """Several pieces of a row, which are under way together."""
    pieces = ()
    for i in tl.static_range(PIECES):
        o_latent = start + i * COLUMNS + tl.arange(0, COLUMNS)
        pieces += (tl.load(p_row + o_latent, mask=o_latent < n, other=0),)  # type: ignore[assignment]
    return pieces


@triton.jit
def key_histogram_kernel(
    pre,  # [n_tokens, n] as integers of the same bits
    high,  # [] int64 or None
    least,  # [] int64 or None: parts below it are not counted
    most,  # [] int64 or None: parts above it count as it
    counts,  # [copies, 2^BITS] int32
    n,
    stride_pre,
    copies,
    INFINITY: tl.constexpr,
    SHIFT: tl.constexpr,
    BITS: tl.constexpr,
    PIECES: tl.constexpr,
    COLUMNS: tl.constexpr,  # one a thread: what is loaded together would have to be moved between threads to be added
):
    """One program: a row."""
    SIZE: tl.constexpr = 0x7FFF if INFINITY < 0x10000 else 0x7FFFFFFF
    i_token = tl.program_id(0)
    p_row = pre + i_token.to(tl.int64) * stride_pre
    p_counts = counts + (i_token % copies) * (1 << BITS)
    lowest, end = 0, n
    if least is not None:
        lowest = tl.load(least).to(tl.int32)
        end = tl.where(lowest > (SIZE >> SHIFT), 0, n)
    if most is not None:
        highest = tl.load(most).to(tl.int32)
        above = tl.zeros([COLUMNS], tl.int32)
    for start in range(0, end, PIECES * COLUMNS):
        pieces = _pieces(p_row, start, n, PIECES, COLUMNS)
        for i in tl.static_range(PIECES):
            bits = pieces[i].to(tl.int32)
            keys = tl.where((bits & SIZE) > INFINITY, SIZE, bits)
            part = keys >> SHIFT  # of negative keys negative
            counted = (keys > 0) & (part >= lowest)
            if high is not None:
                counted = counted & ((part >> BITS) == tl.load(high).to(tl.int32))
            if most is not None:
                above += (part > highest).to(tl.int32)
                counted = counted & (part <= highest)
            tl.atomic_add(p_counts + (part & ((1 << BITS) - 1)), 1, mask=counted, sem="relaxed")
    if most is not None:
        tl.atomic_add(p_counts + highest, tl.sum(above, 0), sem="relaxed")


def key_histogram_(pre: Tensor, counts: Tensor, shift: int, high: Tensor | None) -> None:
    """Adds to ``counts [2^b]`` int64 how often each part of b bits, above the lowest ``shift``, occurs among the keys
    of ``pre [n_tokens, n_latents]``, as `tide_kernels.thresholds.key_histogram_` says."""
    counts += _counted(launch.rows_contiguous(pre), len(counts), shift, high)


def rank_histogram_(pre: Tensor, counts: Tensor, shift: int, wanted: int) -> None:
    """As `key_histogram_`, but only what decides the ``wanted``-th largest part has to be right: its own count and the
    sum of those above it; and all, if there are fewer."""
    pre = launch.rows_contiguous(pre)
    if pre.numel() < _LEAST_ENTRIES:
        counts += _counted(pre, len(counts), shift)
        return
    # An odd step takes both rows of pairs alike: one of them may have the larger values throughout.
    sample = pre[:: len(pre) // _SAMPLE_ROWS | 1]
    reached = _counted(sample, len(counts), shift).flip(0).cumsum(0)
    rank = wanted * len(sample) / len(pre)
    bounds = (round(rank * _MARGIN + _SLACK), round(rank / _MARGIN - _SLACK))
    least, most = ((len(counts) - 1 - (reached < bound).sum()).clamp_(min=0) for bound in bounds)
    within = _counted(pre, len(counts), shift, least=least, most=most)
    lumped = (within.gather(0, most.view(1)).squeeze(0) >= wanted) & (most < len(counts) - 1)
    found = (within.sum() >= wanted) & ~lumped
    everything = _counted(pre, len(counts), shift, least=torch.where(found, _NOTHING, 0))
    counts += torch.where(found, within, everything)


# Rows of the sample, and how far the wanted key's rank among them may be from its rank among all: relatively, for rows
# differ, and in entries.
_SAMPLE_ROWS, _MARGIN, _SLACK = 256, 1.125, 64
_LEAST_ENTRIES = 2**22  # below which a sample does not pay
_NOTHING = 2**30  # above all parts


def _counted(
    pre: Tensor,
    size: int,
    shift: int,
    high: Tensor | None = None,
    least: Tensor | None = None,
    most: Tensor | None = None,
) -> Tensor:
    """The histogram as `key_histogram_kernel` counts it, int64 ``[size]``."""
    n_tokens, n_latents = pre.shape
    config = launch.config("key_histogram", pre, n_latents)
    copies = torch.zeros(config["copies"], size, dtype=torch.int32, device=pre.device)
    launch.launch(
        key_histogram_kernel,
        (n_tokens,),
        pre.device,
        pre.view(INTEGERS[pre.dtype]),
        None if high is None else launch.contiguous(high),
        least,
        most,
        copies,
        n_latents,
        pre.stride(0),
        len(copies),
        INFINITY=INFINITY_BITS[pre.dtype],
        SHIFT=shift,
        BITS=(size - 1).bit_length(),
        PIECES=config["PIECES"],
        COLUMNS=config["COLUMNS"],
        **launch.options(config),
    )
    return copies.sum(0)


def _spec(arch: str, dtype: torch.dtype, shift: int, bits: int, given: tuple[str, ...]) -> Spec:
    """``given``: the arguments that may be None and are not."""
    integer = "*i16" if dtype.itemsize == 2 else "*i32"
    config = static("key_histogram", arch, dtype, 18432)
    signature = {"pre": integer, "counts": "*i32", "n": "i32", "stride_pre": "i32", "copies": "i32"}
    signature |= dict.fromkeys(given, "*i64")
    constants: dict[str, object] = {"INFINITY": INFINITY_BITS[dtype], "SHIFT": shift, "BITS": bits}
    constants |= {name: None for name in ("high", "least", "most") if name not in given}
    name = " ".join(("key_histogram", TYPES[dtype], f"bits {shift} to {shift + bits}", *given))
    return spec(name, arch, key_histogram_kernel, signature, constants, config, ("n", "stride_pre"))


AOT = [
    _spec(arch, dtype, shift, bits, given)
    for arch in ARCHS
    for dtype, shift, bits in ((torch.float16, 0, 15), (torch.bfloat16, 0, 15), (torch.float32, 15, 16))
    for given in ((), ("least",), ("least", "most"))
] + [_spec(arch, torch.float32, 0, 15, ("high",)) for arch in ARCHS]
