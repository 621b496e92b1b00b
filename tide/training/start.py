"""Calibrates models on the first batches, which are then trained on like all others."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice

from tide.activations.batch import ActivationBatch
from tide.activations.block_batch import BlockBatch
from tide.sae.model import TIDE
from tide.world import World

#: A channel's mean is taken over the first batches: at least this many, and enough to hold this many rows. If rows are
#: independent, its error is then a hundredth of the channel's deviation.
MEAN_BATCHES, MEAN_ROWS = 8, 8192


def started(
    models: Mapping[int, TIDE], batches: Iterator[BlockBatch], steps: int, *, centre: bool, world: World | None = None
) -> Iterator[BlockBatch]:
    """Calibrates each block's model on the first of ``batches``, at most ``steps``; returns all batches, these
    included. The ranks of ``world`` hold equal parts of each batch, and calibrate on the whole of it.

    ``centre``: whether models subtract a mean, for which more batches are read. Without batches the models stay as they
    are. Warns if one channel dominates a block's activations.
    """
    world = (world or World()).tokens
    first = list(_first(batches, steps, centre=centre, parts=world.count))
    for block, model in models.items() if first else ():
        start = _whole(first[0][block].to(model.W_enc.device), world)
        more = [world.gathered(batch[block].x) for batch in first[1:]]
        targets = [] if start.target is None else [start.target]
        targets += [world.gathered(each) for batch in first[1:] if (each := batch[block].target) is not None]
        moments = model.calibrate(start.x, start.position, more=more, targets=targets)
        if warning := moments.warning(centre=model.config.centre):
            of = f"block {model.config.block}: " if len(models) > 1 else ""
            warnings.warn(of + warning, stacklevel=4)
    return chain(first, batches)


def _first(batches: Iterator[BlockBatch], steps: int, *, centre: bool, parts: int) -> Iterator[BlockBatch]:
    """The first batch or, for a mean worth subtracting, several."""
    n_batches, n_rows = (MEAN_BATCHES, MEAN_ROWS) if centre else (1, 1)
    rows = 0
    for i, batch in enumerate(islice(batches, steps), 1):
        rows += batch.rows * parts
        yield batch
        if i >= n_batches and rows >= n_rows:
            return


def _whole(part: ActivationBatch, world: World) -> ActivationBatch:
    """The batch of which each rank holds a part; all parts name its timesteps alike."""
    return replace(
        part,
        x=world.gathered(part.x),
        group=world.gathered(part.group),
        sample=world.gathered(part.sample),
        token=world.gathered(part.token),
        target=None if part.target is None else world.gathered(part.target),
    )
