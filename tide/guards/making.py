"""Makes guards from labelled images and captions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tide.adapters import Adapter
from tide.editing import changed_prompt
from tide.errors import TideError
from tide.guards.definition import Guard, MadeFor
from tide.guards.refuge import refuge_of
from tide.guards.words_fit import FittedWords, fit_words
from tide.images.words import concept_of, folded, holds
from tide.interpretation import Annotated, FittedDetector, fit_detectors, mean_scores
from tide.sae import TIDE

#: The least AUROC over held-out images, mean over timesteps, of a concept that is guarded.
LEAST_AUROC = 0.85
#: Latents that the detector reads.
READ = 32


@dataclass(frozen=True)
class Examples:
    """Images to make a guard from.

    Attributes:
        fit: the images that the detector is fitted on, labelled with every concept that is known.
        held_out: other images, which validate it.
        captions: texts that the map of words is fitted on, with and without the unwanted word.
    """

    fit: Annotated
    held_out: Annotated
    captions: Sequence[str]


@torch.no_grad()
def make_guard(
    adapter: Adapter,
    model: TIDE,
    examples: Examples,
    concept: str,
    put: str,
    *,
    neutral: str | None = None,
    n_latents: int = READ,
) -> Guard:
    """A guard that keeps ``concept`` out of images and lets ``put`` stand in for it.

    Args:
        adapter: the pipeline.
        model: the TIDE whose latents tell the concept, on the pipeline's device.
        examples: images with labels, and captions.
        concept: the unwanted word; a label of the examples.
        put: the word in its place, which does not hold ``concept``.
        neutral: the caption of the refuge; by default the shortest caption without the unwanted word that holds
            ``put``, else ``put`` itself.
        n_latents: that the detector reads at most.

    Raises:
        TideError: no latents tell the concept (:data:`LEAST_AUROC`); no caption holds it, or every one does; ``put`` or
            ``neutral`` holds it.
    """
    _check_stand_ins(concept, put, neutral)
    check_shown(examples, concept)
    found = _detector(model, examples, [concept], n_latents)[concept]
    if not found.mean_auroc >= LEAST_AUROC:
        # Which of the others comes nearest.
        known = [
            {name for name, label in data.labels.items() if _shows_both(label)}
            for data in (examples.fit, examples.held_out)
        ]
        check_told(_detector(model, examples, sorted(set.intersection(*known)), n_latents)[concept])
    named, others = _captions(examples.captions, concept)
    pairs = [_pair(caption, concept, put) for caption in named]
    fitted = fit_words(adapter, [said for said, _ in pairs], [other for _, other in pairs], others)
    caption = neutral or _neutral(others, put)
    return Guard(
        concept,
        put,
        found.detector,
        MadeFor.of(adapter, model.config.trained_block, model.config.tensor),
        words=fitted.words,
        refuge=refuge_of(adapter, caption),
        validated=_validated(found, fitted, examples, caption),
    )


def _detector(model: TIDE, examples: Examples, concepts: Sequence[str], n_latents: int) -> dict[str, FittedDetector]:
    return fit_detectors(model, examples.fit, examples.held_out, concepts, per="image", n_latents=n_latents)


def _check_stand_ins(concept: str, put: str, neutral: str | None) -> None:
    """Raises :class:`~tide.errors.TideError` if what is to stand in for the concept is the concept itself."""
    for what, text in (("word in its place", put), ("neutral caption", neutral)):
        if text is not None and holds(folded(text), concept_of(concept)):
            raise TideError(f"the {what}, {text!r}, holds {concept!r} itself; give one without it")


def _shows_both(label: Tensor) -> bool:
    return 0 < int(label.sum()) < len(label)


def check_shown(examples: Examples, concept: str) -> None:
    """Raises :class:`~tide.errors.TideError` unless held-out images show the concept and others do not: a guard that
    nothing validated is none."""
    label = examples.held_out.labels.get(concept)
    if label is None or not _shows_both(label):
        shown = "none" if label is None or not int(label.sum()) else "every one"
        raise TideError(f"{shown} of the held-out images shows {concept!r}; give more, with and without it")


def check_told(found: FittedDetector) -> None:
    """Raises :class:`~tide.errors.TideError` for a concept that latents do not tell, with the figure and the concept
    whose latents come nearest to it."""
    if found.mean_auroc >= LEAST_AUROC:
        return
    near = found.nearest
    nearest = "" if near is None else f"; the nearest is {near[0]!r}, whose latents reach {near[1]:.2f}"
    raise TideError(
        f"no latents of this SAE tell {found.concept!r}: AUROC {found.mean_auroc:.2f} over held-out images, and "
        f"{LEAST_AUROC:g} is asked for{nearest}; use another block or SAE, or more images"
    )


def _captions(captions: Sequence[str], concept: str) -> tuple[list[str], list[str]]:
    """Those that hold the unwanted word, and the others."""
    word = concept_of(concept)
    named = [caption for caption in captions if holds(folded(caption), word)]
    others = [caption for caption in captions if not holds(folded(caption), word)]
    if not named or not others:
        which = "no caption" if not named else "every caption"
        raise TideError(f"{which} holds {concept!r}; give captions with and without it")
    return named, others


def _pair(caption: str, concept: str, put: str) -> tuple[str, str]:
    """A caption that holds the unwanted word, and the same with ``put`` in its place: both as the caption is written,
    or, where it has the word in several forms or in another, as captions are compared."""
    word = concept_of(concept)
    said = re.search(rf"(?<!\w){re.escape(concept)}(?!\w)", caption, re.IGNORECASE)
    if said is not None:
        changed = changed_prompt(caption, said[0], put)
        if not holds(folded(changed), word):
            return caption, changed
    return folded(caption), changed_prompt(folded(caption), word, put)


def _neutral(others: Sequence[str], put: str) -> str:
    word = concept_of(put)
    return min((caption for caption in others if holds(folded(caption), word)), key=len, default=put)


def _validated(found: FittedDetector, fitted: FittedWords, examples: Examples, neutral: str) -> dict[str, Any]:
    """How well the parts do on held-out images, and the map of words on captions that it is not fitted on, as JSON has
    it."""
    scores = mean_scores(found.detector, examples.held_out)
    flagged = (scores > found.detector.thresholds[:, None]).any(0)
    shown = examples.held_out.labels[found.concept]
    return {
        "images": {"fit": examples.fit.x.shape[1], "held_out": len(shown), "with_the_concept": int(shown.sum())},
        "auroc": {"mean": found.mean_auroc, "first_step": found.auroc[0], "least": min(found.auroc)},
        "flagged_at_any_step": {"with_the_concept": _share(flagged[shown]), "without": _share(flagged[~shown])},
        "captions": len(examples.captions),
        "words": {"rank": fitted.words.rank, "residual": fitted.residual, "others_moved": fitted.moved},
        "neutral_caption": neutral,
    }


def _share(flags: Tensor) -> float | None:
    return float(flags.float().mean()) if len(flags) else None
