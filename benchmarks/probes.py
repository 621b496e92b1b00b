"""Bandwidths of a device: of its memory, of its cache, and of row gathers, whose floor follows from the first two."""

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


COPIED = 2**30  # bytes of the streaming copy: many times any cache
RESIDENT = 2**24  # bytes that stay in the L2 cache of the GPUs that this package is for
_TOY = 2**16  # both, on a CPU

if triton is not None:

    @triton.jit
    def _read_again(source, out, n_blocks, ROUNDS: tl.constexpr, BLOCK: tl.constexpr):
        """Only sums ROUNDS blocks of a resident buffer, past the caches of single multiprocessors."""
        i_program = tl.program_id(0)
        o_word = tl.arange(0, BLOCK)
        total = tl.zeros([BLOCK], tl.float32)
        for i in range(ROUNDS):
            block = (i_program * 7 + i * 61) % n_blocks
            total += tl.load(source + block * BLOCK + o_word, cache_modifier=".cg")
        tl.store(out + i_program * BLOCK + o_word, total)

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
    if not _kernels(table.device):
        return lambda: F.embedding_bag(indices, table, mode="sum")
    grid = (n_tokens, triton.cdiv(d_model, 128))
    return lambda: _sum_rows[grid](table, indices, out, k, D=d_model, ROWS=16, WIDTH=128, num_warps=4)


def _kernels(device: torch.device) -> bool:
    """Whether Triton kernels can be timed on the device."""
    return triton is not None and device.type == "cuda" and not interpreted()


@cache
def stream_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of a copy that no cache holds."""
    source = torch.ones(COPIED if device.type == "cuda" else _TOY, dtype=torch.int8, device=device)
    out = torch.empty_like(source)
    return 2 * len(source) / time_of(lambda: out.copy_(source), device).median


@cache
def cache_bandwidth(device: torch.device) -> float:
    """Bytes per second of reads that the L2 cache serves."""
    source = torch.ones((RESIDENT if device.type == "cuda" else _TOY) // 4, device=device)
    if not _kernels(device):
        return 4 * len(source) / time_of(source.sum, device).median
    programs, run = read_again(source)
    return 4 * programs * ROUNDS * BLOCK / time_of(run, device).median


ROUNDS, BLOCK = 256, 2048


def read_again(source: Tensor) -> tuple[int, Callable[[], Any]]:
    """Programs that fill any GPU several times over, and a run in which each reads ROUNDS blocks of BLOCK words."""
    programs = 2112
    out = torch.empty(programs, BLOCK, device=source.device)
    n_blocks = len(source) // BLOCK
    return programs, lambda: _read_again[(programs,)](source, out, n_blocks, ROUNDS=ROUNDS, BLOCK=BLOCK, num_warps=4)


def gather_seconds(
    n_latents: int, d_model: int, k: int, n_tokens: int, device: torch.device, dtype: torch.dtype
) -> float:
    """The floor of a gather: every row out of the cache, and the table once out of memory, whichever takes longer."""
    row = d_model * dtype.itemsize
    return max(n_tokens * k * row / cache_bandwidth(device), n_latents * row / (stream_bandwidth(device)))


@cache
def gather_bandwidth(n_latents: int, d_model: int, k: int, device: torch.device, dtype: torch.dtype) -> float:
    """Bytes per second of a gather at its floor. On a CPU, whose caches no probe here separates, those of a gather
    that only sums random rows."""
    n_tokens = 64 if device.type == "cpu" else 16384
    if device.type == "cpu":
        return random_gather_bandwidth(n_latents, d_model, k, device, dtype)
    floor = gather_seconds(n_latents, d_model, k, n_tokens, device, dtype)
    return n_tokens * k * d_model * dtype.itemsize / floor


@cache
def random_gather_bandwidth(n_latents: int, d_model: int, k: int, device: torch.device, dtype: torch.dtype) -> float:
    """Bytes per second of a gather that only sums random rows of a table, ascending for each token."""
    generator = torch.Generator(device).manual_seed(0)
    n_tokens = 64 if device.type == "cpu" else 16384
    table = torch.randn(n_latents, d_model, device=device, generator=generator).to(dtype)
    indices = torch.randint(n_latents, (n_tokens, k), device=device, generator=generator, dtype=torch.int32)
    out = torch.empty(n_tokens, d_model, device=device)
    run = _gather(table, indices.sort(1).values.contiguous(), out)
    return n_tokens * k * d_model * dtype.itemsize / time_of(run, device).median
