"""TopK where ranks share the latents: each finds its own largest, and what is largest on all of them stays.

Only values are exchanged. The codes of the ranks one after the other are the entries of a token in the order of all
latents, so that a selection from them keeps the rule for ties.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tide_kernels.codes import Compact
from tide_kernels.dispatch import Primitives
from tide_kernels.ranks import Group


def largest_of_all(ops: Primitives, own: Compact, k: int, latents: Group) -> Compact:
    """What stays of this rank's code among the ``k`` largest of all ranks' codes. ``own`` holds the ``k`` largest of
    this rank, or all that it has."""
    if not latents.several:
        return own
    n_tokens, places = own.values.shape
    every = latents.gathered(F.pad(own.values, (0, k - places))).transpose(0, 1).reshape(n_tokens, -1)
    _, columns = ops.select(every, k)
    spare = every.shape[1]  # for unused places
    stays = torch.zeros(n_tokens, spare + 1, dtype=torch.bool, device=every.device)
    stays.scatter_(1, torch.where(columns < 0, spare, columns).long(), True)
    first = latents.number * k
    return _only(own, stays[:, first : first + places])


def _only(code: Compact, stays: Tensor) -> Compact:
    """The places of a code that stay, moved to the front of their rows."""
    n_tokens, places = stays.shape
    place = torch.where(stays, stays.cumsum(1) - 1, places)  # the others go to a spare last column
    values = code.values.new_zeros(n_tokens, places + 1).scatter_(1, place, code.values)
    indices = code.indices.new_full((n_tokens, places + 1), -1).scatter_(1, place, code.indices)
    return Compact(values[:, :places].contiguous(), indices[:, :places].contiguous())
