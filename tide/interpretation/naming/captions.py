"""Names from captions: the word whose images a latent tells from the others best."""

from __future__ import annotations

from collections.abc import Sequence

from tide.interpretation.image_scores import ALTERNATING
from tide.interpretation.names import Entry, Score, now
from tide.interpretation.naming.pieces import Peaks, pieces_of
from tide.interpretation.word_labels import label_words, vocabulary


def name_by_captions(peaks: Peaks, captions: Sequence[str], *, at: str | None = None) -> dict[int, Entry]:
    """For each latent that tells a word of the captions well, that word
    (:func:`~tide.interpretation.word_labels.label_words`), by ``captions`` at the time ``at`` (default: now).

    The word is chosen on every second image and its AUROC measured on the others. Latents without such a word are left
    out.

    ``peaks`` are the latents' highest values in each image (:data:`~tide.interpretation.naming.pieces.Peaks`).

    Raises :class:`~tide.errors.TideError` unless there is a caption for each image.
    """
    at = now() if at is None else at
    told = vocabulary(captions)
    images = len(range(len(captions))[ALTERNATING[1]])
    found: dict[int, Entry] = {}
    for latents, columns in pieces_of(peaks, len(captions)):
        labels = label_words(columns, told) or ()
        for latent, label in zip(latents, labels, strict=False):
            if label is not None:
                found[latent] = Entry(latent, "captions", at, label.concept, score=Score(label.auroc, images))
    return found
