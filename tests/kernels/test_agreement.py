"""Random calls of every op, by every backend, against the equations in float64: shapes, dtypes, options and odd values.

Numbers are multiples of 1/8, whose products and sums are exact in float32, so the right selection is known for
certain, ties included. Normalised tokens are not exact; a problem of theirs with a near-tie is drawn again.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import naive
from tests.helpers.layouts import dyadic
from tide_kernels import LossWeights, backend_status, decode, encode_topk, tide_loss
from tide_kernels.testing import Problem, adversarial_rows, assert_close

# For inexact results, relative to the RMS: some hundred roundings of 6e-8 (1e-16 in float64), in terms that may cancel
# to a hundredth if a problem has one token and one latent. The error of a wrong result is far larger.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 5e-4}
DTYPES = {
    "reference": [torch.float64, torch.float32, torch.float16, torch.bfloat16],
    "native": [torch.float32, torch.bfloat16],
    "triton": [torch.float32, torch.float16],
}


@dataclass
class Call:
    problem: Problem
    layer_norm: bool
    paired: bool
    dead: Tensor
    k_aux: int
    chunk: int
    regime: str
    path: str
    odd: str  # what is unusual about its values

    @property
    def modulation(self) -> dict[str, Any]:
        p = self.problem
        return {"scale": p.scale, "shift": p.shift, "group": p.group, "layer_norm": self.layer_norm}


def drawn(seed: int, backend: str) -> Call:
    """The call that belongs to a seed."""
    for attempt in count():
        call = _drawn(random.Random(f"{seed}.{attempt}"), backend)
        if not call.layer_norm or not has_near_ties(call):
            return call


def _drawn(rng: random.Random, backend: str) -> Call:
    dtype = rng.choice(DTYPES[backend])
    paired = rng.random() < 0.5
    n_tokens = rng.choice([0, 1, 2, 3, 8, 13])
    n_tokens += n_tokens % 2 if paired else 0
    d_model, n_latents = rng.choice([1, 3, 5, 8, 17, 33]), rng.choice([1, 2, 7, 24, 40, 65])
    k = rng.choice([1, n_latents, rng.randint(1, n_latents)])
    odd = rng.choice(["nothing", "nothing", "ties", "NaN", "infinity", "negative zero", "no positive"])
    # Only powers of two and multiples of 1/8 keep narrow numbers from being rounded on the way.
    layer_norm = dtype in (torch.float32, torch.float64) and odd in ("nothing", "negative zero") and rng.random() < 0.3
    groups = rng.choice([None, 1, 3, n_tokens + 2])

    def numbers(*shape: int) -> Tensor:
        return dyadic(*shape, seed=rng.getrandbits(60), eighths=2 if odd == "ties" else 12, dtype=dtype)

    def weights(*shape: int) -> Tensor:
        if not layer_norm:
            return numbers(*shape)
        return torch.randn(shape, generator=torch.Generator().manual_seed(rng.getrandbits(60)), dtype=dtype)

    def perhaps(tensor: Tensor) -> Tensor | None:
        return tensor if rng.random() < 0.8 else None

    p = Problem(
        x=numbers(n_tokens, d_model),
        W_enc=weights(n_latents, d_model),
        b_enc=perhaps(weights(n_latents)),
        W_dec=numbers(n_latents, d_model),
        b_dec=perhaps(numbers(d_model)),
        k=k,
        scale=perhaps(numbers(groups or 1, d_model)),
        shift=perhaps(numbers(groups or 1, d_model)),
        group=torch.tensor([rng.randrange(groups) for _ in range(n_tokens)], dtype=torch.int64) if groups else None,
    )
    make_odd(p, odd, rng)
    return Call(
        problem=p,
        layer_norm=layer_norm,
        paired=paired,
        dead=torch.tensor([rng.random() < 0.4 for _ in range(n_latents)]),
        k_aux=rng.randint(1, n_latents),
        chunk=rng.choice([2, 4, 100]),
        regime=rng.choice(["sparse", "dense"]),
        path="single" if backend == "triton" and rng.random() < 0.3 else "split",
        odd=odd,
    )


def make_odd(p: Problem, odd: str, rng: random.Random) -> None:
    if odd in ("NaN", "infinity"):
        value = float("nan") if odd == "NaN" else rng.choice([-1, 1]) * float("inf")
        target = rng.choice([t for t in (p.x, p.W_enc, p.b_enc) if t is not None and t.numel()])
        target.view(-1)[rng.randrange(target.numel())] = value
    elif odd == "negative zero":
        for tensor in (p.x, p.b_enc, p.shift):
            if tensor is not None:
                tensor[: rng.randint(0, len(tensor))] = -0.0
    elif odd == "no positive":
        p.b_enc = torch.full((len(p.W_enc),), -(2.0**13), dtype=p.W_enc.dtype)  # below any product


def exact(p: Problem) -> Problem:
    """The same numbers in float64."""
    return replace(p, **{n: t.double() for n, t in p.arguments().items() if isinstance(t, Tensor) and n != "group"})


def pre_activations(call: Call) -> Tensor:
    """The pre-activations in float64, from operands that were rounded to the dtype once."""
    p, dtype = exact(call.problem), call.problem.W_enc.dtype
    x_mod = naive.modulate(p.x, p.scale, p.shift, p.group, call.layer_norm).to(dtype).double()
    return x_mod @ p.W_enc.T + (0 if p.b_enc is None else p.b_enc)


def has_near_ties(call: Call) -> bool:
    sorted_rows = pre_activations(call).relu().sort(1).values
    return bool(((sorted_rows.diff() < 1e-4) & (sorted_rows[:, 1:] > 0)).any())


def check_encoder(call: Call, backend: str) -> tuple[Tensor, Tensor]:
    p, dtype = call.problem, call.problem.W_enc.dtype
    options = {"backend": backend, "regime": call.regime, "path": call.path}
    values, indices = encode_topk(p.x, p.W_enc, p.b_enc, p.k, **call.modulation, **options)
    expected = naive.compact(naive.topk(pre_activations(call).to(dtype), p.k), p.k)
    assert torch.equal(indices, expected[1])
    tolerance = TOLERANCE[dtype] if call.layer_norm else 0  # everything else is exact
    torch.testing.assert_close(values, expected[0], rtol=tolerance, atol=tolerance, equal_nan=True)
    return values, indices


def check_decoder(call: Call, backend: str, values: Tensor, indices: Tensor, rng: random.Random) -> None:
    """Decodes the code as selected, and in another order with one latent twice."""
    p, dtype = call.problem, call.problem.W_dec.dtype
    order = rng.sample(range(p.k), p.k)
    for places in (list(range(p.k)), [*order, order[0]]):
        v, i = values[:, places], indices[:, places]
        x_hat = decode(v, i, p.W_dec, p.b_dec, backend=backend, regime=call.regime)
        expected = naive.decode(v.double(), i, p.W_dec.double(), None if p.b_dec is None else p.b_dec.double())
        if expected.numel():
            # At most two roundings: of the sum, before a bias of up to 1.5 is added, and of the result. For normalised
            # tokens each value adds one more.
            eps = torch.finfo(dtype).eps * (1 + p.k * call.layer_norm)
            bound = eps * (float(expected.abs().max()) + 1.5)
            assert float((x_hat - expected).abs().max()) <= bound, "x_hat"


def check_loss(call: Call, backend: str) -> None:
    p, dtype = call.problem, call.problem.W_dec.dtype
    options = {"layer_norm": call.layer_norm, "paired": call.paired, "dead": call.dead, "k_aux": call.k_aux}
    options["weights"] = LossWeights(1.5, 0.7, 0.3 * call.paired, 20.0, 0.4)
    wide = exact(p)
    for parameter in (*p.parameters().values(), *wide.parameters().values()):
        parameter.requires_grad_()
    got = tide_loss(**p.arguments(), **options, chunk=call.chunk, backend=backend, regime=call.regime)
    if not len(p.x):
        assert float(got.total.detach()) == 0
        return
    want = naive.tide_loss(**wide.arguments(), **options)
    assert torch.equal(got.fired, want.fired)
    if call.odd in ("NaN", "infinity"):
        assert bool(got.total.isfinite()) == bool(want.mse.isfinite())
        return
    for name in ("mse", "cosine", "temporal", "sparsity", "auxk", "total"):
        value, tolerance = float(getattr(want, name).detach()), TOLERANCE[dtype]
        assert float(getattr(got, name).detach()) == pytest.approx(value, rel=tolerance, abs=tolerance), name
    gradients = torch.autograd.grad(got.total, list(p.parameters().values()))
    wanted = torch.autograd.grad(want.total, list(wide.parameters().values()), materialize_grads=True)
    for name, gradient, expected in zip(p.parameters(), gradients, wanted, strict=True):
        assert_close(gradient, expected, TOLERANCE[dtype], f"gradient of {name}")


def check(seed: int, backend: str) -> None:
    call = drawn(seed, backend)
    values, indices = check_encoder(call, backend)
    if values.isfinite().all():
        check_decoder(call, backend, values, indices, random.Random(seed))
    if call.problem.W_enc.dtype in (torch.float32, torch.float64):
        check_loss(call, backend)


@pytest.fixture(params=DTYPES)
def backend(request: pytest.FixtureRequest) -> str:
    reason = backend_status()[request.param]
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    return request.param


def check_all(seeds: range, backend: str) -> None:
    for seed in seeds:
        try:
            check(seed, backend)
        except Exception as error:
            raise AssertionError(f"seed {seed} of {backend}: {error}\n{drawn(seed, backend)}") from error


def test_backends_agree_with_float64(backend):
    check_all(range(12 if backend == "triton" else 100), backend)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_all_backends_select_the_same_bits(dtype):
    """The same input for every backend that runs here; Triton's runs in the interpreter."""
    serving = [name for name, reason in backend_status().items() if reason is None]
    assert "reference" in serving
    generator = torch.Generator().manual_seed(0)
    cases = [
        (torch.stack(list(adversarial_rows(n, dtype).values())), k) for n, k in ((1, 1), (33, 33), (257, 1), (300, 60))
    ]
    for _ in range(10):  # few levels, so that ties decide
        n = int(torch.randint(1, 400, (), generator=generator))
        k = int(torch.randint(1, n + 1, (), generator=generator))
        cases.append((torch.randint(-3, 9, (5, n), generator=generator).to(dtype) / 4, k))
    for place, (pre, k) in enumerate(cases):
        # Interpreted kernels are slow: Triton's takes part in four of the ten.
        taking_part = [name for name in serving if name != "triton" or place < 8]
        results = {name: import_module(f"tide_kernels.{name}").select(pre, k) for name in taking_part}
        values, indices = results.pop("reference")
        for name, (got_values, got_indices) in results.items():
            assert torch.equal(got_indices, indices), (name, pre.shape, k)
            nan = values.isnan()
            assert torch.equal(got_values.isnan(), nan), name
            assert torch.equal(got_values[~nan].view(torch.uint8), values[~nan].view(torch.uint8)), name


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_backends_agree_with_float64_many_times(backend, part):
    size = 30 if backend == "triton" else 500
    check_all(range(1000 + part * size, 1000 + (part + 1) * size), backend)
