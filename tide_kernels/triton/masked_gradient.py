"""The gradient of the pre-activations: the one product of the dense regime that cuBLAS cannot finish.

The epilogue adds the gradients of the latents' own loss terms, masks, and computes column sums. Those of each tile are
stored, and added up in a fixed order. z is read by pointers; all else by pointers or, where the configuration says so
and the operands lie well, by descriptors, for which the hardware copies whole tiles (TMA).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from tide_kernels.triton import launch
from tide_kernels.triton.configs import FAR, Config, static
from tide_kernels.triton.product import accumulate, blocks, tile_of
from tide_kernels.triton.specs import ARCHS, PRECISIONS, TYPES, Spec, spec, without

_TMA_BYTES = 16  # addresses and strides of a descriptor are multiples of it
# What is configured for descriptors and cannot have them: addresses take registers that four warps have not.
_BY_POINTERS = {"num_warps": 8}


@triton.jit
def _finish(
    acc,  # [ROWS, COLUMNS]: the product
    z,  # [ROWS, COLUMNS]
    soft_factor,
    n,
    pair_factor,
    soft_eps,
    PAIRED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradient, and whether each entry is selected."""
    code = z.to(tl.float32)
    if PAIRED:
        # The sum over a pair of +first and -second, which both rows get with their own sign. Nothing is loaded again.
        sign = 1 - 2 * tl.arange(0, 2).to(tl.float32)[None, :, None]
        difference = tl.sum(tl.reshape(code, [ROWS // 2, 2, COLUMNS]) * sign, 1)[:, None, :] * sign
        acc += pair_factor * tl.reshape(difference, [ROWS, COLUMNS])
    if soft_factor is not None:
        square = soft_eps * soft_eps
        inverse = tl.rsqrt(code * code + square)
        inverse *= inverse
        acc += tl.load(soft_factor) * (2 * square / n) * code * (inverse * inverse)
    selected = code != 0
    return tl.where(selected, acc, 0).to(z.dtype), selected


@triton.jit
def _store_sums(out, selected, sums, counts, i_m, o_latent, n, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Stores the tile's column sums of ``out`` and of ``selected``."""
    o_sum = i_m.to(tl.int64) * n + o_latent
    if sums is not None:
        tl.store(sums + o_sum, tl.sum(out.to(tl.float32), 0), mask=o_latent < n)
    if counts is not None:
        # Two columns share a word, since a tile has fewer than 2^15 rows.
        low, high = tl.split(tl.reshape(selected.to(tl.int32), [ROWS, COLUMNS // 2, 2]))
        words = tl.sum(low + (high << 16), 0)
        count = tl.reshape(tl.join(words & 0xFFFF, words >> 16), [COLUMNS])
        tl.store(counts + o_sum, count, mask=o_latent < n)


@triton.jit
def _codes(z, first_token, first_latent, n_tokens, n, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A piece of z, and its mask and offsets."""
    o_token, o_latent = tl.arange(0, ROWS), first_latent + tl.arange(0, COLUMNS)
    mask = (o_token < n_tokens - first_token)[:, None] & (o_latent < n)[None, :]
    offsets = first_token.to(tl.int64) * n + (o_token[:, None] * n + o_latent[None, :])
    return tl.load(z + offsets, mask=mask, other=0), mask, offsets


@triton.jit
def _pieces(acc, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr):
    """A tuple of the tile's columns in PARTS pieces."""
    if PARTS == 1:
        return (acc,)
    else:
        HALF: tl.constexpr = COLUMNS // 2
        left, right = tl.split(tl.permute(tl.reshape(acc, [ROWS, 2, HALF]), [0, 2, 1]))
        return _pieces(left, ROWS, HALF, PARTS // 2) + _pieces(right, ROWS, HALF, PARTS // 2)


@triton.jit
def _finish_tile(
    acc,
    z,
    soft_factor,
    grad_pre,
    sums,
    counts,
    i_m,
    i_n,
    n_tokens,
    n,
    pair_factor,
    soft_eps,
    PAIRED: tl.constexpr,
    TMA: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Finishes a tile in PARTS pieces, since registers do not hold all at once.

    Descriptors spare registers of addresses. With them, a piece of z is under way while the one before is finished,
    and the first one while the last products are.
    """
    PART: tl.constexpr = COLUMNS // PARTS
    first_token, first_latent = i_m * ROWS, i_n * COLUMNS
    if TMA:
        code, mask, offsets = _codes(z, first_token, first_latent, n_tokens, n, ROWS, PART)
    pieces = _pieces(acc, ROWS, COLUMNS, PARTS)
    for i in tl.static_range(PARTS):
        latent = first_latent + i * PART
        if not TMA:
            code, mask, offsets = _codes(z, first_token, latent, n_tokens, n, ROWS, PART)
        elif i + 1 < PARTS:
            following, mask, offsets = _codes(z, first_token, latent + PART, n_tokens, n, ROWS, PART)
        out, selected = _finish(pieces[i], code, soft_factor, n, pair_factor, soft_eps, PAIRED, ROWS, PART)
        if TMA:
            grad_pre.store([first_token, latent], out)
        else:
            tl.store(grad_pre + offsets, out, mask=mask)
        _store_sums(out, selected, sums, counts, i_m, latent + tl.arange(0, PART), n, ROWS, PART)
        if TMA and i + 1 < PARTS:
            code = following


@triton.jit
def _tile(
    i_tile,
    grad,
    W_dec,
    z,
    soft_factor,
    grad_pre,
    sums,
    counts,
    n_tokens,
    n,
    d,
    stride_grad,
    stride_W_dec,
    pair_factor,
    soft_eps,
    PAIRED: tl.constexpr,
    PRECISION: tl.constexpr,
    TMA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWIZZLE: tl.constexpr,
    PARTS: tl.constexpr,
):
    i_m, i_n = tile_of(i_tile, n_tokens, n, BLOCK_M, BLOCK_N, SWIZZLE)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if TMA:
        for start in range(0, d, BLOCK_K):  # beyond the edges, the hardware reads zeros and writes nothing
            left, right = grad.load([i_m * BLOCK_M, start]), W_dec.load([i_n * BLOCK_N, start])
            acc = tl.dot(left, right.T, acc, input_precision=PRECISION)
    else:
        acc = accumulate(
            acc,
            grad,
            W_dec,
            i_m,
            i_n,
            n_tokens,
            n,
            d,
            stride_grad,
            1,
            1,
            stride_W_dec,
            PRECISION,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
        )
    _finish_tile(
        acc,
        z,
        soft_factor,
        grad_pre,
        sums,
        counts,
        i_m,
        i_n,
        n_tokens,
        n,
        pair_factor,
        soft_eps,
        PAIRED,
        TMA,
        BLOCK_M,
        BLOCK_N,
        PARTS,
    )


@triton.jit(do_not_specialize=["n_tokens"])
def masked_gradient_kernel(
    grad,  # [n_tokens, d]: a pointer or, if TMA, a descriptor of such a tensor; so are W_dec and grad_pre
    W_dec,  # [n, d]
    z,  # [n_tokens, n]
    soft_factor,  # [] float32 or None
    grad_pre,  # [n_tokens, n]
    sums,  # [tiles of tokens, n] float32 or None
    counts,  # [tiles of tokens, n] int32 or None
    n_tokens,
    n,
    d,
    stride_grad,
    stride_W_dec,
    pair_factor,
    soft_eps,
    PAIRED: tl.constexpr,
    PRECISION: tl.constexpr,
    TMA: tl.constexpr,
    PERSISTENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWIZZLE: tl.constexpr,
    PARTS: tl.constexpr,
):
    """One tile a program or, if PERSISTENT, one after another; the next one is copied while one is finished."""
    if PERSISTENT:
        tl.assume(d > 0)  # or else the compiler makes a second kernel, for sums of nothing
        tiles = tl.cdiv(n_tokens, BLOCK_M) * tl.cdiv(n, BLOCK_N)
        for i_tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
            _tile(
                i_tile,
                grad,
                W_dec,
                z,
                soft_factor,
                grad_pre,
                sums,
                counts,
                n_tokens,
                n,
                d,
                stride_grad,
                stride_W_dec,
                pair_factor,
                soft_eps,
                PAIRED,
                PRECISION,
                TMA,
                BLOCK_M,
                BLOCK_N,
                BLOCK_K,
                SWIZZLE,
                PARTS,
            )
    else:
        _tile(
            tl.program_id(0),
            grad,
            W_dec,
            z,
            soft_factor,
            grad_pre,
            sums,
            counts,
            n_tokens,
            n,
            d,
            stride_grad,
            stride_W_dec,
            pair_factor,
            soft_eps,
            PAIRED,
            PRECISION,
            TMA,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
            SWIZZLE,
            PARTS,
        )


def masked_gradient(
    grad: Tensor,
    W_dec: Tensor,
    z: Tensor,
    pair_factor: float,
    soft_factor: Tensor | None,
    soft_eps: float,
    grad_b_enc: Tensor | None,
    fired: Tensor | None,
) -> Tensor:
    """``[z != 0] * (grad W_dec^T + pair_factor (z_i - z_{i^1}) + soft_factor s'(z))``, ``[C, n]`` in z's dtype.

    ``s'(v) = 2 e^2 v / (n (v^2 + e^2)^2)`` with e = soft_eps. Adds the column sums of the result to grad_b_enc
    ``[n]`` float32 and those of ``z != 0`` to fired ``[n]`` int64. soft_factor is a float32 scalar tensor.
    """
    n_tokens, n_latents = z.shape
    grad, W_dec = launch.rows_contiguous(grad.to(z.dtype)), launch.rows_contiguous(W_dec)
    z = launch.contiguous(z)
    config = launch.config("masked_gradient", z, grad.shape[1])
    tiles = launch.cdiv(n_tokens, config["BLOCK_M"])
    sums = counts = None
    if grad_b_enc is not None:
        sums = launch.empty(tiles, n_latents, dtype=torch.float32, device=z.device)
    if fired is not None:
        counts = launch.empty(tiles, n_latents, dtype=torch.int32, device=z.device)
    terms = (None if soft_factor is None else launch.contiguous(soft_factor), sums, counts)
    grad_pre = _launch(grad, W_dec, z, pair_factor, soft_eps, terms, config)
    if grad_b_enc is not None and sums is not None:
        grad_b_enc += sums.sum(0)
    if fired is not None and counts is not None:
        fired += counts.sum(0)
    return grad_pre


_Terms = tuple[Tensor | None, Tensor | None, Tensor | None]  # soft_factor, sums and counts


def _launch(
    grad: Tensor, W_dec: Tensor, z: Tensor, pair_factor: float, soft_eps: float, terms: _Terms, config: Config
) -> Tensor:
    (n_tokens, n_latents), (soft_factor, sums, counts) = z.shape, terms
    grad_pre = launch.empty(n_tokens, n_latents, dtype=z.dtype, device=z.device)
    tiles = triton.cdiv(n_tokens, config["BLOCK_M"])
    operands: dict[str, Tensor | TensorDescriptor] = {"grad": grad, "W_dec": W_dec, "grad_pre": grad_pre}
    programs, resident = tiles * launch.cdiv(n_latents, config["BLOCK_N"]), config.get("persistent", 0)
    wanted = bool(config.get("tma") or resident)
    tma = wanted and all(map(_suits_tma, (grad, W_dec, grad_pre)))
    options = launch.options(config | _BY_POINTERS if wanted and not tma else config)
    if tma:
        boxes = _boxes(config)
        operands = {name: TensorDescriptor.from_tensor(t, boxes[name]) for name, t in operands.items()}
    persistent = tma and resident > 0
    if persistent:
        programs = min(programs, resident * launch.processors(z.device))
    launch.launch(
        masked_gradient_kernel,
        (programs,),
        z.device,
        operands["grad"],
        operands["W_dec"],
        z,
        soft_factor,
        operands["grad_pre"],
        sums,
        counts,
        n_tokens,
        n_latents,
        grad.shape[1],
        grad.stride(0),
        W_dec.stride(0),
        float(pair_factor),
        float(soft_eps),
        PAIRED=pair_factor != 0,
        PRECISION=launch.dot_precision(z.dtype),
        TMA=tma,
        PERSISTENT=persistent,
        PARTS=config["PARTS"],
        **blocks(config),
        **options,
    )
    return grad_pre


def _suits_tma(tensor: Tensor) -> bool:
    """Whether a descriptor of the matrix can be made."""
    stride = tensor.stride(0) * tensor.element_size()
    return tensor.numel() > 0 and tensor.data_ptr() % _TMA_BYTES == 0 and stride % _TMA_BYTES == 0


def _boxes(config: Config) -> dict[str, list[int]]:
    """What one copy by each of the descriptors moves."""
    rows, columns, inner = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    return {"grad": [rows, inner], "W_dec": [columns, inner], "grad_pre": [rows, columns // config["PARTS"]]}


def _spec(arch: str, dtype: torch.dtype, precision: str, terms: bool, far: Config) -> Spec:
    kind, config = TYPES[dtype], static("masked_gradient", arch, dtype, 1152) | far
    tma, persistent = "tma" in far, "persistent" in far
    if config.get("tma") and not tma:
        config = config | _BY_POINTERS
    if tma:
        signature = {name: f"tensordesc<{kind}{box}>" for name, box in _boxes(config).items()}
    else:
        signature = {name: f"*{kind}" for name in _boxes(config)}
    signature |= {"z": f"*{kind}", "sums": "*fp32", "counts": "*i32", "pair_factor": "fp32", "soft_eps": "fp32"}
    signature |= {name: "i32" for name in ("n_tokens", "n", "d", "stride_grad", "stride_W_dec")}
    constants: dict[str, object] = {"PAIRED": terms, "PRECISION": precision, "TMA": tma, "PERSISTENT": persistent}
    if terms:
        signature["soft_factor"] = "*fp32"
    else:
        constants["soft_factor"] = None
    way = f"{' persistent' if persistent else ' tma'} {config['BLOCK_M']}x{config['BLOCK_N']}" if tma else ""
    name = f"masked_gradient{way} {kind} {precision}{' pairs soft' * terms}"
    aligned = ("n", "d", "stride_grad", "stride_W_dec")
    return spec(name, arch, masked_gradient_kernel, signature, constants, config, aligned)


AOT = [
    _spec(arch, dtype, precision, terms, far)
    for arch in ARCHS
    for dtype, precision in PRECISIONS
    for far in ({}, *FAR["masked_gradient"])
    if far.keys() <= static("masked_gradient", arch, dtype, 1152).keys()
    for terms in (False, True)
]
AOT += [
    without(record, "sums", "counts")
    for record in list(AOT)
    if "bf16" in record.name.split() and not record.constexprs["PAIRED"]
]
