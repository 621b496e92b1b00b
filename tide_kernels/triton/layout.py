"""The layout of a code ordered by latent and, within one, by token: `transpose` and `transpose_selected`.

A code that may hold a latent twice in a row is sorted. One of `select` holds it at most once, so a bit says all: the
mask has a row of bits for each latent, one bit a token. The place of a token among those of its latent is the number
of bits before it. Counts of whole groups of tokens are summed up in one pass over the mask; the bits of the token's
own group, one sector of memory, are counted where they are needed. Bits are set atomically, and in any order the
result is the same.

A popular latent would keep one program busy long after all others are done, so a latent's places are cut into pieces
of a fixed length (see `tide_kernels.triton.transpose`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tide_kernels.triton import launch
from tide_kernels.triton.configs import static
from tide_kernels.triton.specs import ARCHS, Spec, spec

PIECE = 256  # places of a piece
_BITS = 32  # tokens of a word of the mask
_WORDS = 8  # words of a group, which are a sector of 32 bytes
_GROUP = _BITS * _WORDS


class Layout(NamedTuple):
    """The places of a code ordered by latent, in pieces. All are int32, but int64 for 2^31 places or more."""

    tokens: Tensor  # [places]: the token of each used place, ascending by (latent, token); the rest is undefined
    places: Tensor  # [places]: the same places as positions in the flattened code
    offsets: Tensor  # [n_latents + 1]: latent l owns the entries offsets[l]:offsets[l + 1] of both
    pieces: Tensor  # [n_latents + 1]: l owns the pieces pieces[l]:pieces[l + 1]
    slots: Tensor  # [n_latents + 1]: l owns these rows of the table of partial sums; none if it has one piece
    latent: Tensor  # [bound of pieces]: each piece's latent; n_latents beyond the last piece


def transpose(indices: Tensor, n_latents: int) -> Layout:
    """Orders the places of ``indices [n_tokens, k]`` by latent. Places of one token that share it keep their order."""
    latents = torch.where(indices < 0, n_latents, indices).flatten()
    kind = torch.int32 if latents.numel() < 2**31 else torch.int64
    # A radix sort takes time in proportion to the width of its keys.
    ordered, order = latents.to(torch.int16 if n_latents < 2**15 else latents.dtype).sort(stable=True)
    bounds = torch.arange(n_latents + 1, dtype=ordered.dtype, device=latents.device)
    offsets = torch.searchsorted(ordered, bounds, out_int32=kind == torch.int32)
    places = order.to(kind)
    return _in_pieces(places // indices.shape[1], places, offsets)


def transpose_selected(indices: Tensor, n_latents: int) -> Layout:
    """As `transpose`, where no latent is twice in a row of ``indices``."""
    config = launch.config("transpose", indices, n_latents)
    n_tokens, k = indices.shape
    if not config["bitmask"] or not 0 < indices.numel() < 2**31:
        return transpose(indices, n_latents)
    indices, device = launch.contiguous(indices), indices.device
    groups = launch.cdiv(n_tokens, _GROUP)
    mask = torch.zeros(n_latents, groups * _WORDS, dtype=torch.int32, device=device)
    before = launch.empty(n_latents, groups, dtype=torch.int32, device=device)
    counts = launch.empty(n_latents, dtype=torch.int32, device=device)
    tokens, places = (launch.empty(indices.numel(), dtype=torch.int32, device=device) for _ in range(2))
    sizes = (k, indices.numel(), groups)
    blocks, options = {"PLACES": config["PLACES"]}, launch.options(config)
    programs = (launch.cdiv(indices.numel(), config["PLACES"]),)
    launch.launch(mark_kernel, programs, device, indices, mask, *sizes, **blocks, **options)
    rows = (launch.cdiv(n_latents, config["LATENTS"]),)
    constants = {"LATENTS": config["LATENTS"], "GROUPS": config["GROUPS"]}
    launch.launch(count_kernel, rows, device, mask, before, counts, n_latents, groups, **constants, **options)
    offsets = _starts(counts)
    outputs = (tokens, places, *sizes)
    launch.launch(emit_kernel, programs, device, indices, mask, before, offsets, *outputs, **blocks, **options)
    return _in_pieces(tokens, places, offsets)


def _in_pieces(tokens: Tensor, places: Tensor, offsets: Tensor) -> Layout:
    count = (offsets.diff() + PIECE - 1) // PIECE
    pieces, slots = _starts(count), _starts(torch.where(count > 1, count, 0))
    each = torch.arange(len(count) + len(places) // PIECE, dtype=count.dtype, device=count.device)
    latent = torch.searchsorted(pieces[1:], each, right=True, out_int32=count.dtype == torch.int32)
    return Layout(tokens, places, offsets, pieces, slots, latent)


def _starts(count: Tensor) -> Tensor:
    return torch.nn.functional.pad(count.cumsum(0, dtype=count.dtype), (1, 0))


@triton.jit
def bits_of(words):
    """The number of bits set in each word."""
    words = words.to(tl.uint32, bitcast=True)
    words = words - ((words >> 1) & 0x55555555)
    words = (words & 0x33333333) + ((words >> 2) & 0x33333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F
    return ((words * 0x01010101) >> 24).to(tl.int32)


@triton.jit(do_not_specialize=["k", "n_places"])
def mark_kernel(
    indices,  # [n_tokens, k] int32
    mask,  # [n, 8 groups] int32, zeros
    k,
    n_places,
    groups,
    PLACES: tl.constexpr,
):
    """Sets the bit of each used place."""
    o_place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    latents = tl.load(indices + o_place, mask=o_place < n_places, other=-1)
    i_token = o_place // k
    p_word = mask + latents.to(tl.int64) * (groups * 8) + i_token // 32
    tl.atomic_or(p_word, (tl.full([PLACES], 1, tl.int32) << (i_token % 32)), mask=latents >= 0, sem="relaxed")


@triton.jit(do_not_specialize=["n"])
def count_kernel(
    mask,  # [n, 8 groups] int32
    before,  # [n, groups] int32: bits of the groups before this one
    counts,  # [n] int32: bits of the latent
    n,
    groups,
    LATENTS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    o_latent = tl.program_id(0).to(tl.int64) * LATENTS + tl.arange(0, LATENTS)
    m_latent = (o_latent < n)[:, None]
    total = tl.zeros([LATENTS], tl.int32)
    for start in range(0, groups, GROUPS):
        o_word = start * 8 + tl.arange(0, GROUPS * 8)
        p_words = mask + o_latent[:, None] * groups * 8 + o_word[None, :]
        bits = bits_of(tl.load(p_words, mask=m_latent & (o_word < groups * 8)[None, :], other=0))
        bits = tl.sum(tl.reshape(bits, [LATENTS, GROUPS, 8]), 2)
        o_group = start + tl.arange(0, GROUPS)
        out = total[:, None] + tl.cumsum(bits, 1) - bits
        p_before = before + o_latent[:, None] * groups + o_group[None, :]
        tl.store(p_before, out, mask=m_latent & (o_group < groups)[None, :])
        total += tl.sum(bits, 1)
    tl.store(counts + o_latent, total, mask=o_latent < n)


@triton.jit(do_not_specialize=["k", "n_places"])
def emit_kernel(
    indices,  # [n_tokens, k] int32
    mask,  # [n, 8 groups] int32
    before,  # [n, groups] int32
    offsets,  # [n + 1] int32
    tokens,  # [n_places] int32, as the next
    places,
    k,
    n_places,
    groups,
    PLACES: tl.constexpr,
):
    """Writes each used place where it belongs."""
    o_place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    latents = tl.load(indices + o_place, mask=o_place < n_places, other=-1)
    used = latents >= 0
    i_token = o_place // k
    i_group, i_word, i_bit = i_token // 256, i_token % 256 // 32, i_token % 32
    row = latents.to(tl.int64)
    o_word = tl.arange(0, 8)[None, :]
    # Multiples of 8 words, as the compiler sees, so that a sector is two loads.
    p_group = mask + (row * groups + i_group) * 8
    bits = tl.load(p_group[:, None] + o_word, mask=used[:, None], other=0)
    # Of the words up to the token's own, and in that one only the bits below its own.
    below = (tl.full([PLACES], 1, tl.int32) << i_bit) - 1
    bits = tl.where(o_word == i_word[:, None], bits & below[:, None], tl.where(o_word < i_word[:, None], bits, 0))
    place = tl.load(offsets + row, mask=used, other=0) + tl.sum(bits_of(bits), 1)
    place += tl.load(before + row * groups + i_group, mask=used, other=0)
    tl.store(tokens + place, i_token, mask=used)
    tl.store(places + place, o_place, mask=used)


def _specs(arch: str) -> list[Spec]:
    config = static("transpose", arch, torch.int32, 18432)
    names = ("indices", "mask", "before", "counts", "offsets", "tokens", "places")
    sizes = ("k", "n_places", "groups", "n")

    def record(kernel: triton.JITFunction) -> Spec:
        signature = {name: "*i32" for name in names if name in kernel.arg_names}
        signature |= {name: "i32" for name in sizes if name in kernel.arg_names}
        return spec(f"transpose: {kernel.__name__.removesuffix('_kernel')}", arch, kernel, signature, {}, config)

    return [record(kernel) for kernel in (mark_kernel, count_kernel, emit_kernel)]


AOT = [record for arch in ARCHS for record in _specs(arch)]
