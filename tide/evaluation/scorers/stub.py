"""A scorer without a model, for tests and offline runs."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tide.errors import TideError
from tide.evaluation.scorers.base import ImageTextScorer, check_images, check_texts, provenance

#: Images are averaged down to so many pixels a side.
SIDE = 8


class StubScorer(ImageTextScorer):
    """Replaces CLIP or LPIPS: the same shapes, the same values on every machine, and no meaning.

    An image is a fixed random projection of its 8 x 8 average; a text the sum of a random vector for each of its words,
    drawn from the word's hash. ``width`` is that of the embeddings.
    """

    def __init__(self, width: int = 32) -> None:
        self.width = width
        self._projection = torch.randn(3 * SIDE * SIDE, width, generator=torch.Generator().manual_seed(0))

    def embed_images(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [-1, 1] to ``[B, width]``."""
        small = F.adaptive_avg_pool2d(check_images(images), SIDE)
        return small.flatten(1) @ self._projection.to(small)

    def embed_texts(self, texts: list[str]) -> Tensor:
        """``B`` texts to ``[B, width]``."""
        check_texts(texts)
        return torch.stack(
            [torch.stack([self._word(word) for word in text.lower().split() or [""]]).sum(0) for text in texts]
        )

    def _word(self, word: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4])  # hash() differs between processes
        return torch.randn(self.width, generator=torch.Generator().manual_seed(seed))

    def distance(self, images: Tensor, references: Tensor) -> Tensor:
        """Mean squared difference of each pair: ``[B]``."""
        if images.shape != references.shape:
            raise TideError(
                f"images {list(images.shape)} and references {list(references.shape)} differ in shape; give pairs"
            )
        return (check_images(images) - check_images(references)).square().flatten(1).mean(1)

    @property
    def provenance(self) -> dict[str, Any]:
        """As :class:`~tide.evaluation.scorers.Scorer` says."""
        return provenance(self, "none: a stub", None, None)
