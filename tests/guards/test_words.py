"""The map of words, and the refuge's text in the form of a call."""

from __future__ import annotations

import pytest
import torch

from tide.errors import TideError
from tide.guards import Refuge, Words
from tide.guards.words import states_of


def test_the_map_adds_a_low_rank_change():
    down, up = torch.tensor([[1.0], [0.0], [2.0]]), torch.tensor([[0.5, -1.0, 0.0]])
    states = torch.tensor([[1.0, 5.0, 1.0], [0.0, 1.0, 0.0]])
    assert Words(down, up)(states).tolist() == [[2.5, 2.0, 1.0], [0.0, 1.0, 0.0]]
    assert Words(down, up)(states.half()).dtype == torch.float16
    assert (Words(down, up).width, Words(down, up).rank) == (3, 1)


def test_gradients_pass_through_the_map():
    states = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    words = Words(torch.randn(3, 2), torch.randn(2, 3))
    words(states).sum().backward()
    wanted = (torch.eye(3) + words.down @ words.up).sum(1)
    assert torch.allclose(states.grad, wanted.double().expand(2, 3), atol=1e-6)


def test_shapes_are_checked():
    with pytest.raises(TideError, match=r"give \[d_text, r\] and \[r, d_text\]"):
        Words(torch.zeros(3, 2), torch.zeros(3, 2))
    with pytest.raises(TideError, match="width 4 and the guard's map of words 3"):
        Words(torch.zeros(3, 2), torch.zeros(2, 3))(torch.zeros(1, 4))
    with pytest.raises(TideError, match="is not given encoder_hidden_states"):
        states_of({"hidden_states": torch.zeros(1)})


@pytest.mark.parametrize(("n", "kept"), [(2, 2), (3, 3), (5, 3)], ids=["cut", "as it is", "padded"])
def test_the_refuge_fits_the_length_of_a_call(n, kept):
    refuge = Refuge(torch.arange(6.0).view(3, 2) + 1, torch.tensor([True, True, False]))
    states = refuge.fitted(torch.zeros(n, 2, dtype=torch.float16))
    assert states.dtype == torch.float16
    assert torch.equal(states[:kept].float(), refuge.states[:kept])
    assert (states[kept:] == 0).all()
    wanted = [1, 1, 0, 0, 0][:n]
    assert refuge.fitted_mask(torch.zeros(n, dtype=torch.int64)).tolist() == wanted
    assert refuge.fitted_mask(torch.zeros(n, dtype=torch.bool)).tolist() == [bool(each) for each in wanted]
    bias = refuge.fitted_mask(torch.full((n,), -10000.0))
    assert bias.tolist() == [0.0 if each else -10000.0 for each in wanted]
    assert torch.equal(refuge.fitted_mask(torch.zeros(n)), bias), "of a prompt without padding"
    assert refuge.fitted_mask(torch.ones(n)).tolist() == [float(each) for each in wanted]


def test_a_refuge_has_words():
    with pytest.raises(TideError, match="every token of a refuge's caption is padding"):
        Refuge(torch.zeros(2, 3), torch.zeros(2, dtype=torch.bool))
    with pytest.raises(TideError, match=r"give \[L, d_text\] and bool \[L\]"):
        Refuge(torch.zeros(2, 3), torch.ones(3, dtype=torch.bool))
