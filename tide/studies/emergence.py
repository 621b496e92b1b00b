"""When a picture takes shape during a sampling run: its contours, and what a judge reads off the predicted image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tide.interpretation.abrupt_change import settles_at
from tide.scenes.judge import Judge
from tide.scenes.scene import ATTRIBUTES


def contours(images: Tensor) -> Tensor:
    """The gradient's magnitude of the brightness of ``images [..., 3, H, W]``: ``[..., H - 1, W - 1]``."""
    brightness = images.mean(-3)
    down = brightness[..., 1:, :-1] - brightness[..., :-1, :-1]
    across = brightness[..., :-1, 1:] - brightness[..., :-1, :-1]
    return torch.hypot(down, across)


def contour_likeness(images: Tensor, final: Tensor) -> Tensor:
    """Correlation over pixels of each image's contours with the final image's: ``[steps, n]`` of images ``[steps, n, 3,
    H, W]`` and ``final [n, 3, H, W]``. 0 for an image without any contour."""
    drawn, at_end = (contours(each).flatten(-2) for each in (images, final))
    centred = [each - each.mean(-1, keepdim=True) for each in (drawn, at_end)]
    return F.cosine_similarity(centred[0], centred[1][None], dim=-1)


def half_risen(curve: Tensor) -> Tensor:
    """The first step at which ``curve [steps, n]`` is half way from its first value to its maximum."""
    goal = (curve[0] + curve.amax(0)) / 2
    return (curve >= goal).int().argmax(0)


@dataclass(frozen=True)
class Emergence:
    """``likeness [steps, n]`` of the contours with the final image's; ``contour_step [n]``, where it has half risen;
    ``agrees[attribute] [steps, n]``, whether the judge reads off the predicted image what it reads off the final one;
    ``settled[attribute]``, for each image the step from which on it agrees."""

    likeness: Tensor
    contour_step: Tensor
    agrees: dict[str, Tensor]
    settled: dict[str, list[int]]


def emergence(judge: Judge, images: Tensor, final: Tensor) -> Emergence:
    """From ``images [steps, n, 3, H, W]``, predicted at each step, and ``final [n, 3, H, W]``, all in [-1, 1]."""
    at_end = judge.read(final)
    along = [judge.read(step) for step in images]
    agrees = {
        name: torch.tensor(
            [
                [
                    now.valid and now.attributes[name] == end.attributes[name]
                    for now, end in zip(step, at_end, strict=True)
                ]
                for step in along
            ]
        )
        for name in ATTRIBUTES
    }
    last = len(images) - 1
    settled: dict[str, list[int]] = {}
    for name, table in agrees.items():
        steps = [settles_at(column.tolist()) for column in table.T]
        settled[name] = [last if step is None else step for step in steps]
    likeness = contour_likeness(images, final)
    return Emergence(likeness, half_risen(likeness), agrees, settled)
