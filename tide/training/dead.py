"""How many dead latents the auxiliary loss has to make room for, without waiting for a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tide.sae.revival import Revival
from tide.training.late import Late
from tide.world import World
from tide_kernels.dead import bucket_for


class DeadBucket:
    """The ``dead_bucket`` of :func:`tide_kernels.tide_loss`: the least size of few with room for all dead latents.

    A GPU's counters are read one step late. What is counted are therefore the latents that may be dead a step later,
    so the room always suffices. A checkpoint keeps the counts: the step after it has the size that it would have had
    without a checkpoint, and in a training that resumes. On a CPU the loss counts by itself. The ranks of ``among``,
    each of which has some of the latents, have one size.
    """

    def __init__(self, revival: Revival, *, late: bool, among: World | None = None) -> None:
        self.revival = revival
        self.late = late
        self.among = among or World()
        self._counts: list[Late] = []

    def counts(self) -> list[int]:
        """Those for the next step and the one after it, for a checkpoint. Waits for the device."""
        return [int(each.read()) for each in self._counts]

    def restore(self, counts: Sequence[int]) -> None:
        """From a checkpoint; without any the next step counts, and waits for the device."""
        self._counts = [Late.of(torch.tensor(each)) for each in counts] if self.late else []

    def size(self, n_tokens: int) -> int | None:
        """Of the step to come, which has ``n_tokens``."""
        if not self.late:
            return None
        if not self._counts:
            self.count(n_tokens)
        return bucket_for(int(self._counts[0].read()))

    def count(self, n_tokens: int) -> None:
        """After `Revival.count` of a step of ``n_tokens``: those that the next step of as many may leave dead."""
        if self.late:
            at_risk = self.revival.silent_for >= self.revival.after_tokens - n_tokens
            self._counts = [*self._counts[-1:], Late.of(self.among.summed(at_risk.sum()))]
