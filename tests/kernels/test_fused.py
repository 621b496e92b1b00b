"""tide_loss: every term and every gradient against the naive equations, and gradcheck."""

import pytest
import torch

from tests.helpers import naive
from tide_kernels import LossTerms, LossWeights, decode, encode_topk, tide_loss
from tide_kernels.testing import assert_close, random_problem

EXACT = 1e-11  # float64, relative to the RMS

TERMS = {
    "mse": LossWeights(mse=1.5, cosine=0),
    "cosine": LossWeights(mse=0, cosine=0.7),
    "temporal": LossWeights(mse=0, cosine=0, temporal=0.3),
    "sparsity": LossWeights(mse=0, cosine=0, sparsity=20.0),
    "auxk": LossWeights(mse=0, cosine=0, auxk=0.4),
    "all": LossWeights(mse=1.5, cosine=0.7, temporal=0.3, sparsity=20.0, auxk=0.4),
}
DEAD = torch.arange(11) % 3 == 0
EVERYTHING = {"paired": True, "dead": DEAD, "k_aux": 2, "s_target": 0.1, "delta": 0.03}

MODULATIONS = [
    pytest.param({"groups": None}, id="one group"),
    pytest.param({"groups": 3}, id="groups"),
    pytest.param({"modulated": False}, id="no modulation"),
    pytest.param({"groups": 3, "biases": False}, id="no biases"),
]


def check(problem, *, regime="auto", tolerance=EXACT, **options):
    """Terms and gradients of the fused loss against the naive one's."""
    parameters = problem.parameters()
    actual = tide_loss(**problem.arguments(), regime=regime, **options)
    options.pop("chunk", None)
    expected = naive.tide_loss(**problem.arguments(), **options)
    for name in ("mse", "cosine", "temporal", "sparsity", "auxk", "total"):
        assert_close(getattr(actual, name), getattr(expected, name), tolerance, name)
    assert torch.equal(actual.fired, expected.fired)
    assert actual.fired.dtype == torch.int64
    wanted = torch.autograd.grad(expected.total, list(parameters.values()), materialize_grads=True)
    gradients = torch.autograd.grad(actual.total, list(parameters.values()))
    for name, gradient, want in zip(parameters, gradients, wanted, strict=True):
        assert_close(gradient, want, tolerance, f"gradient of {name}")


@pytest.mark.parametrize("layer_norm", [False, True], ids=["", "layer_norm"])
@pytest.mark.parametrize("modulation", MODULATIONS)
@pytest.mark.parametrize("term", TERMS)
def test_agrees_with_the_naive_equations(term, modulation, layer_norm, regime):
    p = random_problem(8, 5, 11, 3, **modulation)
    check(p, regime=regime, weights=TERMS[term], layer_norm=layer_norm, chunk=3, **EVERYTHING)


def target_of(p):
    """As large as x, and with nothing else in common."""
    return torch.randn(p.x.shape, generator=torch.Generator().manual_seed(5), dtype=p.x.dtype)


@pytest.mark.parametrize("options", [{}, {"activation": "batch_topk"}, {"prefixes": (3, 7)}], ids=str)
@pytest.mark.parametrize("term", TERMS)
def test_a_target_takes_the_place_of_x(term, options, regime):
    p = random_problem(8, 5, 11, 3, groups=3)
    check(p, regime=regime, target=target_of(p), weights=TERMS[term], chunk=4, **options, **EVERYTHING)


def test_a_target_of_jumprelu(regime):
    p, threshold = random_problem(8, 5, 11, 3), torch.full((11,), 0.2, dtype=torch.float64)
    given = {"activation": "jumprelu", "threshold": threshold, "weights": TERMS["all"]._replace(sparsity=2.0)}
    check(p, regime=regime, target=target_of(p), chunk=4, **given, **EVERYTHING)


def test_x_as_its_own_target_changes_nothing(regime):
    p = random_problem(8, 5, 11, 3)
    plain, own = (tide_loss(**p.arguments(), target=target, regime=regime) for target in (None, p.x.clone()))
    assert all(torch.equal(a, b) for a, b in zip(plain, own, strict=True))


def test_bad_targets():
    p = random_problem(8, 5, 11, 3)
    with pytest.raises(ValueError, match=r"^target has shape \[7, 5\]: reshape it to \[8, 5\]$"):
        tide_loss(**p.arguments(), target=p.x[1:])
    with pytest.raises(ValueError, match=r"^target requires grad and tide_loss gives none for it: pass target.detach"):
        tide_loss(**p.arguments(), target=p.x.clone().requires_grad_())


