"""The encoder: the pre-activations alone (`pre_activations`), or the code in a single launch (`encode`).

`encode` keeps only the pre-activations that may still be selected. A program owns a block of tokens: it modulates
them, then walks over tiles of latents and appends the candidates of each tile to its tokens' buffers. A candidate is
one word: its key (see `select`) in the high bits, its inverted index in the low ones. Words are distinct, and their
order is that of the selection contract, ties to the lowest index included. When the next tile might not fit, each
row's buffer is cut down to its k largest words, and the least of them sets the bound that later words have to exceed.
The bound only rises and never passes the k-th largest word of the whole row, so the result is exact for any data.
Buffers stay ascending by index throughout.

Memory: about 1.5 k words per token in flight, instead of n for the whole row. Time: the matrix product runs at Triton's
rate, and appending and cutting take time, so a separate product and selection are expected to be faster wherever a
chunk of pre-activations fits into memory. It was not measured; until then `single_launch` is never true.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from tide_kernels.reference import LAYER_NORM_EPS
from tide_kernels.triton import launch
from tide_kernels.triton.configs import Config, static
from tide_kernels.triton.modulate import group_rows, modulated, row_statistics
from tide_kernels.triton.product import accumulate, product
from tide_kernels.triton.select import INFINITY_BITS, INTEGERS
from tide_kernels.triton.specs import ARCHS, PRECISIONS, TYPES, Spec, spec

_NARROW_LATENTS = 2**17  # as many as fit a 32-bit word beside a 15-bit key


def pre_activations(x_mod: Tensor, W_enc: Tensor, b_enc: Tensor | None) -> Tensor:
    """``x_mod W_enc^T + b_enc``, ``[C, n]`` in the dtype of x_mod, by cuBLAS or by `product`.

    The ReLU is left to the selection, for which it is free: in an epilogue it would turn NaN into 0.
    """
    if x_mod.is_cuda and launch.config("pre_activations", x_mod, W_enc.shape[1])["cublas"]:
        return F.linear(x_mod, W_enc, b_enc)
    pre = launch.empty(len(x_mod), len(W_enc), dtype=x_mod.dtype, device=x_mod.device)
    product(x_mod, W_enc.T, pre, bias=b_enc)
    return pre


@triton.jit
def _pack(pre, o_latent, INFINITY: tl.constexpr, WIDE: tl.constexpr):
    """Words of pre-activations: the key in the high bits, the inverted index in the low ones."""
    NARROW_KEY: tl.constexpr = INFINITY < 0x10000
    SIZE: tl.constexpr = 0x7FFF if NARROW_KEY else 0x7FFFFFFF
    bits = pre.to(tl.int16 if NARROW_KEY else tl.int32, bitcast=True).to(tl.int32)
    keys = tl.where((bits & SIZE) > INFINITY, INFINITY + 1, tl.maximum(bits, 0))
    if WIDE:
        return (keys.to(tl.int64) << 32) | (0x7FFFFFFF - o_latent).to(tl.int64)
    else:
        return ((keys - 0x4000) << 17) | (0x1FFFF - o_latent)


@triton.jit
def _cut_rows(
    words,
    fills,
    bounds,
    k,
    capacity,
    BLOCK_M: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Cuts each row of more than k words down to its k largest, in their order, and raises its bound."""
    for first in range(0, BLOCK_M, ROWS):
        o_row = first + tl.arange(0, ROWS)
        o_word = tl.arange(0, WORDS)
        fill, bound = tl.load(fills + o_row), tl.load(bounds + o_row)
        longest = tl.max(fill, 0)
        if longest > k:
            p_rows = words + o_row[:, None] * capacity
            # More than k words reach low, fewer than k reach high; t, once found, is reached by exactly k.
            high = bound
            for start in range(0, longest, WORDS):
                m_word = start + o_word[None, :] < fill[:, None]
                chunk = tl.load(p_rows + start + o_word[None, :], mask=m_word, other=0)
                high = tl.maximum(high, tl.max(tl.where(m_word, chunk, bound[:, None]), 1))
            low, high = bound + 1, high + 1
            t = low
            searching = fill > k
            while tl.max(searching.to(tl.int32), 0) > 0:
                probe = (low >> 1) + (high >> 1) + (low & high & 1)  # their mean, without an overflow
                count = tl.zeros([ROWS], tl.int32)
                for start in range(0, longest, WORDS):
                    m_word = start + o_word[None, :] < fill[:, None]
                    chunk = tl.load(p_rows + start + o_word[None, :], mask=m_word, other=0)
                    count += tl.sum((m_word & (chunk >= probe[:, None])).to(tl.int32), 1)
                t = tl.where(searching & (count == k), probe, t)
                searching = searching & (count != k)
                low = tl.where(count > k, probe, low)
                high = tl.where(count < k, probe, high)
            place = tl.zeros([ROWS], tl.int32)
            for start in range(0, longest, WORDS):
                m_word = start + o_word[None, :] < fill[:, None]
                chunk = tl.load(p_rows + start + o_word[None, :], mask=m_word, other=0)
                kept = m_word & (chunk >= t[:, None])
                ranks = tl.cumsum(kept.to(tl.int32), 1)
                # In place: a rank depends on all words up to its own, so they have been read by now.
                tl.store(p_rows + place[:, None] + ranks - 1, chunk, mask=kept)
                place += tl.sum(kept.to(tl.int32), 1)
            tl.store(bounds + o_row, tl.where(fill > k, t - 1, bound))
            tl.store(fills + o_row, place)


