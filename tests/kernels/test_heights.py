"""BatchTopK with thresholds in the fused step: the largest heights stay, and gradients are the plain formula's."""

import pytest
import torch

from tests.helpers import naive
from tide_kernels import LossWeights, backend_status, batch_topk, heights, tide_loss
from tide_kernels.testing import assert_close, random_problem

EXACT = 1e-11  # float64, relative to the RMS
N, D, LATENTS, K = 8, 5, 11, 3

TERMS = {
    "mse": LossWeights(mse=1.5, cosine=0),
    "cosine": LossWeights(mse=0, cosine=0.7),
    "temporal": LossWeights(mse=0, cosine=0, temporal=0.3),
    "sparsity": LossWeights(mse=0, cosine=0, sparsity=20.0),
    "auxk": LossWeights(mse=0, cosine=0, auxk=0.4),
    "all": LossWeights(mse=1.5, cosine=0.7, temporal=0.3, sparsity=20.0, auxk=0.4),
}
ALL = {"weights": TERMS["all"], "paired": True, "dead": torch.arange(LATENTS) % 3 == 0, "k_aux": 2, "delta": 0.03}
ALL |= {"s_target": 0.1}
SHAPES = {"of each latent": (LATENTS,), "of each group and latent": (3, LATENTS)}
BATCH = {"activation": "batch_topk", "bandwidth": 1.5}


def thresholds(*shape, dtype=torch.float64):
    """From 0.2 to 1.2: of a bandwidth of 1.5 some count negative pre-activations as near."""
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (uniform + 0.2).to(dtype).requires_grad_()


def check(p, threshold, *, tolerance=EXACT, **options):
    """Terms and gradients of the fused loss against the naive one's; returns the terms."""
    parameters = p.parameters() | {"threshold": threshold}
    arguments = p.arguments() | {"threshold": threshold} | BATCH
    actual = tide_loss(**arguments, **options)
    for name in ("chunk", "regime", "capacity", "backend"):
        options.pop(name, None)
    expected = naive.tide_loss(**arguments, **options)
    for name in ("mse", "cosine", "temporal", "sparsity", "auxk", "total"):
        assert_close(getattr(actual, name), getattr(expected, name), tolerance, name)
    assert torch.equal(actual.fired, expected.fired)
    assert actual.overflow == 0
    wanted = torch.autograd.grad(expected.total, list(parameters.values()), materialize_grads=True)
    gradients = torch.autograd.grad(actual.total, list(parameters.values()))
    for name, gradient, want in zip(parameters, gradients, wanted, strict=True):
        assert_close(gradient, want, tolerance, f"gradient of {name}")
    return actual


def found_heights(p, threshold):
    """The heights of all pre-activations, largest first."""
    pre = naive.modulate(p.x, p.scale, p.shift, p.group) @ p.W_enc.T + p.b_enc
    rows = threshold[p.group] if threshold.dim() == 2 else threshold
    return (pre / rows).detach().flatten().sort(descending=True).values


@pytest.fixture(params=["candidates", "bound too high", "bound far too low"])
def bound(request, monkeypatch):
    """Where the sampled bound lies: above the cut nothing has been coded that stays, far below it too much."""
    if request.param == "bound too high":
        monkeypatch.setattr(heights.Sample, "bound", lambda self: self.units.table.new_full((), 9.0))
    if request.param == "bound far too low":
        monkeypatch.setattr(batch_topk, "MOST_CANDIDATES", 1)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("term", TERMS)
def test_agrees_with_the_plain_formula(term, shape, regime):
    p = random_problem(N, D, LATENTS, K, groups=3)
    check(p, thresholds(*shape), regime=regime, chunk=3, **ALL | {"weights": TERMS[term]})


@pytest.mark.parametrize("chunk", [2, 6, 22, 1000])
def test_the_chunk_size_changes_rounding_only(chunk, regime, bound):
    threshold = thresholds(4, LATENTS)
    p = random_problem(22, D, LATENTS, K, groups=4)
    terms = check(p, threshold, regime=regime, chunk=chunk, **ALL)
    assert_close(terms.least, found_heights(p, threshold)[22 * K - 1], EXACT)
    assert terms.fired.sum() == 22 * K


def test_parts_of_a_chunk_change_rounding_only(regime, monkeypatch):
    monkeypatch.setattr(heights, "_ELEMENTS", 3 * LATENTS)
    check(random_problem(22, D, LATENTS, K, groups=4), thresholds(4, LATENTS), regime=regime, chunk=10, **ALL)


@pytest.mark.parametrize("capacity", [1, 40], ids=["multiplied", "coded"])
def test_candidates_are_used_where_the_sample_is_good(capacity, monkeypatch):
    """In the sparse regime on a CPU. Codes that are long are made of pre-activations."""
    monkeypatch.setattr(heights, "Recomputed", None)
    p = random_problem(64, D, 40, 8, groups=3)
    check(p, thresholds(3, 40), regime="sparse", chunk=16, capacity=capacity)
    check(p, thresholds(3, 40), regime="sparse", chunk=16, capacity=capacity, **ALL | {"dead": torch.arange(40) > 30})


