"""The terms of a compact code of its own, against `tide_kernels.losses` in float64."""

import pytest
import torch

from tide_kernels import losses, reference, triton
from tide_kernels.testing import assert_close

EXACT = 1e-6  # float32, relative to the RMS
LATENTS = 23


@pytest.fixture(params=[(2, 1), (8, 3), (6, 9), (6, 23)], ids=str)
def selected(request, normal):
    """Values and indices of a selection, some of whose rows are not full; rows of a pair share latents."""
    n_tokens, k = request.param
    pre = normal(n_tokens // 2, LATENTS).repeat_interleave(2, 0) + 0.5 * normal(n_tokens, LATENTS)
    pre[-1] -= 2
    return reference.select(pre, k)


def test_differences_within_pairs(selected):
    values, indices = selected
    total, differences = triton.pair_differences(values, indices)
    expected, wanted = losses.pair_differences(values.double(), indices, LATENTS)
    assert_close(total, expected, EXACT, "sum")
    assert_close(differences, wanted, EXACT, "differences")


def test_nan_shows_in_the_sum_and_in_its_latent(normal):
    values, indices = reference.select(normal(4, LATENTS), 5)
    values[3, 1] = torch.nan
    total, differences = triton.pair_differences(values, indices)
    _, wanted = losses.pair_differences(values, indices, LATENTS)
    assert total.isnan()
    assert torch.equal(differences.isnan(), wanted.isnan())


def test_no_tokens(device):
    values, indices = torch.empty(0, 3, device=device), torch.empty(0, 3, dtype=torch.int32, device=device)
    total, differences = triton.pair_differences(values, indices)
    assert float(total) == float(triton.soft_count(values, LATENTS, 0.1)) == 0
    assert differences.shape == triton.code_slopes(values, differences, 1.0, None, 0.1, LATENTS).shape == (0, 3)


@pytest.mark.parametrize("soft_eps", [0.1, 3.0, 1e-9])
def test_soft_count(selected, soft_eps):
    values = selected[0]
    expected = losses.soft_count(values.double(), LATENTS, soft_eps)
    assert_close(triton.soft_count(values, LATENTS, soft_eps), expected, EXACT)


@pytest.mark.parametrize("terms", ["pair", "soft", "both"])
def test_slopes(selected, terms, normal):
    values, indices = selected
    differences = None if terms == "soft" else losses.pair_differences(values, indices, LATENTS)[1]
    soft = None if terms == "pair" else normal(1)[0]
    wide = [None if t is None else t.double() for t in (differences, soft)]
    expected = losses.code_slopes(values.double(), wide[0], 0.3, wide[1], 0.1, LATENTS)
    assert_close(triton.code_slopes(values, differences, 0.3, soft, 0.1, LATENTS), expected, EXACT)
