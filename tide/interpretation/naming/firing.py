"""On which images a latent fires: what its name has to tell."""

from __future__ import annotations

import torch
from torch import Tensor

from tide.interpretation.image_scores import ALTERNATING

#: The share of the images that are a latent's strongest ones.
TOP = 0.1
#: A latent that is positive on more of the images than this fires where it is strongest alone.
MOST = 0.5


def strongest_images(peaks: Tensor) -> Tensor:
    """The tenth of the images on which each latent peaks highest, and peaks at all: bool like ``peaks [images, k]``.
    Images as strong as the weakest of them are among them."""
    return (peaks > 0) & (peaks >= _level(peaks))


def firing_images(peaks: Tensor) -> Tensor:
    """Where each latent fires: bool like ``peaks [images, k]``.

    It fires where its peak is positive. A latent that is positive on more than :data:`MOST` of the images would be
    named by what nearly every image shows, so it fires where it reaches the level of its top decile. Share and level
    are those of the choosing half, so that what is to be told is settled before the scoring half is seen.
    """
    choosing = peaks[ALTERNATING[0]]
    often = (choosing > 0).double().mean(0) > MOST
    return (peaks > 0) & (peaks >= torch.where(often, _level(choosing), 0.0))


def _level(peaks: Tensor) -> Tensor:
    """``[k]``: the peak that a share of :data:`TOP` of the images reaches."""
    return peaks.topk(max(1, round(TOP * len(peaks))), dim=0).values[-1]
