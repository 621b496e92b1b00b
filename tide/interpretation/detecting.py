"""Detectors of concepts: which few latents tell the tokens of a concept, weighted how, from which score on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tide.editing.where import Detector
from tide.errors import TideError
from tide.evaluation.statistics import auroc
from tide.interpretation.concepts import Annotated, best_iou
from tide.interpretation.reading import PIECE
from tide.sae.model import TIDE
from tide.sae.position import Position

#: Candidates for each latent that a detector reads: those that correlate most with the concept, one by one.
CANDIDATES = 4
#: Ridge, as a share of a standardised latent's variance.
RIDGE = 0.02
#: The least variance of a latent that counts: one that hardly ever fires on the images tells nothing about others.
LEAST_VARIANCE = 1e-6


@dataclass(frozen=True)
class FittedDetector:
    """A detector, and how well it tells its concept on the held-out images, by timestep.

    Attributes:
        concept: its name.
        detector: its threshold is that of the highest IoU of tokens (of images, where only labels are known) on the
            images that it was fitted on.
        auroc: of tokens; of images, by their highest score, where only labels are known.
        image_auroc: of images, by their highest score.
        nearest: the other concept whose detector tells this one best, and its mean :attr:`image_auroc` for it; None
            where there is no other.
    """

    concept: str
    detector: Detector
    auroc: list[float]
    image_auroc: list[float]
    nearest: tuple[str, float] | None = None

    @property
    def mean_image_auroc(self) -> float:
        return sum(self.image_auroc) / len(self.image_auroc)


@torch.no_grad()
def fit_detectors(
    model: TIDE, fit: Annotated, held_out: Annotated, concepts: Sequence[str], *, n_latents: int = 32
) -> dict[str, FittedDetector]:
    """Fits a linear score of at most ``n_latents`` latents for each of ``concepts``, at every timestep.

    The latents are the same at all timesteps: of the :data:`CANDIDATES` times as many that correlate most with the
    concept (squared correlations, mean over timesteps), those with the largest weights in a ridge regression of the
    standardised candidates. The score is a second regression on them alone. A concept of which only labels of images
    are known is looked for in every token of its images.

    Args:
        model: the TIDE whose latents are read.
        fit: the images that are fitted to.
        held_out: other images at the same timesteps, for the figures.
        concepts: names of masks or labels of both.
        n_latents: that a detector reads at most.

    Raises:
        TideError: a concept is not labelled, or on all or none of the images that are fitted to; the timesteps differ.
    """
    _check(fit, held_out, concepts)
    rows = torch.stack([_tokens_of(fit, concept) for concept in concepts], dim=1)
    chosen = _candidates(model, fit, rows, n_latents * CANDIDATES)
    found = {concept: _fitted(model, fit, rows[:, i], chosen[i], n_latents) for i, concept in enumerate(concepts)}
    return _measured({concept: _thresholded(each, fit, concept) for concept, each in found.items()}, held_out)


def token_scores(detector: Detector, data: Annotated) -> Tensor:
    """The scores of every token, ``[timesteps, images, tokens]`` on the CPU."""
    out = []
    for i, t in enumerate(data.timesteps.tolist()):
        z = torch.cat(list(_columns(detector.model, data, i, detector.features)))
        weights = detector.weights[int((detector.timesteps - t).abs().argmin())]
        out.append((z @ weights).view(data.x.shape[1], data.n_tokens))
    return torch.stack(out)


def _check(fit: Annotated, held_out: Annotated, concepts: Sequence[str]) -> None:
    if not torch.equal(fit.timesteps, held_out.timesteps):
        raise TideError("the two sets of images were read at different timesteps; read both at the same")
    if not concepts:
        raise TideError("no concept is named; give at least one")
    for concept in concepts:
        for data in (fit, held_out):
            if concept not in data.labels:
                raise TideError(f"{concept!r} is not labelled; the images have {', '.join(sorted(data.labels))}")
        tokens = _tokens_of(fit, concept)
        if bool(tokens.all()) or not bool(tokens.any()):
            raise TideError(f"{concept!r} is on every image or on none; give images with and without it")


def _tokens_of(data: Annotated, concept: str) -> Tensor:
    """bool ``[images * tokens]``: the concept's own tokens, or all tokens of the images that show it."""
    if concept in data.masks:
        return data.masks[concept].flatten()
    return data.labels[concept].repeat_interleave(data.n_tokens)


