"""BatchTopK in the fused step: the selection is exact whatever the chunks, terms and gradients are autograd's."""

from dataclasses import replace

import pytest
import torch

from tests.helpers import naive
from tests.helpers.layouts import dyadic
from tide_kernels import LossWeights, batch_topk, reference, tide_loss
from tide_kernels.batch import Batch
from tide_kernels.batch_topk import find_cut
from tide_kernels.dispatch import Primitives, choose
from tide_kernels.options import LossArguments, LossOptions, Parameters
from tide_kernels.testing import adversarial_rows, assert_close, random_problem

EXACT = 1e-11  # float64, relative to the RMS
N, D, LATENTS, K = 8, 5, 11, 3
ALL_TERMS = LossWeights(mse=1.5, cosine=0.7, temporal=0.3, sparsity=20.0, auxk=0.4)
ALL = {"paired": True, "dead": torch.arange(LATENTS) % 3 == 0, "k_aux": 2, "s_target": 0.1, "delta": 0.03}
BATCH = {"activation": "batch_topk"}


def check(p, *, tolerance=EXACT, **options):
    parameters = p.parameters()
    actual = tide_loss(**p.arguments(), **BATCH, **options)
    for name in ("chunk", "regime", "capacity"):
        options.pop(name, None)
    expected = naive.tide_loss(**p.arguments(), **BATCH, **options)
    for name in ("mse", "cosine", "temporal", "sparsity", "auxk", "total"):
        assert_close(getattr(actual, name), getattr(expected, name), tolerance, name)
    assert torch.equal(actual.fired, expected.fired)
    assert actual.overflow == 0
    wanted = torch.autograd.grad(expected.total, list(parameters.values()), materialize_grads=True)
    gradients = torch.autograd.grad(actual.total, list(parameters.values()))
    for name, gradient, want in zip(parameters, gradients, wanted, strict=True):
        assert_close(gradient, want, tolerance, f"gradient of {name}")


@pytest.fixture(params=["candidates", "bound too high", "bound far too low"])
def bound(request, monkeypatch):
    """Where the sampled bound lies: above the cut nothing has been coded that stays, far below it too much."""
    if request.param == "bound too high":
        three = torch.tensor(3.0)
        monkeypatch.setattr(batch_topk, "sampled_bound", lambda batch: three.to(reference.accumulator(batch.dtype)))
    if request.param == "bound far too low":
        monkeypatch.setattr(batch_topk, "MOST_CANDIDATES", 1)


@pytest.mark.parametrize("weights", [ALL_TERMS, ALL_TERMS._replace(sparsity=0.0)], ids=["all terms", "no sparsity"])
@pytest.mark.parametrize("chunk", [2, 6, 8, 1000])
def test_agrees_with_the_plain_formula(chunk, weights, regime, bound):
    check(random_problem(22, D, LATENTS, K, groups=4), regime=regime, chunk=chunk, weights=weights, **ALL)


@pytest.mark.parametrize("k", [1, LATENTS], ids=["k=1", "k=n: fewer are positive"])
def test_extreme_k(k, regime):
    check(random_problem(N, D, LATENTS, k), regime=regime, chunk=4, weights=ALL_TERMS, **ALL)


def test_gradcheck(regime):
    p = random_problem(4, 3, LATENTS, 2, groups=2)
    options = ALL | {"weights": ALL_TERMS._replace(auxk=0.0), "chunk": 2, "regime": regime}

    def total(*parameters):
        named = dict(zip(p.parameters(), parameters, strict=True))
        return tide_loss(p.x, k=2, group=p.group, **named, **BATCH, **options).total

    assert torch.autograd.gradcheck(total, tuple(p.parameters().values()))


