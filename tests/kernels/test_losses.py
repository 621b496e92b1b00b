"""The terms of the loss on a chunk of tokens, against autograd and PyTorch's own functions."""

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import naive
from tide_kernels import losses
from tide_kernels.losses import full_sum
from tide_kernels.testing import assert_close

EXACT = 1e-12  # float64, relative to the RMS
COUNTS = (1, 2, 3, 5)  # of threads


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(100_000,), (40_000, 3), (7, 9000), (70, 80, 90), (5,), (0,), (0, 4)], ids=str)
def test_a_full_sum_is_the_same_for_any_number_of_threads(threads, shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    sums = []
    for number in COUNTS:
        threads(number)
        sums.append(full_sum(values))
    assert all(torch.equal(found, sums[0]) for found in sums)
    # The bound for any order: 2^-24 of the sum of magnitudes for each of the at most 400 additions in a row.
    exact, size = values.double().sum(), values.double().abs().sum()
    assert abs(float(sums[0]) - float(exact)) <= 400 * 2**-24 * float(size)


def test_pytorchs_own_sum_is_not(threads):
    """If it were, `full_sum` would not be needed."""
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    sums = set()
    for number in COUNTS:
        threads(number)
        sums.add(float(values.sum()))
    assert len(sums) > 1


def test_squared_error():
    x, x_hat = normal(7, 5), normal(7, 5, seed=1)
    error, total = losses.squared_error(x, x_hat)
    assert torch.equal(error, x_hat - x)
    assert_close(total, F.mse_loss(x_hat, x, reduction="sum"), EXACT)


def test_cosine_distance_and_its_gradient():
    x, x_hat = normal(7, 5), normal(7, 5, seed=1).requires_grad_()
    expected = (1 - F.cosine_similarity(x, x_hat)).sum()
    distance, gradient = losses.cosine_distance(x, x_hat.detach(), 0.3)
    assert_close(distance, expected, EXACT)
    assert_close(gradient, 0.3 * torch.autograd.grad(expected, x_hat)[0], EXACT)
    assert losses.cosine_distance(x, x_hat.detach(), 0.0)[1] is None


@pytest.mark.parametrize("zero", ["x", "x_hat"])
def test_a_token_of_zeros_has_distance_1_and_no_gradient(zero):
    x, x_hat = normal(3, 5), normal(3, 5, seed=1)
    {"x": x, "x_hat": x_hat}[zero][1] = 0
    distance, gradient = losses.cosine_distance(x, x_hat, 1.0)
    others = losses.cosine_distance(x[[0, 2]], x_hat[[0, 2]], 1.0)[0]
    assert_close(distance, others + 1, EXACT)
    assert not gradient[1].any()
    assert gradient[[0, 2]].all()


def test_pair_differences_and_half_their_gradient():
    z = naive.topk(normal(6, 9), 4)
    z[3] = z[2]  # a pair that shares all latents
    z[5] = 0  # a row with no latents
    values, indices = naive.compact(z, 4)
    dense = z.clone().requires_grad_()
    expected = (dense[0::2] - dense[1::2]).square().sum()
    total, differences = losses.pair_differences(values, indices, 9)
    assert_close(total, expected, EXACT)
    slopes = torch.autograd.grad(expected, dense)[0].gather(1, indices.clamp(min=0).long())
    assert_close(2 * differences, slopes.masked_fill(indices < 0, 0), EXACT)


def test_soft_count_and_its_gradient():
    values = normal(4, 6).relu().requires_grad_()
    expected = (values.square() / (values.square() + 0.01)).sum() / 20
    assert_close(losses.soft_count(values.detach(), 20, 0.1), expected, EXACT)
    gradient = losses.soft_count_gradient(values.detach(), 20, 0.1)
    assert_close(gradient, torch.autograd.grad(expected, values)[0], EXACT)


@pytest.mark.parametrize("delta", [0.01, 0.5])
def test_huber(delta):
    difference = torch.tensor([-1.0, -delta, -0.1, 0.0, 0.005, 2.0], dtype=torch.float64)
    expected = F.huber_loss(difference, torch.zeros_like(difference), delta=delta, reduction="none")
    assert_close(losses.huber(difference, delta), expected, EXACT)


@pytest.mark.parametrize("grad_dtype", [torch.float64, torch.float32, None], ids=str)
def test_the_misfit_of_a_reconstructed_residual(grad_dtype):
    generator = torch.Generator().manual_seed(0)
    rebuilt, x, x_hat = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    wanted = rebuilt - (x - x_hat)
    squared, gradient = losses.misfit(rebuilt.clone(), x_hat - x, 0.7, grad_dtype)
    assert_close(squared, wanted.square().sum(), 1e-12)
    assert (gradient is None) == (grad_dtype is None)
    if gradient is not None:
        assert gradient.dtype == grad_dtype
        assert_close(gradient, 0.7 * wanted, 4 * torch.finfo(grad_dtype).eps)


@pytest.mark.parametrize("terms", ["pair", "soft", "both"])
def test_the_slopes_of_a_code_are_the_gradient_of_its_terms(terms):
    z = torch.rand(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    indices = torch.arange(5, dtype=torch.int32).expand(4, 5)
    pair, soft = 0.0 if terms == "soft" else 0.3, None if terms == "pair" else torch.tensor(0.7, dtype=torch.float64)
    total = pair / 2 * (z[0::2] - z[1::2]).square().sum()
    if soft is not None:
        total = total + soft * losses.soft_count(z, 5, 0.1)
    (expected,) = torch.autograd.grad(total, z)
    differences = losses.pair_differences(z.detach(), indices, 5)[1] if pair else None
    assert_close(losses.code_slopes(z.detach(), differences, pair, soft, 0.1, 5), expected, 1e-12)