@pytest.mark.parametrize("term", [term for term in TERMS if term != "auxk"])
def test_gradcheck(term, regime):
    p = random_problem(4, 3, 11, 2, groups=2)
    # Without the auxiliary term: it takes the residual as a constant, which finite differences do not.
    options = EVERYTHING | {"weights": TERMS[term]._replace(auxk=0.0), "chunk": 2, "regime": regime}

    def total(*parameters):
        named = dict(zip(p.parameters(), parameters, strict=True))
        return tide_loss(p.x, k=2, group=p.group, **named, **options).total

    assert torch.autograd.gradcheck(total, tuple(p.parameters().values()))


def test_gradcheck_of_the_auxiliary_term(regime):
    # One latent is active on every token and decodes to 0, so the residual really is a constant.
    p = random_problem(4, 3, 11, 1, groups=2)
    p.b_enc.data[1] = 1000.0
    constants = {"x": p.x, "k": 1, "group": p.group, "b_dec": p.b_dec.detach()}
    silent = torch.ones(11, 1, dtype=torch.float64).index_fill(0, torch.tensor(1), 0.0)

    def total(W_enc, b_enc, W_dec, scale, shift):
        parameters = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec * silent, "scale": scale, "shift": shift}
        options = {"weights": TERMS["auxk"], "dead": DEAD, "k_aux": 2, "regime": regime}
        return tide_loss(**constants, **parameters, **options).total

    assert torch.autograd.gradcheck(total, (p.W_enc, p.b_enc, p.W_dec, p.scale, p.shift))


def test_the_auxiliary_term_reaches_the_encoder_of_dead_latents():
    p = random_problem(16, 5, 11, 3)
    p.b_enc.data[DEAD] -= 5  # they do not fire
    p.b_enc.data[DEAD] += 5 * (torch.arange(11)[DEAD] > 0)  # except one that no token can reach
    weights = LossWeights(mse=0, cosine=0, auxk=1.0)
    tide_loss(**p.arguments(), weights=weights, dead=DEAD, k_aux=2).total.backward()
    assert p.W_enc.grad[DEAD].abs().sum(1).bool().tolist() == [False, True, True, True]
    assert not p.W_enc.grad[~DEAD].any()
    assert not p.b_dec.grad.any()


@pytest.mark.parametrize("dead", [torch.zeros(11, dtype=torch.bool), None], ids=["none dead", "not given"])
def test_without_dead_latents_the_auxiliary_term_is_zero(dead):
    p = random_problem(8, 5, 11, 3)
    weights = LossWeights(auxk=1.0 if dead is not None else 0.0)
    terms = tide_loss(**p.arguments(), weights=weights, dead=dead, k_aux=2)
    assert terms.auxk == 0
    assert terms.total == tide_loss(**p.arguments()).total


def test_equals_the_composition_of_the_ops(regime):
    p = random_problem(8, 5, 30, 4, groups=3)
    terms = tide_loss(**p.arguments(), layer_norm=True, regime=regime)
    values, indices = encode_topk(
        p.x,
        p.W_enc,
        p.b_enc,
        p.k,
        scale=p.scale,
        shift=p.shift,
        group=p.group,
        layer_norm=True,
        regime=regime,
    )
    x_hat = decode(values, indices, p.W_dec, p.b_dec, regime=regime)
    cosine = torch.nn.functional.cosine_similarity(p.x, x_hat, eps=1e-300)
    composed = (p.x - x_hat).square().mean() + (1 - cosine).mean()
    assert_close(terms.total, composed, EXACT)
    wanted = torch.autograd.grad(composed, list(p.parameters().values()))
    gradients = torch.autograd.grad(terms.total, list(p.parameters().values()))
    for name, gradient, want in zip(p.parameters(), gradients, wanted, strict=True):
        assert_close(gradient, want, EXACT, name)
    assert torch.equal(terms.fired, torch.bincount(indices[indices >= 0], minlength=30))


CHUNKS = [
    pytest.param(1, id="1: rounded up to one pair"),
    pytest.param(5, id="odd: rounded up to whole pairs"),
    pytest.param(8, id="the last chunk is short"),
    pytest.param(22, id="exactly all tokens"),
    pytest.param(1000, id="more than all tokens"),
]


