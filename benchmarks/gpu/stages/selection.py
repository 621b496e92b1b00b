"""Selection: ours by Triton and by CUDA, `torch.topk` and others' top-k, over reading and writing once."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import gate
from benchmarks.floors import select_seconds
from benchmarks.gpu.check import Check, Unit, explained
from benchmarks.gpu.configured import uncompiled_selection
from benchmarks.shapes import Shape
from benchmarks.table import Bar
from tide_kernels import native, reference

WIDTHS = (18432, 4608, 73728)  # the paper's, which has bars, and others
CHECKED = 1024  # rows that are compared with the contract

Run = Callable[[], object]


def selection(check: Check) -> None:
    """Selection in place and compact, against ``torch.topk``, FlashInfer's and CUB's top-k."""
    for n_latents in WIDTHS:
        full = Shape(16384, 1152, n_latents, n_latents // 20)
        check.unit(str(full), partial(_selection, check, check.shape(full), n_latents == WIDTHS[0]))


def _selection(check: Check, shape: Shape, barred: bool, unit: Unit) -> None:
    pre, ops, k = check.normal(shape.n_tokens, shape.n_latents), check.ops(shape), shape.k
    _exact("ours", ops.select, ops.keep_top_, pre[:CHECKED], k)
    scratch = torch.empty_like(pre)
    runs: dict[str, Run] = {
        "in place": partial(ops.keep_top_, scratch, k),
        "compact": partial(ops.select, pre, k),
        "torch.topk": partial(pre.topk, k, dim=1, sorted=False),
    }
    if importlib.util.find_spec("flashinfer") is None:
        unit.notes.append("FlashInfer's top-k is left out: flashinfer is not installed")
    else:
        figure = unit.figures["flashinfer.top_k"] = {}
        with explained(figure, check):  # it is compiled when it is first called
            found = flashinfer_topk()
            _same_values(found, pre[:CHECKED], k)
            runs["flashinfer.top_k"] = partial(found, pre, k)
    unit.notes.append(cub_topk())
    _time(check, unit, shape, runs, {"in place": partial(scratch.copy_, pre)})
    if barred:
        ours, topk = (unit.figures[name]["seconds"] for name in ("in place", "torch.topk"))
        over = ours / unit.figures["in place"]["floor_seconds"]
        unit.bars.append(Bar(f"select {shape} over reading and writing once", over, 2.0, at_most=True))
        unit.bars.append(Bar(f"select {shape}, times faster than torch.topk", topk / ours, 5.0))


def compiled_selection(check: Check) -> None:
    """The selection of csrc/cuda beside Triton's."""
    for n_latents in WIDTHS:
        full = Shape(16384, 1152, n_latents, n_latents // 20)
        check.unit(str(full), partial(_compiled, check, check.shape(full)))


def _compiled(check: Check, shape: Shape, unit: Unit) -> None:
    # In a dry run the CPU's kernels stand in for those of the GPU.
    if reason := native.unavailable() if check.dry_run else native.cuda_unavailable():
        unit.figures["CUDA"] = {"note": f"not timed: {reason}"}
        return
    pre, ops, k = check.normal(shape.n_tokens, shape.n_latents), check.ops(shape), shape.k
    _exact("CUDA", native.select, native.keep_top_, pre[:CHECKED], k)
    scratch = torch.empty_like(pre)
    restore = partial(scratch.copy_, pre)
    runs: dict[str, Run] = {
        "CUDA, in place": partial(native.keep_top_, scratch, k),
        "Triton, in place": partial(ops.keep_top_, scratch, k),
        "CUDA, compact": partial(native.select, pre, k),
        "Triton, compact": partial(ops.select, pre, k),
    }
    with uncompiled_selection(check, shape.n_latents):
        _time(check, unit, shape, runs, {name: restore for name in runs if "in place" in name})


def _time(check: Check, unit: Unit, shape: Shape, runs: dict[str, Run], before: dict[str, Run]) -> None:
    floor = select_seconds(shape, check.device, check.dtype)
    for name, timing in check.times(runs, before=before, queued=True).items():
        unit.figures[name] = timing.record() | {"floor_seconds": floor}


def _exact(name: str, select: Callable[..., Any], keep_top_: Callable[..., Any], rows: Tensor, k: int) -> None:
    """Raises `GateError` if selections are not those of the contract."""
    values, indices = reference.select(rows, k)
    if not all(torch.equal(a, b) for a, b in zip(select(rows, k), (values, indices), strict=True)):
        raise gate.GateError(f"select, {name}: selects entries that the contract does not")
    z, exact = rows.clone(), rows.clone()
    keep_top_(z, k)
    reference.keep_top_(exact, k)
    if not torch.equal(z, exact):
        raise gate.GateError(f"keep_top_, {name}: keeps entries that the contract does not")


def _same_values(topk: Callable[..., Any], rows: Tensor, k: int) -> None:
    """Raises `GateError` if another top-k takes other values than `torch.topk`, in whatever order."""
    got, want = (values.float().sort(dim=1).values for values, _ in (topk(rows, k), rows.topk(k, dim=1)))
    if not torch.equal(got, want):
        raise gate.GateError("flashinfer.top_k: takes other values than torch.topk")


def flashinfer_topk() -> Callable[..., Any]:
    """FlashInfer's top-k; raises what its import raises."""
    found: Callable[..., Any] = importlib.import_module("flashinfer").top_k
    return found


def cub_topk() -> str:
    """Why CUB's batched top-k has no figure: it cannot be called from Python, and older toolkits lack it."""
    from torch.utils.cpp_extension import CUDA_HOME

    if CUDA_HOME is None:
        return "CUB's batched top-k is left out: there is no CUDA toolkit"
    folders = ("include", "include/cccl", "targets/*/include", "targets/*/include/cccl")
    places = [f"{folder}/cub/device/device_batched_topk.cuh" for folder in folders]
    there = any(True for place in places for _ in Path(CUDA_HOME).glob(place))
    reason = "it has no Python interface" if there else "the CUB of this CUDA toolkit has none"
    return f"CUB's batched top-k is left out: {reason}"
