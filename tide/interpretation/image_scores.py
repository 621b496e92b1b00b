"""A feature for a concept, chosen on one half of the images and scored on the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tide.evaluation.statistics import auroc, auroc_interval

#: The fewest images with a concept, and without it, for a score.
FEWEST = 8
#: Images to choose on and images to score on where many concepts share one split.
ALTERNATING = (slice(0, None, 2), slice(1, None, 2))


@dataclass(frozen=True)
class Halves:
    """Indices of the images to choose a feature on and of those to score and draw it on, ascending."""

    choosing: Tensor
    scoring: Tensor

    @property
    def scores(self) -> bool:
        """Whether the two are different images."""
        return not torch.equal(self.choosing, self.scoring)


def halves(shows: Tensor, seed: int = 0) -> Halves:
    """Splits images at random, those with a concept (``shows [images]`` bool) and those without it separately; of an
    odd number the scoring half gets one more. With fewer than :data:`FEWEST` of either, both are all images."""
    sides = [side.nonzero().flatten() for side in (shows, ~shows)]
    if min(map(len, sides)) < FEWEST:
        everything = torch.arange(len(shows))
        return Halves(everything, everything)
    generator = torch.Generator().manual_seed(seed)
    mixed = [side[torch.randperm(len(side), generator=generator)] for side in sides]
    return Halves(
        *(
            torch.cat([part[i] for part in ((m[: len(m) // 2], m[len(m) // 2 :]) for m in mixed)]).sort().values
            for i in (0, 1)
        )
    )


def strongest(features: Tensor, shows: Tensor, n: int, *, signed: bool = False) -> tuple[list[int], list[float]]:
    """The ``n`` features that tell images with a concept from those without it best, by AUROC, and the signs that they
    do it with (-1 only if ``signed``).

    ``features [images, n_features]``, one value an image. Of equal areas the larger difference of means goes first, in
    units of the feature's standard deviation over all images, and of equal ones the lower index.
    """
    area = torch.nan_to_num(auroc(features, shows[:, None])[:, 0], nan=0.5)
    values = features.double()
    spread = values.std(0, correction=0).clamp(min=torch.finfo(torch.float32).tiny)
    gap = (values[shows].mean(0) - values[~shows].mean(0)) / spread
    merit = torch.where(area >= 0.5, area, 1 - area) if signed else area
    sign = torch.where(area >= 0.5, 1.0, -1.0) if signed else torch.ones_like(area)
    by_gap = (sign * gap).argsort(descending=True, stable=True)
    best = by_gap[merit[by_gap].argsort(descending=True, stable=True)][:n]
    return best.tolist(), sign[best].tolist()


def score(values: Tensor, shows: Tensor) -> dict[str, Any]:
    """``auroc`` of one value an image and its 95 % ``interval`` (:func:`~tide.evaluation.auroc_interval`)."""
    area = float(auroc(values[:, None], shows[:, None])[0, 0])
    return {"auroc": area, "interval": list(auroc_interval(area, int(shows.sum()), int((~shows).sum())))}
