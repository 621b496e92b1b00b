"""Examples for a guard from captioned images: a word of a caption labels its image."""

from __future__ import annotations

import torch

from tide.activations.source import Source, check_source
from tide.adapters import Adapter
from tide.errors import TideError
from tide.evaluation.table import trained_on
from tide.guards.making import Examples
from tide.interpretation.caption_activations import caption_activations
from tide.interpretation.captioned import pick_images
from tide.interpretation.image_scores import FEWEST, halves
from tide.interpretation.timesteps import spread_timesteps
from tide.sae import TIDE


def caption_examples(
    adapter: Adapter,
    model: TIDE,
    source: Source,
    concept: str,
    *,
    images_per_concept: int = 64,
    timesteps: int = 10,
    seed: int = 0,
    batch_size: int = 4,
) -> Examples:
    """The first ``images_per_concept`` images whose caption holds ``concept`` and as many whose caption does not: one
    half to fit a detector on, the other half to validate it, and the captions of all of them.

    Images that trained the model are left out where enough remain
    (:func:`~tide.interpretation.captioned.pick_images`).

    Args:
        adapter: of the pipeline that the model was trained on.
        model: an SAE that knows its block, on the adapter's device.
        source: images with captions, read until there are enough.
        concept: whole words of the captions, whatever their case.
        images_per_concept: images with the word, and without it.
        timesteps: to read at, spread over the sampling run.
        seed: of the halves and of every image's noise.
        batch_size: images per pass.

    Raises:
        TideError: fewer than :data:`~tide.interpretation.image_scores.FEWEST` captions hold the word, or do not hold
            it; the source cannot be read; the model does not know its block.
    """
    check_source(source)
    adapter.resolve_block(model.config.trained_block)
    picked = pick_images(adapter, source, [concept], images_per_concept, trained_on([model]))
    if picked.fewest([concept])[0] < FEWEST:
        n = picked.count(concept)
        raise TideError(
            f"{picked.described}: {n} captions hold {concept!r} and {len(picked.images) - n} that were read for it do "
            f"not; a guard takes {FEWEST} of each at least, better 100"
        )
    half = halves(torch.tensor([concept in each.words for each in picked.images]), seed)
    at = spread_timesteps(adapter, timesteps)
    fit, held_out = (
        caption_activations(
            adapter, model, picked.images, part.tolist(), [concept], at, seed=seed, batch_size=batch_size
        )
        for part in (half.choosing, half.scoring)
    )
    return Examples(fit, held_out, [each.caption for each in picked.images])
