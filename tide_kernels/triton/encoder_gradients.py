"""The gradients of the encoder's weight, of scale and of shift, in one pass.

Within a group g of tokens, ``x_mod = u (1 + s_g) + b_g``. With ``M_g = dpre_g^T u`` and ``S_g`` the column sums
of the group's rows of dpre,

    dW_enc  = sum_g (1 + s_g) M_g + S_g b_g^T,
    dscale_g = sum over latents of W_enc * M_g,     dshift_g = S_g W_enc,

so that no product is needed for the gradient of x_mod. One kernel walks over the tokens ordered by group and adds
each group's M_g to the total where the group ends; S_g and its products are small. The other way computes the
gradient of x_mod and sums it by group: one product more, by cuBLAS.
"""

from __future__ import annotations

from importlib import import_module

import torch
import triton
import triton.language as tl
from torch import Tensor

from tide_kernels import codes
from tide_kernels.dispatch import Primitives
from tide_kernels.modulation import add_by_group, by_group
from tide_kernels.triton import launch
from tide_kernels.triton.configs import static
from tide_kernels.triton.dense import add_product_, decode_dense
from tide_kernels.triton.modulate import modulate
from tide_kernels.triton.product import blocks, tile_of
from tide_kernels.triton.specs import ARCHS, PRECISIONS, TYPES, Spec, spec, without


@triton.jit
def encoder_gradients_kernel(
    grad_pre,  # [n_tokens, n]
    u,  # [n_tokens, d], of the same dtype, in the order of `order`
    W_enc,  # [n, d]
    scale,  # [groups, d] or None
    order,  # [n_tokens] int64: the tokens, ascending by group
    offsets,  # [groups + 1] int64: group g has order[offsets[g]:offsets[g + 1]]
    grad_W_enc,  # [n, d] float32 or None
    part_scale,  # [groups, tiles of latents, d] float32 or None
    n,
    d,
    groups,
    stride_u,
    stride_W_enc,
    stride_scale,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,  # latents
    BLOCK_N: tl.constexpr,  # columns of u
    BLOCK_K: tl.constexpr,  # tokens
    SWIZZLE: tl.constexpr,
):
    i_m, i_n = tile_of(tl.program_id(0), n, d, BLOCK_M, BLOCK_N, SWIZZLE)
    o_latent, o_column = i_m * BLOCK_M + tl.arange(0, BLOCK_M), i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_latent, m_column = o_latent < n, o_column < d
    o_row = tl.arange(0, BLOCK_M)
    o_tile = o_row[:, None] * d + o_column[None, :]
    o_weight = o_row[:, None] * stride_W_enc + o_column[None, :]
    mask = m_latent[:, None] & m_column[None, :]
    first_latent = (i_m * BLOCK_M).to(tl.int64)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for i_group in range(groups):
        begin, end = tl.load(offsets + i_group), tl.load(offsets + i_group + 1)
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(begin, end, BLOCK_K):
            o_entry = start + tl.arange(0, BLOCK_K)
            m_entry = o_entry < end
            tokens = tl.load(order + o_entry, mask=m_entry, other=0)
            p_grad = grad_pre + tokens[:, None] * n + o_latent[None, :]
            p_u = u + o_entry[:, None] * stride_u + o_column[None, :]
            # Nothing but the product may read these: an operand that registers need too gets one buffer, which the
            # next copy overwrites while a product still reads it (Triton 3.6 and 3.7, on Hopper).
            slopes = tl.load(p_grad, mask=m_entry[:, None] & m_latent[None, :], other=0)
            inputs = tl.load(p_u, mask=m_entry[:, None] & m_column[None, :], other=0)
            acc = tl.dot(tl.trans(slopes), inputs, acc, input_precision=PRECISION)
        if part_scale is not None:
            weights = tl.load(W_enc + first_latent * stride_W_enc + o_weight, mask=mask, other=0).to(tl.float32)
            o_part = tl.cast(i_group * tl.cdiv(n, BLOCK_M) + i_m, tl.int64) * d + o_column
            tl.store(part_scale + o_part, tl.sum(acc * weights, 0), mask=m_column)
        if scale is not None:
            factor = 1 + tl.load(scale + i_group * stride_scale + o_column, mask=m_column, other=0).to(tl.float32)
            total += acc * factor[None, :]
        else:
            total += acc
    if grad_W_enc is not None:
        p_out = grad_W_enc + first_latent * d + o_tile
        tl.store(p_out, tl.load(p_out, mask=mask, other=0) + total, mask=mask)


def encoder_gradients(
    grad_pre: Tensor,
    x: Tensor,
    x_mod: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    group: Tensor | None,
    layer_norm: bool,
    W_enc: Tensor,
    grad_W_enc: Tensor | None,
    grad_scale: Tensor | None,
    grad_shift: Tensor | None,
) -> None:
    """Adds the contribution of ``grad_pre [C, n]`` to each of the three gradients that is not None, all float32."""
    if (grad_scale is not None or grad_shift is not None) and encoder_gradients_pay(grad_pre, x, scale, shift, group):
        _by_group(grad_pre, x, scale, shift, group, layer_norm, W_enc, grad_W_enc, grad_scale, grad_shift)
        return
    codes.encoder_gradients(
        _primitives(), grad_pre, x, x_mod, scale, shift, group, layer_norm, W_enc, grad_W_enc, grad_scale, grad_shift
    )


