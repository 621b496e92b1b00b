"""Concepts in sparse latents: the paper's pooled-latent recipe (section 5.4) and latents that single out a concept."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from tide.devices import in_double
from tide.errors import TideError
from tide.evaluation.statistics import auroc
from tide.sae.model import TIDE
from tide.sae.position import Position, at_step


@dataclass
class Annotated:
    """Activations of every token of labelled images.

    ``x [timesteps, images, tokens, d_model]`` at ``timesteps [timesteps]``; ``masks[concept]`` bool
    ``[images, tokens]`` if a concept is known token by token; ``labels[concept]`` bool ``[images]`` if it is only known
    whether the image shows it. A concept with a mask needs no label. ``conditioning [timesteps, images,
    d_embedding]`` is what the model adds to its timestep embedding, or None; ``[images, d_embedding]`` where that is
    the same at all timesteps.
    """

    timesteps: Tensor
    x: Tensor
    masks: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[str, Tensor] = field(default_factory=dict)
    conditioning: Tensor | None = None

    def __post_init__(self) -> None:
        shape = list(self.x.shape)
        if len(shape) != 4 or shape[:1] != list(self.timesteps.shape):
            raise TideError(
                f"activations are {shape}; {len(self.timesteps)} timesteps need "
                f"[{len(self.timesteps)}, images, tokens, d_model]"
            )
        for concept, mask in self.masks.items():
            if list(mask.shape) != shape[1:3]:
                raise TideError(
                    f"the mask of {concept!r} is {list(mask.shape)} and the activations cover {shape[1:3]} "
                    "(images, tokens); make it again for these images"
                )
        self.labels = {concept: mask.any(1) for concept, mask in self.masks.items()} | self.labels
        for concept, label in self.labels.items():
            if list(label.shape) != shape[1:2]:
                raise TideError(f"the label of {concept!r} is {list(label.shape)}; {shape[1]} images need one each")

    @property
    def n_tokens(self) -> int:
        """Tokens of an image."""
        return self.x.shape[2]

    def flat_masks(self, concepts: list[str]) -> Tensor:
        """bool ``[images * tokens, concepts]``."""
        return torch.stack([self.masks[c].flatten() for c in concepts], dim=1)


def mean_latents(model: TIDE, data: Annotated) -> Tensor:
    """Latents averaged over the timesteps: ``[images * tokens, n_latents]``.

    ``model`` is on the device of ``data``. Raises :class:`~tide.errors.TideError` if ``data`` has no timesteps.
    """
    total: Tensor | None = None
    for i, (t, x) in enumerate(zip(data.timesteps.tolist(), data.x, strict=True)):
        z = model.dense(x.flatten(0, 1), Position(t, at_step(data.conditioning, i)))
        total = z if total is None else total + z
    if total is None:
        raise TideError("no timesteps to read concepts at; give at least one")
    return total / len(data.timesteps)


def pooled_latents(latents: Tensor, labels: Tensor, n_tokens: int) -> Tensor:
    """Average-pooled latents ``[n_latents]`` over the tokens of all images that share a concept.

    ``latents [images * tokens, n_latents]``, ``labels [images]`` bool.

    ``n_tokens`` is the number of tokens of an image.
    """
    if not labels.any():
        raise TideError("no image shows this concept; collect images that do")
    return latents.view(len(labels), n_tokens, -1)[labels].mean((0, 1))


def concept_scores(latents: Tensor, pooled: Tensor, background: Tensor | None = None) -> Tensor:
    """Cosine similarity of each token's latents ``[rows, n_latents]`` with a concept's pooled latents (section 5.4).

    ``background``, the pooled latents of images in general, is subtracted from the concept's if given, so that features
    shared by all images do not score.
    """
    direction = pooled if background is None else pooled - background
    return F.cosine_similarity(latents, direction[None], dim=1)


@dataclass(frozen=True)
class Found:
    """What was found for a concept: a latent or a raw neuron (``sign`` -1 if it falls silent on the concept), its
    AUROC on the held-out images, and the IoU of its map at the threshold chosen on the others.

    Attributes:
        concept: its name.
        index: the number of the latent or neuron.
        sign: 1, or -1 for a neuron that falls silent on the concept.
        threshold: of the map, chosen on the images that chose the latent.
        selection_auroc: on the images that chose it, so optimistic.
        auroc: on the held-out images.
        iou: of the map with the concept's mask there.
    """

    concept: str
    index: int
    sign: float
    threshold: float
    selection_auroc: float
    auroc: float
    iou: float


def best_iou(scores: Tensor, mask: Tensor) -> tuple[float, float]:
    """The threshold on ``scores [rows]`` with the highest IoU for ``mask [rows]``, and that IoU.

    Every threshold that separates the distinct scores is tried, since the quantiles of a latent that is silent on most
    tokens are nearly all 0. The result lies half way between the lowest score above it and the highest below.
    """
    ordered, order = scores.float().sort(descending=True)
    hits = torch.arange(1, len(ordered) + 1, device=scores.device)
    shared = mask[order].cumsum(0)
    values = in_double(shared) / in_double(hits + mask.sum() - shared)
    # With a threshold just below its score, row i is the last of the hits, if the next score is lower.
    values[:-1].masked_fill_((ordered[:-1] == ordered[1:]).to(values.device), -1.0)
    if len(values) < 2 or bool((values[:-1] < 0).all()):
        return float(ordered[-1]), 0.0  # all scores are equal: nothing lies above any of them
    best = int(values[:-1].argmax())
    above, below = ordered[best], ordered[best + 1]
    half_way = below + (above - below) / 2
    return float(half_way if half_way < above else below), float(values[best])


def iou(scores: Tensor, mask: Tensor, threshold: float) -> float:
    """Intersection over union of ``scores [rows] > threshold`` and ``mask [rows]``; 0 where both are empty."""
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
    IoU are measured on ``held_out``. Raises :class:`~tide.errors.TideError` for a concept on all or none of the rows of
    ``selection``; if that is so in ``held_out``, its AUROC is NaN.
    """
    for _, masks in (selection, held_out):
        if masks.shape[1] != len(concepts):
            raise TideError(f"{len(concepts)} concepts need as many columns of masks, not {masks.shape[1]}")
    table = auroc(*selection)
    merit = torch.maximum(table, 1 - table) if signed else table
    out = {}
    for c, concept in enumerate(concepts):
        if bool(merit[:, c].isnan().all()):
            raise TideError(f"{concept!r} is on every token or on none of the selection; select other images")
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
