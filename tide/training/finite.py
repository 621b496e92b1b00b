"""Whether the loss and gradients of a step are finite, without waiting for a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tide.activations.batch import ActivationBatch

#: Raises the error of a step: its number, its batch, and whether its loss was finite.
Refuse = Callable[[int, ActivationBatch, bool], None]


class _Pending(NamedTuple):
    step: int
    batch: ActivationBatch
    finite: Tensor  # [loss, norm], in the host's memory
    copied: torch.cuda.Event | None


class FiniteCheck:
    """Refuses steps that are not finite: on a CPU before their update, on a GPU one step later.

    A GPU copies the answer to pinned memory, where it is read once the next step has been launched. The update of a bad
    step is skipped on the device itself, so that no weight is damaged until then.
    """

    def __init__(self, refuse: Refuse, *, late: bool) -> None:
        self.refuse = refuse
        self.late = late
        self._pending: _Pending | None = None

    def add(self, step: int, batch: ActivationBatch, loss: Tensor, norm: Tensor) -> Tensor | None:
        """Checks a step, or the one before it; returns 1 on the device where the step's update has to be skipped."""
        finite = torch.stack([torch.isfinite(loss.detach()), torch.isfinite(norm)])
        before, self._pending = self._pending, _Pending(step, batch, *_to_host(finite))
        if not self.late:
            self.settle()
            return None
        self._read(before)
        return 1 - finite.all().float()

    def settle(self) -> None:
        """Waits for what has not been read."""
        pending, self._pending = self._pending, None
        self._read(pending)

    def _read(self, pending: _Pending | None) -> None:
        if pending is None:
            return
        if pending.copied is not None:
            pending.copied.synchronize()
        if not bool(pending.finite.all()):
            self.refuse(pending.step, pending.batch, bool(pending.finite[0]))


def _to_host(flags: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy in the host's memory, and when it is there."""
    if flags.device.type != "cuda":
        return flags, None
    host = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
    host.copy_(flags, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return host, copied
