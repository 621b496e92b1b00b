"""How well latents, raw neurons and the paper's pooled latents find concepts, measured with the renderer's masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tide.adapters import Adapter
from tide.editing.masks import image_mask
from tide.evaluation.statistics import auroc
from tide.interpretation.concepts import (
    Annotated,
    Found,
    concept_scores,
    find_concepts,
    mean_latents,
    pooled_latents,
)
from tide.pictures import to_uint8
from tide.sae.model import TIDE
from tide.scenes.annotate import annotated_scenes, images_of
from tide.scenes.render import render
from tide.scenes.scene import CONCEPTS, LEVEL_OF, Scene

#: The share of tokens that count as the most similar ones.
TOP_SHARE = 0.01
#: The least share of the objects' tokens that must show a concept, and must not, for it to separate them.
WITHIN_SHARE = 0.01


@dataclass
class MeasuredConcepts:
    """Figures of each concept and their means over each level, and what the pictures need."""

    concepts: dict[str, dict[str, Any]]
    levels: dict[str, dict[str, float]]
    latents: dict[str, Found]
    maps: Tensor  # [images, tokens, n_latents], held-out
    scenes: list[Scene]


def _features(model: TIDE, data: Annotated) -> tuple[Tensor, Tensor]:
    """Latents and raw activations per token, each averaged over the timesteps."""
    return mean_latents(model, data), data.x.mean(0).flatten(0, 1)


def measure_concepts(
    adapter: Adapter,
    model: TIDE,
    selection: Sequence[Scene],
    held_out: Sequence[Scene],
    timesteps: Tensor,
    *,
    seed: int = 0,
) -> MeasuredConcepts:
    """For every concept: the latent and the raw neuron whose token maps fit the masks of ``selection`` best, and the
    paper's pooled-latent score, all measured on ``held_out``. A map is the mean over ``timesteps``.

    ``within`` figures are AUROCs among the objects' own tokens, where telling objects from their background does not
    help; the latent and the neuron are chosen separately for them. ``recipe`` is the cosine with the concept's pooled
    latents minus those of all images, ``recipe_literal`` the cosine with the pooled latents as they are (section 5.4),
    and ``recipe_precision`` the share of the :data:`TOP_SHARE` most similar tokens that lie in the mask.
    """
    block = model.config.trained_block
    return measure_blocks(adapter, {block: model}, selection, held_out, timesteps, seed=seed)[block]


def measure_blocks(
    adapter: Adapter,
    models: Mapping[int, TIDE],
    selection: Sequence[Scene],
    held_out: Sequence[Scene],
    timesteps: Tensor,
    *,
    seed: int = 0,
) -> dict[int, MeasuredConcepts]:
    """:func:`measure_concepts` of the autoencoders of several blocks, which share the passes of the transformer."""
    blocks = list(models)
    first = annotated_scenes(adapter, selection, blocks, timesteps, seed=seed)
    second = annotated_scenes(adapter, held_out, blocks, timesteps, seed=seed + 1)
    return {
        block: _measured(model, first.pop(block), second.pop(block), list(held_out)) for block, model in models.items()
    }


def _measured(model: TIDE, first: Annotated, second: Annotated, held_out: list[Scene]) -> MeasuredConcepts:
    concepts = [c for c in LEVEL_OF if first.masks[c].any() and second.masks[c].any()]
    z_first, x_first = _features(model, first)
    z_second, x_second = _features(model, second)
    m_first, m_second = first.flat_masks(concepts), second.flat_masks(concepts)
    latents = find_concepts(concepts, (z_first, m_first), (z_second, m_second), signed=False)
    neurons = find_concepts(concepts, (x_first, m_first), (x_second, m_second), signed=True)
    everything = torch.ones(first.x.shape[1], dtype=torch.bool)
    background = pooled_latents(z_first, everything, first.n_tokens)
    within = _within_objects(concepts, first, second, (z_first, z_second), (x_first, x_second))
    table: dict[str, dict[str, Any]] = {}
    for i, concept in enumerate(concepts):
        pooled = pooled_latents(z_first, first.labels[concept], first.n_tokens)
        scores = concept_scores(z_second, pooled, background)
        literal = concept_scores(z_second, pooled)
        top = scores.topk(max(1, round(TOP_SHARE * len(scores)))).indices
        table[concept] = {
            "level": LEVEL_OF[concept],
            "latent": latents[concept].index,
            "auroc": latents[concept].auroc,
            "iou": latents[concept].iou,
            "neuron": neurons[concept].index,
            "neuron_auroc": neurons[concept].auroc,
            "neuron_iou": neurons[concept].iou,
            "recipe_auroc": float(auroc(scores[:, None], m_second[:, i : i + 1])[0, 0]),
            "recipe_literal_auroc": float(auroc(literal[:, None], m_second[:, i : i + 1])[0, 0]),
            "recipe_precision": float(m_second[top, i].float().mean()),
            **within.get(concept, {}),
        }
    figures = tuple(name for name, value in table[concepts[0]].items() if isinstance(value, float))
    figures += ("within_auroc", "within_neuron_auroc")
    levels = {
        level: {
            name: float(np.mean(known))
            for name in figures
            if (known := [row[name] for row in table.values() if row["level"] == level and name in row])
        }
        for level in CONCEPTS
        if any(row["level"] == level for row in table.values())
    }
    return MeasuredConcepts(table, levels, latents, z_second.view(len(held_out), second.n_tokens, -1), held_out)


def _within_objects(
    concepts: list[str],
    first: Annotated,
    second: Annotated,
    latents: tuple[Tensor, Tensor],
    neurons: tuple[Tensor, Tensor],
) -> dict[str, dict[str, float]]:
    """Concept -> AUROCs among the tokens of objects, for the concepts that separate these tokens."""
    objects = [data.flat_masks(list(CONCEPTS["class"])).any(1) for data in (first, second)]
    masks = [data.flat_masks(concepts)[rows] for data, rows in zip((first, second), objects, strict=True)]
    # A concept that nearly none or nearly all of the objects' tokens show, such as ground or shadow, separates nothing.
    shares = torch.stack([m.float().mean(0) for m in masks])
    separating = ((shares > WITHIN_SHARE) & (shares < 1 - WITHIN_SHARE)).all(0).nonzero().flatten().tolist()
    if not separating:
        return {}
    names = [concepts[i] for i in separating]
    out: dict[str, dict[str, float]] = {name: {} for name in names}
    for figure, features, signed in (("within_auroc", latents, False), ("within_neuron_auroc", neurons, True)):
        sides = [(f[rows], m[:, separating]) for f, rows, m in zip(features, objects, masks, strict=True)]
        for name, found in find_concepts(names, sides[0], sides[1], signed=signed).items():
            out[name][figure] = found.auroc
    return out


def heat_map(found: MeasuredConcepts, concept: str, n_images: int = 4) -> dict[str, list[np.ndarray]]:
    """Held-out images, the concept's mask and the map of its latent at the image's size: ``n_images`` that show the
    concept, taken evenly from their ranking by the map's maximum, and one that does not."""
    maps = found.maps[:, :, found.latents[concept].index]
    shows = torch.tensor([concept in render(s).masks for s in found.scenes])
    if not shows.any() or shows.all():
        chosen = list(range(min(n_images + 1, len(found.scenes))))
    else:
        ranked = sorted(shows.nonzero().flatten().tolist(), key=lambda i: -float(maps[i].max()))
        stride = max(1, len(ranked) // n_images)
        chosen = [*ranked[stride // 2 :: stride][:n_images], int((~shows).nonzero()[0])]
    images = images_of([found.scenes[i] for i in chosen])
    size, side = (images.shape[-2], images.shape[-1]), math.isqrt(found.maps.shape[1])
    return {
        "images": [to_uint8(image) for image in images],
        "truth": [render(found.scenes[i]).masks.get(concept, np.zeros(size, bool)) for i in chosen],
        "maps": [image_mask(maps[i], (side, side), size).numpy() for i in chosen],
    }
