"""Where rows stand: what a position says of timesteps and groups, and that every way to state one is the same."""

from __future__ import annotations

import pytest
import torch

from tide.errors import TideError
from tide.sae import TIDE, ModulationConfig, Position, TIDEConfig

CPU = torch.device("cpu")


def test_a_timestep_alone_is_a_position():
    position = Position(torch.tensor([1.0, 2.0]))
    assert Position.of(position) is position
    assert Position.of(500.0) == Position(500.0)
    assert Position.of(None) == Position()


@pytest.mark.parametrize(
    ("timestep", "n_conditioned", "expected"),
    [
        (500, None, [500.0]),
        (500.5, 3, [500.5] * 3),
        (torch.tensor(7, dtype=torch.int64), None, [7.0]),
        (torch.tensor([7.0]), 2, [7.0, 7.0]),
        (torch.tensor([7.0, 8.0]), 2, [7.0, 8.0]),
        (torch.tensor([7.0, 8.0]), None, [7.0, 8.0]),
    ],
    ids=["a number", "a number for three groups", "no dimension", "one for two groups", "each its own", "plain"],
)
def test_timesteps_are_one_a_group(timestep, n_conditioned, expected):
    conditioning = None if n_conditioned is None else torch.zeros(n_conditioned, 4)
    found = Position(timestep, conditioning).timesteps(CPU)
    assert found.tolist() == expected
    assert found.dtype == torch.float32


def test_groups():
    given = torch.tensor([1, 0, 1], dtype=torch.int32)
    assert Position(group=given).groups(3, 2, CPU) is given
    assert Position().groups(3, 1, CPU) is None
    assert Position().groups(6, 3, CPU).tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(TideError, match="7 rows cannot be shared by 3 timesteps"):
        Position().groups(7, 3, CPU)


def test_one_timestep_holds_for_all_conditionings():
    """As if it were given once a group."""
    modulation = ModulationConfig(d_model=6, d_embedding=10, n_frequencies=8, conditioned=True)
    sae = TIDE(TIDEConfig(6, 20, 3, modulation))
    generator = torch.Generator().manual_seed(0)
    x, conditioning = torch.randn(4, 5, 6, generator=generator), torch.randn(4, 10, generator=generator)
    with torch.no_grad():
        expected = sae(x, Position(torch.full((4,), 300.0), conditioning))
        assert torch.equal(sae(x, Position(300.0, conditioning)), expected)
        group = torch.arange(4, dtype=torch.int32).repeat_interleave(5)
        assert torch.equal(sae(x, Position(300.0, conditioning, group)), expected)
