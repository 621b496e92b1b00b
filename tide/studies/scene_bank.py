"""A bank of the concepts of rendered scenes, whose masks are known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tide.adapters import Adapter
from tide.editing import changed_prompt
from tide.editing.bank import Difference
from tide.editing.record import record_contrast
from tide.errors import TideError
from tide.interpretation.banking import RecordedBank, difference, record_bank
from tide.interpretation.timesteps import spread_timesteps
from tide.sae import TIDE
from tide.scenes import LEVEL_OF, Scene, images_of, scenes
from tide.scenes.annotate import annotated_scenes
from tide.scenes.pipeline import MAX_CAPTION_TOKENS

#: Scenes with the target that a contrast is recorded on.
REFERENCES = 32


def scene_bank(
    adapter: Adapter,
    model: TIDE,
    concepts: Sequence[str],
    contrasts: Sequence[tuple[str, str]] = (),
    *,
    n_images: int,
    timesteps: int,
    n_tokens: int,
    seed: int,
) -> RecordedBank:
    """Concepts on ``n_images`` training scenes, scored on as many of other combinations; contrasts (source, target) on
    those that show the target, with the source's word in its place.

    Raises:
        TideError: scenes have no such concept, no scene shows it, or no caption says it.
    """
    if unknown := sorted({*concepts, *(word for pair in contrasts for word in pair)} - set(LEVEL_OF)):
        raise TideError(f"scenes have no concept {unknown[0]!r}; they have {', '.join(LEVEL_OF)}")
    at = spread_timesteps(adapter, timesteps)
    block = adapter.resolve_block(model.config.trained_block)
    if model.config.tensor != "output":
        raise TideError(f"scenes are read at a block's output and the SAE reads {model.config.tensor}; give --data")
    items = list(scenes("train", n_images, seed))
    fit = annotated_scenes(adapter, items, [block], at, seed=seed)[block]
    held_out = annotated_scenes(adapter, list(scenes("dev", n_images, seed)), [block], at, seed=seed + 1)[block]
    recorded = {
        pair: scene_difference(adapter, block, pair, items, fit.masks[pair[1]], at, n_tokens=n_tokens, seed=seed)
        for pair in contrasts
    }
    return record_bank(model, fit, held_out, concepts, recorded, n_tokens=n_tokens, seed=seed)


def scene_difference(
    adapter: Adapter,
    block: int,
    words: tuple[str, str],
    items: Sequence[Scene],
    mask: Tensor,
    timesteps: Tensor,
    *,
    n_tokens: int,
    seed: int,
    n_references: int = REFERENCES,
) -> Difference:
    """What the second of two ``words`` changes against the first, on the first ``n_references`` scenes of ``items``
    that show it; ``mask [items, tokens]`` says where.

    Raises :class:`~tide.errors.TideError` if none does, or a caption does not say it.
    """
    source, target = words
    chosen = mask.any(1).nonzero().flatten()[:n_references].tolist()
    if not chosen:
        raise TideError(f"none of {len(items)} scenes shows {target!r}; look through more images")
    references = [items[i] for i in chosen]
    captions = [scene.caption() for scene in references]
    recorded = record_contrast(
        adapter,
        (block,),
        adapter.encode_images(images_of(references)),
        (captions, [changed_prompt(caption, target, source) for caption in captions]),
        timesteps,
        seed=seed,
        max_sequence_length=MAX_CAPTION_TOKENS,
    )
    return difference(recorded[block], mask[torch.tensor(chosen)], n_tokens=n_tokens, seed=seed)
