"""Which tokens, or which images, show which concept: what probes are fitted to and scored on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tide.errors import TideError
from tide.images.words import concept_of, folded, holds

#: The fewest rows with a concept, and without it, on either side.
FEWEST = 8
#: The level of a concept that is a word of the captions.
CAPTION = "caption"


@dataclass(frozen=True)
class Labels:
    """Which rows show which of the concepts ``names``: bool ``[rows, concepts]``, of the images that probes are fitted
    to (``fit``) and of those they are scored on (``measured``). ``per_token``: rows are the chosen tokens of each
    image in order, or else images. ``levels``: the level of each concept.
    ``left_out``: concepts that too few rows show, or do not show."""

    names: list[str]
    fit: Tensor
    measured: Tensor
    per_token: bool
    levels: list[str]
    left_out: list[str] = field(default_factory=list)

    def counted(self) -> dict[str, dict[str, int | str]]:
        """Concept -> its level, and how many rows of either side show it."""
        shown = zip(self.names, self.levels, self.fit.sum(0).tolist(), self.measured.sum(0).tolist(), strict=True)
        return {name: {"level": level, "fit": fit, "measured": measured} for name, level, fit, measured in shown}


def label_tokens(
    masks: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    places: tuple[Tensor, Tensor],
    level_of: Mapping[str, str],
    wanted: Sequence[str] | None = None,
) -> Labels:
    """Labels of tokens from masks that are known (:class:`~tide.images.masked.Masked`).

    ``masks`` (concept -> bool ``[images, tokens]``) and the ``places [images, chosen]`` of the tokens that are read, of
    the images that probes are fitted to and of those they are scored on. ``wanted``: default all concepts.
    """
    if unknown := sorted(set(wanted or ()) - level_of.keys()):
        raise TideError(f"scenes have no concept {unknown[0]!r}; they have {', '.join(level_of)}")
    of_sides = [
        {name: mask.gather(1, where).flatten() for name, mask in side.items()}
        for side, where in zip(masks, places, strict=True)
    ]
    return _labels(list(wanted or level_of), of_sides, True, level_of)


def label_images(captions: tuple[Sequence[str], Sequence[str]], words: Sequence[str]) -> Labels:
    """Labels of images by whole ``words`` of their captions (:func:`~tide.images.words.holds`)."""
    concepts = {word: concept_of(word) for word in words}
    of_sides = []
    for side in captions:
        texts = [folded(caption) for caption in side]
        of_sides.append({word: torch.tensor([holds(text, c) for text in texts]) for word, c in concepts.items()})
    return _labels(list(words), of_sides, False, dict.fromkeys(words, CAPTION))


def _labels(names: list[str], sides: list[dict[str, Tensor]], per_token: bool, level_of: Mapping[str, str]) -> Labels:
    """Of the concepts that enough rows show and enough do not. Raises if none is left."""
    known = [name for name in names if all(_enough(side[name]) for side in sides)]
    if not known:
        rows = "tokens" if per_token else "images"
        raise TideError(
            f"no concept is shown by {FEWEST} {rows} or more, and not shown by as many, on either side; "
            "give more images, or name others"
        )
    fit, measured = (torch.stack([side[name] for name in known], dim=1) for side in sides)
    left_out = [name for name in names if name not in known]
    return Labels(known, fit, measured, per_token, [level_of[name] for name in known], left_out)


def _enough(shows: Tensor) -> bool:
    return min(int(shows.sum()), int((~shows).sum())) >= FEWEST
