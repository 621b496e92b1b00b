"""Latents of whole images, pooled to one value an image and as maps over its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tide.activations import Prepared
from tide.activations.collect import sample_generator
from tide.adapters import Adapter, Call
from tide.interpretation.concepts import concept_scores
from tide.interpretation.reading import PIECE, calls_of_blocks
from tide.sae import TIDE, Position
from tide.sae.position import at_step, of_steps

#: An image's activations ``[timesteps, tokens, d_model]`` and its conditioning ``[timesteps, 1, d_embedding]``, if any.
Activations = tuple[Tensor, Tensor | None]
#: Name -> features ``[images, n_features]`` on the CPU.
Pooled = dict[str, Tensor]


def image_activations(
    adapter: Adapter,
    models: Mapping[int, TIDE],
    images: Sequence[Prepared],
    indices: Sequence[int],
    *,
    timesteps: Tensor,
    seed: int,
    batch_size: int,
) -> Iterator[dict[int, Activations]]:
    """The activations of each of ``indices``, of every block that ``models`` have: blocks share the passes.

    The noise of an image depends on ``seed`` and its index alone, so that reading it again gives the same.
    """
    tensor = next(iter(models.values())).config.tensor
    for start in range(0, len(indices), batch_size):
        part = indices[start : start + batch_size]
        latents = torch.cat([images[i].latents for i in part])
        text = {name: torch.cat([images[i].text[name] for i in part]) for name in images[part[0]].text}
        noise = torch.stack([torch.randn(latents.shape[1:], generator=sample_generator(seed, i)) for i in part])
        steps = list(calls_of_blocks(adapter, list(models), Prepared(latents, text), noise, timesteps, tensor))
        x = {block: torch.stack([of_step[block][0] for of_step in steps]) for block in models}
        for row in range(len(part)):
            yield {block: (x[block][:, row], _row_of([each[block][1] for each in steps], row)) for block in models}


def _row_of(calls: Sequence[Call], row: int) -> Tensor | None:
    """The conditioning of an image at every timestep."""
    conditioning = of_steps([call.conditioning for call in calls])
    return None if conditioning is None else conditioning[:, row : row + 1]


def pool(
    images: Iterable[Mapping[int, Activations]], timesteps: Tensor, models: Mapping[int, Mapping[str, TIDE]]
) -> dict[int, Pooled]:
    """Of each block the mean over an image's tokens and timesteps of the latents of each of its ``models``, and of the
    activation's channels as "neurons"."""
    rows: dict[int, dict[str, list[Tensor]]] = {
        block: {name: [] for name in (*own, "neurons")} for block, own in models.items()
    }
    for of_blocks in images:
        for block, (x, conditioning) in of_blocks.items():
            for name, model in models[block].items():
                total = torch.stack([piece.sum(0) for piece in _pieces(model, timesteps, x, conditioning)]).sum(0)
                rows[block][name].append((total / x.shape[1]).cpu())
            rows[block]["neurons"].append(x.float().mean((0, 1)).cpu())
    return {block: {name: torch.stack(each) for name, each in own.items()} for block, own in rows.items()}


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
            total += model.dense(part[i], Position(t, at_step(conditioning, i)))
        yield total / len(timesteps)