def _pieces(data: Annotated, n_latents: int) -> list[slice]:
    """Images whose dense latents fit into :data:`~tide.interpretation.reading.PIECE`."""
    n = max(1, PIECE // (data.n_tokens * n_latents))
    return [slice(first, first + n) for first in range(0, data.x.shape[1], n)]


def _position(data: Annotated, step: int, images: slice) -> Position:
    return Position(float(data.timesteps[step]), None if data.conditioning is None else data.conditioning[images])


def _candidates(model: TIDE, data: Annotated, rows: Tensor, n: int) -> list[Tensor]:
    """For each column of ``rows`` the latents that correlate most with it, int64."""
    y = rows.float()
    mean_y, deviation_y = y.mean(0), y.std(0, correction=0)
    merit = torch.zeros(model.n_latents, rows.shape[1])
    for step in range(len(data.timesteps)):
        total = torch.zeros(model.n_latents, dtype=torch.float64)
        squares, products = total.clone(), torch.zeros(model.n_latents, rows.shape[1], dtype=torch.float64)
        for images in _pieces(data, model.n_latents):
            x = data.x[step, images].flatten(0, 1).to(model.W_enc.device)
            z = model.dense(x, _position(data, step, images)).cpu()
            part = y[images.start * data.n_tokens : images.start * data.n_tokens + len(z)]
            total += z.sum(0)
            squares += z.square().sum(0)
            products += z.T @ part
        count = len(y)
        variance = squares / count - (total / count).square()
        covariance = products / count - (total / count)[:, None] * mean_y
        known = variance > LEAST_VARIANCE
        correlation = covariance / (variance.clamp(min=LEAST_VARIANCE).sqrt()[:, None] * deviation_y)
        merit += torch.where(known[:, None], correlation.square(), 0.0).float()
    n = min(n, model.n_latents)
    return [merit[:, i].topk(n).indices for i in range(rows.shape[1])]


def _columns(model: TIDE, data: Annotated, step: int, features: Tensor) -> Iterator[Tensor]:
    """Latents ``features`` of every token, in pieces ``[tokens, F]`` float32 on the CPU."""
    for images in _pieces(data, model.n_latents):
        x = data.x[step, images].flatten(0, 1).to(model.W_enc.device)
        yield model.latents_of(x.float(), _position(data, step, images), features).float().cpu()


@dataclass(frozen=True)
class _Moments:
    """Of latents ``z [rows, F]`` and of what they should tell, ``y [rows]``: variances, correlations; float64."""

    deviation: Tensor  # [F]
    correlation: Tensor  # [F, F]
    cross: Tensor  # [F]: mean of z, standardised, times (y - mean of y)

    @classmethod
    def of(cls, pieces: Iterable[Tensor], y: Tensor) -> _Moments:
        total = gram = cross = torch.zeros(())
        first = 0
        for z in pieces:
            z, own = z.double(), y[first : first + len(z)].double()
            total, gram, cross = total + z.sum(0), gram + z.T @ z, cross + z.T @ own
            first += len(z)
        mean = total / first
        covariance = gram / first - mean[:, None] * mean
        deviation = covariance.diagonal().clamp(min=LEAST_VARIANCE).sqrt()
        scale = deviation[:, None] * deviation
        return cls(deviation, covariance / scale, (cross / first - mean * y.double().mean()) / deviation)

    def ridge(self, kept: Tensor | None = None) -> Tensor:
        """The weights of the standardised latents, or of those ``kept`` alone."""
        index = torch.arange(len(self.deviation)) if kept is None else kept
        gram = self.correlation[index][:, index] + RIDGE * torch.eye(len(index), dtype=torch.float64)
        return torch.linalg.solve(gram, self.cross[index])


def _fitted(model: TIDE, data: Annotated, rows: Tensor, candidates: Tensor, n: int) -> Detector:
    """With thresholds of 0, which are chosen later."""
    y, n_steps = rows.float(), len(data.timesteps)
    moments = [_Moments.of(_columns(model, data, step, candidates), y) for step in range(n_steps)]
    size = torch.stack([each.ridge().square() for each in moments]).sum(0)
    kept = size.topk(min(n, len(candidates))).indices.sort().values
    weights = torch.stack([each.ridge(kept) / each.deviation[kept] for each in moments]).float()
    return Detector(model, candidates[kept], data.timesteps.float(), weights, torch.zeros(n_steps))


def _thresholded(detector: Detector, data: Annotated, concept: str) -> Detector:
    """With the thresholds of the highest IoU."""
    scores = token_scores(detector, data)
    per_token = concept in data.masks
    mask = data.masks[concept].flatten() if per_token else data.labels[concept]
    found = [best_iou(each.flatten() if per_token else each.amax(1), mask)[0] for each in scores]
    return replace(detector, thresholds=torch.tensor(found))


def _measured(detectors: dict[str, Detector], data: Annotated) -> dict[str, FittedDetector]:
    """The figures on ``data``."""
    scores = {concept: token_scores(detector, data) for concept, detector in detectors.items()}
    peaks = {concept: each.amax(2) for concept, each in scores.items()}
    names = list(detectors)
    labels = torch.stack([data.labels[name] for name in names], dim=1)
    # How well the detector of a row tells the concept of a column, mean over timesteps.
    table = torch.stack([torch.stack([auroc(p[:, None], labels)[0] for p in peaks[name]]) for name in names]).mean(1)
    out = {}
    for i, (concept, detector) in enumerate(detectors.items()):
        own = peaks[concept]
        by_image = [float(auroc(p[:, None], labels[:, i : i + 1])[0, 0]) for p in own]
        by_token = by_image
        if concept in data.masks:
            mask = data.masks[concept].flatten()[:, None]
            by_token = [float(auroc(each.flatten()[:, None], mask)[0, 0]) for each in scores[concept]]
        others = [j for j in range(len(names)) if j != i and not bool(table[j, i].isnan())]
        best = max(others, key=lambda j: float(table[j, i])) if others else None
        nearest = None if best is None else (names[best], float(table[best, i]))
        out[concept] = FittedDetector(concept, detector, by_token, by_image, nearest)
    return out
