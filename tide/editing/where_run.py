"""The masks of a :class:`~tide.editing.Where`, step by step in a run of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from tide.adapters import Call
from tide.editing.edits import Place
from tide.editing.named import in_words
from tide.editing.where import Detector, Where, averaged, grown, held
from tide.errors import TideError
from tide.messages import counted


@dataclass
class WhereRun:
    """Draws the masks of ``where``, call by call.

    A run starts where :meth:`start` is called, at a call of a higher timestep than the last, and at one of another
    number of images or tokens.

    Attributes:
        masks: of the latest run: the timestep of each call that draws the prompt, and its mask, bool
            ``[images, tokens]`` on the CPU.
        now: the last of them; None where the latest call of the block was not of the edit's steps.
        grid: rows and columns of the tokens, where the latest call said so.
        best: for each detector the score that came closest to its threshold, or went furthest above it, in any run, and
            the threshold.
        most: the most tokens that were on in an image, before they were grown, counted without ``least``.
    """

    where: Where
    masks: list[tuple[float, Tensor]] = field(default_factory=list)
    now: Tensor | None = None
    grid: tuple[int, ...] | None = None
    best: list[tuple[float, float]] = field(default_factory=list)
    most: int = 0
    #: On the device of the run: the latest mask ``[images, tokens]``, and the tokens that each detector had on.
    _mask: Tensor | None = None
    _on: list[Tensor] | None = None

    def start(self) -> None:
        """Forgets the run before."""
        self.masks, self.now, self._mask, self._on = [], None, None, None

    def skip(self) -> None:
        """Says that a call is not of the edit's steps."""
        self.now = None

    @torch.no_grad()
    def mask(self, x: Tensor, call: Call) -> Tensor:
        """bool ``[images, tokens]``: the tokens to edit of the images of a call with activations ``x [B, T, d_model]``.

        A call without rows of the prompt (families that guide by separate calls) has the mask of the latest call with
        some; before there is one, no token.

        Raises:
            TideError: a detector's model is on another device; where the tokens lie is needed and not known.
        """
        rows = call.conditional.nonzero().flatten().tolist()
        n_images, n_tokens = len(rows) or len(x), x.shape[1]
        fits = self._mask is not None and self._mask.shape == (n_images, n_tokens)
        if not rows:
            return self._mask if fits and self._mask is not None else x.new_zeros(n_images, n_tokens, dtype=torch.bool)
        timestep = float(call.timestep[rows[0]])
        if not fits or (self.masks and timestep > self.masks[-1][0]):
            self.start()
        self.grid = call.grid
        self._mask = self._drawn(x, call, rows)
        self.now = self._mask.cpu()
        self.masks.append((timestep, self.now))
        return self._mask

    def _drawn(self, x: Tensor, call: Call, rows: list[int]) -> Tensor:
        where, grid = self.where, self._checked_grid(x.shape[1])
        places = [place_of(call, row, image, x) for image, row in enumerate(rows)]
        on: list[Tensor] = []
        for i, detector in enumerate(where.detectors):
            _check_device(detector, x)
            scores = torch.stack([detector.scores(x[row], place) for row, place in zip(rows, places, strict=True)])
            scores = averaged(scores, where.smooth, grid)
            thresholds = [detector.threshold(place.timestep) for place in places]
            before = None if self._on is None else self._on[i]
            on.append(held(scores, before, scores.new_tensor(thresholds)[:, None], where.low))
            self._note(i, scores, thresholds)
        together = torch.stack(on).any(0)
        count = together.sum(1)
        self.most = max(self.most, int(count.max()))
        enough = (count >= where.least)[:, None]
        self._on = [each & enough for each in on]
        return self._cut(grown(together & enough, where.grow, grid) ^ where.invert)

    def _note(self, detector: int, scores: Tensor, thresholds: list[float]) -> None:
        """Keeps the score that is highest above its threshold."""
        highest = scores.amax(1).tolist()
        found = max(zip(highest, thresholds, strict=True), key=lambda each: each[0] - each[1])
        if detector == len(self.best):
            self.best.append(found)
        elif found[0] - found[1] > self.best[detector][0] - self.best[detector][1]:
            self.best[detector] = found

    def _checked_grid(self, n_tokens: int) -> tuple[int, ...] | None:
        grid = self.grid
        if self.where.needs_grid and (grid is None or prod(grid) != n_tokens):
            raise TideError(
                f"which of the {n_tokens} tokens are neighbours is not known here, which grow and smooth need; leave "
                "both at 0, or let grid_of of the adapter tell"
            )
        return grid

    def _cut(self, mask: Tensor) -> Tensor:
        within = self.where.within
        return mask if within is None else mask & fitted(within, mask.shape[1], len(mask), "within").to(mask.device)

    @property
    def nothing(self) -> str:
        """Why no token was edited, in words."""
        if not self.best:
            return "no call of the prompt has drawn the mask"
        if not self.where.invert and all(score <= threshold for score, threshold in self.best):
            detectors = zip(self.where.detectors, self.best, strict=True)
            return "; ".join(_never(detector, *best) for detector, best in detectors)
        if not self.where.invert and self.most < self.where.least:
            return f"no image had {counted(self.where.least, 'token')} on at once, and the most were {self.most}"
        if self.where.within is not None:
            return "the tokens that its latents draw are outside of the mask within"
        return "its latents cover every token, and it is inverted"


