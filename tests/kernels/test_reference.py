"""The reference's primitives, in particular its selection, whose contract all backends share."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import naive
from tide_kernels import reference
from tide_kernels.testing import adversarial_rows, assert_close

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

SHAPES = [
    pytest.param(1, 1, id="one latent"),
    pytest.param(16, 1, id="k=1"),
    pytest.param(16, 16, id="k=n"),
    pytest.param(97, 5, id="odd n, column groups leave a remainder"),
    pytest.param(64, 31, id="k just below n/2: narrowest column groups"),
    pytest.param(64, 40, id="k above n/2: no column groups"),
    pytest.param(300, 15, id="5 % density"),
]


def check(pre: torch.Tensor, k: int) -> None:
    values, indices = reference.select(pre, k)
    expected_values, expected_indices = naive.compact(naive.topk(pre, k), k)
    assert values.shape == indices.shape == (len(pre), k)
    assert values.dtype == pre.dtype
    assert indices.dtype == torch.int32
    assert torch.equal(indices, expected_indices)
    assert torch.equal(values.isnan(), expected_values.isnan())
    assert torch.equal(values.nan_to_num(1.0), expected_values.nan_to_num(1.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n_latents", "k"), SHAPES)
def test_adversarial_rows(n_latents, k, dtype):
    rows = adversarial_rows(n_latents, dtype)
    for name, row in rows.items():
        try:
            check(row[None], k)
        except AssertionError as error:
            raise AssertionError(f"row {name!r}") from error
    check(torch.stack(list(rows.values())), k)  # different kinds of rows in one batch do not disturb each other


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_rows(data):
    n_latents = data.draw(st.integers(1, 40))
    k = data.draw(st.integers(1, n_latents))
    dtype = data.draw(st.sampled_from(DTYPES))
    special = st.sampled_from([0.0, -0.0, 1.0, 2.0, -1.0, float("nan"), -float("nan"), float("inf"), 1e-45, 1e-7])
    entry = st.one_of(special, st.floats(width=16))
    rows = data.draw(st.lists(st.lists(entry, min_size=n_latents, max_size=n_latents), min_size=1, max_size=4))
    check(torch.tensor(rows, dtype=torch.float64).to(dtype), k)


def test_non_contiguous_rows():
    check(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).T, 4)
    check(torch.randn(8, 100, generator=torch.Generator().manual_seed(0))[:, ::2], 4)


@pytest.fixture
def code():
    """A code in any order, with repeated latents and unused places (whose values are NaN), and the dense code."""
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(-1, 9, (6, 4), generator=generator, dtype=torch.int32)
    indices[0] = 2
    values = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    z = torch.zeros(6, 9, dtype=torch.float64)
    z.scatter_add_(1, indices.clamp(min=0).long(), values.masked_fill(indices < 0, 0))
    return values.masked_fill(indices < 0, torch.nan), indices, z


def test_sparse_products_are_those_of_the_matrix(code):
    values, indices, z = code
    W, rows = torch.randn(9, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    assert_close(reference.gather(values, indices, W), z @ W, 1e-12, "gather")
    expected = (rows @ W.T).gather(1, indices.clamp(min=0).long()).masked_fill(indices < 0, 0)
    assert_close(reference.sampled(rows, W, indices), expected, 1e-12, "sampled")
    out = torch.ones(9, 5, dtype=torch.float64)
    reference.scatter(values, reference.transpose(indices, 9), rows, out)
    assert_close(out, 1 + z.T @ rows, 1e-12, "scatter")


def test_transpose_is_ordered_by_latent_and_token():
    indices = torch.tensor([[3, 0, 3], [-1, 3, 1], [0, -1, -1]], dtype=torch.int32)
    order, tokens, offsets = reference.transpose(indices, 5)
    assert offsets.tolist() == [0, 2, 3, 3, 6, 6]
    assert tokens[:6].tolist() == [0, 2, 1, 0, 0, 1]
    assert order[:6].tolist() == [1, 6, 5, 0, 2, 4]


def test_keep_top_keeps_what_select_takes():
    pre = torch.stack(list(adversarial_rows(60, torch.float32).values()))
    expected = naive.topk(pre, 7)
    reference.keep_top_(pre, 7)
    assert torch.equal(pre.isnan(), expected.isnan())
    assert torch.equal(pre.nan_to_num(1.0), expected.nan_to_num(1.0))
