"""Selection by groups, whose length follows from n and k."""

import pytest
import torch

from tide_kernels import reference
from tide_kernels.triton.prune import group_length, select_pruned
from tide_kernels.triton.select import select_directly


@pytest.mark.parametrize(
    ("n_latents", "k", "length"),
    [
        pytest.param(18432, 32, 32, id="576 groups and 1024 candidates"),
        pytest.param(18432, 64, 16, id="1152 groups and 1024 candidates"),
        pytest.param(18432, 922, None, id="4608 groups and 3688 candidates are not few enough"),
        pytest.param(64, 32, None, id="half of a row"),
    ],
)
def test_groups_are_as_long_as_spares_the_most(n_latents, k, length):
    assert group_length(n_latents, k) == length


@pytest.mark.parametrize("length", [2, 16, 64])
def test_any_length_gives_the_same(length, device, generator):
    # Small integers: ties across groups, at the threshold of the groups and at that of the entries.
    pre = torch.randint(-9, 4, (5, 203), generator=generator).float()
    pre[1, 17], pre[2] = torch.nan, -1.0
    values, indices = select_pruned(pre.to(device), 6, length, select_directly)
    expected_values, expected_indices = reference.select(pre, 6)
    assert torch.equal(indices.cpu(), expected_indices)
    assert torch.equal(values.cpu().nan_to_num(-1), expected_values.nan_to_num(-1))
