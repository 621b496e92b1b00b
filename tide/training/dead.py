"""How many dead latents the auxiliary loss has to make room for, without waiting for a GPU."""

from __future__ import annotations

from tide.sae.revival import Revival
from tide.training.late import Late


class DeadBucket:
    """The ``dead_bucket`` of :func:`tide_kernels.tide_loss`: the smallest power of two with room for all dead latents.

    A GPU's counters are read one step late. What is counted are therefore the latents that may be dead a step later,
    so the room always suffices. After `restart` the next two steps wait for the device instead: a training that resumes
    from a checkpoint does the same, and computes the same bits. On a CPU the loss counts by itself.
    """

    def __init__(self, revival: Revival, *, late: bool) -> None:
        self.revival = revival
        self.late = late
        self._counts: list[Late] = []

    def restart(self) -> None:
        self._counts = []

    def size(self) -> int | None:
        """Of the step to come."""
        if not self.late:
            return None
        late = len(self._counts) == 2
        count = int(self._counts[0].read()) if late else int(self.revival.dead.sum())
        return 1 << max(0, count - 1).bit_length()

    def count(self, n_tokens: int) -> None:
        """After `Revival.count` of a step of ``n_tokens``: those that the next step of as many may leave dead."""
        if self.late:
            at_risk = self.revival.silent_for >= self.revival.after_tokens - n_tokens
            self._counts = [*self._counts[-1:], Late.of(at_risk.sum())]
