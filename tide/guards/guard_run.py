"""One guard at work, call by call of the transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tide.adapters import Call
from tide.editing.where_run import WhereRun, place_of
from tide.errors import TideError
from tide.guards.definition import Guard
from tide.guards.log import GuardLog, Sighting, is_above
from tide.guards.words import STATES, mask_name, states_of


@dataclass
class GuardRun:
    """What a guard knows of the run that goes on.

    A run starts where :meth:`start` is called, at a call of a higher timestep than the last, and at one of another
    number of images.
    """

    guard: Guard
    log: GuardLog
    number: int = -1
    _drawn: WhereRun | None = None
    _sightings: list[Sighting] = field(default_factory=list)
    #: By image: flagged; over the threshold in so many calls although the words were mapped; mapped in this call.
    _flagged: list[bool] = field(default_factory=list)
    _still: list[int] = field(default_factory=list)
    _mapped: list[bool] = field(default_factory=list)

    def start(self) -> None:
        """Forgets the run before."""
        self._sightings, self._flagged, self._still, self._mapped = [], [], [], []
        self._drawn = None if self.guard.where is None else WhereRun(self.guard.where)

    # -- before the transformer ---------------------------------------------------------------------------

    def before(self, arguments: Mapping[str, Any], conditional: Tensor, timestep: Tensor) -> Mapping[str, Any] | None:
        """The text of the images that are flagged, replaced; None if no image of this call is."""
        rows = conditional.nonzero().flatten().tolist()
        if rows and self._new_run(float(timestep[rows[0]]), len(rows)):
            # What is flagged are other images.
            self.start()
        self._mapped = [False] * len(rows)
        if self.guard.words is None or len(rows) != len(self._flagged) or not any(self._flagged):
            return None
        states = states_of(arguments)
        own = list(states.unbind())
        changed: dict[str, Any] = {}
        for image, row in enumerate(rows):
            if self._flagged[image]:
                own[row] = self._text(image, states[row])
                self._mapped[image] = True
        changed[STATES] = torch.stack(own)
        mask = mask_name(arguments)
        if mask is not None and any(self._in_refuge(image) for image in range(len(rows))):
            changed[mask] = self._masks(arguments[mask], rows)
        return changed

    def _text(self, image: int, states: Tensor) -> Tensor:
        guard, seen = self.guard, self._sightings[image]
        assert guard.words is not None
        call = len(seen.scores)
        if guard.refuge is not None and self._in_refuge(image):
            seen.refuge.append(call)
            return guard.refuge.fitted(states)
        seen.words.append(call)
        return guard.words(states)

    def _masks(self, mask: Tensor, rows: list[int]) -> Tensor:
        own = mask.clone()
        assert self.guard.refuge is not None
        for image, row in enumerate(rows):
            if self._in_refuge(image):
                own[row] = self.guard.refuge.fitted_mask(mask)
        return own

    def _in_refuge(self, image: int) -> bool:
        return self.guard.refuge is not None and self._flagged[image] and self._still[image] >= self.guard.patience

    # -- at the block -------------------------------------------------------------------------------------

    def on_call(self, x: Tensor, call: Call) -> Tensor | None:
        """Reads the scores of a call with activations ``x [B, T, d_model]``; what is moved of them, or None."""
        rows = call.conditional.nonzero().flatten().tolist()
        if not rows:
            return None
        timestep = float(call.timestep[rows[0]])
        if self._new_run(timestep, len(rows)):
            self.start()
            self._begin(len(rows))
        above = self._read(x, call, rows)
        moved = self._moved(x, call, rows)
        for image, over in enumerate(above):
            mapped = image < len(self._mapped) and self._mapped[image]
            self._still[image] += over and self._flagged[image] and mapped
            self._flagged[image] |= over
        return moved

    def _new_run(self, timestep: float, n_images: int) -> bool:
        if len(self._sightings) != n_images:
            return True
        before = self._sightings[0].timesteps
        return bool(before) and timestep > before[-1]

    def _begin(self, n_images: int) -> None:
        self.number += 1
        concept = self.guard.concept
        self._sightings = [Sighting(concept, self.number, image) for image in range(n_images)]
        self._flagged, self._still = [False] * n_images, [0] * n_images
        self._mapped = [False] * n_images
        self.log.sightings += self._sightings

    @torch.no_grad()
    def _read(self, x: Tensor, call: Call, rows: list[int]) -> list[bool]:
        """Whether each image is above its threshold in this call."""
        detector = self.guard.when
        there = detector.model.W_enc.device
        if there != x.device:
            raise TideError(f"the guard of {self.guard.concept!r} is on {there} and the transformer on {x.device}; "
                            "open the guard after the pipeline was moved")  # fmt: skip
        above = []
        for image, row in enumerate(rows):
            place = place_of(call, row, image, x)
            score = float(self.guard.image_scores(detector.scores(x[row], place)[None]))
            threshold = detector.threshold(place.timestep)
            seen = self._sightings[image]
            seen.timesteps.append(place.timestep)
            seen.scores.append(score)
            seen.thresholds.append(threshold)
            above.append(is_above(score, threshold))
        return above

    def _moved(self, x: Tensor, call: Call, rows: list[int]) -> Tensor | None:
        """``x`` with the tokens moved that are on in images whose words are mapped already."""
        what = self.guard.what
        if what is None or self._drawn is None:
            return None
        on = self._drawn.mask(x, call)
        acting = [flagged and (mapped or self.guard.words is None)
                  for flagged, mapped in zip(self._flagged, self._mapped, strict=True)]  # fmt: skip
        if not any(act and bool(on[image].any()) for image, act in enumerate(acting)):
            return None
        out = x.clone()
        for image, row in enumerate(rows):
            tokens = on[image].nonzero().flatten()
            if not acting[image] or not len(tokens):
                continue
            place = place_of(call, row, image, x).take(tokens)
            out[row, tokens] = what.activations(x[row, tokens], place).to(x.dtype)
            seen = self._sightings[image]
            seen.moved[len(seen.scores) - 1] = len(tokens)
        return out
