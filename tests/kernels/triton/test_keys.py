"""Floats as integers: what orders them, and where infinity lies."""

import pytest
import torch

from tide_kernels.triton.keys import INFINITY_BITS, INTEGERS


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_the_bits_of_non_negative_floats_have_their_order(dtype):
    info = torch.finfo(dtype)
    ascending = [0.0, info.tiny, 0.5, 1.0, 1 + info.eps, info.max, torch.inf]
    bits = torch.tensor(ascending, dtype=dtype).view(INTEGERS[dtype]).tolist()
    assert bits == sorted(set(bits))


@pytest.mark.parametrize("dtype", INFINITY_BITS, ids=str)
def test_nothing_but_nans_comes_after_infinity(dtype):
    integers = INTEGERS[dtype]
    bits = torch.tensor([INFINITY_BITS[dtype], INFINITY_BITS[dtype] + 1, torch.iinfo(integers).max], dtype=integers)
    infinity, *after = bits.view(dtype).tolist()
    assert infinity == torch.inf
    assert torch.tensor(after).isnan().all()
