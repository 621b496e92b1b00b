"""Scorers of sets of images that stand in for models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tide.evaluation.scorers import StubScorer


@dataclass(frozen=True)
class Read:
    """A reading that a test makes up."""

    attributes: dict[str, str]
    valid: bool = True


class ColourReader(StubScorer):
    """Reads which channel is the brightest, and whether the left half is brighter; black images show nothing."""

    def read(self, images: Tensor) -> list[Read]:
        return [self._read(image) for image in images]

    def _read(self, image: Tensor) -> Read:
        left, right = image.chunk(2, dim=2)
        attributes = {
            "colour": ("red", "green", "blue")[int(image.mean((1, 2)).argmax())],
            "side": "left" if left.mean() > right.mean() else "right",
        }
        return Read(attributes, valid=bool(image.max() > -1))


class MeanDistance:
    """In place of FID: the squared difference of the mean images; counts what it was given."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.seen: dict[bool, list[Tensor]] = {True: [], False: []}

    def update(self, images: Tensor, *, real: bool) -> None:
        self.seen[real] += list(images)

    def compute(self) -> float:
        real, fake = (torch.stack(self.seen[kind]).mean(0) for kind in (True, False))
        return float((real - fake).square().mean())

    @property
    def provenance(self) -> dict[str, Any]:
        return {"scorer": "MeanDistance"}
