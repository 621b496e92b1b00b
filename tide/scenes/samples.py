"""Rendered scenes as a set of images with captions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import ClassVar, Self

from torch import Tensor

from tide.images.identity import Sample, digest
from tide.images.samples import Samples
from tide.scenes.annotate import concept_masks, images_of
from tide.scenes.scene import LEVEL_OF, Split, prompts

#: Height and width of a scene.
PIXELS = 64


class SceneSamples(Samples):
    """``n`` scenes of combinations of ``split``, drawn from ``seed``; where each concept is in them is known."""

    level_of: ClassVar[Mapping[str, str]] = LEVEL_OF

    def __init__(self, split: Split, n: int, seed: int, batch_size: int) -> None:
        super().__init__(batch_size)
        self.pairs = prompts(split, n, seed)

    def without(self, digests: Collection[str]) -> Self:
        found = super().without(digests)
        found.pairs = [pair for pair in self.pairs if digest(repr(pair[0])) not in found.excluded]
        return found

    def captions(self) -> Iterator[str]:
        return (caption for _, caption in self.pairs)

    def _pairs(self, start: int, samples: list[Sample]) -> Iterator[tuple[Tensor, str]]:
        for i, (scene, caption) in enumerate(self.pairs):
            samples.append(Sample(f"scene {i}", digest(repr(scene)), digest(caption)))
            if i >= start:
                yield images_of([scene])[0], caption

    def masks(self, n: int, grid: tuple[int, ...]) -> dict[str, Tensor]:
        """Concept -> which tokens of the first ``n`` scenes show it, bool ``[n, tokens]``."""
        return concept_masks([scene for scene, _ in self.pairs[:n]], grid)