def test_all_may_fall_on_one_token(regime):
    p = random_problem(N, D, 40, 1, modulated=False)
    p.x[3] *= 100
    check(p, regime=regime, chunk=4, capacity=2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_ties_go_to_the_lowest_token_and_latent(k, dtype, regime, bound):
    """Numbers are small multiples of 1/2, so that products are exact and most of them tie."""
    x, W = (dyadic(rows, 2, seed=rows, eighths=3, dtype=dtype) for rows in (13, 12))
    pre = x @ W.T
    expected = naive.batch_topk(pre, 13 * k)
    terms = tide_loss(x, W, None, W, None, k, **BATCH, regime=regime, chunk=4)
    assert torch.equal(terms.fired, (expected != 0).sum(0))
    positive = expected[expected > 0]
    assert terms.least == (positive.min() if len(positive) == 13 * k else 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_cut_of_adversarial_rows(dtype):
    rows = torch.stack(list(adversarial_rows(24, dtype).values()))
    rows = rows[~rows.isnan().any(1)]

    def histogram(counts, shift, high):
        reference.key_histogram_(rows, counts, shift, high)

    positive = rows[rows > 0].sort(descending=True).values
    for wanted in (1, 2, 7, len(positive) // 2, len(positive) - 1, len(positive), len(positive) + 1):
        cut = find_cut(histogram, dtype, wanted, rows.device)
        assert cut.least == (positive[wanted - 1] if wanted <= len(positive) else 0)
        above = rows[rows > cut.table(24)]
        above = above[above > 0]
        assert len(above) + cut.ties == min(wanted, len(positive))
        if cut.ties:
            assert cut.bound == cut.least
            assert (rows == cut.least).sum() > cut.ties


@pytest.mark.parametrize("which", [0, 1], ids=["first", "second"])
def test_the_sampled_bound_holds_where_one_token_of_each_pair_is_larger(which):
    """A sample of the larger ones alone would give a bound above the cut, and everything would be computed again."""
    p = random_problem(256, 16, 512, 8, modulated=False, dtype=torch.float32, requires_grad=False)
    p.x[which::2] *= 1.3
    parameters = Parameters(p.W_enc, None, p.W_dec, None, None, None)
    options = LossOptions(k=8, chunk=64, activation="batch_topk")
    choice = choose("reference", "sparse", device=p.x.device, dtype=p.x.dtype, n_latents=512, k=8)
    batch = Batch(LossArguments(p.x, parameters, None, None, p.x.dtype, options), choice)
    cut = (p.x @ p.W_enc.T).flatten().topk(256 * 8).values[-1]
    assert 0.8 * cut < batch_topk.sampled_bound(batch) < cut
    assert batch_topk.Candidates.of(batch) is not None


def test_every_nan_stays(regime):
    p = random_problem(N, D, LATENTS, 1)
    p.x[2, 1] = float("nan")
    terms = tide_loss(**p.arguments(), **BATCH, regime=regime)
    assert terms.total.isnan()
    assert (terms.fired >= 1).all()


def test_no_tokens(regime):
    p = random_problem(0, D, LATENTS, K)
    terms = tide_loss(**p.arguments(), **BATCH, weights=ALL_TERMS, regime=regime, **ALL)
    assert all(not term.any() for term in terms)


def test_without_candidates_a_single_chunk_is_multiplied_once(monkeypatch):
    """The dense regime, and a GPU, have no candidates; a further pass of a single chunk needs no further product."""
    calls = []

    def pre_activations(*arguments):
        calls.append(len(arguments[0]))
        return reference.pre_activations(*arguments)

    ops = replace(Primitives.of(reference), pre_activations=pre_activations)
    monkeypatch.setattr(Primitives, "of", lambda _: ops)
    p = random_problem(N, D, LATENTS, K)
    tide_loss(**p.arguments(), **BATCH, regime="dense", backend="reference")
    assert calls == [N]
    calls.clear()
    tide_loss(**p.arguments(), **BATCH, regime="dense", backend="reference", chunk=4)
    assert calls == [4, 4] * 5  # four passes over the keys of float64, and the step's
