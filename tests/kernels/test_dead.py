"""The dead latents of a step: gathered into a bucket or masked, the auxiliary term and its gradients are the same."""

import pytest
import torch

from tests.helpers import naive
from tide_kernels import LossOptions, LossWeights, backend_status, tide_loss
from tide_kernels.dead import Gathered, Masked, bucket_for, dead_latents
from tide_kernels.dispatch import choose
from tide_kernels.testing import assert_close, random_problem

EXACT = 1e-11  # float64, relative to the RMS
LATENTS = 11
DEAD = torch.arange(LATENTS) % 3 == 0  # 0, 3, 6, 9
BUCKETS = [
    pytest.param(None, id="counted"),
    pytest.param(4, id="exactly full"),
    pytest.param(8, id="half empty"),
    pytest.param(16, id="more than there are latents"),
]
WEIGHTS = LossWeights(mse=1.5, cosine=0.7, temporal=0.3, sparsity=20.0, auxk=0.4)
TERMS = ("mse", "cosine", "temporal", "sparsity", "auxk", "total")


def choice(regime="sparse", backend="reference", n_latents=LATENTS, k=2):
    return choose(backend, regime, device=torch.device("cpu"), dtype=torch.float32, n_latents=n_latents, k=k)


def gathered(p, bucket, *, k_aux=2, gradients=None, regime="auto", dead=DEAD):
    options = LossOptions(k=3, k_aux=k_aux, dead_bucket=bucket, regime=regime)
    return dead_latents(dead, options, choice(), p.W_enc, p.b_enc, p.W_dec, gradients or {})


@pytest.fixture
def problem():
    return random_problem(8, 5, LATENTS, 3, groups=3, requires_grad=False)


