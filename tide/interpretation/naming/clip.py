"""Names by CLIP: the candidate whose similarity to the images agrees best with a latent's peaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tide.errors import TideError
from tide.evaluation.scorers.base import ImageTextScorer
from tide.evaluation.statistics import auroc
from tide.images.words import folded, words_of
from tide.interpretation.image_scores import ALTERNATING
from tide.interpretation.names import Entry, Score, now
from tide.interpretation.naming.firing import firing_images, strongest_images
from tide.interpretation.naming.pieces import Peaks, pieces_of
from tide.interpretation.word_labels import MOST_WORDS, enough, least_auroc

#: What CLIP is asked of a candidate: it was trained on captions, not on single words.
TEMPLATE = "a photo of {}"
#: A name of a lower AUROC misleads more than it helps. CLIP knows what is in an image, and not where, so its names
#: agree less with latents than words of captions do.
LEAST = 0.6
#: Texts and images that are embedded at a time.
BATCH = 64


def name_by_clip(
    peaks: Peaks,
    images: Tensor | Iterable[Tensor],
    captions: Sequence[str],
    scorer: ImageTextScorer,
    *,
    words: Sequence[str] = (),
    template: str = TEMPLATE,
    least: float = LEAST,
    at: str | None = None,
) -> dict[int, Entry]:
    """:func:`name_by_similarity` of :func:`caption_candidates` and ``words`` to ``images``.

    ``images [images, 3, H, W]`` are floating point in [-1, 1], or batches of such, read once; there is a caption for
    each, "" where it has none. ``scorer`` is a :class:`~tide.evaluation.scorers.CLIPScorer`, of a local folder.

    Names below the cosine ``least`` are left out; ``at`` is the time of the entries (default: now).

    Raises :class:`~tide.errors.TideError` unless there are as many peaks as images and captions, for a template without
    ``{}``, for candidates that cannot be names, and if there are none.
    """
    candidates = list(dict.fromkeys([*caption_candidates(captions), *words]))
    similarity = image_similarity(images, candidates, scorer, template=template)
    if len(similarity) != len(captions):
        raise TideError(f"{len(captions)} captions are not one for each of {len(similarity)} images; give '' for none")
    return name_by_similarity(peaks, similarity, candidates, least=least, at=at)


def caption_candidates(captions: Sequence[str], most: int = MOST_WORDS) -> list[str]:
    """The ``most`` frequent words of the captions, but for those that more than half of them hold: such words, like
    "a", tell no images apart."""
    often = Counter(word for caption in captions for word in words_of(folded(caption)))
    telling = Counter({word: n for word, n in often.items() if 2 * n <= len(captions)})
    return sorted(word for word, _ in telling.most_common(most))


def image_similarity(
    images: Tensor | Iterable[Tensor], candidates: Sequence[str], scorer: ImageTextScorer, *, template: str = TEMPLATE
) -> Tensor:
    """Cosine of every image with every candidate in the ``template``: ``[images, candidates]`` float32 on the CPU.

    ``scorer`` embeds both.
    """
    _check_candidates(candidates)
    if "{}" not in template:
        raise TideError(f"the template {template!r} has no place for a candidate; write {{}} into it")
    texts = [template.replace("{}", candidate) for candidate in candidates]
    parts = [scorer.embed_texts(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]
    embedded = F.normalize(torch.cat(parts).float(), dim=1)
    batches = images.split(BATCH) if isinstance(images, Tensor) else images
    rows = [(F.normalize(scorer.embed_images(batch).float(), dim=1) @ embedded.T).cpu() for batch in batches]
    if not rows:
        raise TideError("there are no images to name latents by; give at least one")
    return torch.cat(rows)


def name_by_similarity(
    peaks: Peaks, similarity: Tensor, candidates: Sequence[str], *, least: float = LEAST, at: str | None = None
) -> dict[int, Entry]:
    """For each latent the candidate whose ``similarity [images, candidates]`` tells best where it fires, by ``clip``.

    On every second image the candidate is chosen by the AUROC of its similarity for the tenth of the images on which
    the latent peaks highest. An AUROC and not a rank correlation: most latents are silent on most images, whose ranks
    are all tied, and where they fire weakly they mean less. And it compares a candidate's similarities with each other
    alone, so a text that CLIP finds similar to every image gains nothing. Of equal candidates the one goes first that
    tells best where the latent fires at all.

    On the other images the score is the AUROC of the chosen candidate's similarity for where the latent fires
    (:func:`~tide.interpretation.naming.firing.firing_images`). Latents are left out that fire on too few images of
    either half or on too many (:data:`~tide.interpretation.word_labels.LEAST_IMAGES`), and whose score is below
    ``least`` or not well above chance (:func:`~tide.interpretation.word_labels.least_auroc`).
    """
    _check_candidates(candidates)
    if similarity.ndim != 2 or similarity.shape[1] != len(candidates):
        raise TideError(f"similarity {list(similarity.shape)} must be [images, {len(candidates)} candidates]")
    at = now() if at is None else at
    found: dict[int, Entry] = {}
    for latents, columns in pieces_of(peaks, len(similarity)):
        best, values = _chosen(columns, similarity, least)
        for latent, word, value in zip(latents, best, values, strict=True):
            if value is not None:
                score = Score(value, len(similarity[ALTERNATING[1]]))
                found[latent] = Entry(latent, "clip", at, candidates[word], score=score)
    return found


def _chosen(peaks: Tensor, similarity: Tensor, least: float) -> tuple[list[int], list[float | None]]:
    """Of each column of ``peaks`` the candidate, and its AUROC on the scoring half, None where it names nothing."""
    choosing, scoring = ALTERNATING
    fires = firing_images(peaks)
    areas = auroc(similarity[choosing], strongest_images(peaks[choosing])).nan_to_num(nan=0.0)
    # Few images are strongest, and several candidates may tell them all: then the one that tells the weaker ones, too.
    areas += 1e-9 * auroc(similarity[choosing], fires[choosing]).nan_to_num(nan=0.0)
    best = areas.argmax(0)
    values = auroc(similarity[scoring], fires[scoring]).gather(0, best[None])[0]
    good = enough(fires) & (values >= least_auroc(fires[scoring], least))
    rows = zip(values.tolist(), good.tolist(), strict=True)
    return best.tolist(), [value if is_good else None for value, is_good in rows]


def _check_candidates(candidates: Sequence[str]) -> None:
    if isinstance(candidates, str) or not candidates:
        raise TideError("there are no candidates for names; give captions with words, or words")
    for candidate in candidates:
        try:
            Entry(0, "clip", now(), candidate)
        except TideError as error:
            raise TideError(f"the candidate {candidate!r:.60} cannot be a name ({error})") from None
        if not candidate:
            raise TideError("a candidate is empty; give words")
