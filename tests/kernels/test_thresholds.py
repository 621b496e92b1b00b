"""The reference's primitives of threshold activations, whose contract all backends share."""

import pytest
import torch

from tests.helpers import naive
from tide_kernels import reference
from tide_kernels.testing import adversarial_rows, assert_close
from tide_kernels.thresholds import keys_of

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LATENTS = 24


def rows_of(dtype):
    return torch.stack(list(adversarial_rows(LATENTS, dtype).values()))


def sum_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def thresholds(dtype, groups):
    values = torch.randn(groups, LATENTS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return values.round().to(sum_dtype(dtype))  # equal to some entries, and of both signs


@pytest.mark.parametrize("capacity", [1, 5, LATENTS])
@pytest.mark.parametrize("groups", [None, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_select_above(dtype, groups, capacity):
    pre, table = rows_of(dtype), thresholds(dtype, groups or 1)
    group = None if groups is None else torch.arange(len(pre)) % groups
    values, indices, count = reference.select_above(pre, table, group, None, capacity)
    expected = naive.rows_above(pre, table if group is None else table[group], capacity)
    assert values.dtype == dtype
    assert torch.equal(values.isnan(), expected[0].isnan())
    assert torch.equal(values.nan_to_num(1.0), expected[0].nan_to_num(1.0))
    assert torch.equal(indices, expected[1])
    assert torch.equal(count, expected[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_cut_adds_ties_up_to_a_latent(dtype):
    pre = torch.tensor([[2.0, 1.0, 2.0, 3.0, 2.0]] * 4, dtype=dtype)
    table = torch.full((1, 5), 2.0, dtype=sum_dtype(dtype))
    cut = torch.tensor([-1, 0, 2, 4], dtype=torch.int32)
    _, indices, count = reference.select_above(pre, table, None, cut, 5)
    kept = [row[row >= 0].tolist() for row in indices]
    assert kept == [[3], [0, 3], [0, 2, 3], [0, 2, 3, 4]]
    assert count.tolist() == [1, 2, 3, 4]
    out = torch.empty_like(pre)
    assert reference.keep_above(pre, table, None, cut, out).tolist() == [1, 2, 3, 4]
    assert [row.nonzero().flatten().tolist() for row in out] == kept


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_keep_above_writes_out_what_select_above_selects(dtype):
    pre, table = rows_of(dtype), thresholds(dtype, 3)
    group = torch.arange(len(pre)) % 3
    values, indices, count = reference.select_above(pre, table, group, None, LATENTS)
    out = torch.full_like(pre, torch.nan)
    assert torch.equal(reference.keep_above(pre, table, group, None, out), count)
    expected = torch.zeros_like(pre).scatter_add_(1, indices.clamp(min=0).long(), values)
    assert torch.equal(out.nan_to_num(1.0), expected.nan_to_num(1.0))
    reference.keep_above(pre, table, group, None, pre)
    assert torch.equal(pre.nan_to_num(1.0), expected.nan_to_num(1.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_histogram_counts_the_parts_of_keys(dtype):
    pre = rows_of(dtype)
    keys = keys_of(pre).long().flatten()
    keys = keys[keys > 0]
    assert len(keys) == ((pre > 0) | pre.isnan()).sum()
    counts = torch.zeros(2**15, dtype=torch.int64)
    reference.key_histogram_(pre, counts, 0, None)
    reference.key_histogram_(pre, counts, 0, None)
    assert torch.equal(counts, 2 * torch.bincount(keys % 2**15, minlength=2**15))
    for high in (keys >> 15).unique():
        counts.zero_()
        reference.key_histogram_(pre, counts, 0, high)
        assert torch.equal(counts, torch.bincount(keys[keys >> 15 == high] % 2**15, minlength=2**15))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_keys_keep_the_order_of_positive_numbers(dtype):
    pre = rows_of(dtype)
    assert (keys_of(pre)[~(pre > 0) & ~pre.isnan()] == 0).all()
    assert (keys_of(pre)[pre.isnan()] == torch.iinfo(keys_of(pre).dtype).max).all()
    positive = pre[pre > 0]
    assert torch.equal(positive[keys_of(positive).argsort()], positive.sort().values)


def test_the_sums_near_thresholds_go_to_their_groups():
    generator = torch.Generator().manual_seed(0)
    pre, dz = (torch.randn(8, LATENTS, generator=generator, dtype=torch.float64) for _ in range(2))
    group, table = torch.tensor([2, 0, 0, 2, 2, 0, 2, 2]), thresholds(torch.float64, 3)
    sums, near = torch.zeros_like(table), torch.zeros_like(table, dtype=torch.int64)
    identity = torch.eye(LATENTS, dtype=torch.float64)  # so that grad W_dec^T is grad
    reference.near_gradient(dz, identity, pre.relu(), 0.0, None, None, pre, table, group, 0.8, sums, near)
    close = (pre - table[group]).abs() < 0.4
    for row in range(3):
        assert torch.equal(near[row], close[group == row].sum(0))
        assert_close(sums[row], (dz * close)[group == row].sum(0), 1e-12)
