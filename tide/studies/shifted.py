"""Validation scenes that differ from the training scenes in what they combine, in palette, in layout and in wording.

A shifted scene starts as a rendered scene of the test split: a combination of attributes that training never shows.
Its image is then changed in ways that no training image is:

* palette: the hues are turned by 20 to 50 degrees to either side, saturation is multiplied by 0.6 to 1.3, brightness
  by 0.8 to 1.15;
* layout: mirrored, so that light falls from the right and shadows to the left; moved by up to 8 pixels in each
  direction, with the border's colours continued; zoomed by 0.85 to 1.2;
* prompt: worded by one of :data:`WORDINGS`, which training does not use, in words that the tokenizer knows.

The caption names the attributes of the mirrored image; only a turned hue may be one that no training palette has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tide.activations.collect import sample_generator
from tide.scenes.annotate import images_of
from tide.scenes.scene import Scene, scenes

WORDINGS: tuple[str, ...] = (
    "{shadow} a shadow, a {age} {style} {colour} {cls} on {ground}, {depth}, facing {orientation}.",
    "a {cls}, {ground}, {colour}, {age}, facing {orientation}, {shadow} shadow, {depth}, {style}",
    "in a picture, {depth}, a {colour} {cls}, {shadow} a shadow, facing {orientation}, {ground}, {style}, {age}",
    "{colour}, {style}, {depth}, {shadow} shadow. a {cls} on {ground}, {age}, facing {orientation}",
    "a {style} picture of {ground} {shadow} a shadow of a {depth} {age} {colour} {cls}, facing {orientation}",
)

#: What a mirrored object faces.
MIRRORED = {"left": "right", "right": "left"}

#: From RGB to luma and two colour differences (ITU-R BT.601).
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])

_PLACE = 5  # separates these random numbers from those of collecting


def shifted_scenes(n: int, seed: int) -> list[tuple[Scene, str, int]]:
    """``n`` scenes of the test split, each with a new wording and the seed of the changes to its image."""
    rng = np.random.default_rng([seed, 13])
    items = []
    for scene in scenes("test", n, seed):
        shown = scene.changed("orientation", MIRRORED[scene.orientation])
        items.append((scene, shown.caption(WORDINGS[rng.integers(len(WORDINGS))]), int(rng.integers(2**31))))
    return items


def shifted_images(items: Sequence[tuple[Scene, str, int]]) -> Tensor:
    """Images ``[n, 3, 64, 64]`` in [-1, 1]."""
    images = (images_of([scene for scene, _, _ in items]) + 1) / 2
    changed = [_moved(_recoloured(image, seed), seed) for image, (_, _, seed) in zip(images, items, strict=True)]
    return torch.stack(changed).clamp(0, 1) * 2 - 1


def _uniform(seed: int, n: int, place: int) -> list[float]:
    return torch.rand(n, generator=sample_generator(seed, _PLACE, place)).tolist()


def _recoloured(image: Tensor, seed: int) -> Tensor:
    """``image [3, H, W]`` in [0, 1] in another palette."""
    side, turn, saturation, brightness = _uniform(seed, 4, 0)
    angle = math.radians(20 + 30 * turn) * (1 if side < 0.5 else -1)
    chroma = 0.6 + 0.7 * saturation
    cos, sin = chroma * math.cos(angle), chroma * math.sin(angle)
    turned = torch.tensor([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
    matrix = torch.linalg.inv(_YIQ) @ turned @ _YIQ
    return torch.einsum("ij,jhw->ihw", matrix, image) * (0.8 + 0.35 * brightness)


def _moved(image: Tensor, seed: int) -> Tensor:
    """``image`` mirrored, moved and zoomed, with the border's colours continued."""
    across, down, zoom = _uniform(seed, 3, 1)
    size = image.shape[-1]
    scale = 0.85 + 0.35 * zoom
    shift = [16 * (each - 0.5) * 2 / size for each in (across, down)]  # in halves of the image
    theta = torch.tensor([[[-1 / scale, 0.0, shift[0]], [0.0, 1 / scale, shift[1]]]])
    grid = F.affine_grid(theta, [1, *image.shape], align_corners=False)
    return F.grid_sample(image[None], grid, padding_mode="border", align_corners=False)[0]
