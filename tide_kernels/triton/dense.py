"""Products with a masked chunk z ``[C, n]``: an entry is selected where it is not 0, NaN included.

`masked_gradient` is the one product that cuBLAS cannot finish: its epilogue masks, adds the gradients of the
latents' own loss terms and computes column sums. Each program stores the sums of its tile, and these are added up
in a fixed order. `decode_dense` and `add_product_` are plain products into float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tide_kernels.triton import launch
from tide_kernels.triton.configs import static
from tide_kernels.triton.product import accumulate, blocks, has_mixed_products, product, tile_of
from tide_kernels.triton.specs import ARCHS, PRECISIONS, TYPES, Spec, spec


@triton.jit(do_not_specialize=["n_tokens"])
def masked_gradient_kernel(
    grad,  # [n_tokens, d]
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWIZZLE: tl.constexpr,
):
    i_m, i_n = tile_of(tl.program_id(0), n_tokens, n, BLOCK_M, BLOCK_N, SWIZZLE)
    first_token = i_m * BLOCK_M
    o_token, o_latent = tl.arange(0, BLOCK_M), i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_latent = o_latent < n
    mask = (o_token < n_tokens - first_token)[:, None] & m_latent[None, :]
    p_z = z + first_token.to(tl.int64) * n
    o_tile = o_token[:, None] * n + o_latent[None, :]
    # The latents' own terms come first, one after another, and the product is added to them: all at the end would
    # need more registers than there are.
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if PAIRED:
        code = tl.load(p_z + o_tile, mask=mask, other=0).to(tl.float32)
        o_partner = (o_token ^ 1)[:, None] * n + o_latent[None, :]
        acc += pair_factor * (code - tl.load(p_z + o_partner, mask=mask, other=0).to(tl.float32))
        tl.debug_barrier()
    if soft_factor is not None:
        code = tl.load(p_z + o_tile, mask=mask, other=0).to(tl.float32)
        square = soft_eps * soft_eps
        spread = code * code + square
        acc += tl.load(soft_factor) * (2 * square / n) * code / (spread * spread)
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
    selected = tl.load(p_z + o_tile, mask=mask, other=0).to(tl.float32) != 0
    out = tl.where(selected, acc, 0).to(grad_pre.dtype.element_ty)
    tl.store(grad_pre + first_token.to(tl.int64) * n + o_tile, out, mask=mask)
    o_sum = i_m.to(tl.int64) * n + o_latent
    if sums is not None:
        tl.store(sums + o_sum, tl.sum(out.to(tl.float32), 0), mask=m_latent)
    if counts is not None:
        tl.store(counts + o_sum, tl.sum(selected.to(tl.int32), 0), mask=m_latent)


@triton.jit(do_not_specialize=["n_tokens"])
def code_sums_kernel(
    z,  # [n_tokens, n]
    out,  # [2, programs] float32: temporal, soft
    n_tokens,
    n,
    soft_eps,
    PAIRED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program: two rows, a pair if PAIRED."""
    i_pair = tl.program_id(0)
    p_first = z + i_pair.to(tl.int64) * 2 * n
    has_second = i_pair * 2 + 1 < n_tokens
    temporal, soft = tl.zeros([COLUMNS], tl.float32), tl.zeros([COLUMNS], tl.float32)
    square = soft_eps * soft_eps
    for start in range(0, n, COLUMNS):
        o_latent = start + tl.arange(0, COLUMNS)
        mask = o_latent < n
        first = tl.load(p_first + o_latent, mask=mask, other=0).to(tl.float32)
        second = tl.load(p_first + n + o_latent, mask=mask & has_second, other=0).to(tl.float32)
        if PAIRED:
            temporal += (first - second) * (first - second)
        soft += first * first / (first * first + square) + second * second / (second * second + square)
    tl.store(out + i_pair, tl.sum(temporal, 0))
    tl.store(out + tl.num_programs(0) + i_pair, tl.sum(soft, 0) / n)


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
    grad_pre = launch.empty(n_tokens, n_latents, dtype=z.dtype, device=z.device)
    config = launch.config("masked_gradient", z, grad.shape[1])
    tiles = triton.cdiv(n_tokens, config["BLOCK_M"])
    sums = counts = None
    if grad_b_enc is not None:
        sums = launch.empty(tiles, n_latents, dtype=torch.float32, device=z.device)
    if fired is not None:
        counts = launch.empty(tiles, n_latents, dtype=torch.int32, device=z.device)
    launch.launch(
        masked_gradient_kernel,
        (tiles * triton.cdiv(n_latents, config["BLOCK_N"]),),
        z.device,
        grad,
        W_dec,
        z,
        None if soft_factor is None else launch.contiguous(soft_factor),
        grad_pre,
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
        **blocks(config),
        **launch.options(config),
    )
    if grad_b_enc is not None and sums is not None:
        grad_b_enc += sums.sum(0)
    if fired is not None and counts is not None:
        fired += counts.sum(0)
    return grad_pre


