"""Labels of latents where no masks are known: the word of the captions that a latent's peaks tell best."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from tide.evaluation.statistics import auroc
from tide.interpretation.atlas import LEAST_AUROC, Label

#: What the level of a label is called if its concept is a word of the captions.
CAPTION = "caption"
#: Images with and without a word that each half needs.
LEAST_IMAGES = 10
#: How many standard deviations of chance a label's AUROC lies above 0.5 at least: with some thousand latents, chance
#: alone labels one in ten atlases.
LEAST_DEVIATIONS = 4.0
#: Words that are tried at most, the most frequent ones.
MOST_WORDS = 1000


def label_words(peaks: Tensor, captions: Sequence[str]) -> tuple[Label | None, ...] | None:
    """For each latent the word whose images it tells from the others best, where it does so well.

    ``peaks [images, n_latents]`` is each latent's peak in each image. The word is chosen by the AUROC on every second
    image and measured on the others, so that the choice does not flatter it: a label's AUROC is at least
    :data:`~tide.interpretation.atlas.LEAST_AUROC` and :data:`LEAST_DEVIATIONS` above chance. None if each word is in
    too few captions or in too many of them (:data:`LEAST_IMAGES`).
    """
    words, shows = _vocabulary(captions)
    if not words:
        return None
    best = auroc(peaks[::2], shows[::2]).argmax(1)
    held_out = shows[1::2]
    values = auroc(peaks[1::2], held_out).gather(1, best[:, None])[:, 0]
    least = _least(held_out)[best]
    rows = zip(best.tolist(), values.tolist(), least.tolist(), strict=True)
    return tuple(Label(words[word], CAPTION, value) if value >= bar else None for word, value, bar in rows)


def _least(shows: Tensor) -> Tensor:
    """``[words]``: the AUROC that a label needs. Of an unrelated score it varies by sqrt((P + N + 1) / (12 P N)) with P
    images that show the word and N that do not."""
    n = len(shows)
    positives = shows.double().sum(0)
    deviation = ((n + 1) / (12 * positives * (n - positives))).sqrt()
    return (0.5 + LEAST_DEVIATIONS * deviation).clamp(min=LEAST_AUROC)


def _vocabulary(captions: Sequence[str]) -> tuple[list[str], Tensor]:
    """The words, and which captions hold them, bool ``[captions, words]``."""
    held = [frozenset(re.findall(r"\w+", caption.lower())) for caption in captions]
    halves = [Counter(word for words in half for word in words) for half in (held[::2], held[1::2])]
    sizes = [math.ceil(len(held) / 2), len(held) // 2]
    fitting = [
        word
        for word, _ in Counter(halves[0] + halves[1]).most_common()
        if all(LEAST_IMAGES <= half[word] <= size - LEAST_IMAGES for half, size in zip(halves, sizes, strict=True))
    ]
    words = sorted(fitting[:MOST_WORDS])
    return words, torch.tensor([[word in each for word in words] for each in held], dtype=torch.bool)
