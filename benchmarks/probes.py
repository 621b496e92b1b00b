"""Properties of a device: the bandwidth of row gathers, which determines the density where the regimes break even."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import time_of
from benchmarks.peers import interpreted

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None


if triton is not None:

    @triton.jit
    def _sum_rows(table, indices, out, k, D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
        """Only sums k rows of the table, as a gather does: [ROWS, WIDTH] at a time."""
        i_token, i_slice = tl.program_id(0), tl.program_id(1)
        o_row = tl.arange(0, ROWS)
        o_d = i_slice * WIDTH + tl.arange(0, WIDTH)
        total = tl.zeros([ROWS, WIDTH], tl.float32)
        for start in range(0, k, ROWS):
            m_row = start + o_row < k
            row = tl.load(indices + tl.cast(i_token, tl.int64) * k + start + o_row, mask=m_row, other=0)
            place = tl.cast(row, tl.int64)[:, None] * D + o_d[None, :]
            total += tl.load(table + place, mask=m_row[:, None] & (o_d < D)[None, :], other=0.0).to(tl.float32)
        tl.store(out + tl.cast(i_token, tl.int64) * D + o_d, tl.sum(total, 0), mask=o_d < D)


def _gather(table: Tensor, indices: Tensor, out: Tensor) -> Callable[[], Any]:
    n_tokens, k = indices.shape
    d_model = table.shape[1]
    if triton is None or table.device.type == "cpu" or interpreted():
        return lambda: F.embedding_bag(indices, table, mode="sum")
    grid = (n_tokens, triton.cdiv(d_model, 128))
    return lambda: _sum_rows[grid](table, indices, out, k, D=d_model, ROWS=16, WIDTH=128, num_warps=4)


@cache
def gather_bandwidth(n_latents: int, d_model: int, k: int, device: torch.device, dtype: torch.dtype) -> float:
    """Bytes per second of a gather that reads random rows of a table, ascending for each token."""
    generator = torch.Generator(device).manual_seed(0)
    n_tokens = 64 if device.type == "cpu" else 16384
    table = torch.randn(n_latents, d_model, device=device, generator=generator).to(dtype)
    indices = torch.randint(n_latents, (n_tokens, k), device=device, generator=generator, dtype=torch.int32)
    out = torch.empty(n_tokens, d_model, device=device)
    run = _gather(table, indices.sort(1).values.contiguous(), out)
    return n_tokens * k * d_model * dtype.itemsize / time_of(run, device).median
