"""Processes that share a training step: by its tokens, by the autoencoder's latents, or by both.

`tide_kernels.tide_loss` with ``ranks`` computes what one process computes that has all tokens and all latents:

* ranks of a group for tokens each hold some rows of the batch. Rank 0's come first, then those of rank 1, and so on.
  Loss terms and gradients, which are sums over tokens, are summed over the ranks;
* ranks of a group for latents see the same tokens, and each holds some latents: rows of W_enc, b_enc and W_dec. Rank
  0's come first. A selection takes what is largest on all ranks, a reconstruction is the sum of the ranks' own.

With both, a rank is in one group of each kind, as in a `torch.distributed.device_mesh` of two dimensions. Every rank
takes part in every collective operation, whether it has tokens or not. So whatever decides about one is the same on all
ranks: options, the number of chunks of tokens that ranks for latents share, and what was summed before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
import torch.distributed as dist
from torch import Tensor

# Bytes below which tensors are summed together: what a collective operation costs at any size then exceeds a copy.
_SMALL = 2**20
#: The gradients as large as a dictionary, in the order in which a backward pass completes them.
LARGE = ("W_dec", "W_enc")


class Group:
    """The ranks of one process group; a single process without one."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.count = 1 if group is None else dist.get_world_size(group)
        self.number = 0 if group is None else dist.get_rank(group)
        if self.number < 0:
            raise ValueError("this process is not in the group of its Ranks: pass a group that it is in")

    @property
    def several(self) -> bool:
        return self.count > 1

    def summed(self, value: Tensor) -> Tensor:
        """The sum of a small tensor over the ranks, in memory of its own where there are several."""
        if not self.several:
            return value
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.group)
        return total

    def gathered(self, value: Tensor) -> Tensor:
        """The tensors of all ranks, which have one shape, in a new first dimension."""
        each = value.new_empty(self.count, *value.shape)
        dist.all_gather(list(each.unbind()), value.contiguous(), group=self.group)
        return each

    def of_lower(self, value: Tensor) -> Tensor:
        """The sum of a small tensor over the ranks below this one."""
        return self.gathered(value)[: self.number].sum(0) if self.several else torch.zeros_like(value)

    def start_sum_(self, tensor: Tensor) -> dist.Work:
        """Begins to sum a contiguous tensor over the ranks, in place: it is complete when what returns has waited."""
        return dist.all_reduce(tensor, group=self.group, async_op=True)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Sums contiguous tensors over the ranks, in place; small ones of one dtype together."""
        if not self.several:
            return
        small = sorted((t for t in tensors if t.nbytes < _SMALL), key=lambda t: str(t.dtype))
        packs = [list(members) for _, members in groupby(small, key=lambda t: t.dtype)]
        packed = [torch.cat([member.flatten() for member in members]) for members in packs]
        totals = [*(t for t in tensors if t.nbytes >= _SMALL), *packed]
        for work in [self.start_sum_(total) for total in totals]:
            work.wait()
        for total, members in zip(packed, packs, strict=True):
            for member, found in zip(members, total.split([m.numel() for m in members]), strict=True):
                member.copy_(found.view_as(member))


class Exchange:
    """Sums a step's gradients over the ranks that share its tokens, in place. The large ones of :data:`LARGE` travel as
    soon as they are complete, while the process computes the others."""

    def __init__(self, group: Group, gradients: Mapping[str, Tensor]) -> None:
        self.group = group
        self._left = dict(gradients) if group.several else {}
        self._under_way: list[dist.Work] = []

    def start(self, last: str) -> None:
        """Once nothing will be added to the gradients of :data:`LARGE` up to ``last``. All ranks start them in that
        order, whichever call it is that does."""
        for name in LARGE[: LARGE.index(last) + 1]:
            gradient = self._left.get(name)
            if gradient is not None and gradient.nbytes >= _SMALL:
                self._under_way.append(self.group.start_sum_(self._left.pop(name)))

    def finish(self, others: Sequence[Tensor]) -> None:
        """Once all gradients are complete; afterwards they and ``others`` are sums."""
        self.group.sum_([*others, *self._left.values()])
        for work in self._under_way:
            work.wait()


class Ranks:
    """The ranks that share a step with this process.

    Args:
        tokens: the process group that shares the tokens, `torch.distributed.group.WORLD` if all processes do; None if
            this process has all.
        n_tokens: how many rows the ranks of ``tokens`` hold together, if the caller knows. Otherwise each call adds
            them up, which a GPU has to wait for.
        latents: the process group that shares the latents; None if this process has all.
        n_latents: how many latents the ranks of ``latents`` hold together; needed with them.
    """

    def __init__(
        self,
        tokens: dist.ProcessGroup | None = None,
        n_tokens: int | None = None,
        latents: dist.ProcessGroup | None = None,
        n_latents: int | None = None,
    ) -> None:
        if (latents is None) != (n_latents is None):
            raise ValueError("latents and n_latents of Ranks belong together: pass both or neither")
        for name, number in (("n_tokens", n_tokens), ("n_latents", n_latents)):
            if number is not None and number < 0:
                raise ValueError(f"{name} = {number} is out of range: pass the number that all ranks hold together")
        self.tokens, self.latents = Group(tokens), Group(latents)
        self._n_tokens, self._n_latents = n_tokens, n_latents

    @property
    def several(self) -> bool:
        """Whether any other process shares the step."""
        return self.tokens.several or self.latents.several

    def n_tokens(self, own: int, device: torch.device) -> int:
        """The rows of all ranks, of which ``own`` are this one's."""
        if not self.tokens.several:
            return own
        if self._n_tokens is None:
            return int(self.tokens.summed(torch.full((1,), own, dtype=torch.int64, device=device)))
        return self._n_tokens

    def n_latents(self, own: int) -> int:
        """The latents of all ranks, of which ``own`` are this one's."""
        return own if self._n_latents is None else self._n_latents

    def check(self, tokens: int, latents: int) -> None:
        """Refuses other numbers than the rows and the latents that all ranks hold."""
        known = (("n_tokens", self._n_tokens, tokens, "rows"), ("n_latents", self._n_latents, latents, "latents"))
        for name, given, held, what in known:
            if given is not None and given != held:
                raise ValueError(f"{name} of Ranks is {given} and its ranks hold {held} {what}: pass their sum")

    def summed(self, value: Tensor) -> Tensor:
        """The sum of a small tensor over all ranks."""
        return self.tokens.summed(self.latents.summed(value))

    def totals(self, *numbers: int) -> list[int]:
        """The sums of whole numbers over all ranks, which are on CPUs."""
        return self.summed(torch.tensor(numbers, dtype=torch.int64)).tolist() if self.several else list(numbers)


#: A process that has all tokens and all latents.
ALONE = Ranks()
