"""JumpReLU in the fused step: every term and every gradient against autograd of the plain formula."""

import pytest
import torch

from tests.helpers import naive
from tide_kernels import LossWeights, tide_loss
from tide_kernels.testing import assert_close, random_problem

EXACT = 1e-11  # float64, relative to the RMS
N, D, LATENTS, K = 8, 5, 11, 3

TERMS = {
    "mse": LossWeights(mse=1.5, cosine=0),
    "cosine": LossWeights(mse=0, cosine=0.7),
    "temporal": LossWeights(mse=0, cosine=0, temporal=0.3),
    "penalty": LossWeights(mse=0, cosine=0, sparsity=2.0),
    "auxk": LossWeights(mse=0, cosine=0, auxk=0.4),
    "all": LossWeights(mse=1.5, cosine=0.7, temporal=0.3, sparsity=2.0, auxk=0.4),
}
ALL = {"weights": TERMS["all"], "paired": True, "dead": torch.arange(LATENTS) % 3 == 0, "k_aux": 2}
#: Of a bandwidth of 1.5: thresholds below half of it count negative pre-activations as near.
THRESHOLDS = {"a number": (), "of each latent": (LATENTS,), "of each group and latent": (3, LATENTS)}


def thresholds(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


def check(p, threshold, *, tolerance=EXACT, **options):
    """Terms and gradients of the fused loss against the naive one's."""
    parameters = p.parameters() | {"threshold": threshold}
    arguments = p.arguments() | {"threshold": threshold, "activation": "jumprelu", "bandwidth": 1.5}
    actual = tide_loss(**arguments, **options)
    for name in ("chunk", "regime", "capacity"):
        options.pop(name, None)
    expected = naive.tide_loss(**arguments, **options)
    for name in ("mse", "cosine", "temporal", "sparsity", "auxk", "total"):
        assert_close(getattr(actual, name), getattr(expected, name), tolerance, name)
    assert torch.equal(actual.fired, expected.fired)
    assert actual.overflow == actual.least == 0
    wanted = torch.autograd.grad(expected.total, list(parameters.values()), materialize_grads=True)
    gradients = torch.autograd.grad(actual.total, list(parameters.values()))
    for name, gradient, want in zip(parameters, gradients, wanted, strict=True):
        assert_close(gradient, want, tolerance, f"gradient of {name}")


@pytest.mark.parametrize("shape", THRESHOLDS.values(), ids=THRESHOLDS)
@pytest.mark.parametrize("term", TERMS)
def test_agrees_with_the_plain_formula(term, shape, regime):
    p = random_problem(N, D, LATENTS, K, groups=3)
    check(p, thresholds(*shape), regime=regime, chunk=3, **ALL | {"weights": TERMS[term]})


@pytest.mark.parametrize("chunk", [2, 6, 8, 1000])
def test_the_chunk_size_changes_rounding_only(chunk, regime):
    check(random_problem(22, D, LATENTS, K, groups=4), thresholds(4, LATENTS), regime=regime, chunk=chunk, **ALL)


def test_without_modulation_the_groups_are_those_of_the_thresholds(regime):
    p = random_problem(N, D, LATENTS, K, modulated=False, biases=False)
    p.group = torch.arange(N) % 3
    check(p, thresholds(3, LATENTS), regime=regime, **ALL)


def test_on_a_cpu_codes_grow_with_the_rows(regime):
    """At thresholds of 0 half of the latents are active: far more than the places of a code of k = 1."""
    p = random_problem(N, D, 40, 1)
    zero = torch.zeros(40, dtype=torch.float64, requires_grad=True)
    check(p, zero, regime=regime, capacity=2, weights=TERMS["penalty"])


def test_gradcheck_at_fixed_thresholds(regime):
    """The straight-through derivatives are not those of the loss, so the thresholds themselves are left out."""
    p = random_problem(4, 3, LATENTS, 2, groups=2)
    options = ALL | {"weights": TERMS["all"]._replace(auxk=0.0, sparsity=0.0), "chunk": 2, "regime": regime}
    options |= {"activation": "jumprelu", "threshold": thresholds(2, LATENTS).detach()}

    def total(*parameters):
        named = dict(zip(p.parameters(), parameters, strict=True))
        return tide_loss(p.x, k=2, group=p.group, **named, **options).total

    assert torch.autograd.gradcheck(total, tuple(p.parameters().values()))


@pytest.mark.parametrize("frozen", ["W_enc", "b_enc", "W_dec", "scale", "threshold"])
def test_only_what_requires_grad_gets_one(frozen, regime):
    p, threshold = random_problem(N, D, LATENTS, K, groups=3), thresholds(LATENTS)
    every = p.parameters() | {"threshold": threshold}
    every[frozen].requires_grad_(False)
    arguments = p.arguments() | {"threshold": threshold, "activation": "jumprelu"} | ALL
    tide_loss(**arguments, regime=regime).total.backward()
    trained = [t for name, t in every.items() if name != frozen]
    wanted = torch.autograd.grad(naive.tide_loss(**arguments).total, trained)
    assert every[frozen].grad is None
    for parameter, want in zip(trained, wanted, strict=True):
        assert_close(parameter.grad, want, EXACT)


def test_the_threshold_alone_gets_a_gradient(regime):
    p, threshold = random_problem(N, D, LATENTS, K, requires_grad=False), thresholds(LATENTS)
    arguments = p.arguments() | {"threshold": threshold, "activation": "jumprelu"} | ALL
    tide_loss(**arguments, regime=regime).total.backward()
    (wanted,) = torch.autograd.grad(naive.tide_loss(**arguments).total, threshold)
    assert_close(threshold.grad, wanted, EXACT)


def test_what_equals_the_threshold_is_out(regime):
    """All numbers are exact: the pre-activation of latent l is l."""
    x, W = torch.ones(2, 1), torch.arange(4.0).unsqueeze(1)
    terms = tide_loss(
        x, W, None, W, None, 1, activation="jumprelu", threshold=torch.tensor(2.0), regime=regime, weights=TERMS["mse"]
    )
    assert terms.fired.tolist() == [0, 0, 0, 2]


def test_nan_shows(regime):
    p = random_problem(N, D, LATENTS, K)
    p.x[2, 1] = float("nan")
    terms = tide_loss(**p.arguments(), activation="jumprelu", threshold=thresholds(LATENTS), regime=regime)
    assert terms.total.isnan()
    assert (terms.fired >= 1).all()


def test_no_tokens(regime):
    p = random_problem(0, D, LATENTS, K, groups=2)
    threshold = thresholds(2, LATENTS)
    terms = tide_loss(**p.arguments(), activation="jumprelu", threshold=threshold, regime=regime, **ALL)
    assert all(not term.any() for term in terms)
    terms.total.backward()
    assert not threshold.grad.any()


@pytest.mark.parametrize("shape", THRESHOLDS.values(), ids=THRESHOLDS)
def test_gradients_are_added_to_buffers(shape, regime):
    p, threshold = random_problem(N, D, LATENTS, K, groups=3), thresholds(*shape)
    arguments = p.arguments() | {"threshold": threshold, "activation": "jumprelu", "regime": regime} | ALL
    (wanted,) = torch.autograd.grad(tide_loss(**arguments).total, threshold)
    buffer = torch.ones(shape, dtype=torch.float64)
    tide_loss(**arguments, gradients={"threshold": buffer})
    assert_close(buffer, wanted + 1, EXACT)
    tide_loss(**arguments, gradients={"threshold": buffer}, start=0.0)
    assert_close(buffer, wanted, EXACT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_narrow_dtypes_agree_with_float64(dtype, regime):
    """A pre-activation that is rounded across a threshold changes the result: with thresholds between multiples of 1/8
    and numbers that are multiples of 1/8, none is."""
    exact = random_problem(N, 1, LATENTS, K, groups=3)
    for name, value in exact.parameters().items():
        getattr(exact, name).data = (value.detach() * 8).round() / 8
    exact.x = exact.x.sign()
    narrow = random_problem(N, 1, LATENTS, K, groups=3, dtype=dtype)
    for name, value in (exact.parameters() | {"x": exact.x}).items():
        getattr(narrow, name).data = value.detach().to(dtype)
    threshold = (thresholds(LATENTS).detach() * 8).floor() / 8 + 1 / 64
    options = {"activation": "jumprelu", "bandwidth": 1.5, **ALL}
    wanted, got = (
        torch.autograd.grad(tide_loss(**p.arguments(), threshold=t, regime=regime, **options).total, t)[0]
        for p, t in ((exact, threshold.clone().requires_grad_()), (narrow, threshold.float().requires_grad_()))
    )
    # Some ten roundings of one gradient's operands, which may cancel to a tenth.
    assert_close(got, wanted, 100 * torch.finfo(dtype).eps)
