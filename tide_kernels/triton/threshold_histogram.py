"""Counts of keys, from which the threshold of a whole batch follows (`key_histogram_`).

Counts are integers and added atomically, so their order does not matter. Pre-activations share few keys, which many
programs would have to add to at once: there are several copies of the counts, for programs that run together.
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
def key_histogram_kernel(
    pre,  # [n_tokens, n] as integers of the same bits
    high,  # [] int64 or None
    counts,  # [copies, 2^BITS] int32
    n,
    stride_pre,
    copies,
    INFINITY: tl.constexpr,
    SHIFT: tl.constexpr,
    BITS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program: a row."""
    SIZE: tl.constexpr = 0x7FFF if INFINITY < 0x10000 else 0x7FFFFFFF
    i_token = tl.program_id(0)
    p_row = pre + i_token.to(tl.int64) * stride_pre
    p_counts = counts + (i_token % copies) * (1 << BITS)
    for start in range(0, n, COLUMNS):
        o_latent = start + tl.arange(0, COLUMNS)
        bits = tl.load(p_row + o_latent, mask=o_latent < n, other=0).to(tl.int32)
        keys = tl.where((bits & SIZE) > INFINITY, SIZE, bits)
        counted = keys > 0
        if high is not None:
            counted = counted & ((keys >> (SHIFT + BITS)) == tl.load(high).to(tl.int32))
        tl.atomic_add(p_counts + ((keys >> SHIFT) & ((1 << BITS) - 1)), 1, mask=counted, sem="relaxed")


def key_histogram_(pre: Tensor, counts: Tensor, shift: int, high: Tensor | None) -> None:
    """Adds to ``counts [2^b]`` int64 how often each part of b bits, above the lowest ``shift``, occurs among the keys
    of ``pre [n_tokens, n_latents]``, as `tide_kernels.thresholds.key_histogram_` says."""
    n_tokens, n_latents = pre.shape
    pre = launch.rows_contiguous(pre)
    config = launch.config("key_histogram", pre, n_latents)
    copies = torch.zeros(config["copies"], len(counts), dtype=torch.int32, device=pre.device)
    launch.launch(
        key_histogram_kernel,
        (n_tokens,),
        pre.device,
        pre.view(INTEGERS[pre.dtype]),
        None if high is None else launch.contiguous(high),
        copies,
        n_latents,
        pre.stride(0),
        len(copies),
        INFINITY=INFINITY_BITS[pre.dtype],
        SHIFT=shift,
        BITS=(len(counts) - 1).bit_length(),
        COLUMNS=config["COLUMNS"],
        **launch.options(config),
    )
    counts += copies.sum(0)


def _spec(arch: str, dtype: torch.dtype, shift: int, bits: int, high: bool) -> Spec:
    integer = "*i16" if dtype.itemsize == 2 else "*i32"
    config = static("key_histogram", arch, dtype, 18432)
    signature = {"pre": integer, "counts": "*i32", "n": "i32", "stride_pre": "i32", "copies": "i32"}
    constants: dict[str, object] = {"INFINITY": INFINITY_BITS[dtype], "SHIFT": shift, "BITS": bits}
    if high:
        signature["high"] = "*i64"
    else:
        constants["high"] = None
    name = f"key_histogram {TYPES[dtype]} bits {shift} to {shift + bits}"
    return spec(name, arch, key_histogram_kernel, signature, constants, config, ("n", "stride_pre"))


AOT = [
    _spec(arch, dtype, *part)
    for arch in ARCHS
    for dtype, *part in (
        (torch.float16, 0, 15, False),
        (torch.bfloat16, 0, 15, False),
        (torch.float32, 15, 16, False),
        (torch.float32, 0, 15, True),
    )
]
