"""Concepts in sparse latents: the paper's pooled-latent recipe (section 5.4) and latents that single out a concept."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from tide.errors import TideError
from tide.evaluation.statistics import auroc
from tide.sae.model import TIDE, inference


@dataclass
class Annotated:
    """Activations of every token of labelled images.

    ``x [timesteps, images, tokens, d_model]`` at ``timesteps [timesteps]``; ``masks[concept]`` bool
    ``[images, tokens]`` where a concept is known token by token; ``labels[concept]`` bool ``[images]`` where it is
    only known whether the image shows it. A concept with a mask needs no label.
    """

    timesteps: Tensor
    x: Tensor
    masks: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[str, Tensor] = field(default_factory=dict)
    conditioning: Tensor | None = None

    def __post_init__(self) -> None:
        for concept, mask in self.masks.items():
            if mask.shape != self.x.shape[1:3]:
                raise TideError(
                    f"the mask of {concept!r} is {list(mask.shape)} and the activations cover {list(self.x.shape[1:3])} "
                    "(images, tokens); make it anew for these images"
                )
            self.labels.setdefault(concept, mask.any(1))

    @property
    def n_tokens(self) -> int:
        return self.x.shape[2]

    def flat_masks(self, concepts: list[str]) -> Tensor:
        """bool ``[images * tokens, concepts]``."""
        return torch.stack([self.masks[c].flatten() for c in concepts], dim=1)


def dense_latents(model: TIDE, x: Tensor, timestep: float, conditioning: Tensor | None = None) -> Tensor:
    """Latents ``[..., n_latents]`` of activations ``x [..., d_model]`` at one timestep."""
    with inference(model):
        codes = model.encode(x.float(), torch.tensor([timestep]), conditioning)
        return codes.dense(model.n_latents).view(*x.shape[:-1], model.n_latents)


def mean_latents(model: TIDE, data: Annotated) -> Tensor:
    """Latents averaged over the timesteps: ``[images * tokens, n_latents]``."""
    total: Tensor | None = None
    for t, x in zip(data.timesteps.tolist(), data.x, strict=True):
        z = dense_latents(model, x.flatten(0, 1), t)
        total = z if total is None else total + z
    if total is None:
        raise TideError("no timesteps to read concepts at; give at least one")
    return total / len(data.timesteps)


def pooled_latents(latents: Tensor, labels: Tensor, n_tokens: int) -> Tensor:
    """Average-pooled latents ``[n_latents]`` over the tokens of all images that share a concept.

    ``latents [images * tokens, n_latents]``, ``labels [images]`` bool.
    """
    if not labels.any():
        raise TideError("no image shows this concept; collect images that do")
    return latents.view(len(labels), n_tokens, -1)[labels].mean((0, 1))


def concept_scores(latents: Tensor, pooled: Tensor, background: Tensor | None = None) -> Tensor:
    """Cosine similarity of each token's latents ``[rows, n_latents]`` with a concept's pooled latents (section 5.4).

    ``background``, the pooled latents of images in general, is subtracted from the concept's if given, so that what
    all images share does not score.
    """
    direction = pooled if background is None else pooled - background
    return F.cosine_similarity(latents, direction[None], dim=1)


@dataclass(frozen=True)
class Found:
    """What was found for a concept: a latent or a raw neuron (``sign`` -1 if it falls silent on the concept), its
    AUROC on the held-out images, and the IoU of its map at the threshold chosen on the others."""

    concept: str
    index: int
    sign: float
    threshold: float
    selection_auroc: float
    auroc: float
    iou: float


def best_iou(scores: Tensor, mask: Tensor, n_thresholds: int = 64) -> tuple[float, float]:
    """The threshold on ``scores [rows]`` with the highest IoU for ``mask [rows]``, and that IoU."""
    grid = torch.quantile(scores.float(), torch.linspace(0, 1, n_thresholds + 1)[:-1].to(scores.device)).unique()
    hits = scores[:, None] > grid
    union = (hits | mask[:, None]).sum(0)
    values = (hits & mask[:, None]).sum(0) / union.clamp(min=1)
    best = int(values.argmax())
    return float(grid[best]), float(values[best])


def iou(scores: Tensor, mask: Tensor, threshold: float) -> float:
    hits = scores > threshold
    return float((hits & mask).sum() / (hits | mask).sum().clamp(min=1))


def find_concepts(
    concepts: list[str],
    selection: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    *,
    signed: bool,
) -> dict[str, Found]:
    """For each concept, the feature whose token map fits its mask best.

    ``selection`` and ``held_out`` are ``(features [rows, n_features], masks [rows, concepts])``. The feature, its
    sign (only if ``signed``: raw neurons have two) and the IoU threshold are chosen on ``selection`` alone; AUROC and
    IoU are measured on ``held_out``.
    """
    table = auroc(*selection)
    merit = torch.maximum(table, 1 - table) if signed else table
    out = {}
    for c, concept in enumerate(concepts):
        column = torch.nan_to_num(merit[:, c], nan=0.0)
        index = int(column.argmax())
        sign = -1.0 if signed and table[index, c] < 0.5 else 1.0
        threshold, _ = best_iou(sign * selection[0][:, index], selection[1][:, c])
        scores, mask = sign * held_out[0][:, index], held_out[1][:, c]
        out[concept] = Found(
            concept,
            index,
            sign,
            threshold,
            float(column[index]),
            float(auroc(scores[:, None], mask[:, None])[0, 0]),
            iou(scores, mask, threshold),
        )
    return out
