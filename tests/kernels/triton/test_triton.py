"""The backend as a whole: what it can and cannot serve."""

import torch

from tide_kernels import triton
from tide_kernels.triton import launch


def test_what_the_backend_refuses(device):
    assert triton.unavailable() is None
    assert "float64" in triton.refuses(device, torch.float64, 100, 5)
    assert "latents" in triton.refuses(device, torch.float32, 2**21, 5)
    assert triton.refuses(device, torch.float32, 73728, 14745) is None
    if launch.INTERPRETED:
        assert "bfloat16" in triton.refuses(device, torch.bfloat16, 100, 5)
    else:
        assert "cpu" in triton.refuses(torch.device("cpu"), torch.float32, 100, 5)
