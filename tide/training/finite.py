"""Whether the loss and the gradients of a step are finite, without waiting for a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tide.activations.batch import ActivationBatch
from tide.training.late import Late

#: Raises the error of a step: its number, its batch, and whether its loss was finite.
Refuse = Callable[[int, ActivationBatch, bool], None]


class _Pending(NamedTuple):
    step: int
    batch: ActivationBatch
    finite: Late  # [loss, norm]


class FiniteCheck:
    """Refuses steps that are not finite: on a CPU before their update; if ``late``, on a GPU, when the next step has
    been launched.

    The device itself skips the update of a bad step, so that no weight is damaged until then.
    """

    def __init__(self, refuse: Refuse, *, late: bool) -> None:
        self.refuse = refuse
        self.late = late
        self._pending: _Pending | None = None

    def add(self, step: int, batch: ActivationBatch, loss: Tensor, norm: Tensor) -> Tensor | None:
        """Checks a step or, if late, the one before it; returns what is 1 where the update has to be skipped."""
        if not self.late:
            loss_is_finite = math.isfinite(loss.detach())
            if not (loss_is_finite and math.isfinite(norm)):
                self.refuse(step, batch, loss_is_finite)
            return None
        finite = torch.stack([loss.detach(), norm]).isfinite()
        before, self._pending = self._pending, _Pending(step, batch, Late.of(finite))
        self._check(before)
        return 1 - finite.all().float()

    def settle(self) -> None:
        """Waits for the check of the last step."""
        pending, self._pending = self._pending, None
        self._check(pending)

    def _check(self, pending: _Pending | None) -> None:
        if pending is None:
            return
        loss, norm = pending.finite.read().tolist()
        if not (loss and norm):
            self.refuse(pending.step, pending.batch, loss)
