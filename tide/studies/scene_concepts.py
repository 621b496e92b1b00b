"""Concepts of rendered scenes, whose masks are known: AUROC and IoU beside the maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from tide.adapters import Adapter
from tide.errors import TideError
from tide.interpretation.timesteps import concept_timesteps
from tide.pictures import TILE, heat_overlay, resized
from tide.sae import TIDE
from tide.scenes import LEVEL_OF, scenes
from tide.strips import tiled
from tide.studies.mask_concepts import MeasuredConcepts, heat_map, measure_blocks


def scene_concepts(
    adapter: Adapter,
    models: Mapping[int, TIDE],
    wanted: Sequence[str] | None,
    *,
    n_images: int,
    top_images: int,
    timesteps: int,
    seed: int,
) -> dict[int, tuple[dict[str, Any], dict[str, Image.Image]]]:
    """Of each block the table for ``concepts.json``, and a picture of each concept: image, truth, map of its latent."""
    if unknown := sorted(set(wanted or ()) - set(LEVEL_OF)):
        raise TideError(f"scenes have no concept {unknown[0]!r}; they have {', '.join(LEVEL_OF)}")
    selection, held_out = list(scenes("dev", n_images, seed)), list(scenes("test", n_images, seed))
    at = concept_timesteps(adapter, timesteps)
    found = measure_blocks(adapter, models, selection, held_out, at, seed=seed)
    there = next(iter(found.values())).concepts
    chosen = [concept for concept in there if concept in (wanted or LEVEL_OF)]
    if missing := [concept for concept in wanted or () if concept not in chosen]:
        raise TideError(f"none of {n_images} scenes shows {missing[0]!r}; look through more images")
    return {block: _of_block(own, chosen, top_images, at) for block, own in found.items()}


def _of_block(
    found: MeasuredConcepts, chosen: list[str], top_images: int, timesteps: Tensor
) -> tuple[dict[str, Any], dict[str, Image.Image]]:
    table = {concept: found.concepts[concept] for concept in chosen}
    pictures = {concept: _picture(found, concept, top_images) for concept in chosen}
    return {"concepts": table, "levels": found.levels, "timesteps": timesteps.tolist()}, pictures


def _picture(found: MeasuredConcepts, concept: str, top_images: int) -> Image.Image:
    drawn = heat_map(found, concept, top_images)
    top = max(float(heat.max()) for heat in drawn["maps"])
    rows = [
        [image, _outlined(image, truth), heat_overlay(resized(image, (TILE, TILE)), heat, top)]
        for image, truth, heat in zip(drawn["images"], drawn["truth"], drawn["maps"], strict=True)
    ]
    return tiled(("image", "truth", f"latent {found.latents[concept].index}"), rows, title=concept)


def _outlined(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """``image`` darkened where ``truth`` is False."""
    return np.where(truth[..., None], image, image // 4).astype(np.uint8)
