"""Activations in memory: every row once an epoch, in an order that depends on seed and step alone."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from tide.activations import ActivationBatch
from tide.activations.memory import ActivationPool
from tide.errors import TideError


def batch(first: int, n: int, *, paired: bool) -> ActivationBatch:
    """Row r of the pool has x = r; a pair has one sample."""
    numbers = torch.arange(first, first + n)
    return ActivationBatch(
        x=numbers[:, None].float(),
        timestep=torch.tensor([900.0, 800.0]) + first,
        group=numbers.int() % 2,
        conditioning=None,
        sample=numbers // 2,
        token=numbers.int() // 2,
        paired=paired,
    )


def pool(rows: int = 6, *, paired: bool = True, seed: int = 0) -> ActivationPool:
    return ActivationPool((batch(first, 10, paired=paired) for first in (0, 10)), rows, seed=seed)


def numbers(b: ActivationBatch) -> list[int]:
    return b.x[:, 0].int().tolist()


@pytest.mark.parametrize("paired", [True, False])
def test_an_epoch_holds_each_row_at_most_once(paired):
    """Of 20 rows, three batches of 6; the two left over come in other epochs."""
    batches = list(islice(pool(paired=paired).from_step(0), 30))
    for epoch in range(10):
        drawn = [n for b in batches[3 * epoch : 3 * epoch + 3] for n in numbers(b)]
        assert len(drawn) == len(set(drawn)) == 18
    assert {n for b in batches for n in numbers(b)} == set(range(20))
    assert numbers(batches[0]) != numbers(batches[3])


def test_pairs_stay_together_and_in_order():
    for b in islice(pool().from_step(0), 9):
        assert b.paired
        first, second = torch.tensor(numbers(b)).view(-1, 2).unbind(1)
        assert (first % 2 == 0).all()
        assert torch.equal(second, first + 1)


@pytest.mark.parametrize("step", [0, 2, 3, 7], ids=["start", "inside an epoch", "a new epoch", "later"])
def test_from_step_goes_on_where_the_others_are(step):
    whole = [numbers(b) for b in islice(pool().from_step(0), 12)]
    assert [numbers(b) for b in islice(pool().from_step(step), 12 - step)] == whole[step:]
    assert [numbers(b) for b in islice(pool(seed=1).from_step(0), 12)] != whole


def test_rows_keep_what_is_known_of_them():
    for b in islice(pool().from_step(0), 6):
        for x, timestep, sample in zip(numbers(b), b.timestep[b.group.long()].tolist(), b.sample.tolist(), strict=True):
            assert timestep == (800.0 if x % 2 else 900.0) + (10 if x >= 10 else 0)
            assert sample == x // 2
        assert len(b.timestep) == len(b.group.unique())  # groups that no row uses are left out


@pytest.mark.parametrize("rows", [4, 7, 100], ids=["even", "parts pairs", "all at once"])
def test_once_is_every_row_in_order(rows):
    batches = list(pool().once(rows))
    assert [n for b in batches for n in numbers(b)] == list(range(20))
    assert len(pool()) == 20


@pytest.mark.parametrize(
    ("rows", "paired", "message"),
    [
        (22, True, "20 activations are fewer than a batch of 22; collect more or lower it"),
        (0, True, "20 activations are fewer than a batch of 0"),
        (5, True, "a batch of 5 rows would separate a pair; give an even number"),
    ],
)
def test_batches_that_cannot_be_drawn(rows, paired, message):
    with pytest.raises(TideError, match=message):
        pool(rows, paired=paired)


def test_no_activations():
    with pytest.raises(TideError, match="no activations to join"):
        ActivationPool([], 2)