@pytest.mark.parametrize("chunk", CHUNKS)
def test_the_chunk_size_changes_rounding_only(chunk, regime):
    p = random_problem(22, 5, 11, 3, groups=4)
    check(p, regime=regime, weights=TERMS["all"], chunk=chunk, **EVERYTHING)


@pytest.mark.parametrize("k", [1, 11], ids=["k=1", "k=n: most rows have unused places"])
def test_extreme_k(k, regime):
    check(random_problem(8, 5, 11, k), regime=regime, weights=TERMS["all"], **EVERYTHING)


def test_pairs_that_share_all_some_and_no_latents(regime):
    p = random_problem(6, 5, 11, 3)
    p.x[1] = p.x[0] * 1.1  # same direction, no bias: the same latents
    p.x[3] = p.x[2]
    p.x[5] = -p.x[4]  # disjoint
    p.b_enc.data.zero_()
    p.shift.data.zero_()
    check(p, regime=regime, weights=TERMS["temporal"], paired=True)
    same = tide_loss(**p.arguments() | {"x": p.x[2:4]}, weights=TERMS["temporal"], paired=True, regime=regime)
    assert same.temporal < 1e-25  # a matrix product may round equal rows differently


@pytest.mark.parametrize("case", ["all tokens", "some tokens"])
def test_tokens_with_no_active_latent(case, regime):
    p = random_problem(6, 5, 11, 3, modulated=False)
    p.b_enc.data.zero_()
    if case == "all tokens":
        p.b_enc.data -= 100
    else:
        p.x[::2] = 0
    check(p, regime=regime, weights=TERMS["all"], **EVERYTHING)


def test_tokens_and_reconstructions_of_norm_zero_count_as_cosine_zero(regime):
    p = random_problem(4, 5, 11, 3, modulated=False, biases=False)
    p.x[1] = 0
    terms = tide_loss(**p.arguments(), weights=LossWeights(mse=0), regime=regime)
    rest = tide_loss(**p.arguments() | {"x": p.x[[0, 2, 3]]}, weights=LossWeights(mse=0), regime=regime)
    assert_close(terms.cosine, (rest.cosine * 3 + 1) / 4, EXACT)
    terms.total.backward()
    assert all(t.grad.isfinite().all() for t in p.parameters().values())


@pytest.mark.parametrize("delta", [1e-3, 10.0], ids=["linear part", "quadratic part"])
@pytest.mark.parametrize("s_target", [0.0, 0.3, None], ids=["above target", "below target", "default target"])
def test_both_parts_of_the_huber_function(s_target, delta):
    weights = TERMS["sparsity"]
    check(random_problem(8, 5, 11, 3), weights=weights, s_target=s_target, delta=delta, soft_eps=0.3)


@pytest.mark.parametrize("frozen", ["W_enc", "b_enc", "W_dec", "b_dec", "scale", "shift"])
def test_only_what_requires_grad_gets_one(frozen, regime):
    p = random_problem(8, 5, 11, 3, groups=3)
    p.parameters()[frozen].requires_grad_(False)
    trained = {name: t for name, t in p.parameters().items() if name != frozen}
    options = EVERYTHING | {"weights": TERMS["all"]}
    tide_loss(**p.arguments(), regime=regime, **options).total.backward()
    wanted = torch.autograd.grad(naive.tide_loss(**p.arguments(), **options).total, list(trained.values()))
    assert p.parameters()[frozen].grad is None
    for (name, parameter), want in zip(trained.items(), wanted, strict=True):
        assert_close(parameter.grad, want, EXACT, name)


def test_only_one_parameter_requires_grad(regime):
    full = random_problem(8, 5, 11, 3)
    tide_loss(**full.arguments(), regime=regime).total.backward()
    for name, parameter in full.parameters().items():
        p = random_problem(8, 5, 11, 3, requires_grad=False)
        p.parameters()[name].requires_grad_()
        tide_loss(**p.arguments(), regime=regime).total.backward()
        assert torch.equal(p.parameters()[name].grad, parameter.grad), name


def test_without_gradients_the_terms_are_the_same():
    p = random_problem(8, 5, 11, 3)
    options = EVERYTHING | {"weights": TERMS["all"]}
    with_gradients = tide_loss(**p.arguments(), **options)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            terms = tide_loss(**p.arguments(), **options)
        assert not terms.total.requires_grad
        assert all(torch.equal(a, b) for a, b in zip(terms, with_gradients, strict=True))


def test_only_the_total_carries_gradient():
    terms = tide_loss(**random_problem(8, 5, 11, 3).arguments())
    assert isinstance(terms, LossTerms)
    assert [name for name in terms._fields if getattr(terms, name).requires_grad] == ["total"]


