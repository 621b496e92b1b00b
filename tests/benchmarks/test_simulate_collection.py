"""The simulation of a collection against what can be worked out exactly."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from benchmarks import simulate_collection as simulation
from benchmarks.simulate_collection import Ranks, Trouble, own_shares, parts, together


def ranks(*slowness: float, n_steps: int = 10, killed: dict[int, float] | None = None) -> Ranks:
    """Ranks whose steps all take the same time."""
    at = np.full(len(slowness), np.nan)
    for rank, place in (killed or {}).items():
        at[rank] = place
    return Ranks(np.array(slowness), np.ones((len(slowness), n_steps)), at)


def test_equal_ranks_take_a_share():
    for outcome in simulation.outcomes(ranks(*[1.0] * 8), delay=0.1).values():
        assert (outcome.makespan, outcome.busy) == pytest.approx((1, 1))
    assert ranks(*[1.0] * 8).ideal == pytest.approx(1)


def test_one_straggler_is_the_end_of_shares_and_of_steps():
    slow = ranks(1, 1, 1, 5)
    for way in (own_shares, together):
        outcome = way(slow, 0.1)
        assert (outcome.makespan, outcome.busy) == pytest.approx((5, 8 / 20))


def test_of_parts_a_straggler_takes_fewer():
    """Divided by speed it would take 4 / 3.2 = 1.25; three usual ranks and one of a fifth of the speed take the 16
    parts of 1/4 as 5 each and 1, which ends at 1.25."""
    outcome = parts(ranks(1, 1, 1, 5), 0.1, 4)
    assert outcome.makespan == pytest.approx(1.25)
    assert outcome.busy == pytest.approx(1)


@pytest.mark.parametrize("per_rank", [1, 4, 16])
@pytest.mark.parametrize("seed", range(3))
def test_parts_end_at_most_a_part_after_the_ideal(per_rank, seed):
    """Nobody waits while parts are left, so the last begins before the ideal time is over."""
    drawn = Ranks.drawn(64, 16, Trouble(stragglers=0.05, killed=0), seed)
    longest = (drawn.slowness * drawn.steps.mean(1)).max() / per_rank
    outcome = parts(drawn, 0.1, per_rank)
    assert drawn.ideal <= outcome.makespan * (1 + 1e-12)
    assert outcome.makespan <= drawn.ideal + longest


def test_one_part_a_rank_is_an_own_share():
    drawn = Ranks.drawn(64, 16, Trouble(), 0)
    assert parts(drawn, 0.1, 1).makespan == pytest.approx(own_shares(drawn, 0.1).makespan)


def test_a_killed_rank_loses_a_piece_of_a_shard_and_a_delay():
    """At 0.52 of its share it is in the eleventh of 20 shards, 0.4 into it."""
    killed = ranks(1, 1, 1, 2, killed={0: 0.52})
    assert own_shares(killed, 0.1).makespan == pytest.approx(2)  # the slow one is still the end
    assert own_shares(ranks(1, 1, killed={0: 0.52}), 0.1).makespan == pytest.approx(1 + 0.1 + 0.4 / 20)
    assert together(killed, 0.1).makespan == pytest.approx(2 + 0.1 + 2 * 0.4 / 20)
    assert parts(ranks(1, 1, killed={0: 0.52}), 0.1, 2).makespan == pytest.approx(1 + 0.1 + 0.4 / 20 / 2)


def test_steps_together_take_the_expected_maximum():
    """Of W log-normal steps: the integral of 1 - F(x)^W. The mean of 4000 steps has a standard error of 0.3 %."""
    n_ranks, spread = 256, 0.2
    drawn = Ranks.drawn(n_ranks, 4000, Trouble(stragglers=0, killed=0, of_ranks=0, of_steps=spread), 0)
    x = np.linspace(0, 6, 60_001)[1:]
    below = np.array([0.5 * (1 + math.erf(math.log(each) / spread / math.sqrt(2))) for each in x])
    expected = float(np.trapezoid(1 - below**n_ranks, x))
    assert together(drawn, 0).makespan == pytest.approx(expected, rel=0.01)


def test_ranks_are_drawn_by_seed():
    first, again, other = (Ranks.drawn(100, 8, Trouble(), seed) for seed in (1, 1, 2))
    assert np.array_equal(first.slowness, again.slowness)
    assert not np.array_equal(first.slowness, other.slowness)
    assert (first.slowness > 2).sum() == 1  # 0.4 of a hundred, but at least one
    assert np.isfinite(first.killed).sum() == 1


def test_the_command_writes_a_table_and_a_chart(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(simulation, "RANKS", (4, 8))
    assert simulation.main(["--steps", "4", "--seeds", "2", "--out", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures["cases"]) == set(simulation.CASES)
    assert (tmp_path / "table.md").read_text().strip() == capsys.readouterr().out.strip()
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