def _primitives() -> Primitives:
    """Those of the backend that this module is a part of, hence the late import."""
    return Primitives.of(import_module("tide_kernels.triton"))


def encoder_gradients_pay(
    grad_pre: Tensor, x: Tensor, scale: Tensor | None, shift: Tensor | None, group: Tensor | None
) -> bool:
    """Whether there are scale and shift, and enough tokens per group, for the kernel to pay."""
    if scale is None and shift is None:
        return False
    least = launch.config("encoder_gradients", grad_pre, x.shape[1])["group_tokens"]
    return len(x) >= least * _groups(scale, shift, group)


def _groups(scale: Tensor | None, shift: Tensor | None, group: Tensor | None) -> int:
    return 1 if group is None else next(len(table) for table in (scale, shift) if table is not None)


def _by_group(
    grad_pre: Tensor,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    group: Tensor | None,
    layer_norm: bool,
    W_enc: Tensor,
    grad_W_enc: Tensor | None,
    grad_scale: Tensor | None,
    grad_shift: Tensor | None,
) -> None:
    """Launches the kernel, after what the groups' column sums give without it."""
    (n_tokens, n_latents), d_model, device = grad_pre.shape, x.shape[1], x.device
    groups = _groups(scale, shift, group)
    if shift is not None:
        _add_parts_of_shift(grad_pre, shift, group, W_enc, grad_W_enc, grad_shift)
    u = modulate(x, None, None, None, True, grad_pre.dtype) if layer_norm else x.to(grad_pre.dtype)
    if group is None:
        order = torch.arange(n_tokens, device=device)
        offsets = torch.arange(2, device=device) * n_tokens
    else:
        ordered, order = group.long().sort(stable=True)
        offsets = torch.searchsorted(ordered, torch.arange(groups + 1, device=device))
        u = u[order]
    u, W_enc, grad_pre = launch.rows_contiguous(u), launch.rows_contiguous(W_enc), launch.contiguous(grad_pre)
    scale = None if scale is None else launch.rows_contiguous(scale)
    config = launch.config("encoder_gradients", grad_pre, d_model)
    tiles = launch.cdiv(n_latents, config["BLOCK_M"])
    part_scale = None
    if grad_scale is not None:
        part_scale = launch.empty(groups, tiles, d_model, dtype=torch.float32, device=device)
    launch.launch(
        encoder_gradients_kernel,
        (tiles * launch.cdiv(d_model, config["BLOCK_N"]),),
        device,
        grad_pre,
        u,
        W_enc,
        scale,
        order,
        offsets,
        grad_W_enc,
        part_scale,
        n_latents,
        d_model,
        groups,
        u.stride(0),
        W_enc.stride(0),
        0 if scale is None else scale.stride(0),
        PRECISION=launch.dot_precision(grad_pre.dtype),
        **blocks(config),
        **launch.options(config),
    )
    if part_scale is not None and grad_scale is not None:
        grad_scale += part_scale.sum(1)


def _add_parts_of_shift(
    grad_pre: Tensor,
    shift: Tensor,
    group: Tensor | None,
    W_enc: Tensor,
    grad_W_enc: Tensor | None,
    grad_shift: Tensor | None,
) -> None:
    """Adds ``S_g W_enc`` to grad_shift and ``sum_g S_g b_g^T`` to grad_W_enc."""
    sums = torch.zeros(len(shift), grad_pre.shape[1], dtype=torch.float32, device=grad_pre.device)
    ops = _primitives()
    add_by_group(ops, grad_pre, by_group(ops, group, len(sums)), sums)
    if grad_shift is not None:
        grad_shift += decode_dense(sums, W_enc.float())
    if grad_W_enc is not None:
        add_product_(grad_W_enc, sums, shift)


def _spec(arch: str, dtype: torch.dtype, precision: str) -> Spec:
    kind = TYPES[dtype]
    signature = {name: f"*{kind}" for name in ("grad_pre", "u", "W_enc", "scale")}
    signature |= {"order": "*i64", "offsets": "*i64", "grad_W_enc": "*fp32", "part_scale": "*fp32"}
    aligned = ("n", "d", "stride_u", "stride_W_enc", "stride_scale")
    signature |= {name: "i32" for name in (*aligned, "groups")}
    config = static("encoder_gradients", arch, dtype, 1152)
    name = f"encoder_gradients {kind} {precision}"
    return spec(name, arch, encoder_gradients_kernel, signature, {"PRECISION": precision}, config, aligned)


AOT = [_spec(arch, dtype, precision) for arch in ARCHS for dtype, precision in PRECISIONS]
AOT += [
    without(_spec(arch, torch.bfloat16, "ieee"), *names)
    for arch in ARCHS
    for names in (("scale", "part_scale"), ("part_scale",), ("grad_W_enc",))
]
