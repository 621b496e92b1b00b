"""Sets the threshold of a trained model so that k latents a token are active, on tokens it was trained on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import chain, islice

import torch
from torch import Tensor

from tide.activations.batch import ActivationBatch
from tide.activations.stream import B
from tide.errors import TideWarning
from tide.sae.model import TIDE, inference
from tide.world import World

#: The threshold is set on at least this many rows, where the batches hold as many. As tokens of one image are alike,
#: the number of images counts: over as many rows of 1024 scenes the mean of L0 has a standard error of 0.5 % for
#: BatchTopK and JumpReLU, and of 1 % for a ReLU that is cut from 60 active latents to 8.
MATCHED_ROWS = 65536
#: Rows whose heights ``[rows, n_latents]`` are held at a time.
_ROWS = 512
#: Heights are counted by the upper bits of their float32, in bins that are 2^-13 of their height wide or narrower.
_LOWER_BITS = 10
_BINS = 1 << (31 - _LOWER_BITS)


def following(stream: Iterator[B], last: B, steps: int, parts: int = 1) -> Iterator[B]:
    """The batches that come after the ``last`` of a training of ``steps``, for :class:`L0Match`: enough for
    :data:`MATCHED_ROWS` and at most ``steps``. Where the stream has ended, the last one again, with a warning
    (:class:`~tide.errors.TideWarning`). ``parts``: ranks that hold a part of each batch, of which this is one."""
    batches = islice(stream, min(steps, -(-MATCHED_ROWS // max(1, last.rows * parts))))
    first = next(batches, None)
    if first is not None:
        return chain([first], batches)
    warnings.warn(
        f"the activations ended with the training, so the threshold is set on the {last.rows} rows of its last step: "
        "L0 may be off by some per cent; give more batches than steps",
        TideWarning,
        stacklevel=2,
    )
    return iter([last])


class L0Match:
    """Sets the threshold of ``model.activation`` so that ``model.config.k`` latents a token are active in the mean over
    all rows that are added.

    The heights (:meth:`tide.sae.activation.Activation.heights`) are counted in narrow bins; the cut is the ``N k``-th
    largest of those of N rows, interpolated within its bin. The ranks of ``world`` add rows of their own, or heights of
    their own latents.
    """

    def __init__(self, model: TIDE, world: World | None = None) -> None:
        self.model, self.world = model, world or World()
        self.counts = torch.zeros(_BINS, dtype=torch.int64, device=model.W_enc.device)
        self.n_rows = 0

    def add(self, batch: ActivationBatch) -> None:
        """Counts the heights of its rows."""
        model = self.model
        with inference(model):
            for part in _parts(batch.merged().to(model.W_enc.device)):
                self.counts += _counted(model.heights(part.x.to(model.W_enc.dtype), part.position))
                self.n_rows += len(part)

    def finish(self) -> None:
        """Sets the threshold. Without rows nothing changes. Warns (:class:`~tide.errors.TideWarning`) if fewer than k
        latents a token could be active: then all that could are."""
        assert self.model.activation is not None
        counts, n_rows = self.world.summed(self.counts), sum(self.world.tokens.said(self.n_rows))
        found = int(counts[1:].sum())  # those that are not positive are in the first
        if not found:
            return
        k = self.model.config.k
        wanted = k * n_rows
        if found < wanted:
            warnings.warn(
                f"only {found / n_rows:.1f} latents a token have a positive pre-activation, fewer than k = {k}: "
                "L0 stays below k; train with a smaller k",
                TideWarning,
                stacklevel=2,
            )
        self.model.activation.set_cut(_cut(counts.cpu(), min(wanted, found)))


def _parts(batch: ActivationBatch) -> Iterator[ActivationBatch]:
    return (batch.take(slice(start, start + _ROWS)) for start in range(0, len(batch), _ROWS))


def _counted(heights: Tensor) -> Tensor:
    """How many of the positive heights each bin holds; all others are in the first."""
    bits = heights.float().clamp(min=0).abs().view(torch.int32)  # abs: of -0 and of NaN the sign is a bit, too
    return torch.bincount(bits.flatten() >> _LOWER_BITS, minlength=_BINS)


def _cut(counts: Tensor, wanted: int) -> float:
    """What ``wanted`` of the counted heights lie above: the bins' lower bound, or within the bin that holds it."""
    above = counts.flip(0).cumsum(0).flip(0)  # of each bin, with those in the bin
    i = int((above >= wanted).nonzero()[-1])
    bounds = torch.tensor([i << _LOWER_BITS, (i + 1) << _LOWER_BITS], dtype=torch.int32).view(torch.float32).tolist()
    share = (wanted - int(above[i] - counts[i])) / int(counts[i])
    return bounds[1] - share * (bounds[1] - bounds[0])
