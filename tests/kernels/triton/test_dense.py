"""The plain products of the dense regime and the sums of its codes, against float64."""

import pytest
import torch

from tide_kernels import triton
from tide_kernels.testing import assert_close

DTYPES = [torch.float16, torch.float32]
SHAPES = [
    pytest.param(2, 1, 1, id="one latent of width 1"),
    pytest.param(38, 83, 70, id="tiles that are mostly mask, in all three directions"),
    pytest.param(64, 32, 32, id="whole tiles"),
]
SOFT_EPS = 0.1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n_tokens", "paired"), [(6, True), (6, False), (5, False)])
def test_code_sums(n_tokens, paired, dtype, masked):
    z = masked(n_tokens, 83, 1, dtype)[0]
    temporal, soft = triton.code_sums(z, paired, SOFT_EPS)
    code = z.double()
    expected = (code[0::2] - code[1::2]).square().sum() if paired else torch.zeros(())
    assert_close(temporal, expected, 1e-6, "temporal")
    assert_close(soft, (code.square() / (code.square() + SOFT_EPS**2)).sum() / 83, 1e-6, "soft")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n_tokens", "n_latents", "d_model"), SHAPES)
def test_plain_products(n_tokens, n_latents, d_model, dtype, masked, normal):
    z, rows, W = masked(n_tokens, n_latents, d_model, dtype)
    assert_close(triton.decode_dense(z, W), z.double() @ W.double(), 1e-5, "decode_dense")
    out = normal(n_latents, d_model)
    expected = out.double() + z.double().T @ rows.double()
    triton.add_product_(out, z, rows.float())
    assert_close(out, expected, 1e-5, "add_product_")


def test_no_tokens(normal):
    z, out = normal(0, 33), normal(33, 20)
    before = out.clone()
    assert [float(total) for total in triton.code_sums(z, True, SOFT_EPS)] == [0, 0]
    assert triton.decode_dense(z, normal(33, 20)).shape == (0, 20)
    triton.add_product_(out, z, normal(0, 20))
    assert torch.equal(out, before)
