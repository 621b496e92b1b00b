"""`modulate` against the reference in float64."""

import pytest
import torch

from tests.helpers.tolerances import PRODUCTS as TOLERANCE
from tide_kernels import reference, triton
from tide_kernels.testing import assert_close


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("layer_norm", [False, True])
def test_agrees_with_the_reference(modulation, layer_norm, dtype, normal):
    x = normal(11, 70, dtype=dtype) + 3  # a mean far from 0, with which a one-pass variance would lose digits
    scale, shift, group = modulation(11, 70, dtype)
    out = triton.modulate(x, scale, shift, group, layer_norm, dtype)
    assert out.dtype == dtype
    expected = reference.modulate(
        x.double(), *(None if t is None else t.double() for t in (scale, shift)), group, layer_norm, torch.float64
    )
    assert_close(out, expected, TOLERANCE[dtype])


def test_no_tokens(normal):
    assert triton.modulate(normal(0, 70), None, None, None, True, torch.float16).shape == (0, 70)
