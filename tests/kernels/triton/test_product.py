"""The matrix product against float64."""

import pytest
import torch

from tide_kernels.testing import assert_close
from tide_kernels.triton.product import has_mixed_products, product

DTYPES = [torch.float16, torch.float32]
SHAPES = [
    pytest.param(1, 1, 1, id="one of everything"),
    pytest.param(37, 83, 70, id="tiles that are mostly mask, in all three directions"),
    pytest.param(64, 32, 96, id="whole tiles"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("add", [False, True], ids=["", "add"])
@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
@pytest.mark.parametrize(("rows", "columns", "inner"), SHAPES)
def test_agrees_with_float64(rows, columns, inner, biased, add, dtype, normal):
    a, b = normal(rows, inner, dtype=dtype), normal(inner, columns, dtype=dtype)
    bias = normal(columns, dtype=dtype) if biased else None
    out = normal(rows, columns)
    expected = a.double() @ b.double() + (0 if bias is None else bias.double()) + (out.double() if add else 0)
    product(a, b, out, bias=bias, add=add)
    assert_close(out, expected, 1e-5)


@pytest.mark.parametrize("transposed", ["a", "b", "a and b"])
def test_operands_may_be_transposed(transposed, normal):
    a, b = normal(37, 70), normal(70, 45)
    expected = a.double() @ b.double()
    a = a.T.contiguous().T if "a" in transposed.split() else a
    b = b.T.contiguous().T if "b" in transposed.split() else b
    out = torch.empty(37, 45, device=a.device)
    product(a, b, out)
    assert_close(out, expected, 1e-5)


def test_nan_shows_in_its_row_alone(normal):
    a, b, out = normal(3, 20), normal(20, 5), normal(3, 5)
    a[1, 7] = torch.nan
    product(a, b, out)
    assert out.isnan().any(1).tolist() == [False, True, False]


def test_out_has_to_be_contiguous(normal):
    with pytest.raises(ValueError, match="out of product_kernel is not contiguous: pass memory of its own"):
        product(normal(3, 4), normal(4, 5), normal(5, 3).T)


def test_nothing_to_multiply(normal):
    out = normal(3, 5)
    product(normal(0, 4), normal(4, 5), out[:0])
    product(normal(3, 0), normal(0, 5), out)  # a sum of no products
    assert not out.any()


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about the interpreter, on a CPU")
def test_on_a_cpu_there_is_no_product_with_float32_sums():
    assert not has_mixed_products(torch.zeros(2, 2))
