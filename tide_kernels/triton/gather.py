"""Products of a compact code with rows of a weight matrix: `gather` (decode) and `sampled` (its gradient in values).

Both walk over a token's code a few places at a time, so that as many weight rows are loaded at once.
Sums are in float32. An unused place (index -1) reads nothing and adds nothing, whatever its value. Codes of thresholds
have several times the places that most rows use, the unused ones last: `gather` ends after a row's last used place.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tide_kernels.triton import launch
from tide_kernels.triton.configs import static
from tide_kernels.triton.specs import ARCHS, TYPES, Spec, spec

_SCAN = tl.constexpr(128)  # places looked at together, from the end: a code that is full costs one look


@triton.jit
def _end_of_used(p_indices, k):
    """How many of a row's places there are up to its last used one."""
    end, left = k, k
    while left > 0:
        o_place = left - _SCAN + tl.arange(0, _SCAN)
        latents = tl.load(p_indices + o_place, mask=o_place >= 0, other=-1)
        end = tl.max(tl.where(latents >= 0, o_place + 1, 0), 0)
        left = tl.where(end > 0, 0, left - _SCAN)
    return end


@triton.jit(do_not_specialize=["k"])
def gather_kernel(
    values,  # [n_tokens, k]
    indices,  # [n_tokens, k] int32
    W,  # [n, d]
    out,  # [n_tokens, d] float32
    d,
    stride_W,
    k,
    ADD: tl.constexpr,
    PLACES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    i_token = tl.program_id(0).to(tl.int64)
    o_column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    m_column = o_column < d
    acc = tl.zeros([PLACES, COLUMNS], tl.float32)
    for start in range(0, _end_of_used(indices + i_token * k, k), PLACES):
        o_place = start + tl.arange(0, PLACES)
        latents = tl.load(indices + i_token * k + o_place, mask=o_place < k, other=-1)
        used = latents >= 0
        weights = tl.load(values + i_token * k + o_place, mask=used, other=0).to(tl.float32)
        p_rows = W + latents.to(tl.int64)[:, None] * stride_W + o_column[None, :]
        acc += weights[:, None] * tl.load(p_rows, mask=used[:, None] & m_column[None, :], other=0).to(tl.float32)
    total = tl.sum(acc, 0)
    p_out = out + i_token * d + o_column
    if ADD:
        total += tl.load(p_out, mask=m_column)
    tl.store(p_out, total, mask=m_column)


@triton.jit(do_not_specialize=["k"])
def sampled_kernel(
    rows,  # [n_tokens, d]
    W,  # [n, d]
    indices,  # [n_tokens, k] int32
    out,  # [n_tokens, k] float32
    d,
    stride_rows,
    stride_W,
    k,
    PLACES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    i_token = tl.program_id(0).to(tl.int64)
    o_place = tl.program_id(1) * PLACES + tl.arange(0, PLACES)
    latents = tl.load(indices + i_token * k + o_place, mask=o_place < k, other=-1)
    used = latents >= 0
    p_weights = W + latents.to(tl.int64) * stride_W
    acc = tl.zeros([PLACES, COLUMNS], tl.float32)
    for start in range(0, d, COLUMNS):
        o_column = start + tl.arange(0, COLUMNS)
        m_column = o_column < d
        row = tl.load(rows + i_token * stride_rows + o_column, mask=m_column, other=0).to(tl.float32)
        mask = used[:, None] & m_column[None, :]
        acc += row[None, :] * tl.load(p_weights[:, None] + o_column[None, :], mask=mask, other=0).to(tl.float32)
    # NaN or infinity in the row, times 0, must not reach an unused place.
    tl.store(out + i_token * k + o_place, tl.where(used, tl.sum(acc, 1), 0), mask=o_place < k)


def gather(values: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    """``out_i = sum_j values_ij W[indices_ij]``, float32 ``[n_tokens, d_model]``."""
    out = launch.empty(len(indices), W.shape[1], dtype=torch.float32, device=W.device)
    _gather(values, indices, W, out, add=False)
    return out


def add_gather_(out: Tensor, values: Tensor, indices: Tensor, W: Tensor) -> None:
    """``out += gather(values, indices, W)``; out is float32 ``[n_tokens, d_model]``."""
    _gather(values, indices, W, out, add=True)


def _gather(values: Tensor, indices: Tensor, W: Tensor, out: Tensor, add: bool) -> None:
    n_tokens, d_model = len(indices), W.shape[1]
    W = launch.rows_contiguous(W)
    config = launch.config("gather", W, d_model)
    columns = launch.cover(d_model, config["COLUMNS"])
    launch.launch(
        gather_kernel,
        (n_tokens, launch.cdiv(d_model, columns)),
        W.device,
        launch.contiguous(values),
        launch.contiguous(indices),
        W,
        out,
        d_model,
        W.stride(0),
        indices.shape[1],
        ADD=add,
        PLACES=config["PLACES"],
        COLUMNS=columns,
        **launch.options(config),
    )


def sampled(rows: Tensor, W: Tensor, indices: Tensor) -> Tensor:
    """``out_ij = <rows_i, W[indices_ij]>``, float32 ``[n_tokens, k]``; 0 at unused places."""
    n_tokens, k = indices.shape
    rows, W = launch.rows_contiguous(rows), launch.rows_contiguous(W)
    out = launch.empty(n_tokens, k, dtype=torch.float32, device=W.device)
    config = launch.config("sampled", W, W.shape[1])
    launch.launch(
        sampled_kernel,
        (n_tokens, launch.cdiv(k, config["PLACES"])),
        W.device,
        rows,
        W,
        launch.contiguous(indices),
        out,
        W.shape[1],
        rows.stride(0),
        W.stride(0),
        k,
        PLACES=config["PLACES"],
        COLUMNS=launch.cover(W.shape[1], config["COLUMNS"]),
        **launch.options(config),
    )
    return out


def _specs(arch: str, dtype: torch.dtype, d_model: int) -> list[Spec]:
    kind = TYPES[dtype]
    config = static("gather", arch, dtype, d_model)
    gather_signature = {"values": f"*{kind}", "indices": "*i32", "W": f"*{kind}", "out": "*fp32"}
    gather_signature |= {"d": "i32", "stride_W": "i32", "k": "i32"}
    columns: dict[str, int | bool] = {"COLUMNS": launch.cover(d_model, config["COLUMNS"])}
    aligned: tuple[str, ...] = ("d", "stride_W")
    records = [
        spec(f"gather{form} {kind} d={d_model}", arch, gather_kernel, gather_signature, columns | add, config, aligned)
        for form, add in (("", {"ADD": False}), (" add", {"ADD": True}))
    ]
    config = static("sampled", arch, dtype, d_model)
    sampled_signature = {"rows": f"*{kind}", "W": f"*{kind}", "indices": "*i32", "out": "*fp32"}
    sampled_signature |= {"d": "i32", "stride_rows": "i32", "stride_W": "i32", "k": "i32"}
    columns = {"COLUMNS": launch.cover(d_model, config["COLUMNS"])}
    aligned = ("d", "stride_rows", "stride_W")
    name = f"sampled {kind} d={d_model}"
    return [*records, spec(name, arch, sampled_kernel, sampled_signature, columns, config, aligned)]


AOT = [
    record
    for arch in ARCHS
    for dtype, d_model in ((torch.bfloat16, 1152), (torch.float16, 1152), (torch.float32, 1152), (torch.bfloat16, 4608))
    for record in _specs(arch, dtype, d_model)
]
