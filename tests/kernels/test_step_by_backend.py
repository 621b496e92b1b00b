"""The whole training step by every backend that runs here: all terms and all gradients against float64."""

import pytest
import torch

from tide_kernels import LossWeights, backend_status, decode, encode_topk, tide_loss
from tide_kernels.testing import assert_close, random_problem

WEIGHTS = LossWeights(mse=1.5, cosine=0.7, temporal=0.3, sparsity=20.0, auxk=0.4)
BACKENDS = ["triton", "native"]
# Of gradients, relative to their RMS. An operation rounds by 6e-8 in float32 and by 5e-4 in float16; some hundred add
# up with random signs, and the gradients of cosine and residual are small differences of larger numbers.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-2}


@pytest.fixture(params=BACKENDS)
def backend(request):
    reason = backend_status()[request.param]
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    return request.param


def problem_without_near_ties(dtype, **shape):
    """A narrow problem and the same one in float64, which select the same latents: they differ only by rounding."""
    for seed in range(100):
        narrow = random_problem(dtype=dtype, seed=seed, **shape)
        exact = random_problem(dtype=torch.float64, seed=seed, **shape)
        exact.x = narrow.x.double()
        for name, parameter in exact.parameters().items():
            parameter.data = narrow.parameters()[name].detach().double()
        codes = [
            encode_topk(p.x, p.W_enc, p.b_enc, p.k, scale=p.scale, shift=p.shift, group=p.group, backend="reference")[1]
            for p in (narrow, exact)
        ]
        if torch.equal(*codes):
            return narrow, exact
    raise AssertionError("every seed has a near-tie: choose a smaller shape")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("groups", [3, None], ids=["groups of timesteps", "one group"])
def test_all_terms_and_gradients(backend, regime, groups, dtype):
    if backend == "native" and dtype == torch.float16:
        pytest.skip("native: it serves float32 and bfloat16")
    narrow, exact = problem_without_near_ties(dtype, n_tokens=12, d_model=20, n_latents=70, k=5, groups=groups)
    options = {"weights": WEIGHTS, "paired": True, "k_aux": 3, "delta": 0.05, "regime": regime}
    dead = torch.arange(70) % 3 == 0
    got = tide_loss(**narrow.arguments(), **options, dead=dead, chunk=8, backend=backend)
    want = tide_loss(**exact.arguments(), **options, dead=dead, backend="reference")
    for name in ("mse", "cosine", "temporal", "sparsity", "auxk", "total"):
        assert_close(getattr(got, name), getattr(want, name), TOLERANCE[dtype], name)
    assert torch.equal(got.fired, want.fired)
    got.total.backward()
    want.total.backward()
    for name, parameter in narrow.parameters().items():
        assert_close(parameter.grad, exact.parameters()[name].grad, TOLERANCE[dtype], f"gradient of {name}")


def test_the_composed_ops(backend, regime):
    narrow, exact = problem_without_near_ties(torch.float32, n_tokens=9, d_model=20, n_latents=70, k=5, groups=2)
    for p, name in ((narrow, backend), (exact, "reference")):
        modulation = {"scale": p.scale, "shift": p.shift, "group": p.group}
        p.x.requires_grad_()
        values, indices = encode_topk(p.x, p.W_enc, p.b_enc, p.k, **modulation, backend=name, regime=regime)
        x_hat = decode(values, indices, p.W_dec, p.b_dec, backend=name, regime=regime)
        (x_hat * p.x.detach()).sum().backward()
    assert_close(narrow.x.grad, exact.x.grad, TOLERANCE[torch.float32], "gradient of x")
    for name, parameter in narrow.parameters().items():
        assert_close(parameter.grad, exact.parameters()[name].grad, TOLERANCE[torch.float32], f"gradient of {name}")


def test_two_runs_agree_in_every_bit(backend, regime):
    runs = []
    for _ in range(2):
        p = random_problem(12, 20, 70, 5, groups=3, dtype=torch.float32)
        terms = tide_loss(
            **p.arguments(), weights=WEIGHTS._replace(auxk=0.0), paired=True, backend=backend, regime=regime
        )
        terms.total.backward()
        runs.append([*terms, *(parameter.grad for parameter in p.parameters().values())])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
