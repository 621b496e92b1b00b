"""An edit part of the way, and beyond it."""

from __future__ import annotations

import pytest
import torch

from tide.editing import Erase, Place, Scale, Strength
from tide.errors import TideError

PLACE = Place(500.0, token=torch.zeros(2, dtype=torch.long), image=torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize("strength", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_strength(strength):
    z = torch.tensor([[1.0, 2.0, 0.0], [4.0, 0.0, 8.0]])
    found = Strength(Scale([0], 3.0), strength).latents(z, PLACE)
    torch.testing.assert_close(found, z * torch.tensor([1 + 2 * strength, 1.0, 1.0]))


def test_strengths_of_none_and_one_keep_the_bits():
    z = torch.rand(2, 5)
    assert torch.equal(Strength(Erase(top_k=2), 0.0).latents(z, PLACE), z)
    assert torch.equal(Strength(Erase(top_k=2), 1.0).latents(z, PLACE), Erase(top_k=2).latents(z, PLACE))


def test_the_edit_is_checked():
    with pytest.raises(TideError, match="feature 5 does not exist"):
        Strength(Erase([5]), 0.5).check(5)
