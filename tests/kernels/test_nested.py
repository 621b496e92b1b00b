"""Prefixes of the dictionary in the fused step: terms and gradients against autograd of the plain formula."""

import pytest
import torch

from tests.helpers import naive
from tide_kernels import LossWeights, backend_status, tide_loss
from tide_kernels.codes import Slopes, places_of
from tide_kernels.nested import Part, parts_of
from tide_kernels.testing import assert_close, random_problem

EXACT = 1e-11  # float64, relative to the RMS
N, D, LATENTS, K = 8, 5, 11, 3
ALL_TERMS = LossWeights(mse=1.5, cosine=0.7, temporal=0.3, sparsity=2.0, auxk=0.4)
WEIGHTS = {
    "mse": LossWeights(mse=1.5, cosine=0),
    "cosine": LossWeights(mse=0, cosine=0.7),
    "all": ALL_TERMS,
}
ALL = {"paired": True, "dead": torch.arange(LATENTS) % 3 == 0, "k_aux": 2, "s_target": 0.1, "delta": 0.03}
PREFIXES = {"one": (4,), "three": (1, 2, 7), "all but one latent": (LATENTS - 1,)}


def thresholds(groups: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(groups, LATENTS, generator=generator, dtype=torch.float64).add_(0.1).requires_grad_()


#: Activation, and the groups of its thresholds, if it has any.
ACTIVATIONS = {
    "topk": ("topk", 0),
    "batch_topk": ("batch_topk", 0),
    "batch_topk with thresholds": ("batch_topk", 3),
    "jumprelu": ("jumprelu", 1),
    "jumprelu by group": ("jumprelu", 3),
}


def call(name: str) -> dict:
    activation, groups = ACTIVATIONS[name]
    options = {"activation": activation}
    return options | ({"threshold": thresholds(groups), "bandwidth": 1.5} if groups else {})


def problem(name: str, n_tokens: int = N):
    return random_problem(n_tokens, D, LATENTS, K, groups=None if ACTIVATIONS[name][1] == 1 else 3)


def check(p, *, chunk=None, regime="auto", **options):
    parameters = p.parameters() | ({"threshold": options["threshold"]} if "threshold" in options else {})
    actual = tide_loss(**p.arguments(), chunk=chunk, regime=regime, **options)
    expected = naive.tide_loss(**p.arguments(), **options)
    for name in ("mse", "cosine", "temporal", "sparsity", "auxk", "whole", "total"):
        assert_close(getattr(actual, name), getattr(expected, name), EXACT, name)
    assert torch.equal(actual.fired, expected.fired)
    wanted = torch.autograd.grad(expected.total, list(parameters.values()), materialize_grads=True)
    gradients = torch.autograd.grad(actual.total, list(parameters.values()))
    for name, gradient, want in zip(parameters, gradients, wanted, strict=True):
        assert_close(gradient, want, EXACT, f"gradient of {name}")


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("prefixes", PREFIXES.values(), ids=PREFIXES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_agrees_with_the_plain_formula(name, prefixes, weights, regime):
    check(problem(name), regime=regime, chunk=4, prefixes=prefixes, weights=weights, **call(name), **ALL)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("chunk", [2, 6, 1000])
def test_the_chunk_size_changes_rounding_only(name, chunk, regime):
    check(problem(name, 22), regime=regime, chunk=chunk, prefixes=(2, 5), weights=ALL_TERMS, **call(name), **ALL)


def test_no_biases_and_no_modulation(regime):
    p = random_problem(N, D, LATENTS, K, modulated=False, biases=False)
    check(p, regime=regime, prefixes=(2, 5), weights=ALL_TERMS, **ALL)


@pytest.mark.parametrize("name", ["topk", "batch_topk"])
def test_gradcheck(name, regime):
    p = random_problem(4, 3, LATENTS, 2, groups=2)
    options = ALL | {"weights": ALL_TERMS._replace(auxk=0.0), "chunk": 2, "regime": regime, "prefixes": (2, 6)}

    def total(*parameters):
        named = dict(zip(p.parameters(), parameters, strict=True))
        return tide_loss(p.x, k=2, group=p.group, activation=name, **named, **options).total

    assert torch.autograd.gradcheck(total, tuple(p.parameters().values()))


def test_without_prefixes_nothing_changes(regime):
    """The mse of all latents is then the mse, bit for bit, and a prefix moves the mean alone."""
    p = random_problem(N, D, LATENTS, K)
    plain = tide_loss(**p.arguments(), regime=regime)
    nested = tide_loss(**p.arguments(), regime=regime, prefixes=(4,))
    assert torch.equal(plain.whole, plain.mse)
    assert_close(nested.whole, plain.whole, EXACT)
    assert nested.mse != nested.whole


@pytest.mark.parametrize("backend", ["native", "triton"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_backends_agree_with_the_reference(name, backend, regime):
    if reason := backend_status()[backend]:
        pytest.skip(f"{backend}: {reason}")
    options = ALL | {"weights": ALL_TERMS, "prefixes": (2, 5), "regime": regime, "chunk": 4}
    found = []
    for each in (backend, "reference"):
        groups = ACTIVATIONS[name][1]
        p = random_problem(N, D, LATENTS, K, groups=None if groups == 1 else 3, dtype=torch.float32)
        given = call(name)
        if groups:
            given["threshold"] = given["threshold"].detach().float().requires_grad_()
        terms = tide_loss(**p.arguments(), backend=each, **given, **options)
        parameters = p.parameters() | ({"threshold": given["threshold"]} if groups else {})
        found.append(dict(zip(parameters, torch.autograd.grad(terms.total, list(parameters.values())), strict=True)))
    for parameter, gradient in found[0].items():
        # Some hundred roundings of 6e-8 in float32, and differences of larger numbers.
        assert_close(gradient, found[1][parameter], 2e-5, f"gradient of {parameter}")


@pytest.mark.parametrize("start", [None, 0.0, 0.3])
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_gradients_are_added_to_buffers(backend, regime, start):
    if reason := backend_status()[backend]:
        pytest.skip(f"{backend}: {reason}")
    p = random_problem(N, D, LATENTS, K, groups=3, dtype=torch.float32)
    options = {"weights": ALL_TERMS, "regime": regime, "prefixes": (2, 5), "chunk": 4, "backend": backend, **ALL}
    parameters = p.parameters()
    wanted = torch.autograd.grad(tide_loss(**p.arguments(), **options).total, list(parameters.values()))
    buffers = {name: torch.ones(q.shape) for name, q in parameters.items()}
    squares = torch.full((), torch.nan, dtype=torch.float64)
    tide_loss(**p.arguments(), **options, gradients=buffers, start=start, squares=squares)
    assert squares.isnan()  # no single pass finishes the gradients
    for (name, q), want in zip(parameters.items(), wanted, strict=True):
        of_weights = q.detach() * (start or 0) if name in ("W_enc", "W_dec") else 0
        # A sum of two float32 numbers of about 1 rounds by 6e-8.
        assert_close(buffers[name], want + (1 if start is None else of_weights), 2e-6, name)


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [
        ((0,), r"^prefixes\[0\] = 0 is out of range: pass one from 1 to n_latents = 11$"),
        ((3, 3), r"^prefixes = \(3, 3\) do not ascend to less than n_latents = 11: pass sizes that do$"),
        ((5, 3), "do not ascend"),
        ((11,), "do not ascend"),
    ],
)
def test_bad_prefixes(prefixes, message):
    with pytest.raises(ValueError, match=message):
        tide_loss(**random_problem(N, D, LATENTS, K).arguments(), prefixes=prefixes)


def test_prefixes_are_a_tuple_of_ints():
    arguments = random_problem(N, D, LATENTS, K).arguments()
    with pytest.raises(TypeError, match=r"^prefixes is a list: pass a tuple of ints$"):
        tide_loss(**arguments, prefixes=[3])
    with pytest.raises(TypeError, match=r"^prefixes\[0\] is a float: pass an int$"):
        tide_loss(**arguments, prefixes=(0.25,))


def test_parts_share_the_latents():
    assert parts_of((), 9) == [Part(0, 9, 9)]
    assert parts_of((2, 5), 9) == [Part(0, 2, 9), Part(2, 5, 9), Part(5, 9, 9)]


def test_a_part_writes_to_its_rows_alone():
    table, group = torch.zeros(6), torch.zeros(2)
    rows = Part(2, 5, 6).gradients({"b_enc": table, "scale": group})
    rows["b_enc"] += 1
    assert table.tolist() == [0, 0, 1, 1, 1, 0]
    assert rows["scale"] is group


def test_the_soft_count_of_a_part_is_a_mean_over_its_latents():
    slopes = Part(2, 5, 6).slopes(Slopes(0.5, torch.tensor(4.0), 0.1))
    assert (slopes.pair, float(slopes.soft), slopes.soft_eps) == (0.5, 2.0, 0.1)
    assert Part(2, 5, 6).slopes(Slopes(0.5)) == Slopes(0.5)


def test_the_places_of_a_part():
    indices = torch.tensor([[0, 3, 4, 8], [5, 9, -1, -1], [1, 2, -1, -1], [-1] * 4], dtype=torch.int32)
    values = torch.arange(1.0, 17.0).view(4, 4)
    found, places = places_of(values, indices, 3, 9)
    assert places.tolist() == [[0, 1, 5], [2, -1, -1], [-1, -1, -1], [-1, -1, -1]]
    assert found.tolist() == [[2, 3, 4], [5, 0, 0], [0, 0, 0], [0, 0, 0]]