@dataclass
class WhereRuns:
    """The masks of a Where for each image: of image i that of run i.

    What :class:`WhereRun` says of its methods and attributes holds for all of them together.
    """

    runs: list[WhereRun]

    def start(self) -> None:
        """Forgets the run before."""
        for run in self.runs:
            run.start()

    def skip(self) -> None:
        """Says that a call is not of the edit's steps."""
        for run in self.runs:
            run.skip()

    def mask(self, x: Tensor, call: Call) -> Tensor:
        """As :meth:`WhereRun.mask`; raises :class:`~tide.errors.TideError` for another number of images, too."""
        rows = call.conditional.nonzero().flatten().tolist() or range(len(x))
        if len(rows) != len(self.runs):
            raise TideError(
                f"there is a Where for each of {len(self.runs)} images and the pipeline draws {len(rows)}; give one "
                "an image, or one for all"
            )
        masks = []
        for run, row in zip(self.runs, rows, strict=True):
            own = torch.arange(len(x)) == row
            masks.append(run.mask(x[row : row + 1], call.take(own)))
        return torch.cat(masks)

    @property
    def now(self) -> Tensor | None:
        """The latest masks, bool ``[images, tokens]`` on the CPU."""
        masks = [run.now for run in self.runs if run.now is not None]
        return torch.cat(masks) if masks else None

    @property
    def masks(self) -> list[tuple[float, Tensor]]:
        """Of the latest run, each call's timestep and masks."""
        calls = zip(*(run.masks for run in self.runs), strict=True)
        return [(each[0][0], torch.cat([mask for _, mask in each])) for each in calls]

    @property
    def nothing(self) -> str:
        """Why no token was edited, in words."""
        return "; ".join(dict.fromkeys(run.nothing for run in self.runs))


def drawing(where: Where | Sequence[Where]) -> WhereRun | WhereRuns:
    """What draws the masks of one Where for all images, or of one for each."""
    return WhereRun(where) if isinstance(where, Where) else WhereRuns([WhereRun(each) for each in where])


def _never(detector: Detector, score: float, threshold: float) -> str:
    latents = in_words(detector.features.tolist()).rsplit(" ", 1)[0]
    return f"{latents} never passed the threshold in this run; highest score {score:.3g} of {threshold:.3g}"


def place_of(call: Call, row: int, image: int, x: Tensor) -> Place:
    """That of all tokens of a row of a call."""
    conditioning = None if call.conditioning is None else call.conditioning[row : row + 1]
    n_tokens = x.shape[1]
    token = torch.arange(n_tokens, device=x.device)
    images = torch.full((n_tokens,), image, device=x.device)
    return Place(float(call.timestep[row]), conditioning, token=token, image=images, n_tokens=n_tokens)


def _check_device(detector: Detector, x: Tensor) -> None:
    there = detector.model.W_enc.device
    if there != x.device:
        raise TideError(f"a detector's SAE is on {there} and the transformer on {x.device}; move it with .to()")


def fitted(mask: Tensor, n_tokens: int, n_images: int, name: str = "tokens") -> Tensor:
    """bool ``[images, tokens]`` of a mask over the tokens of all images or of each; raises
    :class:`~tide.errors.TideError` for one of another size."""
    if mask.shape[-1] != n_tokens:
        raise TideError(f"{name} is {list(mask.shape)} and the image has {n_tokens} tokens; make a mask of its size")
    if mask.ndim == 1:
        return mask.expand(n_images, n_tokens)
    if len(mask) != n_images:
        raise TideError(f"{name} holds {len(mask)} masks and the pipeline draws {n_images} images; give one an image")
    return mask
