"""The code of a chunk inside the fused step, in both regimes, against the dense code and autograd."""

from dataclasses import replace

import pytest
import torch

from tests.helpers import naive
from tide_kernels import losses, reference
from tide_kernels.codes import Compact, DenseCode, Slopes, SparseCode, Tokens, encode
from tide_kernels.dispatch import Choice, Primitives
from tide_kernels.modulation import add_modulation_gradients
from tide_kernels.testing import assert_close, random_problem

EXACT = 1e-12  # float64, relative to the RMS
N, D, LATENTS, K = 6, 5, 11, 3


def choice(regime):
    return Choice("reference", regime, Primitives.of(reference))


@pytest.fixture
def problem():
    return random_problem(N, D, LATENTS, K, groups=2)


def encoded(p, regime):
    """The tokens, their dense code, and their code as `encode` makes it."""
    x_mod = naive.modulate(p.x, p.scale, p.shift, p.group).detach()
    tokens = Tokens(p.x, x_mod, p.scale.detach(), p.shift.detach(), p.group, False, p.x)
    pre = (x_mod @ p.W_enc.T + p.b_enc).detach()
    return tokens, naive.topk(pre, K), encode(choice(regime), pre, K)


def test_the_regime_chooses_the_form(problem):
    assert isinstance(encoded(problem, "sparse")[-1], SparseCode)
    assert isinstance(encoded(problem, "dense")[-1], DenseCode)


def test_decode_sums_and_count(problem, regime):
    _, z, code = encoded(problem, regime)
    W = problem.W_dec.detach()
    assert_close(code.decode(W), z @ W, EXACT, "decode")
    temporal, soft = code.sums(True, 0.1)
    assert_close(temporal, (z[0::2] - z[1::2]).square().sum(), EXACT, "temporal")
    assert_close(soft, losses.soft_count(z, LATENTS, 0.1), EXACT, "soft count")
    assert not code.sums(False, 0.1)[0]
    fired = torch.ones(LATENTS, dtype=torch.int64)
    code.count(fired)
    assert torch.equal(fired, 1 + (z != 0).sum(0))


def test_sums_that_came_with_the_selection(problem):
    sums = (torch.tensor(2.0), torch.tensor(3.0))
    asked = []

    def keep_top_with_sums_(*arguments):
        asked.append(arguments[1:])
        reference.keep_top_(*arguments[:2])
        return sums

    ops = Primitives.of(reference)
    backend = Choice("own", "dense", replace(ops, keep_top_with_sums_=keep_top_with_sums_, code_sums=None))
    _, z, _ = encoded(problem, "dense")
    pre = z.clone()
    code = encode(backend, pre, K, (True, 0.1))
    assert code.sums(True, 0.1) is sums
    assert asked == [(K, True, 0.1)]
    assert torch.equal(pre, z)
    assert encode(choice("dense"), z.clone(), K, (False, 0.1)).sums(False, 0.1)[1] > 0


def test_a_kept_code_comes_back_in_the_form_of_its_regime(problem, regime):
    _, z, code = encoded(problem, regime)
    unpacked = Compact(*naive.compact(z, K)).unpack(choice(regime), LATENTS)
    assert type(unpacked) is type(code)
    assert torch.equal(unpacked.decode(torch.eye(LATENTS, dtype=z.dtype)), z)


def test_unused_places_of_a_kept_code_write_nowhere(regime):
    values = torch.tensor([[2.0, 3.0, torch.nan], [5.0, torch.nan, torch.nan], [torch.nan] * 3], dtype=torch.float64)
    indices = torch.tensor([[0, 10, -1], [4, -1, -1], [-1, -1, -1]], dtype=torch.int32)
    decoded = Compact(values, indices).unpack(choice(regime), LATENTS).decode(torch.eye(LATENTS, dtype=torch.float64))
    expected = torch.zeros(3, LATENTS, dtype=torch.float64)
    expected[0, 0], expected[0, 10], expected[1, 4] = 2, 3, 5
    assert torch.equal(decoded, expected)


ALL = ("W_dec", "W_enc", "b_enc", "scale", "shift")


@pytest.mark.parametrize("wanted", [ALL, ("W_dec",), ("scale",), ("b_enc",), ()], ids=str)
@pytest.mark.parametrize("shares", [False, True], ids=["", "added to the gradient of another code"])
def test_backward(problem, regime, wanted, shares):
    p = problem
    tokens, z, code = encoded(p, regime)
    grad = torch.randn(N, D, generator=torch.Generator().manual_seed(1), dtype=z.dtype)
    slopes = Slopes(0.3, torch.tensor(0.7, dtype=z.dtype), 0.1)
    gradients = {name: torch.ones_like(p.parameters()[name]) for name in wanted}
    fired = torch.zeros(LATENTS, dtype=torch.int64)
    weights = (p.W_enc.detach(), p.W_dec.detach())
    shared = torch.ones(N, D, dtype=z.dtype) if shares else None
    grad_x_mod = code.backward(grad, tokens, *weights, slopes, gradients, fired, grad_x_mod=shared)
    tables = [gradients.get(name) for name in ("scale", "shift")]
    if not any(table is not None for table in tables):
        assert grad_x_mod is shared
    else:
        assert shared is None or grad_x_mod is shared
        grad_x_mod -= int(shares)
        add_modulation_gradients(choice(regime).ops, grad_x_mod, p.x, p.group, False, *tables)

    latents = naive.latents(p.x, p.W_enc, p.b_enc, K, p.scale, p.shift, p.group)
    pairs = (latents[0::2] - latents[1::2]).square().sum() / 2
    soft = (latents.square() / (latents.square() + 0.01)).sum() / LATENTS
    total = (latents @ p.W_dec * grad).sum() + 0.3 * pairs + 0.7 * soft
    expected = dict(zip(ALL, torch.autograd.grad(total, [p.parameters()[name] for name in ALL]), strict=True))
    for name, gradient in gradients.items():
        assert_close(gradient - 1, expected[name], 1e-11, name)
    assert torch.equal(fired, (z != 0).sum(0))
