"""Scores of edited images beside the unedited one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from tide.evaluation.scorers.base import Distance, ImageTextScorer
from tide.images.tensors import to_tensor


def score_edits(
    before: Image,
    after: Sequence[Image],
    *,
    clip: ImageTextScorer | None = None,
    lpips: Distance | None = None,
    texts: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Scores of the images that :func:`tide.editing.draw_edits` draws.

    Args:
        before: the unedited image.
        after: the edited images.
        clip: scores each image against each of ``texts``.
        lpips: scores how far each edited image is from ``before``.
        texts: what ``clip`` compares images with, by a name of their own.

    Returns:
        A row for each image, the unedited one first. With ``clip`` it has ``"clip"``: name of a text -> cosine
        similarity in [-1, 1]. With ``lpips`` the rows of edited images have ``"lpips"``: a distance, 0 for none.
    """
    rows: list[dict[str, Any]] = [{} for _ in (before, *after)]
    if clip is not None and texts:
        embedded = clip.embed_texts(list(texts.values()))
        for row, image in zip(rows, (before, *after), strict=True):
            values = F.cosine_similarity(clip.embed_images(_tensor(image)), embedded, dim=1).tolist()
            row["clip"] = dict(zip(texts, values, strict=True))
    if lpips is not None:
        reference = _tensor(before)
        for row, image in zip(rows[1:], after, strict=True):  # one at a time: VGG's features are large
            row["lpips"] = float(lpips.distance(_tensor(image), reference))
    return rows


def _tensor(image: Image) -> Tensor:
    """``[1, 3, H, W]`` in [-1, 1]."""
    return to_tensor(image, (image.height, image.width))[None]
