"""Profiles: of a concept the mean latents of its own tokens, per timestep; of every latent its mean per frame of
clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tide.activations import Prepared
from tide.adapters import Adapter
from tide.editing.edits import Target
from tide.errors import TideError
from tide.interpretation.frames import FrameProfiles, FrameSums
from tide.interpretation.reading import noised_calls
from tide.sae.model import TIDE


@dataclass(frozen=True)
class ConceptProfiles:
    """``latents [concepts, timesteps, n_latents]`` and ``raw [concepts, timesteps, d_model]``, each the mean over the
    concept's tokens; ``counts [concepts]`` tokens."""

    concepts: tuple[str, ...]
    timesteps: Tensor
    latents: Tensor
    raw: Tensor
    counts: Tensor

    def _index(self, concept: str) -> int:
        if concept not in self.concepts or self.counts[self.concepts.index(concept)] == 0:
            raise TideError(f"there are no tokens of {concept!r} to take latents from; collect images that show it")
        return self.concepts.index(concept)

    def contrast(self, source: str, target: str) -> tuple[Target, Target]:
        """The surplus of the source over the target, and that of the target over the source. Both are non-negative and
        contain nothing that the two share."""
        difference = self.latents[self._index(target)] - self.latents[self._index(source)]
        return Target(self.timesteps, (-difference).clamp(min=0)), Target(self.timesteps, difference.clamp(min=0))

    def direction(self, source: str, target: str) -> Tensor:
        """Difference of the mean raw activations ``[timesteps, d_model]``: the direction of raw steering."""
        return self.raw[self._index(target)] - self.raw[self._index(source)]


@torch.no_grad()
def concept_profiles(
    adapter: Adapter,
    model: TIDE,
    data: Sequence[Prepared],
    masks: dict[str, Tensor],
    timesteps: Tensor,
    *,
    seed: int = 0,
) -> ConceptProfiles:
    """Runs Algorithm 1 over prepared images, each at every timestep with one noise, and averages the block's tokens
    under each of ``masks[concept]`` (bool ``[images, tokens]``).

    Args:
        adapter: of the pipeline that the model was trained on.
        model: an SAE that knows its block.
        data: encoded images.
        masks: concept -> bool ``[images, tokens]``.
        timesteps: ``[T]``.
        seed: of the noise.
    """
    names, n_images = tuple(masks), sum(len(images.latents) for images in data)
    if not names or any(len(mask) != n_images for mask in masks.values()):
        raise TideError(f"a profile needs masks [{n_images}, tokens] of one concept or more, one an image")
    member = torch.stack([masks[name] for name in names]).float()
    latents = torch.zeros(len(names), len(timesteps), model.n_latents)
    raw = torch.zeros(len(names), len(timesteps), model.d_model)
    generator = torch.Generator().manual_seed(seed)
    start = 0
    for images in data:
        tokens = member[:, start : start + len(images.latents)].flatten(1)
        noise = torch.randn(images.latents.shape, generator=generator)
        for i, (x, call) in enumerate(noised_calls(adapter, model, images, noise, timesteps)):
            latents[:, i] += tokens @ model.dense(x, call).flatten(0, 1).cpu()
            raw[:, i] += tokens @ x.float().flatten(0, 1).cpu()
        start += len(images.latents)
    counts = member.sum((1, 2))
    scale = 1 / counts.clamp(min=1).view(-1, 1, 1)
    return ConceptProfiles(names, timesteps.float(), latents * scale, raw * scale, counts.long())


@torch.no_grad()
def frame_profiles(
    adapter: Adapter, model: TIDE, data: Sequence[Prepared], timesteps: Tensor, *, seed: int = 0
) -> FrameProfiles:
    """The profile of every latent along the frames of prepared clips, each read at every timestep with one noise.

    Args:
        adapter: of the pipeline of videos that the model was trained on.
        model: an SAE that knows its block.
        data: encoded clips of one size.
        timesteps: ``[T]``.
        seed: of the noise.

    Raises :class:`~tide.errors.TideError` without clips or timesteps, and for images.
    """
    if not data or len(timesteps) == 0:
        raise TideError("a profile along frames needs clips and timesteps; give at least one of both")
    grid = adapter.token_grid(*data[0].latents.shape[2:])
    if len(grid) != 3:
        raise TideError("images have no frames to take a profile along; give clips, and a pipeline of videos")
    sums = FrameSums(grid[0], grid[1] * grid[2], model.n_latents)
    generator = torch.Generator().manual_seed(seed)
    for clips in data:
        noise = torch.randn(clips.latents.shape, generator=generator)
        for x, call in noised_calls(adapter, model, clips, noise, timesteps):
            sums.add(model.dense(x, call), 0)
    return sums.profiles(sum(len(clips.latents) for clips in data) * len(timesteps))
