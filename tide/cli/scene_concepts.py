"""Concepts of rendered scenes, whose masks are known: AUROC and IoU beside the maps."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from PIL import Image

from tide.adapters import Adapter
from tide.cli.caption_concepts import grid_of
from tide.errors import TideError
from tide.interpretation.timesteps import concept_timesteps
from tide.sae import TIDE
from tide.scenes import LEVEL_OF, scenes
from tide.studies.figures import heat_overlay
from tide.studies.mask_concepts import heat_map, measure_concepts


def study(adapter: Adapter, model: TIDE, args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Image.Image]]:
    """The concepts' table for ``concepts.json``, and a picture of each: image, truth, map of its latent."""
    if unknown := sorted(set(args.concepts or ()) - set(LEVEL_OF)):
        raise TideError(f"scenes have no concept {unknown[0]!r}; they have {', '.join(LEVEL_OF)}")
    n = args.images_per_concept or (64 if args.fast else 192)
    selection, held_out = list(scenes("dev", n, args.seed)), list(scenes("test", n, args.seed))
    timesteps = concept_timesteps(adapter, args.timesteps)
    found = measure_concepts(adapter, model, selection, held_out, timesteps, seed=args.seed)
    chosen = [concept for concept in found.concepts if concept in (args.concepts or LEVEL_OF)]
    if missing := [concept for concept in args.concepts or () if concept not in chosen]:
        raise TideError(f"none of {n} scenes shows {missing[0]!r}; raise --images-per-concept")
    pictures = {}
    side = round(found.maps.shape[1] ** 0.5)
    for concept in chosen:
        drawn = heat_map(found, concept, (side, side), args.top_images)
        top = max(float(heat.max()) for heat in drawn["maps"])
        rows = [
            [image, _outlined(image, truth), heat_overlay(image, heat, top)]
            for image, truth, heat in zip(drawn["images"], drawn["truth"], drawn["maps"], strict=True)
        ]
        pictures[concept] = grid_of(("image", "truth", f"latent {found.latents[concept].index}"), rows)
    table = {concept: found.concepts[concept] for concept in chosen}
    return {"concepts": table, "levels": found.levels, "timesteps": timesteps.tolist()}, pictures


def _outlined(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """``image`` darkened where ``truth`` is False."""
    return np.where(truth[..., None], image, image // 4).astype(np.uint8)
