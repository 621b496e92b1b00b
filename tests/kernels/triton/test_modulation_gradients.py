"""`modulation_gradients` against float64, and the order of tokens by group."""

import pytest
import torch

from tide_kernels import triton
from tide_kernels.testing import assert_close
from tide_kernels.triton.modulation_gradients import ordered

EXACT = 1e-6  # sums of some ten float32 products


@pytest.mark.parametrize("wanted", [("scale", "shift"), ("scale",), ("shift",)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("n_tokens", "groups"), [(41, 4), (41, None), (41, 1), (3, 20), (1, None), (0, 2)], ids=str)
def test_agrees_with_float64(n_tokens, groups, dtype, wanted, normal, device, generator):
    grad, u = normal(n_tokens, 70), normal(n_tokens, 70, dtype=dtype)
    group = None if groups is None else torch.randint(groups, (n_tokens,), generator=generator).to(device)
    tables = {name: normal(groups or 1, 70) for name in ("scale", "shift")}
    expected = {name: table.double() for name, table in tables.items()}
    before = {name: table.clone() for name, table in tables.items()}
    given = [tables[name] if name in wanted else None for name in tables]
    triton.modulation_gradients(grad, u if "scale" in wanted else None, group, *given)
    rows = torch.zeros(n_tokens, dtype=torch.int64, device=device) if group is None else group
    expected["scale"].index_add_(0, rows, grad.double() * u.double())
    expected["shift"].index_add_(0, rows, grad.double())
    for name, table in tables.items():
        if name in wanted:
            assert_close(table, expected[name], EXACT, name)
        else:
            assert torch.equal(table, before[name]), name


def test_tokens_that_lie_apart(normal, device):
    grad, u = normal(9, 140)[:, :70], normal(18, 70)[::2]
    group = torch.arange(9, device=device) % 2
    found = [torch.zeros(2, 70, device=device) for _ in range(4)]
    triton.modulation_gradients(grad, u, group, *found[:2])
    triton.modulation_gradients(grad.contiguous(), u.contiguous(), group, *found[2:])
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


def test_nan_stays_in_its_group_and_column(normal, device):
    grad, u = normal(9, 70), normal(9, 70)
    grad[4, 69] = torch.nan
    scale, shift = (torch.zeros(3, 70, device=device) for _ in range(2))
    triton.modulation_gradients(grad, u, torch.arange(9, device=device) % 3, scale, shift)
    for table in (scale, shift):
        assert table.isnan().nonzero().tolist() == [[1, 69]]


@pytest.mark.parametrize("keys", [1, 2, 7])
@pytest.mark.parametrize("n", [0, 1, 16, 17, 50])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8], ids=str)
def test_the_order_is_that_of_a_stable_sort(n, keys, dtype, device, generator):
    key = torch.randint(keys, (n,), generator=generator).to(device=device, dtype=dtype)
    order, offsets = ordered(key, keys)
    assert order.tolist() == key.sort(stable=True).indices.tolist()
    assert offsets.tolist() == [0, *torch.bincount(key.long(), minlength=keys).cumsum(0).tolist()]
