"""A masked chunk z ``[C, n]``: its plain products into float32, and the sums of the latents' own loss terms.

An entry is selected where it is not 0, NaN included. `masked_gradient` has a file of its own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tide_kernels.triton import launch
from tide_kernels.triton.configs import static
from tide_kernels.triton.product import has_mixed_products, product
from tide_kernels.triton.specs import ARCHS, TYPES, Spec, spec, without


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


def code_sums(z: Tensor, paired: bool, soft_eps: float) -> tuple[Tensor, Tensor]:
    """``sum over pairs |z_2i - z_2i+1|^2`` (0 unless paired) and ``sum v^2 / (v^2 + e^2) / n``, float32 scalars."""
    n_tokens, n_latents = z.shape
    z = launch.contiguous(z)
    programs = launch.cdiv(n_tokens, 2)
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


def _code_sums_spec(arch: str, dtype: torch.dtype) -> Spec:
    signature = {"z": f"*{TYPES[dtype]}", "out": "*fp32", "n_tokens": "i32", "n": "i32", "soft_eps": "fp32"}
    config = static("code_sums", arch, dtype, 18432)
    return spec(f"code_sums {TYPES[dtype]}", arch, code_sums_kernel, signature, {"PAIRED": True}, config, ("n",))


AOT = [_code_sums_spec(arch, dtype) for arch in ARCHS for dtype in TYPES]
AOT += [without(_code_sums_spec(arch, torch.bfloat16), PAIRED=False) for arch in ARCHS]
