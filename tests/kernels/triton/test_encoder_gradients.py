"""`encoder_gradients` against float64, for both ways of computing the gradients of scale and shift."""

import pytest
import torch

from tests.helpers.tolerances import PRODUCTS as TOLERANCE
from tide_kernels import reference, triton
from tide_kernels.testing import assert_close
from tide_kernels.triton import configs


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("way", ["by group", "by way of x_mod"])
def test_agrees_with_float64(way, modulation, layer_norm, dtype, normal, monkeypatch):
    n_tokens, n_latents, d_model = 41, 35, 70
    table = {**configs._TABLE}
    tile = {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 16, "SWIZZLE": 8, "num_warps": 4, "num_stages": 1}
    tile["group_tokens"] = 0 if way == "by group" else 1000
    table["encoder_gradients"] = (configs.Rule("", 0, float("inf"), tile),)
    monkeypatch.setattr(configs, "_TABLE", table)
    configs.lookup.cache_clear()

    x = normal(n_tokens, d_model, dtype=dtype)
    scale, shift, group = modulation(n_tokens, d_model, dtype)
    grad_pre, W = normal(n_tokens, n_latents, dtype=dtype).relu(), normal(n_latents, d_model, dtype=dtype)
    x_mod = triton.modulate(x, scale, shift, group, layer_norm, dtype)
    sums = [normal(n_latents, d_model), *(None if t is None else normal(*t.shape) for t in (scale, shift))]
    expected = [None if t is None else t.double() for t in sums]
    triton.encoder_gradients(grad_pre, x, x_mod, scale, shift, group, layer_norm, W, *sums)

    # From x_mod before its rounding, which the computation by group does not have.
    u = reference.normalised(x.double(), layer_norm)
    exact = reference.modulate(
        x.double(), *(None if t is None else t.double() for t in (scale, shift)), group, layer_norm, torch.float64
    )
    grad_x_mod = grad_pre.double() @ W.double()
    rows = torch.zeros(n_tokens, dtype=torch.int64, device=x.device) if group is None else group
    expected[0] += grad_pre.double().T @ exact
    for total, part in zip(expected[1:], (grad_x_mod * u, grad_x_mod), strict=True):
        if total is not None:
            total.index_add_(0, rows, part)
    for name, total, wanted in zip(("W_enc", "scale", "shift"), sums, expected, strict=True):
        if total is not None:
            assert_close(total, wanted, TOLERANCE[dtype], name)
    configs.lookup.cache_clear()


def test_no_tokens(normal):
    x, W = normal(0, 70), normal(35, 70)
    sums = [normal(35, 70), normal(1, 70), normal(1, 70)]
    before = [t.clone() for t in sums]
    triton.encoder_gradients(normal(0, 35), x, x, sums[1], sums[2], None, False, W, *sums)
    for after, was in zip(sums, before, strict=True):
        assert torch.equal(after, was)
