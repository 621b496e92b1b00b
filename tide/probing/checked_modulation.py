"""How far an adapter's modulation is from what a block does with the output of its norms."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tide.adapters import Adapter, Call, tap
from tide.adapters.base import Chunk
from tide.errors import TideError
from tide.probing.drawing import Bench
from tide.probing.recording import Pass, recorded


def modulation_misfit(bench: Bench, block: int, chunk: Chunk) -> float | None:
    """The least distance of ``norm (1 + scale) + shift`` from what a module of the block reads, over its norms and the
    modules that may read the chunk, relative to what the modulation changes; None if no norm's output has a shape that
    any of them reads."""
    own, seen = bench.adapter, []
    path = _path_of(own, own.blocks[block])
    times = torch.linspace(900, 40, len(bench.prompts))
    inside = f"{path}."
    with (
        recorded(own.transformer, lambda each: each.startswith(inside)) as passes,
        tap(own, {block: lambda x, call: seen.append(call)}),
    ):
        bench.denoise(times)
    call: Call = seen[0]
    with torch.no_grad():
        scale, shift = own.modulation(block, chunk)(call.timestep, call.conditioning)
    readers = list(_readers(own, block, chunk, passes[0], inside))
    distances = [
        float((read - (normed * (1 + scale[:, None]) + shift[:, None])).norm() / (read - normed).norm().clamp(min=1e-6))
        for read in readers
        for normed in _normed(own.blocks[block], passes[0], inside)
        if normed.shape == read.shape and len(normed) == len(scale)
    ]
    return min(distances) if distances else None


def _path_of(own: Adapter, block: nn.Module) -> str:
    return next(name for name, module in own.transformer.named_modules() if module is block)


def _readers(own: Adapter, block: int, chunk: Chunk, seen: Pass, inside: str) -> Iterator[Tensor]:
    """What the hooked module got, or any linear layer of a block without one."""
    tensor = "attention" if chunk == "msa" else "feed_forward"
    modules = dict(own.blocks[block].named_modules())
    try:
        wanted = [own.hook_module(block, tensor)]
    except (TideError, AttributeError):
        wanted = [each for each in modules.values() if isinstance(each, nn.Linear)]
    for name, module in modules.items():
        call = seen.call_of(inside + name)
        if call is not None and any(module is each for each in wanted) and isinstance(call.first, Tensor):
            yield _as_tokens(call.first)


def _normed(block: nn.Module, seen: Pass, inside: str) -> Iterator[Tensor]:
    for name, module in block.named_modules():
        call = seen.call_of(inside + name)
        if call is not None and "Norm" in type(module).__name__ and isinstance(call.output, Tensor):
            yield call.output.float()


def _as_tokens(value: Tensor) -> Tensor:
    return (value.flatten(2).transpose(1, 2) if value.ndim == 4 else value).float()
