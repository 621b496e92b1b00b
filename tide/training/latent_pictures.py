"""The latents that are most active, drawn over pictures while a training runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tide.activations.batch import ActivationBatch
from tide.devices import in_double
from tide.pictures import heat_overlay, resized
from tide.sae.model import TIDE, inference
from tide.strips import Row, labelled

#: Images of a gallery, and the tokens that they may have together: what a picture costs is bounded by them.
IMAGES, TOKENS = 8, 8192
#: Latents of a picture, and images of each.
LATENTS, SHOWN = 6, 4
#: Pixels of the longer side of an image in it.
SIDE = 128


@dataclass(frozen=True)
class Gallery:
    """A few images, noised once, with the activations of all their tokens in one block.

    Attributes:
        batch: a row for each token of each image, in their order; ``[images * tokens, d_model]``.
        pictures: the images, uint8 ``[H, W, 3]``.
        grid: tokens of an image, rows and columns; of a clip frames before them, of which the one in the middle is
            shown.
    """

    batch: ActivationBatch
    pictures: Sequence[np.ndarray]
    grid: tuple[int, ...]


class Active(NamedTuple):
    """The latents that carry most: ``latents [L]``, their ``share [L]`` of the energy of all, the ``frequency [L]`` of
    tokens on which they fire, and their values ``maps [L, images, rows, columns]``."""

    latents: list[int]
    share: list[float]
    frequency: list[float]
    maps: np.ndarray


def middle_frame(image: Tensor) -> Tensor:
    """``[3, H, W]`` of a clip ``[3, F, H, W]``; an image as it is."""
    return image[:, image.shape[1] // 2] if image.ndim == 4 else image


def n_images(tokens_of_an_image: int) -> int:
    """How many images a gallery has."""
    return max(1, min(IMAGES, TOKENS // tokens_of_an_image))


def most_active(model: TIDE, gallery: Gallery, n: int = LATENTS) -> Active:
    """The ``n`` latents that carry most of the code: with the largest ``sum over tokens of z_j^2 |W_dec_j|^2``, whose
    share is of the sum over all latents. Changes nothing of the model, and draws no random numbers."""
    batch = gallery.batch.to(model.W_enc.device)
    with inference(model):
        codes = model.encode(batch.x.to(torch.promote_types(model.W_enc.dtype, torch.float32)), batch.position)
        energy = _sums(in_double(codes.values).square(), codes.indices, model.n_latents)
        energy = energy * in_double(model.W_dec).square().sum(1)
        latents = energy.topk(min(n, model.n_latents)).indices
        values = codes._replace(indices=codes.indices.contiguous()).columns(latents).float()
    total = float(energy.sum())
    maps = values.T.reshape(len(latents), len(gallery.pictures), *gallery.grid)
    if len(gallery.grid) == 3:
        maps = maps[:, :, gallery.grid[0] // 2]
    return Active(
        latents.tolist(),
        (energy[latents] / total).tolist() if total > 0 else [0.0] * len(latents),
        (values != 0).float().mean(0).tolist(),
        maps.cpu().numpy(),
    )


def strip(model: TIDE, gallery: Gallery, when: str) -> Image.Image:
    """The most active latents as rows: where each fires on the images where it fires most."""
    active = most_active(model, gallery)
    pictures = [_enlarged(picture) for picture in gallery.pictures]
    rows = []
    for i, latent in enumerate(active.latents):
        peaks = active.maps[i].max((1, 2))
        best = np.argsort(-peaks, kind="stable")[:SHOWN]
        drawn = [heat_overlay(pictures[j], active.maps[i, j], float(peaks.max())) for j in best]
        caption = f"latent {latent}: {active.share[i]:.1%} of the energy, {active.frequency[i]:.0%} of the tokens"
        rows.append(Row([Image.fromarray(each) for each in drawn], caption=caption))
    block = "" if model.config.block is None else f", block {model.config.block}"
    return labelled(rows, f"The latents that carry most, {when}{block}", side=SIDE)


def _sums(values: Tensor, indices: Tensor, n_latents: int) -> Tensor:
    """The sum of each latent's values, ``[n_latents]``."""
    sums = values.new_zeros(n_latents)
    # Unused places hold the value 0, so adding them to latent 0 changes nothing.
    return sums.index_add_(0, indices.clamp(min=0).reshape(-1).long(), values.reshape(-1))


def _enlarged(picture: np.ndarray) -> np.ndarray:
    """The picture with a longer side of :data:`SIDE`, so that lines and heat show on small ones."""
    scale = SIDE / max(picture.shape[:2])
    return resized(picture, (round(picture.shape[1] * scale), round(picture.shape[0] * scale)))
