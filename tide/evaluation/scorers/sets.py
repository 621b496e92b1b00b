"""Scores of a set of images beside another one: distances of the sets, of their pairs, and agreement with prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tide.errors import TideError
from tide.evaluation.frechet import frechet_distance
from tide.evaluation.mmd import cmmd_estimates
from tide.evaluation.scorers.agreement import agreement
from tide.evaluation.scorers.averages import Average, averaged
from tide.evaluation.scorers.base import (
    AttributeReader,
    Distance,
    ImageTextScorer,
    Reading,
    Scorer,
    SetDistance,
    check_images,
)


class Batch(NamedTuple):
    """Images ``[B, 3, H, W]`` in [-1, 1] and, where they are known, the prompts that they were drawn from.

    Attributes:
        images: ``[B, 3, H, W]`` in [-1, 1].
        texts: the prompts, or None.
    """

    images: Tensor
    texts: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True)
class SetScorers:
    """What two sets are scored by; None leaves out what it would measure.

    Attributes:
        inception: FID, such as a :class:`~tide.evaluation.scorers.FIDScorer`; what it has seen before does not count.
        clip: CMMD, the similarity of images with their prompts, and of the images of a pair.
        lpips: how different the images of a pair look.
        judge: FID and CMMD of its embeddings, and which attributes are read as before, such as a
            :class:`~tide.scenes.judge_scorer.JudgeScorer`.
    """

    inception: SetDistance | None = None
    clip: ImageTextScorer | None = None
    lpips: Distance | None = None
    judge: AttributeReader | None = None

    def used(self) -> dict[str, Scorer]:
        """Those that are given, by name. Raises :class:`~tide.errors.TideError` if none is."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        found = {name: scorer for name, scorer in found.items() if scorer is not None}
        if not found:
            raise TideError(f"nothing scores the images; give one of {', '.join(each.name for each in fields(self))}")
        return found


def score_sets(
    pairs: Iterable[tuple[Batch, Batch]],
    before: Iterable[Batch] = (),
    after: Iterable[Batch] = (),
    *,
    scorers: SetScorers,
) -> dict[str, Any]:
    """Scores of the images after beside those before, which are read once and batch by batch.

    Args:
        pairs: images before and the same number after, of one size, each beside its own.
        before, after: further images of the sets, without a counterpart.
        scorers: what they are scored by. Embeddings of all images are kept, on the scorer's device.

    Returns:
        A dict fit for JSON. ``images``: how many there are ``before``, ``after`` and in ``pairs``. ``fid``: by
        ``inception`` and ``judge``. ``cmmd``: by ``clip`` and ``judge``, ``biased`` and ``unbiased``
        (:func:`tide.evaluation.cmmd`). ``clip_text``: cosine of images with their prompts, ``before`` and ``after``,
        and ``change``, that from before to after of the pairs. ``clip_image``: cosine of the images of a pair.
        ``lpips``. The last three are :class:`~tide.evaluation.scorers.averages.Average`. ``attributes``:
        :func:`~tide.evaluation.scorers.agreement.agreement`. ``scorers``: their provenance. What is not measured is
        None or left out of the dicts by scorer; so is CMMD of fewer than 2 images.

    Raises:
        TideError: no scorer is given; images do not fit (:func:`~tide.evaluation.scorers.check_images`) or those of a
            pair differ in shape; there are no images; FID is asked of fewer than 2.
    """
    used = scorers.used()
    if scorers.inception is not None:
        scorers.inception.reset()
    left, right, both = _Side(scorers, real=True), _Side(scorers, real=False), _Pairs(scorers)
    for first, second in pairs:
        if first.images.shape != second.images.shape:
            raise TideError(
                f"a pair's images are {list(first.images.shape)} and {list(second.images.shape)}; give them in one size"
            )
        both.add(left.add(first), right.add(second))
    for batch in before:
        left.add(batch)
    for batch in after:
        right.add(batch)
    if not left.n or not right.n:
        raise TideError(f"there are {left.n} images before and {right.n} after; give some of each")
    return {
        "images": {"before": left.n, "after": right.n, "pairs": both.n},
        "fid": _fid(scorers, left, right),
        "cmmd": {name: _cmmd(left, right, name) for name in left.embeddings if min(left.n, right.n) > 1},
        "clip_text": _clip_text(left, right, both) if left.text or right.text else None,
        "clip_image": averaged(both.clip),
        "lpips": averaged(both.lpips),
        "attributes": None if scorers.judge is None else agreement(left.readings, right.readings, both.n),
        "scorers": {name: scorer.provenance for name, scorer in used.items()},
    }


