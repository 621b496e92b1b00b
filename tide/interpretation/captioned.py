"""Images whose captions hold a word, and images whose captions do not, picked from a source and encoded."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from tide.activations import Prepared, prepare
from tide.activations.source import Source
from tide.adapters import Adapter
from tide.adapters.sizes import caption_length
from tide.errors import TideError, TideWarning
from tide.images.trained import Kind, TrainedOn, unseen
from tide.images.words import concept_of, folded, holds
from tide.interpretation.image_scores import FEWEST
from tide.pictures import TILE, resized, shown, to_uint8


@dataclass(frozen=True)
class Captioned:
    """An image picked for a concept or as a contrast: encoded, and small for drawing; of a clip the frames
    :func:`~tide.clip.shown_frames` ``[F, h, w, 3]``."""

    prepared: Prepared
    caption: str
    words: frozenset[str]
    thumbnail: np.ndarray


@dataclass(frozen=True)
class Picked:
    """The images picked, what they are to the checkpoint, and the number of captions that were read for them from
    ``described``."""

    images: list[Captioned]
    n_read: int
    described: str
    kind: Kind

    def count(self, word: str) -> int:
        """How many of the images show a word."""
        return sum(word in each.words for each in self.images)

    def fewest(self, words: Sequence[str]) -> tuple[int, str]:
        """The smallest number of images with a word, or without it, and that word."""
        return min((min(self.count(word), len(self.images) - self.count(word)), word) for word in words)


def pick_images(
    adapter: Adapter, source: Source, words: Sequence[str], wanted: int, trained_on: TrainedOn | None = None
) -> Picked:
    """The first ``wanted`` images with each word and the first ``wanted`` without it.

    Images that trained the checkpoint are left out where :data:`~tide.interpretation.image_scores.FEWEST` with each
    word and without it remain, or ``wanted`` if that is less; otherwise all are used if that gives more, with a
    :class:`~tide.errors.TideWarning`.

    Raises:
        TideError: no image read has a caption, no caption holds a word, or every one does.
    """
    concepts = {word: concept_of(word) for word in words}
    enough = min(FEWEST, wanted)
    found = unseen(source, trained_on, min(2 * enough, source.n_images))
    picked = _pick(adapter, found.source, concepts, wanted, found.kind)
    few, word = picked.fewest(words)
    if found.kind == "held-out" and few < enough:
        everything = _pick(adapter, source, concepts, wanted, "training")
        picked = everything if everything.fewest(words)[0] > few else picked
    _check(picked, source, words)
    if picked.kind == "training":
        warnings.warn(
            f"fewer than {enough} images of {source.shown or source.name} with {word!r}, or without it, are left "
            "without those that trained this model, so training images are used; give other data, or collect (or "
            "train live) with a larger --hold-out",
            TideWarning,
            stacklevel=3,
        )
    return picked


def _pick(adapter: Adapter, source: Source, concepts: dict[str, str], wanted: int, kind: Kind) -> Picked:
    left = dict.fromkeys(((word, shown) for word in concepts for shown in (True, False)), wanted)
    picked: list[Captioned] = []
    n_read = n_empty = 0
    for images, captions in source:
        chosen, held = [], []
        n_read += len(captions)
        for i, caption in enumerate(map(folded, captions)):
            n_empty += not caption
            found = [(word, holds(caption, concept)) for word, concept in concepts.items()]
            if any(left[each] for each in found):
                chosen.append(i)
                held.append(frozenset(word for word, there in found if there))
                left |= {each: max(0, left[each] - 1) for each in found}
        picked += _encoded(adapter, images[chosen], [captions[i] for i in chosen], held) if chosen else []
        if not any(left.values()):
            break
    if n_empty == n_read:
        raise TideError(f"{source.described}: none has a caption; give data with captions to look for words in")
    return Picked(picked, n_read, source.described, kind)


def _check(picked: Picked, source: Source, words: Sequence[str]) -> None:
    more = ", or examine more images (--images)" if source.limited else ""
    for word in words:
        if picked.count(word) == 0:
            raise TideError(f"{picked.described}: no caption holds {word!r}; name words that some of them hold{more}")
        if picked.count(word) == len(picked.images):
            raise TideError(
                f"{picked.described}: every caption holds {word!r}; add images without it to contrast with{more}"
            )


def _encoded(
    adapter: Adapter, images: Tensor, captions: Sequence[str], held: Sequence[frozenset[str]]
) -> list[Captioned]:
    """The images encoded in one batch, then one by one."""
    length = caption_length(adapter)
    (batch,) = prepare(adapter, [(images, captions)], batch_size=len(images), max_sequence_length=length)
    size = (TILE, max(1, round(TILE * images.shape[-2] / images.shape[-1])))
    return [
        Captioned(
            Prepared(batch.latents[i : i + 1], {name: value[i : i + 1] for name, value in batch.text.items()}),
            captions[i],
            held[i],
            resized(shown(to_uint8(images[i])), size),
        )
        for i in range(len(images))
    ]
