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
    least,  # [] int64 or None
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
    lowest = tl.full([], 1, tl.int64)
    if least is not None:
        lowest = tl.maximum(lowest, tl.load(least))
    for start in range(0, tl.where(lowest > SIZE, 0, n), PIECES * COLUMNS):
        pieces = _pieces(p_row, start, n, PIECES, COLUMNS)
        for i in tl.static_range(PIECES):
            bits = pieces[i].to(tl.int32)
            keys = tl.where((bits & SIZE) > INFINITY, SIZE, bits)
            counted = keys >= lowest.to(tl.int32)
            if high is not None:
                counted = counted & ((keys >> (SHIFT + BITS)) == tl.load(high).to(tl.int32))
            tl.atomic_add(p_counts + ((keys >> SHIFT) & ((1 << BITS) - 1)), 1, mask=counted, sem="relaxed")


def key_histogram_(pre: Tensor, counts: Tensor, shift: int, high: Tensor | None, least: Tensor | None = None) -> None:
    """Adds to ``counts [2^b]`` int64 how often each part of b bits, above the lowest ``shift``, occurs among the keys
    of ``pre [n_tokens, n_latents]``, as `tide_kernels.thresholds.key_histogram_` says.

    With ``least`` (int64, no dimension), only of keys that reach it: most of the time goes into small ones, of which
    there are many. Nothing is read where no key does.
    """
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
        None if least is None else launch.contiguous(least),
        copies,
        n_latents,
        pre.stride(0),
        len(copies),
        INFINITY=INFINITY_BITS[pre.dtype],
        SHIFT=shift,
        BITS=(len(counts) - 1).bit_length(),
        PIECES=config["PIECES"],
        COLUMNS=config["COLUMNS"],
        **launch.options(config),
    )
    counts += copies.sum(0)


def _spec(arch: str, dtype: torch.dtype, shift: int, bits: int, given: str) -> Spec:
    """``given``: the name of an argument that may be None, or nothing."""
    integer = "*i16" if dtype.itemsize == 2 else "*i32"
    config = static("key_histogram", arch, dtype, 18432)
    signature = {"pre": integer, "counts": "*i32", "n": "i32", "stride_pre": "i32", "copies": "i32"}
    constants: dict[str, object] = {"INFINITY": INFINITY_BITS[dtype], "SHIFT": shift, "BITS": bits}
    for name in ("high", "least"):
        if name in given:
            signature[name] = "*i64"
        else:
            constants[name] = None
    name = f"key_histogram {TYPES[dtype]} bits {shift} to {shift + bits} {given}".strip()
    return spec(name, arch, key_histogram_kernel, signature, constants, config, ("n", "stride_pre"))


_PARTS: tuple[tuple[torch.dtype, int, int, str], ...] = (
    (torch.float16, 0, 15, ""),
    (torch.bfloat16, 0, 15, ""),
    (torch.bfloat16, 0, 15, "least"),
    (torch.float32, 15, 16, ""),
    (torch.float32, 15, 16, "least"),
    (torch.float32, 0, 15, "high"),
    (torch.float32, 0, 15, "high least"),
)

AOT = [_spec(arch, *part) for arch in ARCHS for part in _PARTS]
