"""One change of numbered latents: what, when and where, in numbers that a file holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tide.editing.edits import Add, Edit, Scale
from tide.editing.progress import step_range
from tide.editing.where import Where
from tide.errors import TideError
from tide.messages import one_line
from tide.sae.model import TIDE

#: What float32 holds.
MOST = 3e38

How = Literal["scale", "add"]


@dataclass(frozen=True)
class WhereLatents:
    """Where some latents fire: a :class:`~tide.editing.Where` in numbers.

    Attributes:
        latents: an image token is on while their sum is above the threshold.
        threshold: in the units of the latents.
        grow, smooth: tokens, as in :class:`~tide.editing.Where`.
        hold: a token of the last step stays on while the sum is above this share of the threshold, 0 to 1 (``low`` of
            :class:`~tide.editing.Where`).

    Raises:
        TideError: a value is none of these.
    """

    latents: tuple[int, ...]
    threshold: float = 0.0
    grow: int = 0
    smooth: int = 0
    hold: float = 1.0

    def __post_init__(self) -> None:
        _check_numbers("where.latents", self.latents)
        if not abs(self.threshold) <= MOST:
            raise TideError(f"where.threshold = {self.threshold} is not a finite number; give one of at most {MOST:g}")
        if self.grow < 0 or self.smooth < 0:
            raise TideError(f"where.grow = {self.grow} and where.smooth = {self.smooth} are tokens; give 0 or more")
        if not 0 <= self.hold <= 1:
            raise TideError(f"where.hold = {self.hold} is a share of the threshold; give 0 to 1")

    def drawn(self, model: TIDE, within: Tensor | None = None) -> Where:
        """What draws the mask, within a bool mask ``[tokens]`` if there is one; raises
        :class:`~tide.errors.TideError` for latents that ``model`` does not have."""
        return Where.of_features(
            model,
            self.latents,
            self.threshold,
            grow=self.grow,
            smooth=self.smooth,
            low=self.hold,
            within=within,
        )


@dataclass(frozen=True)
class Change:
    """One edit of numbered latents.

    Attributes:
        latents: their numbers.
        how: "scale" multiplies them (:class:`~tide.editing.Scale`), "add" adds to them, also where they are inactive
            (:class:`~tide.editing.Add`).
        by: the factor, or the amount in the units of the latents.
        steps: the part of the sampling run, as fractions, 0 <= first < last <= 1; default all of it.
        tokens: indices of the image tokens to change, row by row; default all.
        where: only where these latents fire, found anew at every step; with ``tokens``, within those.

    Raises:
        TideError: a value is none of these.
    """

    latents: tuple[int, ...]
    how: How
    by: float
    steps: tuple[float, float] | None = None
    tokens: tuple[int, ...] | None = None
    where: WhereLatents | None = None

    def __post_init__(self) -> None:
        _check_numbers("latents", self.latents)
        if self.how not in get_args(How):
            raise TideError(f"how = {one_line(repr(self.how), 60)} is unknown; use 'scale' or 'add'")
        if not abs(self.by) <= MOST:
            raise TideError(f"by = {self.by} is not a finite number; give one of at most {MOST:g}")
        step_range(self.steps)
        if self.tokens is not None:
            _check_numbers("tokens", self.tokens)
        if not isinstance(self.where, WhereLatents | None):
            raise TideError(f"where is a {type(self.where).__name__}; give a tide.WhereLatents")

    def edit(self) -> Edit:
        """The edit of its latents, without where and when."""
        return Scale(self.latents, self.by) if self.how == "scale" else Add(self.latents, self.by)

    def mask(self, n_tokens: int) -> Tensor | None:
        """bool ``[n_tokens]``: its tokens, or None for all; raises :class:`~tide.errors.TideError` for tokens that an
        image of ``n_tokens`` does not have."""
        if self.tokens is None:
            return None
        if (last := max(self.tokens)) >= n_tokens:
            raise TideError(f"token {last} does not exist; the image has tokens 0..{n_tokens - 1}")
        mask = torch.zeros(n_tokens, dtype=torch.bool)
        mask[list(self.tokens)] = True
        return mask

    def places(self, model: TIDE, n_tokens: int) -> Where | Tensor | None:
        """The ``tokens`` of :func:`tide.editing.edit`: a mask, None for all, or with ``where`` what draws it; raises
        :class:`~tide.errors.TideError` for tokens and latents that there are not."""
        within = self.mask(n_tokens)
        return within if self.where is None else self.where.drawn(model, within)


def _check_numbers(what: str, numbers: Sequence[int]) -> None:
    if not numbers:
        raise TideError(f"{what} is empty; name at least one" + (", or leave it off for all" * (what == "tokens")))
    if (least := min(numbers)) < 0:
        raise TideError(f"{what} has {least}; they are counted from 0")
