"""A batch of several blocks changes as each block's batch does."""

from __future__ import annotations

import torch

from tests.helpers.trainings import batch
from tide.activations.batch import ActivationBatch
from tide.activations.block_batch import BlockBatch


def blocks(seed: int) -> BlockBatch:
    return BlockBatch({3: batch(seed), 6: batch(seed + 10)})


def assert_same(one: ActivationBatch, other: ActivationBatch) -> None:
    assert one.paired == other.paired
    for name in ("x", "timestep", "group", "sample", "token"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_every_change_is_that_of_each_block():
    whole, rows = blocks(0), torch.tensor([4, 5, 0, 1])
    for changed, change in (
        (whole.take(rows), lambda each: each.take(rows)),
        (whole.take(slice(0, 2)).compacted(), lambda each: each.take(slice(0, 2)).compacted()),
        (whole.merged(), ActivationBatch.merged),
        (whole.mapped(torch.clone), lambda each: each),
        (whole.to("cpu"), lambda each: each),
    ):
        assert list(changed) == [3, 6]
        for block in changed:
            assert_same(changed[block], change(whole[block]))


def test_rows_and_pairs():
    assert blocks(0).rows == len(batch(0))
    assert blocks(0).paired
    assert not blocks(0).take(torch.tensor([0, 2])).paired


def test_joined():
    joined = BlockBatch.cat([blocks(0), blocks(1)])
    for block, first in ((3, 0), (6, 10)):
        assert_same(joined[block], ActivationBatch.cat([batch(first), batch(first + 1)]))
