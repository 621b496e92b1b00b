"""``x_mod = u * (1 + scale[group]) + shift[group]`` with u = x or LayerNorm(x), in float32, rounded once (eq. 8)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tide_kernels.reference import LAYER_NORM_EPS
from tide_kernels.triton import launch
from tide_kernels.triton.configs import Config, static
from tide_kernels.triton.specs import ARCHS, TYPES, Spec, spec, without


@triton.jit
def _read(p_rows, m_row, d, COLUMNS: tl.constexpr, CHUNKS: tl.constexpr):
    """The rows' chunks of COLUMNS elements, which stay in registers: all loads are in flight together."""
    chunks = ()
    for i in tl.static_range(CHUNKS):
        o_column = i * COLUMNS + tl.arange(0, COLUMNS)
        mask = m_row[:, None] & (o_column < d)[None, :]
        chunks += (tl.load(p_rows[:, None] + o_column[None, :], mask=mask, other=0),)  # type: ignore[assignment]
    return chunks


@triton.jit
def _statistics(chunks, d, eps, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNKS: tl.constexpr):
    """Mean and reciprocal standard deviation of rows, in two passes over registers."""
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for i in tl.static_range(CHUNKS):
        total += chunks[i].to(tl.float32)
    mean = tl.sum(total, 1) / d
    squares = tl.zeros([ROWS, COLUMNS], tl.float32)
    for i in tl.static_range(CHUNKS):
        centred = chunks[i].to(tl.float32) - mean[:, None]
        squares += tl.where((i * COLUMNS + tl.arange(0, COLUMNS) < d)[None, :], centred * centred, 0)
    return mean, 1 / tl.sqrt(tl.sum(squares, 1) / d + eps)


@triton.jit
def group_rows(table, group, o_token, m_token, stride):
    """Pointers to each token's row of ``table [groups, d]``."""
    if group is None:
        return table + tl.zeros_like(o_token)
    else:
        return table + tl.load(group + o_token, mask=m_token, other=0).to(tl.int64) * stride


@triton.jit
def modulate_rows(
    x,
    scale,
    shift,
    group,
    p_out,  # each token's row of the result
    o_token,
    m_token,
    d,
    stride_x,
    stride_scale,
    stride_shift,
    eps,
    LAYER_NORM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Modulates ROWS tokens. Arguments are those of `modulate_kernel`."""
    chunks = _read(x + o_token * stride_x, m_token, d, COLUMNS, CHUNKS)
    if LAYER_NORM:
        mean, inverse = _statistics(chunks, d, eps, ROWS, COLUMNS, CHUNKS)
    # A helper that returned None for an absent table would not compile with Triton 3.6.
    if scale is not None:
        p_scale = group_rows(scale, group, o_token, m_token, stride_scale)
    if shift is not None:
        p_shift = group_rows(shift, group, o_token, m_token, stride_shift)
    for i in tl.static_range(CHUNKS):
        o_column = i * COLUMNS + tl.arange(0, COLUMNS)
        mask = m_token[:, None] & (o_column < d)[None, :]
        out = chunks[i].to(tl.float32)
        if LAYER_NORM:
            out = (out - mean[:, None]) * inverse[:, None]
        if scale is not None:
            out *= 1 + tl.load(p_scale[:, None] + o_column[None, :], mask=mask, other=0).to(tl.float32)
        if shift is not None:
            out += tl.load(p_shift[:, None] + o_column[None, :], mask=mask, other=0).to(tl.float32)
        tl.store(p_out[:, None] + o_column[None, :], out.to(p_out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n_tokens"])
def modulate_kernel(
    x,  # [n_tokens, d]
    scale,  # [groups, d] or None, as the next
    shift,
    group,  # [n_tokens] int64 or None
    out,  # [n_tokens, d]
    n_tokens,
    d,
    stride_x,
    stride_scale,
    stride_shift,
    eps,
    LAYER_NORM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    o_token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    modulate_rows(
        x,
        scale,
        shift,
        group,
        out + o_token * d,
        o_token,
        o_token < n_tokens,
        d,
        stride_x,
        stride_scale,
        stride_shift,
        eps,
        LAYER_NORM,
        ROWS,
        COLUMNS,
        CHUNKS,
    )


def modulate(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    group: Tensor | None,
    layer_norm: bool,
    out_dtype: torch.dtype,
) -> Tensor:
    """``u * (1 + scale[group]) + shift[group]``, ``[n_tokens, d_model]`` in ``out_dtype``; group None: row 0."""
    n_tokens, d_model = x.shape
    x = launch.rows_contiguous(x)
    scale, shift = (None if table is None else launch.rows_contiguous(table) for table in (scale, shift))
    out = launch.empty(n_tokens, d_model, dtype=out_dtype, device=x.device)
    config = launch.config("modulate", x, d_model)
    launch.launch(
        modulate_kernel,
        (triton.cdiv(n_tokens, config["ROWS"]),),
        x.device,
        x,
        scale,
        shift,
        None if group is None else launch.contiguous(group),
        out,
        n_tokens,
        d_model,
        x.stride(0),
        0 if scale is None else scale.stride(0),
        0 if shift is None else shift.stride(0),
        LAYER_NORM_EPS,
        LAYER_NORM=layer_norm,
        ROWS=config["ROWS"],
        **columns(d_model, config),
        **launch.options(config),
    )
    return out


def columns(d_model: int, config: Config) -> dict[str, int]:
    """The chunks of a row: at most 64, all of which are in registers."""
    width = launch.cover(d_model, max(config["COLUMNS"], triton.next_power_of_2(d_model) // 8))
    return {"COLUMNS": width, "CHUNKS": triton.cdiv(d_model, width)}


def _spec(arch: str, dtype: torch.dtype, layer_norm: bool) -> Spec:
    kind = TYPES[dtype]
    signature = {"x": f"*{kind}", "scale": f"*{kind}", "shift": f"*{kind}", "group": "*i64", "out": f"*{kind}"}
    strides = ("stride_x", "stride_scale", "stride_shift")
    signature |= {name: "i32" for name in ("n_tokens", "d", *strides)} | {"eps": "fp32"}
    config = static("modulate", arch, dtype, 1152)
    constants = {"LAYER_NORM": layer_norm, **columns(1152, config)}
    name = f"modulate {kind}{' layer norm' * layer_norm}"
    return spec(name, arch, modulate_kernel, signature, constants, config, ("d", *strides))


AOT = [
    _spec(arch, dtype, layer_norm)
    for arch in ARCHS
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
    for layer_norm in (False, True)
]
AOT += [
    without(_spec(arch, torch.bfloat16, layer_norm), *names)
    for arch in ARCHS
    for layer_norm in (False, True)
    for names in (("scale",), ("shift",), ("group",), ("scale", "shift", "group"))
]
