"""Where in the image to edit, as latents say it: a mask over tokens that is drawn anew at every step of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tide.editing.edits import Place
from tide.errors import TideError
from tide.sae.model import TIDE


@dataclass(frozen=True, eq=False)
class Detector:
    """Tells the tokens of a concept by a linear score of few latents, by timestep::

        s = sum_i weights[t, i] z[features[i]]        on where s > thresholds[t]

    The timestep nearest to the call's is used, of two equally near ones the first, as :class:`~tide.editing.Target`
    does.

    Attributes:
        model: the TIDE whose latents are read, on the pipeline's device and trained on the block that is edited.
        features: the latents' numbers, int64 ``[F]``.
        timesteps: the scheduler's, ``[T]``.
        weights: ``[T, F]`` float32.
        thresholds: ``[T]`` float32, in units of the score.

    Raises:
        TideError: the shapes do not go together, or there is no such latent.
    """

    model: TIDE
    features: Tensor
    timesteps: Tensor
    weights: Tensor
    thresholds: Tensor

    def __post_init__(self) -> None:
        n, steps = self.features.numel(), self.timesteps.numel()
        wanted = {"features": [n], "timesteps": [steps], "weights": [steps, n], "thresholds": [steps]}
        for name, shape in wanted.items():
            if list(getattr(self, name).shape) != shape or not all(shape):
                raise TideError(
                    f"a detector's {name} are {list(getattr(self, name).shape)}; give features [F], timesteps [T], "
                    "weights [T, F] and thresholds [T], none of them empty"
                )
        _check_features(self.model, self.features.tolist())
        for name in ("weights", "thresholds", "timesteps"):
            if not bool(torch.isfinite(getattr(self, name)).all()):
                raise TideError(f"a detector's {name} are not all finite; give finite numbers")

    @classmethod
    def of_features(cls, model: TIDE, features: Iterable[int], threshold: float = 0.0) -> Detector:
        """On where the latents' sum is above ``threshold``, at every timestep. Raises as the class does."""
        chosen = list(dict.fromkeys(features))
        _check_features(model, chosen)  # a tensor does not hold every whole number
        numbers = torch.tensor(chosen, dtype=torch.int64)
        once = torch.zeros(1)
        return cls(model, numbers, once, torch.ones(1, len(numbers)), torch.full((1,), float(threshold)))

    def threshold(self, timestep: float) -> float:
        """That of the timestep nearest to ``timestep``."""
        return float(self.thresholds[self._nearest(timestep)])

    @torch.no_grad()
    def scores(self, x: Tensor, place: Place) -> Tensor:
        """``[N]`` float32 on the device of ``x [N, d_model]``: the scores of the activations at ``place``.

        Only the features are encoded where the activation lets it (:meth:`TIDE.latents_of`).
        """
        z = self.model.latents_of(x.float(), place, self.features)
        return (z @ self.weights[self._nearest(place.timestep)].to(z)).float()

    def _nearest(self, timestep: float) -> int:
        return int((self.timesteps - timestep).abs().argmin())