def code_sums(z: Tensor, paired: bool, soft_eps: float) -> tuple[Tensor, Tensor]:
    """``sum over pairs |z_2i - z_2i+1|^2`` (0 unless paired) and ``sum v^2 / (v^2 + e^2) / n``, float32 scalars."""
    n_tokens, n_latents = z.shape
    z = launch.contiguous(z)
    programs = triton.cdiv(n_tokens, 2)
    out = launch.empty(2, programs, dtype=torch.float32, device=z.device)
    config = launch.config("code_sums", z, n_latents)
    launch.launch(
        code_sums_kernel,
        (programs,),
        z.device,
        z,
        out,
        n_tokens,
        n_latents,
        float(soft_eps),
        PAIRED=paired,
        COLUMNS=config["COLUMNS"],
        **launch.options(config),
    )
    temporal, soft = out.sum(1).unbind()
    return temporal, soft


def decode_dense(z: Tensor, W: Tensor) -> Tensor:
    """``z W``, float32 ``[C, d_model]``."""
    if has_mixed_products(z):
        return z @ W if z.dtype == torch.float32 else torch.mm(z, W, out_dtype=torch.float32)
    out = launch.empty(len(z), W.shape[1], dtype=torch.float32, device=z.device)
    product(z, W, out)
    return out


def add_product_(out: Tensor, z: Tensor, rows: Tensor) -> None:
    """``out += z^T rows``, out float32 ``[n, d_model]``; rows are rounded to the dtype of z."""
    rows = rows.to(z.dtype)
    if not has_mixed_products(z):
        product(z.T, rows, out, add=True)
    elif z.dtype == torch.float32:
        out.addmm_(z.T, rows)
    else:
        torch.addmm(out, z.T, rows, out_dtype=torch.float32, out=out)


def _masked_gradient_spec(arch: str, dtype: torch.dtype, precision: str, terms: bool) -> Spec:
    kind = TYPES[dtype]
    signature = {"grad": f"*{kind}", "W_dec": f"*{kind}", "z": f"*{kind}", "grad_pre": f"*{kind}"}
    signature |= {"sums": "*fp32", "counts": "*i32", "pair_factor": "fp32", "soft_eps": "fp32"}
    signature |= {name: "i32" for name in ("n_tokens", "n", "d", "stride_grad", "stride_W_dec")}
    constants: dict[str, object] = {"PAIRED": terms, "PRECISION": precision}
    if terms:
        signature["soft_factor"] = "*fp32"
    else:
        constants["soft_factor"] = None
    config = static("masked_gradient", arch, dtype, 1152)
    name = f"masked_gradient {kind} {precision}{' pairs soft' * terms}"
    aligned = ("n", "d", "stride_grad", "stride_W_dec")
    return spec(name, arch, masked_gradient_kernel, signature, constants, config, aligned)


def _code_sums_spec(arch: str, dtype: torch.dtype) -> Spec:
    signature = {"z": f"*{TYPES[dtype]}", "out": "*fp32", "n_tokens": "i32", "n": "i32", "soft_eps": "fp32"}
    config = static("code_sums", arch, dtype, 18432)
    return spec(f"code_sums {TYPES[dtype]}", arch, code_sums_kernel, signature, {"PAIRED": True}, config, ("n",))


AOT = [
    record
    for arch in ARCHS
    for dtype, precision in PRECISIONS
    for record in (
        _masked_gradient_spec(arch, dtype, precision, False),
        _masked_gradient_spec(arch, dtype, precision, True),
    )
] + [_code_sums_spec(arch, dtype) for arch in ARCHS for dtype in TYPES]
