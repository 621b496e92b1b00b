"""Detectors of concepts: which few latents tell the tokens of a concept, or the images that show it, weighted how, from
which score on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from tide.editing.where import Detector
from tide.errors import TideError
from tide.evaluation.statistics import auroc
from tide.interpretation.concepts import Annotated, best_iou
from tide.interpretation.reading import PIECE
from tide.sae.codes import Codes
from tide.sae.model import TIDE
from tide.sae.position import Position, at_step

#: What a detector tells apart: tokens, or images by the mean score of their tokens.
Per = Literal["token", "image"]

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
        detector: its threshold is that of the highest IoU on the images that it was fitted on: half way between the two
            scores that it separates.
        auroc: on the held-out images, by timestep.
        nearest: the other concept whose detector tells this one best, and its mean AUROC for it; None where there is no
            other.
    """

    concept: str
    detector: Detector
    auroc: list[float]
    nearest: tuple[str, float] | None = None

    @property
    def mean_auroc(self) -> float:
        """The AUROC on the held-out images, averaged over the timesteps."""
        return sum(self.auroc) / len(self.auroc)


@torch.no_grad()
def fit_detectors(
    model: TIDE,
    fit: Annotated,
    held_out: Annotated,
    concepts: Sequence[str],
    *,
    per: Per = "token",
    n_latents: int = 32,
) -> dict[str, FittedDetector]:
    """Fits a linear score of at most ``n_latents`` latents for each of ``concepts``, at every timestep.

    The latents are the same at all timesteps: of the :data:`CANDIDATES` times as many that correlate most with the
    concept (squared correlations, mean over timesteps), those with the largest weights in a ridge regression of the
    standardised candidates. The score is a second regression on them alone.

    Args:
        model: the TIDE whose latents are read.
        fit: the images that are fitted to.
        held_out: other images at the same timesteps, for the figures.
        concepts: names of masks or labels of both.
        per: "token" tells the tokens under the concept's mask; of a concept of which only labels of images are known,
            all tokens of its images. "image" tells the images that show it, by the mean score of their tokens, which
            is the score of their mean latents: a token says little of which of two objects it is a part of, all
            tokens of an image together say it from the first step on.
        n_latents: that a detector reads at most.

    Raises:
        TideError: a concept is not labelled, or on all or none of the images that are fitted to; the timesteps differ.
    """
    _check(fit, held_out, concepts, per)
    rows = torch.stack([_shown(fit, concept, per) for concept in concepts], dim=1)
    latents = _Latents(model, fit, per)
    chosen = _candidates(latents, rows, n_latents * CANDIDATES)
    found = {}
    for i, concept in enumerate(concepts):
        detector = _fitted(latents, rows[:, i], chosen[i], n_latents)
        best = [best_iou(each, rows[:, i])[0] for each in _scores(detector, latents)]
        found[concept] = replace(detector, thresholds=torch.tensor(best))
    return _measured(found, _Latents(model, held_out, per))


def token_scores(detector: Detector, data: Annotated) -> Tensor:
    """The scores of every token, ``[timesteps, images, tokens]`` on the CPU.

    ``detector`` scores ``data``, at each timestep by its weights of the nearest one.
    """
    return _scores(detector, _Latents(detector.model, data, "token")).view(*data.x.shape[:3])


def mean_scores(detector: Detector, data: Annotated) -> Tensor:
    """The mean scores of the tokens of every image, ``[timesteps, images]`` on the CPU.

    ``detector`` scores the tokens of ``data`` (:func:`token_scores`).
    """
    return _scores(detector, _Latents(detector.model, data, "image"))


def _scores(detector: Detector, latents: _Latents) -> Tensor:
    """``[timesteps, images * tokens]`` or ``[timesteps, images]``."""
    out = []
    for i, t in enumerate(latents.data.timesteps.tolist()):
        weights = detector.weights[int((detector.timesteps - t).abs().argmin())]
        out.append(torch.cat([z @ weights for z in latents.columns(i, detector.features)]))
    return torch.stack(out)


def _check(fit: Annotated, held_out: Annotated, concepts: Sequence[str], per: Per) -> None:
    if not torch.equal(fit.timesteps, held_out.timesteps):
        raise TideError("the two sets of images were read at different timesteps; read both at the same")
    if not concepts:
        raise TideError("no concept is named; give at least one")
    for concept in concepts:
        for data in (fit, held_out):
            if concept not in data.labels:
                raise TideError(f"{concept!r} is not labelled; the images have {', '.join(sorted(data.labels))}")
        for data, which in ((fit, "fitted"), (held_out, "held out")):
            shown = _shown(data, concept, per)
            if shown.all() or not shown.any():
                every = "every one" if shown.any() else "none"
                raise TideError(
                    f"{concept!r} is on {every} of the {which} images; give images with and without it for both"
                )


def _shown(data: Annotated, concept: str, per: Per) -> Tensor:
    """bool ``[images * tokens]`` or ``[images]``: what a detector of the concept should tell."""
    if per == "image":
        return data.labels[concept]
    if concept in data.masks:
        return data.masks[concept].flatten()
    return data.labels[concept].repeat_interleave(data.n_tokens)


