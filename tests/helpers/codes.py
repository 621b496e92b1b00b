"""Codes of tokens as matrices."""

from __future__ import annotations

import torch
from torch import Tensor


def check_range(indices: Tensor, n_latents: int) -> None:
    """Fails at an index that no latent has. On a GPU, an operation of torch that got it would end the process's work
    on the device, and all later tests with it."""
    wrong = indices[(indices < -1) | (indices >= n_latents)]
    assert not len(wrong), f"{len(wrong)} indices are out of range, the first is {int(wrong[0])}"


def dense(values: Tensor, indices: Tensor, n_latents: int) -> Tensor:
    """The code ``[n_tokens, k]``, whose unused places have index -1, as a matrix ``[n_tokens, n_latents]``."""
    check_range(indices, n_latents)
    spare = values.new_zeros(len(values), n_latents + 1)
    return spare.scatter_(1, torch.where(indices < 0, n_latents, indices).long(), values)[:, :-1]
