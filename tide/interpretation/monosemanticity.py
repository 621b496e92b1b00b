"""The monosemanticity score: how similar the images are on which a feature fires, in one pass over the images.

Pach et al., "Sparse Autoencoders Learn Monosemantic Features in Vision-Language Models" (arXiv 2504.02821): over all
pairs of images i < j, with embeddings e of unit length and the feature's activations a scaled to [0, 1]::

    MS = sum_{i<j} a_i a_j <e_i, e_j> / sum_{i<j} a_i a_j

Both sums follow from sums over single images, sum_{i<j} a_i a_j <e_i, e_j> = (|sum_i a_i e_i|^2 - sum_i a_i^2) / 2 and
sum_{i<j} a_i a_j = ((sum_i a_i)^2 - sum_i a_i^2) / 2 (arXiv 2602.12403), so pairs are never formed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tide.errors import TideError


class Monosemanticity:
    """Takes the features of images in batches; :meth:`scores` gives MS of every feature of the images so far.

    The range to which activations are scaled is known only at the end: raw sums are kept, and the scaling, being
    affine, is applied to them. Sums are float64, ``n_features * (d_embedding + 4)`` of them.
    """

    def __init__(self, n_features: int, d_embedding: int) -> None:
        self.n = 0
        self.weighted = torch.zeros(n_features, d_embedding, dtype=torch.float64)
        self.embeddings = torch.zeros(d_embedding, dtype=torch.float64)
        self.total = torch.zeros(n_features, dtype=torch.float64)
        self.squares = torch.zeros(n_features, dtype=torch.float64)
        self.low = torch.full((n_features,), torch.inf, dtype=torch.float64)
        self.high = torch.full((n_features,), -torch.inf, dtype=torch.float64)

    def update(self, activations: Tensor, embeddings: Tensor) -> None:
        """``activations [images, n_features]``, one value an image (its mean or maximum over tokens), and
        ``embeddings [images, d_embedding]`` of any length but 0."""
        if len(activations) != len(embeddings):
            raise TideError(f"{len(activations)} images have activations and {len(embeddings)} embeddings; give both")
        a, e = activations.cpu().double(), F.normalize(embeddings.cpu().double(), dim=1)
        if not a.isfinite().all() or not e.isfinite().all():
            raise TideError("an image's activations or embeddings are not finite; leave that image out")
        self.n += len(a)
        self.weighted += a.T @ e
        self.embeddings += e.sum(0)
        self.total += a.sum(0)
        self.squares += a.square().sum(0)
        if len(a):
            self.low = torch.minimum(self.low, a.amin(0))
            self.high = torch.maximum(self.high, a.amax(0))

    def scores(self) -> Tensor:
        """MS ``[n_features]`` in [-1, 1]; NaN for a feature that is the same on all images, or fires on one alone.

        Raises :class:`~tide.errors.TideError` for fewer than two images.
        """
        if self.n < 2:
            raise TideError(f"{self.n} images form no pair; give two or more")
        span = self.high - self.low
        width = torch.where(span > 0, span, torch.nan)
        along = (self.weighted - self.low[:, None] * self.embeddings) / width[:, None]
        total = (self.total - self.n * self.low) / width
        squares = (self.squares - 2 * self.low * self.total + self.n * self.low.square()) / width.square()
        pairs = total.square() - squares
        # A single firing image leaves only rounding of what should be no pair.
        return torch.where(pairs > 1e-9 * total.square(), (along.square().sum(1) - squares) / pairs, torch.nan).float()
