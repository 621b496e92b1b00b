"""The map of words in closed form: what was planted is found, and what is to stay stays."""

from __future__ import annotations

import pytest
import torch

from tide.adapters import adapter_for
from tide.errors import TideError
from tide.guards.words_fit import aligned, closed_form, fit_words, low_rank


def test_a_planted_map_is_found_where_it_shows():
    """y = x + P x on a plane of 3 of 8 directions, and nothing is asked elsewhere."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    planted = basis[:, :3] @ torch.randn(3, 3, generator=generator, dtype=torch.float64) @ basis[:, :3].T
    x = torch.randn(200, 3, generator=generator, dtype=torch.float64) @ basis[:, :3].T
    z = torch.randn(200, 5, generator=generator, dtype=torch.float64) @ basis[:, 3:].T
    found = closed_form(x, x + x @ planted.T, z, preserve=1.0, epsilon=1e-9)
    assert torch.allclose(found, planted, atol=1e-6)
    assert (z @ found.T).abs().max() < 1e-6
    words = low_rank(found, 3)
    assert torch.allclose(words(x.float()), (x + x @ planted.T).float(), atol=1e-4)


def test_the_gradient_of_what_is_minimised_vanishes():
    generator = torch.Generator().manual_seed(1)
    x, y, z = (torch.randn(20, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    m = closed_form(x, y, z, preserve=0.3, epsilon=0.01).requires_grad_()
    size = x.square().mean()
    loss = (x + x @ m.T - y).square().sum(1).mean() + 0.3 * (z @ m.T).square().sum(1).mean()
    (loss + 0.01 * size * m.square().sum()).backward()
    assert m.grad.abs().max() < 1e-12


def test_a_lower_rank_is_the_nearest_map_of_that_rank():
    matrix = torch.diag(torch.tensor([4.0, 3.0, 0.5], dtype=torch.float64))
    words = low_rank(matrix, 2)
    assert words.rank == 2
    assert torch.allclose((words.down @ words.up).T.double(), torch.diag(torch.tensor([4.0, 3.0, 0.0]).double()))
    assert low_rank(matrix, 9).rank == 3


def states(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None].expand(-1, 2).contiguous()


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        ((1, 2, 9, 4), (1, 2, 7, 4), (1, 2, 7, 4)),  # one token for one
        ((1, 9, 9, 4, 5), (1, 7, 4, 5), (1, 7, 7, 4, 5)),  # two for one: both map to it
        ((9, 9, 9, 5), (7, 5), (7, 7, 7, 5)),  # at the beginning
        ((1, 9, 9), (1, 7), (1, 7, 7)),  # at the end
        ((1, 9, 4, 5), (1, 6, 8, 4, 5), (1, 7, 4, 5)),  # one for two: their mean
        ((1, 9, 9, 4, 5), (1, 6, 7, 8, 4, 5), (1, 6.5, 8, 4, 5)),  # two for three
    ],
)
def test_texts_of_other_lengths_are_aligned_at_both_ends(a, b, wanted):
    x, y = aligned(states(*a), states(*b))
    assert x[:, 0].tolist() == list(map(float, a))
    assert y[:, 0].tolist() == list(map(float, wanted))


def test_texts_are_aligned_though_every_state_depends_on_the_word():
    generator = torch.Generator().manual_seed(0)
    before, after = torch.randn(3, 8, generator=generator), torch.randn(4, 8, generator=generator)
    word, other = torch.randn(3, 8, generator=generator), torch.randn(1, 8, generator=generator)
    a = torch.cat([before, word, after])
    b = torch.cat([before, other, after]) + 0.2 * torch.randn(8, 8, generator=generator)
    _, y = aligned(a, b)
    assert torch.equal(y, b[[0, 1, 2, 3, 3, 3, 4, 5, 6, 7]])


def test_the_figures_are_of_captions_that_were_not_fitted(alpha):
    """A map of the first caption does nothing for the second, whose word is another one; where both are on either
    side, it is fitted on what it is measured on."""
    adapter, others = adapter_for(alpha), ["a cube", "a cone"]
    captions, replaced = ["a house", "a red sphere"], ["a tree", "a red cone"]
    assert fit_words(adapter, captions, replaced, others).residual > 0.5
    twice = [[text for text in texts for _ in range(2)] for texts in (captions, replaced)]
    assert fit_words(adapter, *twice, others).residual < 0.2
    one = fit_words(adapter, captions[:1], replaced[:1], others)
    assert (one.residual, one.moved) == (None, None)


def test_captions_are_fitted_on_a_real_text_encoder(alpha):
    adapter = adapter_for(alpha)
    captions = [
        f"a {how} house{where}" for how in ("red", "blue", "old", "new") for where in ("", ", near", " on grass")
    ]
    replaced = [caption.replace("house", "tree") for caption in captions]
    others = [caption.replace("house", "cube") for caption in captions]
    found = fit_words(adapter, captions, replaced, others, rank=16)
    assert found.residual < 0.5, "a map that does nothing leaves 1"
    assert found.moved < 0.2
    with pytest.raises(TideError, match="0 others"):
        fit_words(adapter, captions, replaced, [])