def test_the_incoming_gradient_scales_the_gradients():
    p = random_problem(8, 5, 11, 3)
    total = tide_loss(**p.arguments()).total
    once = torch.autograd.grad(total, p.W_enc, retain_graph=True)[0]
    assert_close(torch.autograd.grad(-3 * total, p.W_enc)[0], -3 * once, EXACT)


def test_no_tokens(regime):
    p = random_problem(0, 5, 11, 3, groups=2)
    terms = tide_loss(**p.arguments(), weights=TERMS["all"], regime=regime, **EVERYTHING)
    assert all(not term.any() for term in terms)
    terms.total.backward()
    assert all(not t.grad.any() for t in p.parameters().values())


def test_group_of_int32_and_groups_without_tokens(regime):
    p = random_problem(6, 5, 11, 3, groups=9)
    p.group = torch.tensor([7, 7, 0, 3, 3, 7], dtype=torch.int32)
    check(p, regime=regime)
    tide_loss(**p.arguments(), regime=regime).total.backward()
    assert p.scale.grad.abs().sum(1).bool().nonzero().flatten().tolist() == [0, 3, 7]


def test_group_is_ignored_without_modulation():
    p = random_problem(6, 5, 11, 3, modulated=False)
    with_group = p.arguments() | {"group": torch.arange(6)}
    assert torch.equal(tide_loss(**with_group).total, tide_loss(**p.arguments()).total)


def test_nan_shows_in_the_total(regime):
    p = random_problem(6, 5, 11, 3)
    p.x[2, 1] = float("nan")
    assert tide_loss(**p.arguments(), regime=regime).total.isnan()


def test_two_adamw_steps_lower_the_loss(regime):
    p = random_problem(64, 8, 40, 4, groups=3, dtype=torch.float32)
    optimiser = torch.optim.AdamW(p.parameters().values(), lr=1e-2)
    totals = []
    for _ in range(3):
        terms = tide_loss(**p.arguments(), regime=regime)
        totals.append(terms.total.item())
        optimiser.zero_grad()
        terms.total.backward()
        optimiser.step()
    assert totals == sorted(totals, reverse=True)


@pytest.mark.parametrize("factor", [1.0, 0.5], ids=["handed out as they are", "scaled"])
def test_backward_passes_over_a_graph_that_is_kept_add_up(factor):
    """Only the last one may hand out the saved gradients without a copy."""
    p = random_problem(8, 5, 11, 3, groups=3)
    expected = torch.autograd.grad(tide_loss(**p.arguments()).total, list(p.parameters().values()))
    total = tide_loss(**p.arguments()).total * factor
    total.backward(retain_graph=True)
    p.W_enc.grad.mul_(2)  # the owner of a gradient may change it
    total.backward(retain_graph=True)
    total.backward()
    for (name, parameter), want in zip(p.parameters().items(), expected, strict=True):
        assert_close(parameter.grad, want * factor * (4 if name == "W_enc" else 3), EXACT, name)
    with pytest.raises(RuntimeError, match="second time"):
        total.backward()


def test_gradients_are_not_copied_on_their_way_out():
    p = random_problem(8, 64, 512, 3, dtype=torch.float32)
    loss = tide_loss(**p.arguments()).total
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        loss.backward()
    allocated = max(event.self_cpu_memory_usage for event in profile.events())
    assert allocated < p.W_enc.numel() * 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_gradients_are_added_to_buffers(regime, dtype):
    """This includes float16, whose gradients are scaled on the way."""
    p = random_problem(8, 5, 11, 3, groups=3, dtype=dtype)
    options = {"weights": TERMS["all"], "regime": regime, "chunk": 4, **EVERYTHING}
    terms = tide_loss(**p.arguments(), **options)
    expected = torch.autograd.grad(terms.total, list(p.parameters().values()))
    sum_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    buffers = {name: torch.ones(q.shape, dtype=sum_dtype) for name, q in p.parameters().items() if name != "b_enc"}
    added = tide_loss(**p.arguments(), **options, gradients=buffers)
    assert not added.total.requires_grad
    assert torch.equal(added.total, terms.total.detach())
    for name, want in zip(p.parameters(), expected, strict=True):
        if name in buffers:
            tolerance = EXACT if dtype == torch.float64 else torch.finfo(dtype).eps
            assert_close(buffers[name], want.to(sum_dtype) + 1, tolerance, name)
