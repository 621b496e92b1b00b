"""Latents of whole images, pooled to one value an image and as maps over its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tide.activations import Prepared
from tide.activations.collect import sample_generator
from tide.adapters import Adapter
from tide.interpretation.concepts import concept_scores
from tide.interpretation.reading import PIECE, noised_activations
from tide.sae import TIDE, Position

#: An image's activations ``[timesteps, tokens, d_model]`` and its conditioning ``[1, d_embedding]``, if there is any.
Activations = tuple[Tensor, Tensor | None]
#: Name -> features ``[images, n_features]`` on the CPU.
Pooled = dict[str, Tensor]


def image_activations(
    adapter: Adapter,
    model: TIDE,
    images: Sequence[Prepared],
    indices: Sequence[int],
    *,
    timesteps: Tensor,
    seed: int,
    batch_size: int,
) -> Iterator[Activations]:
    """The activations of each of ``indices``.

    The noise of an image depends on ``seed`` and its index alone, so that reading it again gives the same.
    """
    for start in range(0, len(indices), batch_size):
        part = indices[start : start + batch_size]
        latents = torch.cat([images[i].latents for i in part])
        text = {name: torch.cat([images[i].text[name] for i in part]) for name in images[part[0]].text}
        noise = torch.stack([torch.randn(latents.shape[1:], generator=sample_generator(seed, i)) for i in part])
        x, conditioning = noised_activations(adapter, model, Prepared(latents, text), noise, timesteps)
        for row in range(len(part)):
            yield x[:, row], None if conditioning is None else conditioning[row : row + 1]


def pool(images: Iterable[Activations], timesteps: Tensor, models: Mapping[str, TIDE]) -> Pooled:
    """The mean over an image's tokens and timesteps of every model's latents, and of the activation's channels as
    "neurons"."""
    rows: dict[str, list[Tensor]] = {name: [] for name in (*models, "neurons")}
    for x, conditioning in images:
        for name, model in models.items():
            total = torch.stack([piece.sum(0) for piece in _pieces(model, timesteps, x, conditioning)]).sum(0)
            rows[name].append((total / x.shape[1]).cpu())
        rows["neurons"].append(x.float().mean((0, 1)).cpu())
    return {name: torch.stack(each) for name, each in rows.items()}


def latent_maps(
    model: TIDE,
    timesteps: Tensor,
    x: Tensor,
    conditioning: Tensor | None,
    pooled: Tensor,
    background: Tensor,
    latents: list[int],
) -> Tensor:
    """``[1 + len(latents), tokens]``: the cosine score with the concept's pooled latents, then single latents."""
    maps = []
    for z in _pieces(model, timesteps, x, conditioning):
        score = concept_scores(z, pooled.to(z), background.to(z))
        maps.append(torch.stack([score.clamp(min=0), *(z[:, latent] for latent in latents)]).cpu())
    return torch.cat(maps, dim=1)


def _pieces(model: TIDE, timesteps: Tensor, x: Tensor, conditioning: Tensor | None) -> Iterator[Tensor]:
    """Latents ``[rows, n_latents]`` averaged over the timesteps, a piece of the image's tokens at a time."""
    for part in x.split(max(1, PIECE // model.n_latents), dim=1):
        total = torch.zeros(part.shape[1], model.n_latents, device=x.device)
        for i, t in enumerate(timesteps.tolist()):
            total += model.dense(part[i], Position(t, conditioning))
        yield total / len(timesteps)
