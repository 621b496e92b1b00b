"""Single kernels over their floors, and the products and gathers that floors are made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.gpu.bench import PAPER, SPARSE
from benchmarks.gpu.check import Check, Unit
from benchmarks.gpu.floors import kernel_seconds
from benchmarks.gpu.primitives import DENSE, SPARSE_KERNELS, Operands, Run
from benchmarks.probes import cache_bandwidth, gather_seconds, random_gather_bandwidth, stream_bandwidth
from benchmarks.shapes import Shape
from benchmarks.work import Case


def kernels(check: Check) -> None:
    """Every kernel over its floor, each at the shape of the regime that runs it."""
    for regime, full, builders in (("dense", PAPER, DENSE), ("sparse", SPARSE, SPARSE_KERNELS)):
        shape = check.shape(full)
        case = Case(shape, regime, itemsize=check.dtype.itemsize)
        operands = Operands(check, shape)
        for name in builders:
            check.unit(name, partial(_kernel, check, operands, case, name, builders[name]))


def _kernel(
    check: Check, operands: Operands, case: Case, name: str, build: Callable[[Operands], Run | None], unit: Unit
) -> None:
    figure = unit.figures[str(case.shape)] = {}
    run = build(operands)
    if run is None:
        figure["note"] = f"the backend {check.backend} composes it from others"
        return
    before = {name: lambda: operands.scratch.copy_(operands.pre)} if name.startswith("keep_top_") else {}
    timing = check.times({name: run}, before=before, queued=True)[name]
    figure |= timing.record() | {"floor_seconds": kernel_seconds(name, case, check.device, check.dtype)}


def masked_product(check: Check) -> None:
    """The masked gradient of the latents, against the plain product and an elementwise pass."""
    check.unit(str(PAPER), partial(_masked_product, check, check.shape(PAPER)))


def _masked_product(check: Check, shape: Shape, unit: Unit) -> None:
    o = Operands(check, shape)
    grad, W, z, masked_gradient = o.grad, o.W, o.z, DENSE["masked_gradient"](o)
    assert masked_gradient is not None
    runs: dict[str, Run] = {
        "masked_gradient": masked_gradient,
        "product": lambda: grad @ W.T,
        "product and mask": lambda: (grad @ W.T).masked_fill_(z == 0, 0),
    }
    unit.figures |= {name: dict(timing.record()) for name, timing in check.times(runs, queued=True).items()}


def products(check: Check) -> None:
    """PyTorch's products at the five shapes of a step, and what a fused ReLU costs."""
    check.unit(str(PAPER), partial(_products, check, check.shape(PAPER)))


def _products(check: Check, shape: Shape, unit: Unit) -> None:
    n_tokens, d_model, n_latents = shape.n_tokens, shape.d_model, shape.n_latents
    x, W, b = check.normal(n_tokens, d_model), check.normal(n_latents, d_model), check.normal(n_latents)
    z = check.normal(n_tokens, n_latents)
    runs: dict[str, Run] = {
        "encode: linear": lambda: F.linear(x, W, b),
        "encode: _addmm_activation": lambda: torch._addmm_activation(b, x, W.T),
        "decode": lambda: z @ W,
        "d latents": lambda: x @ W.T,
        "d W_dec": lambda: z.T @ x,
    }
    if check.device.type == "cuda":  # the form that sums over chunks
        runs["d W_enc, float32 result"] = lambda: torch.mm(z.T, x, out_dtype=torch.float32)
    flops = 2 * n_tokens * d_model * n_latents
    for name, timing in check.times(runs, queued=True).items():
        unit.figures[name] = timing.record() | {"note": f"{flops / timing.median / 1e12:.0f} TFLOP/s"}


def gathers(check: Check) -> None:
    """Random rows of tables of 10, 42 and 170 MB, over the floor that a copy and the cache set."""
    check.unit("bandwidths", partial(_bandwidths, check))
    for n_latents in (4608, 18432, 73728):
        shape = check.shape(Shape(16384, 1152, n_latents, 64))
        table = f"{n_latents * 1152 * 2 / 1e6:.0f} MB table"
        check.unit(table, partial(_random_rows, check, shape))


def _bandwidths(check: Check, unit: Unit) -> None:
    for name, bandwidth in (("copy", stream_bandwidth), ("L2 cache", cache_bandwidth)):
        found = bandwidth(check.device)
        unit.figures[name] = {"bytes_per_second": found, "note": f"{found / 1e12:.2f} TB/s"}


def _random_rows(check: Check, shape: Shape, unit: Unit) -> None:
    where = (check.device, check.dtype)
    found = random_gather_bandwidth(shape.n_latents, shape.d_model, shape.k, *where)
    moved = 16384 * shape.k * shape.d_model * check.dtype.itemsize  # as much as the probe of a GPU reads
    unit.figures["sum of random rows"] = {
        "seconds": moved / found,
        "floor_seconds": gather_seconds(shape.n_latents, shape.d_model, shape.k, 16384, *where),
        "bytes_per_second": found,
        "note": f"{found / 1e12:.2f} TB/s",
    }
