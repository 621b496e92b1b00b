"""Ranks that share a live stream get, to the bit, the batches of one process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.helpers.ranks import run_ranks
from tide.activations.batch import ActivationBatch
from tide.activations.block_batch import BlockBatch
from tide.activations.shared_stream import SharedStream, Shares
from tide.activations.stream import LiveStream
from tide.errors import TideError
from tide.training.prefetch import prefetched
from tide.world import Grid, World

BLOCKS = (2, 5, 7)
#: 22 images of 12 rows, 2 a pass, in windows of at most 5 passes: the last pass of an epoch has 2 images as well.
SIZES = {"n_samples": 22, "rows_per_sample": 12, "per_pass": 2, "buffer_rows": 120, "seed": 3}
ROWS, STEPS = 36, 16
#: In windows of at least 5 passes.
WIDER = SIZES | {"buffer_rows": 240}


def collect(seed: int, start: int, stop: int | None = None, *, targets: bool = False) -> Iterator[BlockBatch]:
    """Passes whose values tell epoch, block, sample, token and timestep, with a conditioning that differs by block and,
    if asked for, with targets."""
    for first in range(start, SIZES["n_samples"] if stop is None else stop, SIZES["per_pass"]):
        samples = torch.arange(first, first + SIZES["per_pass"])
        timestep = torch.stack([samples * 10.0, samples * 10.0 + 5], 1).flatten()
        token = torch.arange(6, dtype=torch.int32).repeat_interleave(2).repeat(len(samples))
        group = (torch.arange(12) % 2).repeat(len(samples)) + torch.arange(len(samples)).repeat_interleave(12) * 2
        found = {}
        for block in BLOCKS:
            x = torch.stack([timestep[group], token.float(), torch.full_like(token, block).float()], 1)
            found[block] = ActivationBatch(
                x=(x + seed % 1000).to(torch.bfloat16 if block == 2 else torch.float32),
                timestep=timestep,
                group=group.int(),
                conditioning=(timestep + block)[:, None],
                sample=samples.repeat_interleave(12),
                token=token,
                paired=True,
                target=(x + seed % 1000).double() / 3 if targets else None,
            )
        yield BlockBatch(found)


def tensors(batch: ActivationBatch) -> dict[str, torch.Tensor]:
    names = ("x", "timestep", "group", "conditioning", "sample", "token", "target")
    return {name: each for name in names if (each := getattr(batch, name)) is not None}


def stream(
    owners: Mapping[int, int] | None,
    start: int,
    targets: bool = False,
    *,
    across: int = 1,
    reuse: int = 1,
    ahead: bool = False,
) -> list[dict[int, dict[str, torch.Tensor]]]:
    where = dist.get_rank(), dist.get_world_size()
    shares = Shares(World(*where) if across == 1 else Grid(*where, across), owners)
    sizes = SIZES if across == 1 else WIDER
    more: dict[str, Any] = {"shares": shares, "reuse": reuse, "ahead": prefetched if ahead else None, **sizes}
    own = SharedStream(partial(collect, targets=targets), ROWS, **more).from_step(start)
    return [{block: tensors(batch) for block, batch in each.items()} for each in islice(own, STEPS)]


@pytest.fixture(scope="module")
def whole() -> list[BlockBatch]:
    """Through the end of two epochs: one has 22 x 12 = 264 rows, 7.3 batches."""
    return list(islice(LiveStream(collect, ROWS, **SIZES).from_step(0), STEPS + 5))


@pytest.mark.parametrize(("count", "start", "ahead"), [(2, 0, True), (2, 5, False), (3, 5, True)])
def test_all_ranks_train_the_same_blocks_on_their_part_of_each_batch(whole, count, start, ahead):
    ranks = run_ranks(partial(stream, ahead=ahead), count, None, start)
    own = ROWS // count
    for step in range(STEPS):
        for block, expected in whole[start + step].items():
            for rank, found in enumerate(each[step][block] for each in ranks):
                part = expected.take(slice(rank * own, (rank + 1) * own))
                assert found["x"].dtype == part.x.dtype
                for name, value in tensors(part).items():  # with the timesteps of the whole batch
                    assert torch.equal(found[name], value), (step, block, rank, name)


@pytest.mark.parametrize(("count", "across"), [(3, 3), (4, 2)], ids=["whole batches", "halves"])
def test_ranks_that_divide_the_latents_have_the_same_part(count, across):
    """Beside what other ranks and threads do: passes that are read ahead, and used twice."""
    ranks = run_ranks(partial(stream, across=across, reuse=2, ahead=True), count, None, 5)
    whole = LiveStream(collect, ROWS, **WIDER, reuse=2).from_step(5)
    own = ROWS * across // count
    for step, expected in enumerate(islice(whole, STEPS)):
        for rank, found in enumerate(each[step][BLOCKS[0]] for each in ranks):
            first = rank // across * own
            for name, value in tensors(expected[BLOCKS[0]].take(slice(first, first + own))).items():
                assert torch.equal(found[name], value), (step, rank, name)


@pytest.mark.parametrize(
    ("owners", "ahead"),
    [({2: 0, 5: 1, 7: 0}, True), ({2: 2, 5: 1, 7: 0}, False)],
    ids=["two ranks, read ahead", "three ranks"],
)
def test_each_rank_trains_whole_batches_of_its_blocks(whole, owners, ahead):
    ranks = run_ranks(partial(stream, ahead=ahead), max(owners.values()) + 1, owners, 2)
    for step in range(STEPS):
        for block, expected in whole[2 + step].items():
            assert [block in each[step] for each in ranks] == [owners[block] == rank for rank in range(len(ranks))]
            assert ranks[owners[block]][step][block]["x"].dtype == expected.x.dtype
            for name, value in tensors(expected).items():
                assert torch.equal(ranks[owners[block]][step][block][name], value), (step, block, name)


def sent_to_all(owners: Mapping[int, int] | None) -> list[int]:
    """The dimensions of what every rank is sent: of the first batch all but the activations."""
    dimensions, gathered = [], World.gathered

    def recording(world: World, tensor: torch.Tensor) -> torch.Tensor:
        dimensions.append(tensor.ndim)
        return gathered(world, tensor)

    World.gathered = recording  # type: ignore[method-assign]
    shares = Shares(World(dist.get_rank(), dist.get_world_size()), owners)
    next(SharedStream(collect, ROWS, shares=shares, **SIZES).from_step(0))
    return dimensions


def test_the_conditioning_goes_to_the_rank_that_trains_a_block():
    """Alone; groups, samples, tokens and timesteps, which are of one dimension, go to all."""
    assert run_ranks(sent_to_all, 2, {2: 0, 5: 1, 7: 0}) == [[1] * 4] * 2


@pytest.mark.parametrize("owners", [None, {2: 0, 5: 1, 7: 0}], ids=["parts of each block", "blocks of their own"])
def test_targets_travel_with_their_rows_at_each_use(owners):
    """In a dtype of their own; the ranks' parts of a block, one after the other, are its batch. The stream begins
    within the second use of a window."""
    ranks = run_ranks(partial(stream, reuse=2), 2, owners, 7, True)
    whole = LiveStream(partial(collect, targets=True), ROWS, **SIZES, reuse=2).from_step(7)
    for step, batches in enumerate(islice(whole, STEPS)):
        for block, expected in batches.items():
            found = [each[step][block] for each in ranks if block in each[step]]
            for name in ("x", "target"):
                assert torch.equal(torch.cat([each[name] for each in found]), getattr(expected, name)), (step, block)


def test_more_ranks_than_passes_at_a_time():
    with pytest.raises(
        TideError, match=r"^8 ranks share what is mixed at a time, and that is 3 passes of 2 images; use at"
    ):
        SharedStream(collect, 32, shares=Shares(World(0, 8)), **SIZES)


@pytest.mark.parametrize(("rows", "count"), [(36, 4), (10, 3), (9, 1)])
def test_batches_that_cannot_be_divided(rows, count):
    message = rf"^batch_tokens = {rows} cannot be divided among {count} ranks, pairs kept whole; give a multiple of"
    with pytest.raises(TideError, match=message):
        Shares(World(0, count)).part(rows)


def test_data_that_give_less_than_they_announced():
    sizes = {**SIZES, "rows_per_sample": 14}
    with pytest.raises(TideError, match="the data gave 72 rows where 84 were announced"):
        next(SharedStream(collect, 28, shares=Shares(World()), **sizes).from_step(0))