@triton.jit
def _write_code(
    words,
    fills,
    values,
    indices,
    first_token,
    first,
    n_tokens,
    k,
    capacity,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Unpacks the words of the rows from ``first`` on and fills the unused places."""
    o_row = first + tl.arange(0, ROWS)
    o_token = tl.cast(first_token, tl.int64) + o_row
    fill = tl.load(fills + o_row)
    for start in range(0, k, WORDS):
        o_place = start + tl.arange(0, WORDS)
        used = o_place[None, :] < fill[:, None]
        word = tl.load(words + (o_row[:, None] * capacity + o_place[None, :]), mask=used, other=0)
        if WIDE:
            key, latent = (word >> 32).to(tl.int32), 0x7FFFFFFF - (word & 0x7FFFFFFF).to(tl.int32)
        else:
            key, latent = (word >> 17) + 0x4000, 0x1FFFF - (word & 0x1FFFF)
        mask = (o_token < n_tokens)[:, None] & (o_place < k)[None, :]
        o_out = (o_token * k)[:, None] + o_place[None, :]
        tl.store(values + o_out, tl.where(used, key, 0).to(values.dtype.element_ty), mask=mask)
        tl.store(indices + o_out, tl.where(used, latent, -1), mask=mask)


@triton.jit(do_not_specialize=["n_tokens", "k", "capacity"])
def encode_kernel(
    x,  # [n_tokens, d]
    scale,  # [groups, d] or None, as the next
    shift,
    group,  # [n_tokens] int64 or None
    W_enc,  # [n, d]
    b_enc,  # [n] or None
    x_mod,  # [programs * BLOCK_M, d]: a program's modulated tokens; None if tokens are taken as they are
    words,  # [programs * BLOCK_M, capacity]: candidates, ascending by index
    fills,  # [programs * BLOCK_M] int32: how many there are
    bounds,  # [programs * BLOCK_M]: what a candidate has to exceed
    values,  # [n_tokens, k] as integers of the same bits
    indices,  # [n_tokens, k] int32
    n_tokens,
    n,
    d,
    k,
    capacity,  # at least k + BLOCK_N
    stride_x,
    stride_scale,
    stride_shift,
    stride_W_enc,
    eps,
    LAYER_NORM: tl.constexpr,
    INFINITY: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,  # rows cut at once
    WORDS: tl.constexpr,  # words of each at a time
):
    i_program = tl.program_id(0)
    o_row = tl.arange(0, BLOCK_M)
    o_first = i_program.to(tl.int64) * BLOCK_M
    words += o_first * capacity
    fills += o_first
    bounds += o_first
    LEAST: tl.constexpr = 0x7FFFFFFF if WIDE else -0x7FFE0001  # the largest word of key 0
    for i_block in range(i_program, tl.cdiv(n_tokens, BLOCK_M), tl.num_programs(0)):
        first_token = i_block * BLOCK_M
        if x_mod is not None:
            o_token = tl.cast(first_token, tl.int64) + o_row
            m_token = o_token < n_tokens
            p_x = x + o_token * stride_x
            if LAYER_NORM:
                mean, inverse = row_statistics(p_x, m_token, d, eps, BLOCK_M, BLOCK_K)
            else:
                mean, inverse = None, None
            p_scale = group_rows(scale, group, o_token, m_token, stride_scale)
            p_shift = group_rows(shift, group, o_token, m_token, stride_shift)
            for start in range(0, d, BLOCK_K):
                o_column = start + tl.arange(0, BLOCK_K)
                mask = m_token[:, None] & (o_column < d)[None, :]
                tile = tl.load(p_x[:, None] + o_column[None, :], mask=mask, other=0)
                tile = modulated(tile, mean, inverse, p_scale, p_shift, o_column, mask)
                p_out = x_mod + o_first * d + (o_row[:, None] * d + o_column[None, :])
                tl.store(p_out, tile.to(x_mod.dtype.element_ty), mask=(o_column < d)[None, :])
        tl.store(fills + o_row, tl.zeros([BLOCK_M], tl.int32))
        tl.store(bounds + o_row, tl.full([BLOCK_M], LEAST, bounds.dtype.element_ty))
        # Other threads read what one thread has written, here and below.
        tl.debug_barrier()

        for i_n in range(tl.cdiv(n, BLOCK_N)):
            acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            if x_mod is not None:
                rows_a, i_a, limit, stride_a = x_mod, i_program, tl.num_programs(0) * BLOCK_M, d
            else:
                rows_a, i_a, limit, stride_a = x, i_block, n_tokens, stride_x
            acc = accumulate(
                acc,
                rows_a,
                W_enc,
                i_a,
                i_n,
                limit,
                n,
                d,
                stride_a,
                1,
                1,
                stride_W_enc,
                PRECISION,
                BLOCK_M,
                BLOCK_N,
                BLOCK_K,
            )
            o_latent = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
            if b_enc is not None:
                acc += tl.load(b_enc + o_latent, mask=o_latent < n, other=0).to(tl.float32)[None, :]
            pre = acc.to(W_enc.dtype.element_ty)
            candidates = _pack(pre, o_latent[None, :], INFINITY, WIDE)
            fill, bound = tl.load(fills + o_row), tl.load(bounds + o_row)
            passes = (candidates > bound[:, None]) & (o_latent < n)[None, :]
            ranks = tl.cumsum(passes.to(tl.int32), 1)
            tl.store(words + (o_row[:, None] * capacity + fill[:, None] + ranks - 1), candidates, mask=passes)
            fill += tl.sum(passes.to(tl.int32), 1)
            tl.debug_barrier()
            tl.store(fills + o_row, fill)
            tl.debug_barrier()
            # Read again: Triton 3.7 cannot lower, on sm_100, a reduction of what was computed from a product.
            if tl.max(tl.load(fills + o_row), 0) + BLOCK_N > capacity:
                _cut_rows(words, fills, bounds, k, capacity, BLOCK_M, ROWS, WORDS)
                tl.debug_barrier()
        _cut_rows(words, fills, bounds, k, capacity, BLOCK_M, ROWS, WORDS)
        tl.debug_barrier()

        for first in range(0, BLOCK_M, ROWS):
            _write_code(words, fills, values, indices, first_token, first, n_tokens, k, capacity, WIDE, ROWS, WORDS)
        tl.debug_barrier()


def encode(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    group: Tensor | None,
    layer_norm: bool,
    W_enc: Tensor,
    b_enc: Tensor | None,
    k: int,
) -> tuple[Tensor, Tensor]:
    """``select(x_mod W_enc^T + b_enc)`` with x_mod as `modulate` gives it, in one launch.

    Pre-activations are rounded to the dtype of W_enc before the selection. Returns values ``[n_tokens, k]`` in
    that dtype and indices in int32, as `select` does.
    """
    (n_tokens, d_model), n_latents = x.shape, len(W_enc)
    dtype, device = W_enc.dtype, W_enc.device
    alters = scale is not None or shift is not None or layer_norm or x.dtype != dtype
    x, W_enc = launch.rows_contiguous(x), launch.rows_contiguous(W_enc)
    scale, shift = (None if table is None else launch.rows_contiguous(table) for table in (scale, shift))
    config = launch.config("encode", W_enc, d_model)
    programs = min(triton.cdiv(n_tokens, config["BLOCK_M"]), launch.processors(device))
    rows = programs * config["BLOCK_M"]
    capacity = k + max(config["BLOCK_N"], k // 2)
    wide = _wide(dtype, n_latents)
    word = torch.int64 if wide else torch.int32
    values = launch.empty(n_tokens, k, dtype=dtype, device=device)
    indices = launch.empty(n_tokens, k, dtype=torch.int32, device=device)
    launch.launch(
        encode_kernel,
        (programs,),
        device,
        x,
        scale,
        shift,
        None if group is None else launch.contiguous(group),
        W_enc,
        None if b_enc is None else launch.contiguous(b_enc),
        launch.empty(rows, d_model, dtype=dtype, device=device) if alters else None,
        launch.empty(rows, capacity, dtype=word, device=device),
        launch.empty(rows, dtype=torch.int32, device=device),
        launch.empty(rows, dtype=word, device=device),
        values.view(INTEGERS[dtype]),
        indices,
        n_tokens,
        n_latents,
        d_model,
        k,
        capacity,
        x.stride(0),
        0 if scale is None else scale.stride(0),
        0 if shift is None else shift.stride(0),
        W_enc.stride(0),
        LAYER_NORM_EPS,
        LAYER_NORM=layer_norm,
        INFINITY=INFINITY_BITS[dtype],
        WIDE=wide,
        PRECISION=launch.dot_precision(dtype),
        **_tiles(config),
        **launch.options(config),
    )
    return values, indices


def single_launch(device: torch.device, dtype: torch.dtype, n_tokens: int, n_latents: int, k: int) -> bool:
    """Whether `encode` is faster than separate product and selection. It was not measured, so it is never chosen
    automatically (see benchmarks/NOTES.md)."""
    return False


def _wide(dtype: torch.dtype, n_latents: int) -> bool:
    return dtype == torch.float32 or n_latents > _NARROW_LATENTS


def _tiles(config: Config) -> dict[str, int]:
    return {name: config[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "ROWS", "WORDS")}


def _spec(arch: str, dtype: torch.dtype, precision: str, altered: bool) -> Spec:
    kind = TYPES[dtype]
    word = "*i64" if _wide(dtype, 18432) else "*i32"
    bits = "*i32" if dtype == torch.float32 else "*i16"
    signature = {name: f"*{kind}" for name in ("x", "W_enc", "b_enc")}
    signature |= {"words": word, "fills": "*i32", "bounds": word, "values": bits, "indices": "*i32", "eps": "fp32"}
    aligned = ("n", "d", "stride_x", "stride_scale", "stride_shift", "stride_W_enc")
    signature |= {name: "i32" for name in (*aligned, "n_tokens", "k", "capacity")}
    constants: dict[str, object] = {"INFINITY": INFINITY_BITS[dtype], "WIDE": _wide(dtype, 18432)}
    constants |= {"PRECISION": precision, "LAYER_NORM": altered}
    if altered:
        signature |= {"scale": f"*{kind}", "shift": f"*{kind}", "group": "*i64", "x_mod": f"*{kind}"}
    else:
        constants |= {"scale": None, "shift": None, "group": None, "x_mod": None}
    config = static("encode", arch, dtype, 1152)
    name = f"encode {kind} {precision}{' modulated' * altered}"
    return spec(name, arch, encode_kernel, signature, constants, config, aligned)


AOT = [
    _spec(arch, dtype, precision, altered)
    for arch in ARCHS
    for dtype, precision in PRECISIONS
    for altered in (False, True)
]
