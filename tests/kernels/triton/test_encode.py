"""`pre_activations`, and the single-launch encoder against separate modulation, product and selection."""

import pytest
import torch

from tests.helpers.tolerances import SUMS as TOLERANCE
from tide_kernels import reference, triton
from tide_kernels.testing import assert_close

DTYPES = [torch.float16, torch.float32]
SHAPES = [
    pytest.param(1, 1, 8, 1, id="one token, one latent"),
    pytest.param(21, 200, 20, 7, id="several tiles and bands"),
    pytest.param(21, 200, 20, 190, id="k near n, fewer positives than k"),
    pytest.param(53, 45, 33, 3, id="more bands than exist at a time"),
]


@pytest.fixture
def integers(device, generator):
    """Small integers, whose products and sums are exact in any dtype and order."""

    def make(*shape, dtype):
        return torch.randint(-2, 3, shape, generator=generator).to(device=device, dtype=dtype)

    return make


def same(actual, expected):
    return all(torch.equal(a.nan_to_num(77.0), e.nan_to_num(77.0)) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_pre_activations(bias, dtype, normal):
    x_mod, W = normal(37, 70, dtype=dtype), normal(45, 70, dtype=dtype)
    b = normal(45, dtype=dtype) if bias else None
    x_mod[3, 5] = torch.nan
    out = triton.pre_activations(x_mod, W, b)
    expected = x_mod.double() @ W.double().T + (0 if b is None else b.double())
    assert_close(out, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("n_tokens", "n_latents", "d_model", "k"), SHAPES)
def test_exact_products(n_tokens, n_latents, d_model, k, bias, dtype, integers):
    # Integers make many ties, and results have to be equal in every bit.
    x, W = integers(n_tokens, d_model, dtype=dtype), integers(n_latents, d_model, dtype=dtype)
    b = integers(n_latents, dtype=dtype) if bias else None
    x[n_tokens // 2, 0] = torch.nan  # a token of NaN, all tied, next to tokens without NaN
    pre = x.double() @ W.double().T + (0 if b is None else b.double())
    expected = reference.select(pre.to(dtype), k)
    actual = triton.encode(x, None, None, None, False, W, b, k)
    assert actual[0].dtype == dtype
    assert actual[1].dtype == torch.int32
    assert same(actual, expected)


@pytest.mark.parametrize("grouped", [False, True])
def test_modulation(grouped, integers, device, generator):
    x, W = integers(21, 20, dtype=torch.float32), integers(90, 20, dtype=torch.float16)
    rows = 3 if grouped else 1
    scale, shift = integers(rows, 20, dtype=torch.float32), integers(rows, 20, dtype=torch.float32)
    group = torch.randint(3, (21,), generator=generator).to(device) if grouped else None
    x_mod = reference.modulate(x, scale, shift, group, False, torch.float16)
    expected = reference.select((x_mod.double() @ W.double().T).half(), 9)
    assert same(triton.encode(x, scale, shift, group, False, W, None, 9), expected)


def test_layer_norm_equals_the_split_path(normal):
    # One latent is clearly the largest of each token, so rounding cannot change the selection.
    x, W = normal(21, 40), normal(90, 40, size=0.1)
    x_mod = triton.modulate(x, None, None, None, True, torch.float32)
    W[:21] += x_mod
    values, indices = triton.encode(x, None, None, None, True, W, None, 1)
    expected = triton.select(triton.pre_activations(x_mod, W, None), 1)
    assert torch.equal(indices, expected[1])
    assert torch.allclose(values, expected[0], rtol=1e-5)


def test_no_tokens(normal):
    values, indices = triton.encode(normal(0, 20), None, None, None, False, normal(33, 20), None, 4)
    assert values.shape == indices.shape == (0, 4)
    assert triton.pre_activations(normal(0, 20), normal(33, 20), normal(33)).shape == (0, 33)
