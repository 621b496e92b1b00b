"""Calibrates a model on the first batches, which are then trained on like all others."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import chain, islice

from tide.activations.batch import ActivationBatch
from tide.sae.model import TIDE

#: A channel's mean is taken over the first batches: at least this many, and enough to hold this many rows. If rows are
#: independent, its error is then a hundredth of the channel's deviation.
MEAN_BATCHES, MEAN_ROWS = 8, 8192


def started(model: TIDE, batches: Iterator[ActivationBatch], steps: int) -> Iterator[ActivationBatch]:
    """Calibrates ``model`` on the first of ``batches``, at most ``steps``; returns all batches, these included.

    Without batches the model stays as it is. Warns if one channel dominates the activations.
    """
    first = list(_first(batches, steps, centre=model.config.centre))
    if not first:
        return batches
    start = first[0].to(model.W_enc.device)
    targets = [batch.target for batch in first if batch.target is not None]
    moments = model.calibrate(start.x, start.position, more=[batch.x for batch in first[1:]], targets=targets)
    if warning := moments.warning(centre=model.config.centre):
        warnings.warn(warning, stacklevel=3)
    return chain(first, batches)


def _first(batches: Iterator[ActivationBatch], steps: int, *, centre: bool) -> Iterator[ActivationBatch]:
    """The first batch or, for a mean worth subtracting, several."""
    n_batches, n_rows = (MEAN_BATCHES, MEAN_ROWS) if centre else (1, 1)
    rows = 0
    for i, batch in enumerate(islice(batches, steps), 1):
        rows += len(batch)
        yield batch
        if i >= n_batches and rows >= n_rows:
            return
