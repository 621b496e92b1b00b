"""Zero tokens: every primitive and every public op of every backend."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.layouts import plain
from tests.helpers.primitives import ARGUMENTS, LATENTS, MODULES, D, K, backend_of
from tide_kernels import LossWeights, decode, encode_topk, modulate, tide_loss
from tide_kernels.testing import random_problem

#: The arguments that have a row for each token, in all primitives.
BY_TOKEN = {"x", "x_mod", "x_hat", "pre", "values", "indices", "rows", "z", "grad", "grad_pre", "group", "extra"}
BY_TOKEN |= {"cut", "u", "grad_values", "rebuilt", "error", "differences"}
#: Their ``out`` has a row for each token, that of others one for each latent.
OUT_BY_TOKEN = {"keep_above", "add_gather_"}
CODES = {"transposed", "layout"}
#: What makes `backward_latents` replace gradients instead of adding to them.
REPLACING = {"start", "squares"}


def tensors(returned: Any) -> list[Tensor]:
    if isinstance(returned, Tensor):
        return [returned]
    if hasattr(returned, "offsets"):
        return [returned.offsets]  # the rest of a layout is defined by them
    return [value for value in returned or () if isinstance(value, Tensor)]


def without_tokens(module: Any, function: Any, arguments: list[Any]) -> list[Any]:
    names = list(inspect.signature(function).parameters)
    nobody = module.transpose(torch.empty(0, K, dtype=torch.int32), LATENTS)
    given = dict(zip(names, arguments, strict=True))
    by_token = BY_TOKEN | {"out"} if function.__name__ in OUT_BY_TOKEN else BY_TOKEN
    given |= {name: given[name][:0] for name in by_token & given.keys() if given[name] is not None}
    given |= {name: nobody for name in CODES & given.keys()}
    given |= {name: None for name in REPLACING & given.keys()}
    return list(given.values())


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("primitive", ARGUMENTS)
def test_every_primitive_returns_nothing_and_changes_nothing(name, primitive):
    module = backend_of(name)
    if not hasattr(module, primitive):
        pytest.skip(f"{name} has no {primitive} of its own")
    function = getattr(module, primitive)
    for build in ARGUMENTS[primitive]:
        full = tensors(function(*build(module)))
        given = without_tokens(module, function, build(module))
        before = [plain(value) for value in given if isinstance(value, Tensor)]
        returned = tensors(function(*given))
        assert not any(result.any() for result in returned)
        for result, usual in zip(returned, full, strict=True):
            assert result.dtype == usual.dtype
            assert result.shape[1:] == usual.shape[1:]
        for after, was in zip((value for value in given if isinstance(value, Tensor)), before, strict=True):
            assert torch.equal(after, was)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("k", [1, LATENTS])
def test_any_k(name, k):
    values, indices = backend_of(name).select(torch.empty(0, LATENTS), k)
    assert values.shape == indices.shape == (0, k)
    assert (values.dtype, indices.dtype) == (torch.float32, torch.int32)


@pytest.fixture(params=MODULES)
def backend(request):
    backend_of(request.param)
    return request.param


@pytest.fixture
def problem():
    return random_problem(0, D, LATENTS, K, groups=2, dtype=torch.float32)


@pytest.fixture(params=[False, True], ids=["plain", "layer norm"])
def modulation(request, problem):
    return {"scale": problem.scale, "shift": problem.shift, "group": problem.group, "layer_norm": request.param}


def no_gradients(problem: Any, *used: str) -> bool:
    parameters = problem.parameters()
    return all(parameters[name].grad is not None and not parameters[name].grad.any() for name in used)


def test_modulate(problem, modulation, backend):
    x_mod = modulate(problem.x.requires_grad_(), **modulation, backend=backend)
    assert x_mod.shape == (0, D)
    x_mod.sum().backward()
    assert problem.x.grad.shape == (0, D)
    assert no_gradients(problem, "scale", "shift")


@pytest.mark.parametrize("path", ["split", "single"])
def test_encode_topk(problem, modulation, backend, regime, path):
    if path == "single" and not hasattr(backend_of(backend), "encode"):
        pytest.skip(f"{backend} has no single-launch encoder")
    p = problem
    options = {"backend": backend, "regime": regime, "path": path}
    values, indices = encode_topk(p.x.requires_grad_(), p.W_enc, p.b_enc, K, **modulation, **options)
    assert values.shape == indices.shape == (0, K)
    assert indices.dtype == torch.int32
    values.sum().backward()
    assert p.x.grad.shape == (0, D)
    assert no_gradients(p, "W_enc", "b_enc", "scale", "shift")


@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=str)
def test_decode(problem, backend, regime, integer):
    p = problem
    values, indices = torch.empty(0, K, requires_grad=True), torch.empty(0, K, dtype=integer)
    x_hat = decode(values, indices, p.W_dec, p.b_dec, backend=backend, regime=regime)
    assert x_hat.shape == (0, D)
    x_hat.sum().backward()
    assert values.grad.shape == (0, K)
    assert no_gradients(p, "W_dec", "b_dec")


@pytest.mark.parametrize("dead", [None, "counted", "in a bucket", "none"])
@pytest.mark.parametrize("buffers", [False, True], ids=["backward", "into buffers"])
def test_tide_loss(problem, modulation, backend, regime, dead, buffers):
    p = problem
    weights = LossWeights(1.0, 1.0, 0.1, 10.0, 0.0 if dead is None else 0.1)
    options: dict[str, Any] = {"paired": True, "weights": weights, "backend": backend, "regime": regime}
    if dead is not None:
        marked = torch.zeros(LATENTS, dtype=torch.bool) if dead == "none" else torch.arange(LATENTS) % 3 == 0
        options |= {"dead": marked, "k_aux": 2, "dead_bucket": 4 if dead == "in a bucket" else None}
    sums = {name: torch.ones(parameter.shape) for name, parameter in p.parameters().items()}
    if buffers:
        options["gradients"] = sums
    terms = tide_loss(**p.arguments() | modulation, **options)
    assert not any(term.any() for term in terms)
    assert terms.fired.shape == (LATENTS,)
    if buffers:
        assert all((total == 1).all() for total in sums.values())
    else:
        terms.total.backward()
        assert no_gradients(p, *p.parameters())