def test_without_modulation_the_groups_are_those_of_the_thresholds(regime):
    p = random_problem(N, D, LATENTS, K, modulated=False, biases=False)
    p.group = torch.arange(N) % 3
    check(p, thresholds(3, LATENTS), regime=regime, **ALL)


def test_one_number_for_all_selects_as_without_and_gets_no_gradient(regime):
    """A common factor of the thresholds changes nothing, so that the gradient along it is 0."""
    p, threshold = random_problem(N, D, LATENTS, K, groups=3), thresholds()
    arguments = p.arguments() | BATCH | ALL | {"regime": regime, "chunk": 4}
    plain, terms = tide_loss(**arguments), tide_loss(**arguments, threshold=threshold)
    assert torch.equal(plain.fired, terms.fired)
    assert_close(terms.total, plain.total, EXACT)
    assert_close(terms.least * threshold.detach(), plain.least, EXACT)
    found = (torch.autograd.grad(each.total, p.W_enc, retain_graph=True)[0] for each in (terms, plain))
    assert_close(*found, EXACT)
    # Sums of a hundred terms of about 1, which cancel.
    assert abs(float(torch.autograd.grad(terms.total, threshold)[0])) < 1e-12


def test_where_fewer_are_positive_all_stay_and_thresholds_get_no_gradient(regime, bound):
    p = random_problem(N, D, LATENTS, LATENTS, groups=3)
    threshold = thresholds(3, LATENTS)
    terms = check(p, threshold, regime=regime, chunk=4, **ALL)
    assert terms.least == 0
    assert not torch.autograd.grad(tide_loss(**p.arguments(), **BATCH, threshold=threshold).total, threshold)[0].any()


def test_on_a_cpu_codes_grow_with_the_rows(regime):
    """A token has nearly all that stays: far more than the places of a code of k = 1."""
    p = random_problem(N, D, 40, 1, modulated=False)
    p.x[3] *= 100
    check(p, thresholds(40), regime=regime, chunk=4, capacity=2, weights=TERMS["mse"])


@pytest.mark.parametrize("seed", range(20))
def test_rounding_keeps_out_none_of_the_largest(seed, regime):
    """In float32, where quotients and products of the entry at the cut are rounded."""
    p = random_problem(N, D, LATENTS, K, groups=3, dtype=torch.float32, seed=seed)
    fired = tide_loss(**p.arguments(), **BATCH, threshold=thresholds(3, LATENTS), regime=regime).fired
    assert N * K <= fired.sum() <= N * K + 1


def test_gradcheck_at_fixed_thresholds(regime):
    """The straight-through derivatives are not those of the loss, so the thresholds themselves are left out."""
    p = random_problem(4, 3, LATENTS, 2, groups=2)
    options = ALL | BATCH | {"weights": TERMS["all"]._replace(auxk=0.0), "chunk": 2, "regime": regime}

    def total(*parameters):
        named = dict(zip(p.parameters(), parameters, strict=True))
        return tide_loss(p.x, k=2, group=p.group, threshold=thresholds(2, LATENTS).detach(), **named, **options).total

    assert torch.autograd.gradcheck(total, tuple(p.parameters().values()))


@pytest.mark.parametrize("frozen", ["W_enc", "b_enc", "W_dec", "scale", "threshold", "all but the threshold"])
def test_only_what_requires_grad_gets_one(frozen, regime):
    p, threshold = random_problem(N, D, LATENTS, K, groups=3), thresholds(LATENTS)
    every = p.parameters() | {"threshold": threshold}
    for name, parameter in every.items():
        parameter.requires_grad_(name == "threshold" if frozen.startswith("all") else name != frozen)
    arguments = p.arguments() | {"threshold": threshold} | BATCH | ALL
    tide_loss(**arguments, regime=regime, chunk=4).total.backward()
    trained = [parameter for parameter in every.values() if parameter.requires_grad]
    wanted = torch.autograd.grad(naive.tide_loss(**arguments).total, trained)
    assert all(parameter.grad is None for parameter in every.values() if not parameter.requires_grad)
    for parameter, want in zip(trained, wanted, strict=True):
        assert_close(parameter.grad, want, EXACT)


def test_every_nan_stays(regime):
    p = random_problem(N, D, LATENTS, 1)
    p.x[2, 1] = float("nan")
    terms = tide_loss(**p.arguments(), **BATCH, threshold=thresholds(LATENTS), regime=regime)
    assert terms.total.isnan()
    assert (terms.fired >= 1).all()