@pytest.mark.parametrize("chunk", [3, 100], ids=["kept chunks", "one chunk"])
@pytest.mark.parametrize("bucket", BUCKETS)
def test_a_bucket_with_room_for_all_changes_nothing(bucket, chunk, regime):
    p = random_problem(8, 5, LATENTS, 3, groups=3)
    options = {"weights": WEIGHTS, "paired": True, "dead": DEAD, "k_aux": 2, "s_target": 0.1, "delta": 0.03}
    actual = tide_loss(**p.arguments(), **options, dead_bucket=bucket, chunk=chunk, regime=regime)
    expected = naive.tide_loss(**p.arguments(), **options)
    for name in TERMS:
        assert_close(getattr(actual, name), getattr(expected, name), EXACT, name)
    assert torch.equal(actual.fired, expected.fired)
    wanted = torch.autograd.grad(expected.total, list(p.parameters().values()))
    gradients = torch.autograd.grad(actual.total, list(p.parameters().values()))
    for name, gradient, want in zip(p.parameters(), gradients, wanted, strict=True):
        assert_close(gradient, want, EXACT, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("backend", ["triton", "native"])
@pytest.mark.parametrize("bucket", BUCKETS[1:3])  # a counted bucket is exactly full, and 16 of 40 is half empty again
def test_every_backend_serves_a_bucket(backend, bucket, dtype, regime):
    if (reason := backend_status()[backend]) is not None:
        pytest.skip(f"{backend}: {reason}")
    if backend == "native" and dtype == torch.float16:
        pytest.skip("native: it serves float32 and bfloat16")
    p = random_problem(12, 20, 40, 4, groups=3, dtype=dtype)
    dead = torch.arange(40) % 10 == 3  # 4 of them
    options = {"weights": WEIGHTS, "paired": True, "dead": dead, "k_aux": 2, "backend": backend, "regime": regime}
    results = []
    for chosen in (bucket, 40):
        terms = tide_loss(**p.arguments(), **options, dead_bucket=chosen, chunk=8)
        results.append([*terms, *torch.autograd.grad(terms.total, list(p.parameters().values()))])
    # The same numbers are multiplied and added in another order.
    for i, (got, want) in enumerate(zip(*results, strict=True)):
        assert_close(got, want, 16 * torch.finfo(dtype).eps, f"result {i}")


@pytest.mark.parametrize("bucket", [1, 2, 3])
def test_a_bucket_too_small_takes_the_lowest_dead_latents(bucket, regime):
    p = random_problem(8, 5, LATENTS, 3)
    options = {"weights": LossWeights(auxk=1.0), "k_aux": 2, "regime": regime}
    first = torch.zeros_like(DEAD).index_fill(0, DEAD.nonzero()[:bucket, 0], True)
    actual = tide_loss(**p.arguments(), dead=DEAD, dead_bucket=bucket, **options)
    expected = tide_loss(**p.arguments(), dead=first, **options)
    assert_close(actual.auxk, expected.auxk, EXACT)
    wanted = torch.autograd.grad(expected.total, list(p.parameters().values()))
    for got, want in zip(torch.autograd.grad(actual.total, list(p.parameters().values())), wanted, strict=True):
        assert_close(got, want, EXACT)


@pytest.mark.parametrize("dead", [[], [10], [0, 10], [*range(11)]], ids=str)
@pytest.mark.parametrize("bucket", [1, 4, 11, 16])
def test_the_rows_are_those_of_the_first_dead_latents(problem, dead, bucket):
    mask = torch.zeros(LATENTS, dtype=torch.bool)
    mask[dead] = True
    found = gathered(problem, bucket, dead=mask)
    kept, bucket = dead[:bucket], min(bucket, LATENTS)
    assert found.latents[: len(kept)].tolist() == kept
    assert len(set(found.latents.tolist())) == bucket
    assert found.unused.tolist() == [False] * len(kept) + [True] * (bucket - len(kept))
    for rows, table in ((found.W_enc, problem.W_enc), (found.b_enc, problem.b_enc), (found.W_dec, problem.W_dec)):
        assert torch.equal(rows[: len(kept)], table[kept])
        assert not rows[len(kept) :].any()


def test_columns_and_products_are_the_same_pre_activations(problem):
    p = problem
    found = gathered(p, 8)
    pre = p.x @ p.W_enc.T + p.b_enc
    columns = found.columns(pre)
    assert torch.equal(columns[:, :4], pre[:, DEAD])
    assert not columns[:, 4:].any()
    assert_close(found.product(p.x), columns, EXACT)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_step_that_multiplies_as_on_a_gpu(backend, regime, monkeypatch):
    if (reason := backend_status()[backend]) is not None:
        pytest.skip(f"{backend}: {reason}")
    p = random_problem(8, 16, 40, 3, groups=3, dtype=torch.float32)
    options = {"weights": WEIGHTS, "paired": True, "dead": torch.arange(40) % 9 == 2, "k_aux": 2, "dead_bucket": 8}
    results = []
    for _ in range(2):
        terms = tide_loss(**p.arguments(), **options, backend=backend, regime=regime)
        results.append([*terms, *torch.autograd.grad(terms.total, list(p.parameters().values()))])
        monkeypatch.setattr(Gathered, "pre_activations", lambda self, x_mod, _: self.product(x_mod))
    for got, want in zip(*results, strict=True):
        assert_close(got, want, 2e-5)


def test_the_step_masks_as_on_a_gpu_without_a_bucket(problem, regime, monkeypatch):
    p = random_problem(8, 5, LATENTS, 3, groups=3)
    options = {"weights": WEIGHTS, "paired": True, "dead": DEAD, "k_aux": 2, "chunk": 4, "regime": regime}
    results = []
    for _ in range(2):
        terms = tide_loss(**p.arguments(), **options)
        results.append([*terms, *torch.autograd.grad(terms.total, list(p.parameters().values()))])

        monkeypatch.setattr("tide_kernels.fused.dead_latents", lambda *arguments: Masked(*arguments[:-1]))
    for got, want in zip(*results, strict=True):
        assert_close(got, want, EXACT)


def test_unused_rows_send_no_gradient_even_if_it_is_nan(problem):
    total = {name: torch.ones_like(table) for name, table in problem.parameters().items()}
    found = gathered(problem, 8, gradients=total)
    for gradient in (found.gradients[name] for name in ("W_enc", "b_enc", "W_dec")):
        gradient.fill_(torch.nan)[:4] = 2.0
    found.finish()
    for name in ("W_enc", "b_enc", "W_dec"):
        rows = total[name].view(LATENTS, -1)
        assert torch.equal(rows, torch.where(DEAD, 3.0, 1.0).double().unsqueeze(1).expand_as(rows)), name
    assert found.gradients["scale"] is total["scale"]


def test_the_regime_follows_the_density_of_the_bucket(problem):
    assert gathered(problem, 8, k_aux=1).choice.regime == "sparse"
    assert gathered(problem, 4, k_aux=4).choice.regime == "dense"
    assert gathered(problem, 4, k_aux=4, regime="sparse").choice.regime == "sparse"


def test_no_more_places_than_rows(problem):
    assert gathered(problem, 4, k_aux=9).k == 4
    assert gathered(problem, 8, k_aux=3).k == 3


def test_a_cpu_that_counts_no_dead_latent_has_no_auxiliary_term(problem):
    assert gathered(problem, None, dead=torch.zeros_like(DEAD)) is None
    terms = tide_loss(**problem.arguments(), dead=torch.zeros_like(DEAD), k_aux=2, dead_bucket=4)
    assert terms.auxk == 0


def test_the_sizes_of_buckets_are_few_and_fit_closely():
    sizes = [bucket_for(n_dead) for n_dead in range(20000)]
    assert sizes[:6] == [1, 1, 2, 4, 4, 8]
    assert [bucket_for(n) for n in (128, 129, 2304, 4096, 4097)] == [128, 160, 2560, 4096, 5120]
    assert all(n_dead <= size for n_dead, size in enumerate(sizes))
    assert all(size <= 1.25 * n_dead for n_dead, size in enumerate(sizes) if n_dead > 128)
    assert len(set(sizes)) == 37
