"""Single ops: this package's backends against PyTorch's own, after checking that results are equal."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.floors import encoder_seconds, product_seconds, select_seconds
from benchmarks.gate import GateError
from benchmarks.measure import peak, synchronise
from benchmarks.peers import Ours
from benchmarks.probes import gather_bandwidth
from benchmarks.shapes import Problem, Shape, compute_dtype, make_problem, row_shapes
from tide_kernels import BackendError, backend_status, decode, encode_topk, modulate, reference
from tide_kernels.dispatch import choose

SHAPES = row_shapes(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
BACKENDS = list(backend_status())
PEER = "torch"

by_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
narrowest = pytest.mark.parametrize("shape", SHAPES[:1], ids=str)


@cache
def _problem(shape: Shape, device: torch.device) -> Problem:
    return make_problem(shape, device, compute_dtype(device))


@cache
def _pre_activations(shape: Shape, device: torch.device) -> Tensor:
    p = _problem(shape, device)
    dtype = compute_dtype(device)
    return F.linear(p.x, p.W_enc.to(dtype), p.b_enc.to(dtype))


@cache
def _code(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    return reference.select(_pre_activations(shape, device), shape.k)


def _need(name: str, shape: Shape, device: torch.device) -> None:
    reason = None if name == PEER else Ours(name).refuses(shape, device)
    if reason is not None:
        pytest.skip(reason)


def _close(got: Tensor, want: Tensor, dtype: torch.dtype, terms: int, what: str) -> float:
    """The error relative to the norm, which may be that of rounding the result and of adding ``terms`` in float32."""
    error = float((got.double() - want.double()).norm() / want.double().norm())
    allowed = torch.finfo(dtype).eps + torch.finfo(torch.float32).eps * terms**0.5
    if not error <= allowed:
        raise GateError(f"{what} is off by {error:.2e}, allowed {allowed:.1e}")
    return error


def _measure(
    benchmark: Any, group: str, name: str, run: Callable[[], object], device: torch.device, error: float, floor: float
) -> None:
    def synchronous() -> None:
        run()
        synchronise(device)

    run()
    benchmark.group = group
    benchmark.extra_info |= {
        "name": name if name == PEER else f"tide {name}",
        "kind": "peer" if name == PEER else "ours",
        "gate_error": error,
        "floor_seconds": floor,
        **peak(synchronous, device).record(),
    }
    benchmark.pedantic(synchronous, rounds=5 if device.type == "cpu" else 20, warmup_rounds=1)


@pytest.mark.parametrize("name", [*BACKENDS, PEER])
@by_shape
def test_select(benchmark: Any, name: str, shape: Shape, device: torch.device) -> None:
    """Against ``torch.topk`` of the same pre-activations, which neither sorts indices nor drops zeros."""
    _need(name, shape, device)
    pre, k = _pre_activations(shape, device), shape.k
    if name == PEER:
        run: Callable[[], object] = lambda: pre.topk(k, dim=1, sorted=False)  # noqa: E731
    else:
        select = choose(name, "auto", device=device, dtype=pre.dtype, n_latents=shape.n_latents, k=k).ops.select
        run = lambda: select(pre, k)  # noqa: E731
        if not all(torch.equal(a, b) for a, b in zip(select(pre, k), _code(shape, device), strict=True)):
            raise GateError(f"{name} selects entries that the contract does not")
    _measure(benchmark, f"select {shape}", name, run, device, 0.0, select_seconds(shape, device, pre.dtype))


@pytest.mark.parametrize("path", ["split", "single"])
@pytest.mark.parametrize("name", [*BACKENDS, PEER])
@by_shape
def test_encode(benchmark: Any, name: str, path: str, shape: Shape, device: torch.device) -> None:
    """Modulation, product and selection. The peer is PyTorch's `linear` and `topk` on modulated tokens."""
    _need(name, shape, device)
    p, dtype = _problem(shape, device), compute_dtype(device)
    weight, bias = p.W_enc.to(dtype), p.b_enc.to(dtype)
    modulation: dict[str, Any] = {**p.modulation(), "group": p.group}
    if name == PEER:
        if path == "single":
            pytest.skip("PyTorch has no single launch for it")

        def run() -> object:
            x_mod = (p.x * (1 + p.scale[p.group]) + p.shift[p.group]).to(dtype)
            return F.linear(x_mod, weight, bias).relu_().topk(p.k, dim=1, sorted=False)

        error = 0.0
    else:

        def run() -> object:
            return encode_topk(p.x, weight, bias, p.k, **modulation, backend=name, path=path)

        try:
            values, indices = encode_topk(p.x, weight, bias, p.k, **modulation, backend=name, path=path)
        except BackendError as refusal:
            pytest.skip(str(refusal))
        # Near-ties may go either way, so the gate compares what the code decodes to.
        exact = encode_topk(p.x.double(), weight.double(), bias.double(), p.k, **modulation, backend="reference")
        got = decode(values.double(), indices, p.W_dec.double())
        error = float((got - decode(*exact, p.W_dec.double())).norm() / got.norm())
        if not error <= (1e-3 if dtype == torch.float32 else 0.15):
            raise GateError(f"{name}'s code decodes to something else: off by {error:.2e}")
    floor = encoder_seconds(shape, device, dtype) + select_seconds(shape, device, dtype)
    label = f"encode_topk {shape}"
    _measure(benchmark, label, name if name == PEER else f"{name} {path}", run, device, error, floor)


@pytest.mark.parametrize("name", [*BACKENDS, PEER])
@by_shape
def test_decode(benchmark: Any, name: str, shape: Shape, device: torch.device) -> None:
    """Against PyTorch's usual way: a sum of embedding rows."""
    _need(name, shape, device)
    p, dtype = _problem(shape, device), compute_dtype(device)
    (values, indices), weight = _code(shape, device), p.W_dec.to(dtype)
    if name == PEER:
        places = indices.clamp(min=0)

        def run() -> Tensor:
            return F.embedding_bag(places, weight, mode="sum", per_sample_weights=values)
    else:

        def run() -> Tensor:
            return decode(values, indices, weight, backend=name)

    exact = reference.gather(values.double(), indices, weight.double())
    error = _close(run(), exact, dtype, shape.k, f"{name}'s reconstruction")
    # That of the faster regime: the dense product, or reading the rows at the device's gather bandwidth.
    rows = shape.n_tokens * shape.k * shape.d_model * dtype.itemsize
    bandwidth = gather_bandwidth(shape.n_latents, shape.d_model, shape.k, device, dtype)
    floor = min(product_seconds(shape, device, dtype)["decode"], rows / bandwidth)
    _measure(benchmark, f"decode {shape}", name, run, device, error, floor)


@pytest.mark.parametrize("name", [*BACKENDS, PEER])
@narrowest
def test_modulate(benchmark: Any, name: str, shape: Shape, device: torch.device) -> None:
    _need(name, shape, device)
    p, dtype = _problem(shape, device), compute_dtype(device)

    def plain() -> Tensor:
        return (p.x * (1 + p.scale[p.group]) + p.shift[p.group]).to(dtype)

    def ours() -> Tensor:
        return modulate(p.x, p.scale, p.shift, p.group, backend=name)

    run = plain if name == PEER else ours
    exact = p.x.double() * (1 + p.scale[p.group].double()) + p.shift[p.group].double()
    error = _close(run(), exact, dtype, 1, f"{name}'s modulation")
    floor = select_seconds(Shape(shape.n_tokens, 1, shape.d_model, 1), device, dtype)
    _measure(benchmark, f"modulate {shape}", name, run, device, error, floor)
