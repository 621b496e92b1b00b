"""`reconstruction_loss` against float64."""

import pytest
import torch

from tests.helpers.tolerances import PRODUCTS as TOLERANCE
from tide_kernels import triton
from tide_kernels.losses import cosine_distance, squared_error
from tide_kernels.testing import assert_close


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("cosine_factor", "grad_dtype", "want_error"),
    [
        pytest.param(0.3, torch.float32, True, id="all"),
        pytest.param(0.0, torch.float16, False, id="no gradient of the cosine, rounded gradient"),
        pytest.param(0.3, None, False, id="sums alone"),
    ],
)
def test_agrees_with_float64(cosine_factor, grad_dtype, want_error, bias, dtype, normal):
    x, x_hat, b = normal(9, 70, dtype=dtype), normal(9, 70), normal(70, dtype=dtype) if bias else None
    x[4] = 0
    x_hat[2] = 0 if b is None else -b.float()
    squared, distance, grad, error = triton.reconstruction_loss(x, x_hat, b, 0.7, cosine_factor, grad_dtype, want_error)
    rebuilt = x_hat.double() if b is None else x_hat.double() + b.double()
    expected_error, expected_squared = squared_error(x.double(), rebuilt)
    expected_distance, slope = cosine_distance(x.double(), rebuilt, cosine_factor)
    assert_close(squared, expected_squared, 1e-6, "squared")
    assert_close(distance, expected_distance, 1e-6, "distance")
    assert (grad is None) == (grad_dtype is None)
    if grad is not None:
        expected = 0.7 * expected_error + (0 if slope is None else slope)
        assert_close(grad, expected, TOLERANCE[grad.dtype], "grad")
    assert (error is None) != want_error
    if error is not None:
        assert_close(error, expected_error, 1e-6, "error")


def test_nan_shows_in_its_token_alone(normal):
    x, x_hat = normal(3, 70), normal(3, 70)
    x_hat[1, 69] = torch.nan
    squared, distance, grad, _ = triton.reconstruction_loss(x, x_hat, None, 1.0, 1.0, torch.float32, False)
    assert squared.isnan()
    assert distance.isnan()
    assert grad.isnan().any(1).tolist() == [False, True, False]


def test_no_tokens(normal):
    x = normal(0, 70)
    squared, distance, grad, error = triton.reconstruction_loss(x, x, None, 1.0, 1.0, torch.float32, True)
    assert float(squared) == float(distance) == 0
    assert grad.shape == error.shape == (0, 70)


@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.float16, None], ids=str)
def test_the_misfit_of_a_reconstructed_residual(grad_dtype, normal):
    rebuilt, error = normal(9, 70), normal(9, 70)
    expected = rebuilt.double() + error.double()
    squared, grad = triton.misfit(rebuilt, error, 0.7, grad_dtype)
    assert_close(squared, expected.square().sum(), 1e-6)
    assert (grad is None) == (grad_dtype is None)
    if grad is not None:
        assert grad.dtype == grad_dtype
        assert_close(grad, 0.7 * expected, TOLERANCE[grad_dtype])


def test_no_tokens_have_no_misfit(normal):
    squared, grad = triton.misfit(normal(0, 70), normal(0, 70), 0.7, torch.float32)
    assert float(squared) == 0
    assert grad.shape == (0, 70)