@dataclass(frozen=True, eq=False)
class Where:
    """A mask over image tokens that ``detectors`` draw at every step of a run: the ``tokens`` of
    :func:`tide.editing.edit`.

    The scores are those of the prompt's own rows at this step, before the edit changes them; the rows of the negative
    prompt are edited at the same tokens. An edit that removes what the detectors look for lets go of it at later steps,
    the later the lower ``low`` is.

    In this order, scores are averaged (``smooth``) and compared with the thresholds (``low`` holds what was on), images
    with few tokens are left out (``least``), and what is on is grown (``grow``), inverted (``invert``) and cut
    (``within``).

    Attributes:
        detectors: a token is on where any of them is. ``a | b`` has the detectors of both.
        grow: tokens by which the mask is grown on each side, to squares on the grid of tokens.
        smooth: scores are averaged over ``(2 smooth + 1)^2`` tokens, at the border over those that there are.
        low: hysteresis: a token that a detector had on at the step before stays on while ``s > low * threshold`` (of
            positive thresholds); 1 is none.
        least: an image with fewer tokens on than this has none.
        invert: edit all tokens but those. ``~a`` turns it over.
        within: bool ``[tokens]``, or ``[images, tokens]``: nothing outside of it is edited.

    Raises:
        TideError: a value is out of its range, or there is no detector.
    """

    detectors: tuple[Detector, ...]
    grow: int = 0
    smooth: int = 0
    low: float = 1.0
    least: int = 1
    invert: bool = False
    within: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.detectors:
            raise TideError("a Where has no detector; give at least one")
        if self.grow < 0 or self.smooth < 0:
            raise TideError(f"grow = {self.grow} and smooth = {self.smooth} are numbers of tokens; give 0 or more")
        if not 0 <= self.low <= 1:
            raise TideError(f"low = {self.low} is a share of the threshold; give 0 to 1")
        if self.least < 1:
            raise TideError(f"least = {self.least} must be at least 1")
        check_mask(self.within, "within")

    @classmethod
    def of_features(
        cls,
        model: TIDE,
        features: Iterable[int],
        threshold: float = 0.0,
        *,
        grow: int = 0,
        smooth: int = 0,
        low: float = 1.0,
        least: int = 1,
        within: Tensor | None = None,
    ) -> Where:
        """Drawn by one :meth:`Detector.of_features`. Raises as both classes do."""
        detector = Detector.of_features(model, features, threshold)
        return cls((detector,), grow=grow, smooth=smooth, low=low, least=least, within=within)

    def __or__(self, other: Where) -> Where:
        """The detectors of both. Raises :class:`~tide.errors.TideError` unless all else is the same, and for inverted
        ones."""
        if not isinstance(other, Where):
            return NotImplemented
        if self.invert or other.invert:
            raise TideError("one of the two is inverted; unite them first and invert the whole: ~(a | b)")
        for name in ("grow", "smooth", "low", "least"):
            if getattr(self, name) != getattr(other, name):
                raise TideError(
                    f"{name} is {getattr(self, name)} and {getattr(other, name)}; give both the same to unite them"
                )
        if self.within is not other.within and not _same(self.within, other.within):
            raise TideError("the two are within different masks; give both the same to unite them")
        return replace(self, detectors=self.detectors + other.detectors)

    def __invert__(self) -> Where:
        return replace(self, invert=not self.invert)

    @property
    def needs_grid(self) -> bool:
        """Whether a mask depends on which tokens are neighbours."""
        return bool(self.grow or self.smooth)


def averaged(scores: Tensor, by: int, grid: tuple[int, ...] | None) -> Tensor:
    """``scores [images, tokens]`` averaged over ``(2 by + 1)^2`` tokens of the ``grid``, at the border over those that
    there are; of a clip in each frame of tokens alone."""
    if not by:
        return scores
    assert grid is not None
    images, by = scores.view(-1, 1, *grid[-2:]), min(by, max(grid[-2:]))
    return F.avg_pool2d(images, 2 * by + 1, stride=1, padding=by, count_include_pad=False).view(scores.shape)


def held(scores: Tensor, before: Tensor | None, thresholds: Tensor, low: float) -> Tensor:
    """bool like ``scores [images, tokens]``: above the image's own of ``thresholds [images, 1]``, or where a token was
    on ``before``, above ``low`` times it."""
    on = scores > thresholds
    # Where a threshold is negative, a share of it is higher: then nothing is held that is not on anyway.
    return on if before is None else on | (before & (scores > low * thresholds))


def grown(on: Tensor, by: int, grid: tuple[int, ...] | None) -> Tensor:
    """bool ``[images, tokens]``: on where a token is at most ``by`` rows and columns of the ``grid`` away, in the same
    frame of a clip."""
    if not by:
        return on
    assert grid is not None
    images, by = on.view(-1, 1, *grid[-2:]).float(), min(by, max(grid[-2:]))
    return (F.max_pool2d(images, 2 * by + 1, stride=1, padding=by) > 0).view(on.shape)


def check_mask(mask: Tensor | None, name: str) -> None:
    """Raises :class:`~tide.errors.TideError` for what is not a mask over tokens."""
    if mask is not None and (mask.dtype != torch.bool or mask.ndim not in (1, 2)):
        raise TideError(f"{name} is {mask.dtype} {list(mask.shape)}; it must be bool [tokens] or [images, tokens]")


def _check_features(model: TIDE, features: Sequence[int]) -> None:
    if outside := [f for f in features if not 0 <= f < model.n_latents]:
        raise TideError(f"feature {outside[0]} does not exist; this SAE has latents 0..{model.n_latents - 1}")


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and torch.equal(a, b)
