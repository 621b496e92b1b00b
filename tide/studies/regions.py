"""What an edit changes outside the region that it should change."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tide.scenes.render import REGIONS
from tide.studies.tasks import EditTask

#: Attribute -> the regions that its edit may change, in the image before and after.
REGIONS_OF: dict[str, tuple[str, ...]] = {
    "class": ("object", "shadow"),
    "colour": ("object",),
    "depth": ("object", "shadow"),
    "shadow": ("shadow",),
    "ground": ("ground", "shadow"),
    "style": ("object",),
    "age": ("object",),
    "orientation": ("object", "shadow"),
}

#: Pixels around a region that its redrawn edge may reach.
MARGIN = 2


def edited_region(task: EditTask, before: Tensor, after: Tensor) -> Tensor:
    """Where the edit may change pixels: bool ``[H, W]``, from the regions ``[H, W]`` (indices in
    :data:`~tide.scenes.render.REGIONS`) of the image before and after it. A style of the whole image may change all."""
    if "sketched" in (task.source, task.target):
        return torch.ones_like(before, dtype=torch.bool)
    wanted = torch.tensor([REGIONS.index(name) for name in REGIONS_OF[task.attribute]], device=before.device)
    inside = torch.isin(before, wanted) | torch.isin(after, wanted)
    grown = F.max_pool2d(inside[None, None].float(), 2 * MARGIN + 1, stride=1, padding=MARGIN)
    return grown[0, 0] > 0


def outside_distance(task: EditTask, images: tuple[Tensor, Tensor], regions: tuple[Tensor, Tensor]) -> float:
    """Mean absolute difference, of 255, of the image before and after ``[3, H, W]`` (in [-1, 1]) over the pixels
    outside of :func:`edited_region`; NaN where there are none."""
    outside = ~edited_region(task, *regions)
    if not outside.any():
        return math.nan
    return float((images[1] - images[0]).abs().mean(0)[outside].mean() * 127.5)
