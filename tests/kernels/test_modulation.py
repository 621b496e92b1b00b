"""The backward pass of the modulation against autograd."""

import pytest
import torch

from tests.helpers import naive
from tide_kernels import reference
from tide_kernels.dispatch import Primitives
from tide_kernels.modulation import add_by_group, add_modulation_gradients, by_group, input_gradient, modulated
from tide_kernels.testing import assert_close, random_problem

EXACT = 1e-12  # float64, relative to the RMS
OPS = Primitives.of(reference)


@pytest.mark.parametrize("layer_norm", [False, True], ids=["", "layer norm"])
@pytest.mark.parametrize("groups", [None, 3, 20], ids=["one group", "groups", "groups without tokens"])
def test_gradients(groups, layer_norm):
    p = random_problem(9, 7, 2, 1, groups=groups)
    p.x.requires_grad_()
    out = naive.modulate(p.x, p.scale, p.shift, p.group, layer_norm)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    expected = torch.autograd.grad(out, (p.x, p.scale, p.shift), grad)
    x, scale = p.x.detach(), p.scale.detach()
    sums = [torch.ones_like(scale) for _ in range(2)]
    add_modulation_gradients(OPS, grad, x, p.group, layer_norm, *sums)
    assert_close(input_gradient(grad, x, scale, p.group, layer_norm), expected[0], EXACT, "x")
    assert_close(sums[0] - 1, expected[1], EXACT, "scale")
    assert_close(sums[1] - 1, expected[2], EXACT, "shift")


def test_without_scale_and_norm_the_gradient_is_handed_through():
    grad = torch.randn(4, 3)
    assert input_gradient(grad, torch.randn(4, 3), None, None, False) is grad


def test_rows_are_added_to_what_their_group_holds():
    rows, out = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.ones(4, 2)
    add_by_group(OPS, rows, by_group(OPS, torch.tensor([2, 0, 2]), len(out)), out)
    assert out.tolist() == [[4.0, 5.0], [1.0, 1.0], [7.0, 9.0], [1.0, 1.0]]
    total = torch.ones(1, 2)
    add_by_group(OPS, rows, by_group(OPS, None, 1), total)
    assert total.tolist() == [[10.0, 13.0]]


def test_tokens_that_nothing_modulates_are_not_copied():
    x = torch.ones(3, 2)
    assert modulated(OPS, x, None, None, None, False, torch.float32) is x
    assert modulated(OPS, x, None, None, None, False, torch.float64).dtype == torch.float64
    assert torch.equal(modulated(OPS, x, torch.ones(1, 2), None, None, False, torch.float32), 2 * x)
    assert not modulated(OPS, x, None, None, None, True, torch.float32).any()
