"""Labels of latents where no masks are known: the word of the captions that a latent's peaks tell best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tide.evaluation.statistics import auroc
from tide.images.words import folded, holds, words_of
from tide.interpretation.atlas import LEAST_AUROC, Label
from tide.interpretation.image_scores import ALTERNATING

#: What the level of a label is called if its concept is a word of the captions.
CAPTION = "caption"
#: Images with and without a word that each half needs.
LEAST_IMAGES = 10
#: How many standard deviations of chance a label's AUROC lies above 0.5 at least: with some thousand latents, chance
#: alone labels one in ten atlases.
LEAST_DEVIATIONS = 4.0
#: Words that are tried at most, the most frequent ones.
MOST_WORDS = 1000


@dataclass(frozen=True)
class Vocabulary:
    """The words that may be labels, and which captions hold them, bool ``[captions, words]``."""

    words: list[str]
    shows: Tensor


def label_words(peaks: Tensor, captions: Sequence[str] | Vocabulary) -> tuple[Label | None, ...] | None:
    """For each latent the word whose images it tells from the others best, where it does so well.

    ``peaks [images, n_latents]`` is each latent's peak in each image. The words are those of
    :func:`~tide.images.words.words_of`, found in captions as concepts are; whoever labels latents in pieces gives the
    :func:`vocabulary` of the captions, made once. The word is chosen by the AUROC on
    every second image and measured on the others, so that the choice does not flatter it: a label's AUROC is at least
    :data:`~tide.interpretation.atlas.LEAST_AUROC` and :data:`LEAST_DEVIATIONS` above chance. None if each word is in
    too few captions or in too many of them (:data:`LEAST_IMAGES`).
    """
    told = captions if isinstance(captions, Vocabulary) else vocabulary(captions)
    words, shows = told.words, told.shows
    if not words:
        return None
    choosing, scoring = ALTERNATING
    best = auroc(peaks[choosing], shows[choosing]).argmax(1)
    held_out = shows[scoring]
    values = auroc(peaks[scoring], held_out).gather(1, best[:, None])[:, 0]
    least = least_auroc(held_out, LEAST_AUROC)[best]
    rows = zip(best.tolist(), values.tolist(), least.tolist(), strict=True)
    return tuple(Label(words[word], CAPTION, value) if value >= bar else None for word, value, bar in rows)


def least_auroc(shows: Tensor, floor: float = LEAST_AUROC) -> Tensor:
    """``[k]``: the AUROC that a label needs on images that ``shows [images, k]`` divides, ``floor`` at least. Of an
    unrelated score it varies by sqrt((P + N + 1) / (12 P N)) with P images that show the word and N that do not."""
    n = len(shows)
    positives = shows.double().sum(0)
    deviation = ((n + 1) / (12 * positives * (n - positives))).sqrt()
    return (0.5 + LEAST_DEVIATIONS * deviation).clamp(min=floor)


def vocabulary(captions: Sequence[str]) -> Vocabulary:
    """The most frequent words that enough captions of either half hold, and enough do not (:data:`LEAST_IMAGES`)."""
    texts = list(map(folded, captions))
    often = Counter(word for text in texts for word in words_of(text))
    words = sorted(word for word, _ in often.most_common(MOST_WORDS))
    shows = torch.tensor([[holds(text, word) for word in words] for text in texts], dtype=torch.bool)
    shows = shows.view(len(texts), len(words))
    fits = enough(shows)
    return Vocabulary([word for word, fit in zip(words, fits.tolist(), strict=True) if fit], shows[:, fits])


def enough(shows: Tensor) -> Tensor:
    """``[k]`` bool: whether each half of the images has :data:`LEAST_IMAGES` that show it, and that do not."""
    halves = [shows[part] for part in ALTERNATING]
    return torch.stack([each.sum(0) for half in halves for each in (half, ~half)]).amin(0) >= LEAST_IMAGES
