"""Processes that share one batch: each holds some of its rows, and what the whole batch decides is summed over them.

`tide_kernels.tide_loss` with ``ranks`` computes the loss of all ranks' rows together. All ranks call it with the same
parameters and options; the rows of rank 0 come first, then those of rank 1, and so on. Every rank takes part in every
collective operation, whether it has rows or not: what decides about one must be the same on all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.distributed as dist
from torch import Tensor

# Bytes below which tensors are summed together: what a collective operation costs at any size then exceeds a copy.
_SMALL = 2**20


class Ranks:
    """The ranks of a process group as they share the tokens of a batch; a single process without a group.

    Args:
        tokens: the process group; `torch.distributed.group.WORLD` for all processes.
        n_tokens: how many rows all ranks hold together, if the caller knows. Otherwise each call adds them up, which
            a GPU has to wait for.
    """

    def __init__(self, tokens: dist.ProcessGroup | None = None, n_tokens: int | None = None) -> None:
        self.group, self.n_tokens = tokens, n_tokens
        self.count = 1 if tokens is None else dist.get_world_size(tokens)
        self.number = 0 if tokens is None else dist.get_rank(tokens)
        if self.number < 0:
            raise ValueError("this process is not in the group of Ranks: build Ranks on the group's own processes")
        if n_tokens is not None and n_tokens < 0:
            raise ValueError(f"n_tokens = {n_tokens} is out of range: pass the number of rows of all ranks")

    @property
    def several(self) -> bool:
        return self.count > 1

    def tokens(self, own: int, device: torch.device) -> int:
        """The rows of all ranks, of which ``own`` are this one's."""
        if not self.several:
            return own
        return self.totals(device, own)[0] if self.n_tokens is None else self.n_tokens

    def totals(self, device: torch.device, *numbers: int) -> list[int]:
        """The sums of whole numbers over the ranks. A GPU has to be waited for."""
        if not self.several:
            return list(numbers)
        return self.summed(torch.tensor(numbers, dtype=torch.int64, device=device)).tolist()

    def summed(self, value: Tensor) -> Tensor:
        """The sum of a small tensor over the ranks, in memory of its own."""
        if not self.several:
            return value
        total = value.clone()
        dist.all_reduce(total, group=self.group)
        return total

    def of_lower(self, value: Tensor) -> Tensor:
        """The sum of a small tensor over the ranks below this one."""
        if not self.several:
            return torch.zeros_like(value)
        each = value.new_zeros(self.count, *value.shape)
        each[self.number] = value
        dist.all_reduce(each, group=self.group)
        return each[: self.number].sum(0)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Sums contiguous tensors over the ranks, in place."""
        self.start_sum_(tensors).wait()

    def start_sum_(self, tensors: Sequence[Tensor]) -> Pending:
        """As `sum_`, which is done once what this returns has been waited for. Small tensors of one dtype are summed
        together."""
        pending = Pending()
        if not self.several:
            return pending
        small = sorted((t for t in tensors if t.nbytes < _SMALL), key=lambda t: str(t.dtype))
        for large in (t for t in tensors if t.nbytes >= _SMALL):
            pending.add(dist.all_reduce(large, group=self.group, async_op=True), large, [])
        for _, parts in groupby(small, key=lambda t: t.dtype):
            members = list(parts)
            packed = torch.cat([part.flatten() for part in members])
            pending.add(dist.all_reduce(packed, group=self.group, async_op=True), packed, members)
        return pending


class Pending:
    """Sums that are on their way."""

    def __init__(self) -> None:
        self._sums: list[tuple[dist.Work, Tensor, list[Tensor]]] = []

    def add(self, work: dist.Work, total: Tensor, parts: list[Tensor]) -> None:
        """``parts`` receive the total once it is there."""
        self._sums.append((work, total, parts))

    def wait(self) -> None:
        for work, total, parts in self._sums:
            work.wait()
            if parts:
                for part, found in zip(parts, total.split([p.numel() for p in parts]), strict=True):
                    part.copy_(found.view_as(part))
        self._sums.clear()


#: A process that has the whole batch.
ALONE = Ranks()
