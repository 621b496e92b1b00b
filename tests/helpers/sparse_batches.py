"""Batches of a known sparse dictionary, for tests that train."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import torch

from tide.activations import ActivationBatch


def batches(d_model: int, n_rows: int) -> Iterator[ActivationBatch]:
    """Endless pairs of rows: positive sums of two of ``d_model`` fixed directions."""
    dictionary = torch.linalg.qr(torch.randn(d_model, d_model, generator=torch.Generator().manual_seed(9)))[0]
    for seed in count():
        generator = torch.Generator().manual_seed(seed)
        active = torch.rand(n_rows // 2, d_model, generator=generator).topk(2).indices.repeat_interleave(2, 0)
        weights = 1 + torch.rand(n_rows, 2, generator=generator)
        yield ActivationBatch(
            x=torch.einsum("nk,nkd->nd", weights, dictionary[active]),
            timestep=torch.tensor([900.0, 850.0]),
            group=torch.arange(n_rows, dtype=torch.int32) % 2,
            conditioning=None,
            sample=torch.zeros(n_rows, dtype=torch.int64),
            token=torch.zeros(n_rows, dtype=torch.int32),
            paired=True,
        )
