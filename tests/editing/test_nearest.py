"""Edits by the nearest recorded tokens, by hand, in parts, and in a pipeline."""

from __future__ import annotations

import pytest
import torch

import tide.editing.nearest as nearest
from tests.helpers.edit_samples import BLOCK, draw, recorded
from tide.editing import Place, SteerNearest, SteerTowardsNearest, edit
from tide.errors import TideError

TIMES = torch.tensor([900.0, 100.0])
KEYS = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], [[0.0, 2.0], [3.0, 0.0], [0.0, -1.0]]])
VALUES = torch.tensor([[[10.0, 0.0], [20.0, 0.0], [30.0, 0.0]], [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]])


def _place(timestep: float, n: int) -> Place:
    return Place(timestep, token=torch.arange(n), image=torch.zeros(n, dtype=torch.int64))


def test_each_token_moves_by_the_mean_of_its_nearest_keys_values():
    x = torch.tensor([[5.0, 1.0], [-1.0, 5.0]])
    one = SteerNearest(TIMES, KEYS, VALUES, k=1, factor=0.5).activations(x, _place(800.0, 2))
    assert one.tolist() == [[10.0, 1.0], [9.0, 5.0]]
    two = SteerNearest(TIMES, KEYS, VALUES, k=2).activations(x, _place(800.0, 2))
    assert two.tolist() == [[20.0, 1.0], [24.0, 5.0]]  # keys 0 and 1; 1 and 2


def test_cosine_and_the_nearest_timestep_choose():
    """At the later timestep key 0 is far longer than x and key 1 longer still; only the angle counts."""
    x = torch.tensor([[0.1, 1.0]])
    moved = SteerNearest(TIMES, KEYS, VALUES, k=1).activations(x, _place(0.0, 1))
    torch.testing.assert_close(moved, torch.tensor([[1.1, 2.0]]))


def test_towards_the_nearest_is_there_at_factor_1():
    x = torch.tensor([[0.1, 1.0]])
    towards = SteerTowardsNearest(TIMES, KEYS, KEYS, k=1)
    assert towards.activations(x, _place(0.0, 1)).tolist() == [[0.0, 2.0]]
    half = SteerTowardsNearest(TIMES, KEYS, KEYS, k=1, factor=0.5).activations(x, _place(0.0, 1))
    torch.testing.assert_close(half, torch.tensor([[0.05, 1.5]]))


def test_parts_give_the_same(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, keys = torch.randn(50, 8, generator=generator), torch.randn(1, 30, 8, generator=generator)
    steer = SteerNearest(torch.zeros(1), keys.half(), keys.flip(1).half(), k=3)
    whole = steer.activations(x, _place(0.0, 50))
    monkeypatch.setattr(nearest, "PIECE", 90)
    torch.testing.assert_close(steer.activations(x, _place(0.0, 50)), whole)


def test_in_a_pipeline_only_the_masked_tokens_move(alpha):
    before = recorded(alpha, n_steps=2)[0]
    generator = torch.Generator().manual_seed(0)
    keys, tokens = torch.randn(1, 40, 192, generator=generator), torch.zeros(64, dtype=torch.bool)
    tokens[7] = True
    with edit(alpha, None, SteerNearest(torch.zeros(1), keys, keys, k=2), block=BLOCK, tokens=tokens):
        after = recorded(alpha, n_steps=2)[0]
    assert torch.equal((after != before).any(-1), tokens[None])


def test_factor_0_keeps_the_bits_and_says_so(alpha, plain):
    keys = torch.ones(1, 4, 192)
    with (
        pytest.warns(UserWarning, match="a factor of 0 changes nothing"),
        edit(alpha, None, SteerNearest(torch.zeros(1), keys, keys, k=2, factor=0.0), block=BLOCK),
    ):
        assert torch.equal(draw(alpha), plain[1.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": VALUES[:, :2]}, "must both be"),
        ({"timesteps": TIMES[:1]}, "with timesteps"),
        ({"k": 4}, "give 1 to 3"),
        ({"k": 0}, "give 1 to 3"),
        ({"factor": float("nan")}, "must be finite"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(TideError, match=message):
        SteerNearest(**{"timesteps": TIMES, "keys": KEYS, "values": VALUES, "k": 1, **options})


def test_another_width_is_refused(alpha):
    with (
        pytest.raises(TideError, match="width 2 and the transformer 192"),
        edit(alpha, None, SteerNearest(TIMES, KEYS, VALUES, k=1), block=BLOCK),
    ):
        pass
