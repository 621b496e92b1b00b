"""Sparse latents."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Codes(NamedTuple):
    """Sparse latents: ``values [N, k]``, ``indices [N, k]`` int32 ascending, unused entries 0 and -1.

    Where the activation is not TopK, k is the largest number of active latents of a row.
    """

    values: Tensor
    indices: Tensor

    def prefix(self, n_latents: int) -> Codes:
        """Of these latents the first ``n_latents``; the places of all others are unused."""
        beyond = self.indices >= n_latents
        return Codes(self.values.masked_fill(beyond, 0), self.indices.masked_fill(beyond, -1))

    def columns(self, latents: Tensor) -> Tensor:
        """``[N, F]``: the columns ``latents [F]`` of :meth:`dense`, without its memory."""
        wanted, order = latents.to(self.indices).unique(return_inverse=True)
        out = self.values.new_zeros(len(self.values), len(wanted))
        if not len(wanted):
            return out
        place = torch.searchsorted(wanted, self.indices).clamp(max=len(wanted) - 1)
        here = wanted[place] == self.indices
        return out.scatter_add_(1, place, self.values.masked_fill(~here, 0))[:, order]

    def dense(self, n_latents: int) -> Tensor:
        """The latents as ``[N, n_latents]``, zeros where nothing fired."""
        out = self.values.new_zeros(len(self.values), n_latents)
        # Unused entries hold the value 0, so adding them to latent 0 changes nothing.
        return out.scatter_add_(1, self.indices.clamp(min=0).long(), self.values)