def test_no_tokens(regime):
    p, threshold = random_problem(0, D, LATENTS, K, groups=2), thresholds(2, LATENTS)
    terms = tide_loss(**p.arguments(), **BATCH, threshold=threshold, regime=regime, **ALL)
    assert all(not term.any() for term in terms)
    terms.total.backward()
    assert not threshold.grad.any()


def test_groups_without_tokens_have_no_gradient(regime):
    p, threshold = random_problem(N, D, LATENTS, K, groups=3), thresholds(3, LATENTS)
    p.group = p.group.clamp(max=1)
    check(p, threshold, regime=regime, chunk=4, **ALL)
    terms = tide_loss(**p.arguments(), **BATCH, threshold=threshold, regime=regime)
    gradient = torch.autograd.grad(terms.total, threshold)[0]
    assert not gradient[2].any()
    assert gradient[:2].any()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_gradients_are_added_to_buffers(shape, regime):
    p, threshold = random_problem(N, D, LATENTS, K, groups=3), thresholds(*shape)
    arguments = p.arguments() | {"threshold": threshold, "regime": regime} | BATCH | ALL
    (wanted,) = torch.autograd.grad(tide_loss(**arguments).total, threshold)
    buffer = torch.ones(shape, dtype=torch.float64)
    tide_loss(**arguments, gradients={"threshold": buffer})
    assert_close(buffer, wanted + 1, EXACT)
    tide_loss(**arguments, gradients={"threshold": buffer}, start=0.0)
    assert_close(buffer, wanted, EXACT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_narrow_dtypes_agree_with_float64(dtype, regime):
    """Pre-activations are multiples of 1/64 below 2 and thresholds small integers: products of both are exact, and
    what is near is so by more than a rounding error."""
    exact = random_problem(N, 1, LATENTS, K, groups=3)
    for name, value in exact.parameters().items():
        getattr(exact, name).data = (value.detach() * 8).round() / 8
    exact.x = exact.x.sign()
    narrow = random_problem(N, 1, LATENTS, K, groups=3, dtype=dtype)
    for name, value in (exact.parameters() | {"x": exact.x}).items():
        getattr(narrow, name).data = value.detach().to(dtype)
    threshold = (thresholds(LATENTS).detach() * 8).ceil()
    options = BATCH | ALL | {"regime": regime, "bandwidth": 0.77}
    wanted, got = (
        torch.autograd.grad(tide_loss(**p.arguments(), threshold=t, **options).total, t)[0]
        for p, t in ((exact, threshold.clone().requires_grad_()), (narrow, threshold.float().requires_grad_()))
    )
    # Of 16 bits the gradient and its sums are rounded, a few times. In float32 some ten roundings add up.
    assert_close(got, wanted, (20 if dtype == torch.float32 else 4) * torch.finfo(dtype).eps)


# In float32 an operation rounds by 6e-8; some hundred add up, and gradients are small differences of larger numbers.
@pytest.mark.parametrize("options", [ALL, {"weights": TERMS["mse"]}], ids=["all terms", "MSE"])
@pytest.mark.parametrize("backend", ["reference", "native", "triton"])
def test_every_backend(backend, options, regime):
    if (reason := backend_status()[backend]) is not None:
        pytest.skip(f"{backend}: {reason}")
    options = options | ({"dead": torch.arange(90) % 3 == 0} if "dead" in options else {})
    exact, narrow = (random_problem(12, 20, 90, 6, groups=3, dtype=t) for t in (torch.float64, torch.float32))
    results = []
    for loss, p, more in ((naive.tide_loss, exact, {}), (tide_loss, narrow, {"backend": backend, "regime": regime})):
        threshold = thresholds(3, 90, dtype=p.x.dtype)
        more |= {"chunk": 8, "capacity": 90} if more else {}
        terms = loss(**p.arguments(), **BATCH, threshold=threshold, **options, **more)
        results.append((terms, torch.autograd.grad(terms.total, [*p.parameters().values(), threshold])))
    (expected, wanted), (terms, gradients) = results
    for name in ("mse", "cosine", "temporal", "sparsity", "auxk", "total"):
        assert_close(getattr(terms, name), getattr(expected, name), 2e-5, name)
    assert torch.equal(terms.fired, expected.fired)
    for name, gradient, want in zip([*narrow.parameters(), "threshold"], gradients, wanted, strict=True):
        assert_close(gradient, want, 1e-4, f"gradient of {name}")


def test_no_tensor_holds_the_latents_of_all_tokens(regime):
    p = random_problem(4096, D, 512, K, groups=3, dtype=torch.float32)
    threshold = thresholds(3, 512, dtype=torch.float32)
    options = {"weights": TERMS["all"]._replace(auxk=0.0), "paired": True, "regime": regime, "chunk": 64}
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        tide_loss(**p.arguments(), **BATCH, threshold=threshold, backend="reference", **options)
    allocated = max(event.self_cpu_memory_usage for event in profile.events())
    assert 0 < allocated < 4096 * 512 * 4 / 4