def _pieces(data: Annotated, n_latents: int) -> list[slice]:
    """Images whose dense latents fit into :data:`~tide.interpretation.reading.PIECE`."""
    n = max(1, PIECE // (data.n_tokens * n_latents))
    return [slice(first, first + n) for first in range(0, data.x.shape[1], n)]


def _position(data: Annotated, step: int, images: slice) -> Position:
    given = at_step(data.conditioning, step)
    return Position(float(data.timesteps[step]), None if given is None else given[images])


@dataclass(frozen=True)
class _Latents:
    """Latents of labelled images, of every token or, ``per`` image, their means over its tokens.

    Those that compete (TopK's) are encoded once for all reads, and kept as codes: 2 k numbers a token, where the
    activations have d_model.
    """

    model: TIDE
    data: Annotated
    per: Per
    _codes: dict[int, list[Codes]] = field(default_factory=dict)

    def columns(self, step: int, features: Tensor) -> Iterator[Tensor]:
        """Latents ``features``, in pieces ``[rows, F]`` float32 on the CPU."""
        for i, images in enumerate(_pieces(self.data, self.model.n_latents)):
            if self.model.competes:
                z = self._of(step)[i].columns(features).float()
            else:
                z = self.model.latents_of(self._x(step, images), _position(self.data, step, images), features).float()
            yield (z.view(-1, self.data.n_tokens, z.shape[1]).mean(1) if self.per == "image" else z).cpu()

    def _of(self, step: int) -> list[Codes]:
        if step not in self._codes:
            pieces = _pieces(self.data, self.model.n_latents)
            encoded = [self.model.encode(self._x(step, each), _position(self.data, step, each)) for each in pieces]
            self._codes[step] = [Codes(each.values.cpu(), each.indices.cpu()) for each in encoded]
        return self._codes[step]

    def _x(self, step: int, images: slice) -> Tensor:
        return self.data.x[step, images].flatten(0, 1).to(self.model.W_enc.device).float()


def _candidates(latents: _Latents, rows: Tensor, n: int) -> list[Tensor]:
    """For each column of ``rows`` the latents that correlate most with it, int64."""
    model, y = latents.model, rows.double()
    mean_y, deviation_y = y.mean(0), y.std(0, correction=0)
    merit = torch.zeros(model.n_latents, rows.shape[1], dtype=torch.float64)
    every = torch.arange(model.n_latents)
    for step in range(len(latents.data.timesteps)):
        total = torch.zeros(model.n_latents, dtype=torch.float64)
        squares, products = total.clone(), torch.zeros_like(merit)
        first = 0
        for z in latents.columns(step, every):
            z = z.double()
            total, squares = total + z.sum(0), squares + z.square().sum(0)
            products += z.T @ y[first : first + len(z)]
            first += len(z)
        mean = total / len(y)
        variance = squares / len(y) - mean.square()
        covariance = products / len(y) - mean[:, None] * mean_y
        correlation = covariance / (variance.clamp(min=LEAST_VARIANCE).sqrt()[:, None] * deviation_y)
        merit += torch.where((variance > LEAST_VARIANCE)[:, None], correlation.square(), 0.0)
    n = min(n, model.n_latents)
    return [merit[:, i].topk(n).indices for i in range(rows.shape[1])]


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


def _fitted(latents: _Latents, rows: Tensor, candidates: Tensor, n: int) -> Detector:
    """With thresholds of 0, which are chosen later."""
    y, timesteps = rows.float(), latents.data.timesteps.float()
    moments = [_Moments.of(latents.columns(step, candidates), y) for step in range(len(timesteps))]
    size = torch.stack([each.ridge().square() for each in moments]).sum(0)
    kept = size.topk(min(n, len(candidates))).indices.sort().values
    weights = torch.stack([each.ridge(kept) / each.deviation[kept] for each in moments]).float()
    return Detector(latents.model, candidates[kept], timesteps, weights, torch.zeros(len(timesteps)))


def _measured(detectors: dict[str, Detector], latents: _Latents) -> dict[str, FittedDetector]:
    """The figures on ``latents`` of held-out images."""
    names = list(detectors)
    shown = torch.stack([_shown(latents.data, name, latents.per) for name in names], dim=1)
    out = {}
    # How well the detector of a row tells the concept of a column: [detectors, timesteps, concepts].
    table = torch.stack(
        [torch.stack([auroc(each[:, None], shown)[0] for each in _scores(detectors[n], latents)]) for n in names]
    )
    means = table.mean(1)
    for i, name in enumerate(names):
        others = [j for j in range(len(names)) if j != i and not bool(means[j, i].isnan())]
        best = max(others, key=lambda j: float(means[j, i])) if others else None
        nearest = None if best is None else (names[best], float(means[best, i]))
        out[name] = FittedDetector(name, detectors[name], table[i, :, i].tolist(), nearest)
    return out