class _Seen(NamedTuple):
    """One batch: the images, their embeddings by scorer, and their cosines with prompts, if there are any."""

    images: Tensor
    embeddings: dict[str, Tensor]
    text: list[float]


class _Side:
    """What is kept of the images of one set. Those of pairs come first."""

    def __init__(self, scorers: SetScorers, *, real: bool) -> None:
        self.scorers, self.real, self.n = scorers, real, 0
        self.embedders = {
            name: scorer for name, scorer in (("clip", scorers.clip), ("judge", scorers.judge)) if scorer is not None
        }
        self.embeddings: dict[str, list[Tensor]] = {name: [] for name in self.embedders}
        self.text: list[float] = []
        self.readings: list[Reading] = []

    def add(self, batch: Batch) -> _Seen:
        images = check_images(batch.images)
        self.n += len(images)
        if self.scorers.inception is not None:
            self.scorers.inception.update(images, real=self.real)
        embedded = {name: embedder.embed_images(images) for name, embedder in self.embedders.items()}
        for name, found in embedded.items():
            self.embeddings[name].append(found)
        text = self._with_texts(embedded, batch.texts)
        self.text += text
        if self.scorers.judge is not None:
            self.readings += self.scorers.judge.read(images)
        return _Seen(images, embedded, text)

    def _with_texts(self, embedded: dict[str, Tensor], texts: Sequence[str] | None) -> list[float]:
        if self.scorers.clip is None or texts is None:
            return []
        images = embedded["clip"]
        if len(texts) != len(images):
            raise TideError(f"{len(images)} images need as many prompts, not {len(texts)}; give one for each")
        return F.cosine_similarity(images, self.scorers.clip.embed_texts(list(texts)), dim=1).tolist()


class _Pairs:
    """What is kept of the pairs."""

    def __init__(self, scorers: SetScorers) -> None:
        self.scorers, self.n = scorers, 0
        self.clip: list[float] = []
        self.text: list[float] = []
        self.lpips: list[float] = []

    def add(self, first: _Seen, second: _Seen) -> None:
        self.n += len(first.images)
        if "clip" in first.embeddings:
            self.clip += F.cosine_similarity(first.embeddings["clip"], second.embeddings["clip"], dim=1).tolist()
        if first.text and second.text:
            self.text += [b - a for a, b in zip(first.text, second.text, strict=True)]
        if self.scorers.lpips is not None:
            self.lpips += self.scorers.lpips.distance(second.images, first.images).tolist()


def _fid(scorers: SetScorers, left: _Side, right: _Side) -> dict[str, float]:
    found = {}
    if scorers.inception is not None:
        found["inception"] = scorers.inception.compute()
    if scorers.judge is not None:
        found["judge"] = frechet_distance(torch.cat(left.embeddings["judge"]), torch.cat(right.embeddings["judge"]))
    return found


def _cmmd(left: _Side, right: _Side, name: str) -> dict[str, float]:
    a, b = torch.cat(left.embeddings[name]), torch.cat(right.embeddings[name])
    return cmmd_estimates(a, b)._asdict()


def _clip_text(left: _Side, right: _Side, both: _Pairs) -> dict[str, Average | None]:
    return {"before": averaged(left.text), "after": averaged(right.text), "change": averaged(both.text)}
