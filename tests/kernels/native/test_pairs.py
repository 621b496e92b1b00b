"""Differences within pairs of codes: the merge of two ascending rows."""

import pytest
import torch

from tide_kernels import losses, native, reference


def code(n_tokens, n_latents, k):
    generator = torch.Generator().manual_seed(n_latents)
    return reference.select(torch.randn(n_tokens, n_latents, generator=generator), k)


@pytest.mark.parametrize(
    ("n_tokens", "n_latents", "k"),
    [
        pytest.param(64, 40, 12, id="many shared latents"),
        pytest.param(64, 4000, 12, id="hardly any"),
        pytest.param(6, 9, 9, id="k=n, all shared"),
        pytest.param(2, 5, 1, id="one place"),
        pytest.param(0, 5, 3, id="no tokens"),
        pytest.param(300, 2000, 100, id="several ranges of pairs"),
    ],
)
def test_differences_are_those_of_the_composed_form(n_tokens, n_latents, k, threads):
    values, indices = code(n_tokens, n_latents, k)
    expected_sum, expected = losses.pair_differences(values, indices, n_latents)
    exact = losses.pair_differences(values.double(), indices, n_latents)[0]
    for number in (1, 3):
        threads(number)
        total, differences = native.pair_differences(values, indices)
        assert torch.equal(differences, expected)  # each is one subtraction
        assert float(total) == pytest.approx(float(exact), rel=2e-7)  # rounded once, to float32
        assert total.shape == expected_sum.shape
        assert total.dtype == expected_sum.dtype


def test_rows_without_latents_and_rows_that_are_equal():
    values = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [0.0, 0.0], [0.0, 0.0]])
    indices = torch.tensor([[2, 7], [-1, -1], [0, 1], [0, 1], [-1, -1], [-1, -1]], dtype=torch.int32)
    total, differences = native.pair_differences(values, indices)
    assert float(total) == 5
    assert differences.tolist() == [[1, 2], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0]]


def test_half_a_pair_is_refused():
    with pytest.raises(RuntimeError, match="an odd number of rows is no pairs: pass both rows of each"):
        native.pair_differences(torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int32))
