"""Scenes run through the bundled pipeline: their activations with masks, and images drawn from captions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tide.activations.collect import sample_noise
from tide.adapters import Adapter, Call, run_until
from tide.adapters.base import Text
from tide.editing.masks import token_mask
from tide.errors import TideError
from tide.interpretation.concepts import Annotated
from tide.scenes.pipeline import MAX_CAPTION_TOKENS
from tide.scenes.render import Mask, render
from tide.scenes.scene import LEVEL_OF, Scene

N_SAMPLING_STEPS = 20
#: The pipeline follows its prompts at low guidance already, and low guidance opposes edits less.
GUIDANCE_SCALE = 2.0


def images_of(scenes: Sequence[Scene]) -> Tensor:
    """Renders as ``[n, 3, 64, 64]`` in [-1, 1].

    ``scenes`` are rendered one after the other.
    """
    return torch.from_numpy(np.stack([render(s).image for s in scenes])).permute(0, 3, 1, 2) * 2 - 1


def concept_masks(scenes: Sequence[Scene], grid: tuple[int, ...]) -> dict[str, Tensor]:
    """bool ``[n, tokens]`` per concept, from the renderer's pixel masks.

    ``scenes`` are rendered; ``grid`` has the rows and columns of an image's tokens.
    """
    return rendered_masks([render(scene).masks for scene in scenes], grid)


def rendered_masks(pixels: Sequence[Mapping[str, Mask]], grid: tuple[int, ...]) -> dict[str, Tensor]:
    """bool ``[n, tokens]`` per concept, from n mappings of the concepts that are there to their pixels."""
    out = {concept: torch.zeros(len(pixels), math.prod(grid), dtype=torch.bool) for concept in LEVEL_OF}
    for i, masks in enumerate(pixels):
        for concept, mask in masks.items():
            out[concept][i] = token_mask(torch.from_numpy(mask), grid)
    return out


def encode_captions(adapter: Adapter, captions: Sequence[str]) -> dict[str, Tensor]:
    """The transformer's keyword arguments for captions of the bundled pipeline's length."""
    return adapter.encode_prompts(captions, max_sequence_length=MAX_CAPTION_TOKENS)


def annotated_scenes(
    adapter: Adapter,
    scenes: Sequence[Scene],
    blocks: Sequence[int],
    timesteps: Tensor,
    *,
    seed: int = 0,
    batch_size: int = 64,
) -> dict[int, Annotated]:
    """Activations of every token of rendered scenes at ``timesteps`` (Algorithm 1), with the concepts' token masks;
    block -> activations, in float32 on the CPU.

    ``adapter`` runs ``batch_size`` scenes a pass and keeps ``blocks``; ``seed`` is that of the noise.
    """
    if not scenes:
        raise TideError("there are no scenes to annotate; give at least one")
    parts = [scenes[start : start + batch_size] for start in range(0, len(scenes), batch_size)]
    batches = ((images_of(part), encode_captions(adapter, [s.caption() for s in part])) for part in parts)
    x, grid = activations(adapter, batches, blocks, timesteps, seed=seed)
    masks = concept_masks(scenes, (grid[-2], grid[-1]))
    return {block: Annotated(timesteps.float(), x[block], dict(masks)) for block in blocks}


@torch.no_grad()
def activations(
    adapter: Adapter,
    batches: Iterable[tuple[Tensor, Text]],
    blocks: Sequence[int],
    timesteps: Tensor,
    *,
    seed: int = 0,
) -> tuple[dict[int, Tensor], tuple[int, ...]]:
    """Activations of every token, block -> ``[timesteps, images, tokens, d_model]`` in float32 on the CPU, and the grid
    of the tokens.

    ``batches`` hold images ``[B, 3, H, W]`` or clips ``[B, 3, F, H, W]``, and the transformer's arguments for their
    captions.
    """
    collected: dict[int, list[list[Tensor]]] = {block: [[] for _ in timesteps] for block in blocks}
    grid: tuple[int, ...] = ()
    first = 0
    for images, text in batches:
        latents = adapter.encode_images(images)
        grid = adapter.token_grid(*latents.shape[2:])
        noise = sample_noise(latents.shape, seed, first)
        for i, t in enumerate(timesteps.tolist()):
            noisy = adapter.add_noise(latents, noise, t)

            taps = {block: partial(_keep, at=collected[block][i]) for block in blocks}
            run_until(adapter, taps, partial(adapter.denoise, noisy, t, text))
        first += len(images)
    return {block: torch.stack([torch.cat(x) for x in collected[block]]) for block in blocks}, grid


def _keep(x: Tensor, call: Call, *, at: list[Tensor]) -> None:
    at.append(x.to("cpu", torch.float32, copy=True))


def generate_latents(
    adapter: Adapter,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    n_steps: int = N_SAMPLING_STEPS,
    guidance_scale: float = GUIDANCE_SCALE,
) -> Tensor:
    """Latents ``[n, 4, 16, 16]``, drawn by the pipeline in one batch; each depends on its own seed alone."""
    return adapter.generate(
        prompts,
        n_steps=n_steps,
        guidance_scale=guidance_scale,
        generators=[torch.Generator().manual_seed(s) for s in seeds],
        max_sequence_length=MAX_CAPTION_TOKENS,
        height=64,
        width=64,
    )


def generate_images(
    adapter: Adapter, prompts: Sequence[str], seeds: Sequence[int], *, n_steps: int = N_SAMPLING_STEPS
) -> Tensor:
    """The images ``[n, 3, 64, 64]`` of :func:`generate_latents`, in [-1, 1].

    So ``adapter`` draws each of ``prompts`` with one of ``seeds`` and ``n_steps`` steps.
    """
    return adapter.decode_latents(generate_latents(adapter, prompts, seeds, n_steps=n_steps))
