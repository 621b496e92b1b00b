"""Latents of the image tokens of a call of the transformer."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tide.adapters import Call
from tide.sae.model import TIDE

#: Elements of the dense latents of one chunk of tokens (256 MB in float32), so that 4096 tokens and n = 73728 fit.
CHUNK_ELEMENTS = 2**26


def latents_of_call(model: TIDE, x: Tensor, call: Call) -> Tensor:
    """Latents ``[images, tokens, n_latents]`` of a call's ``x [images, tokens, d_model]``. They are encoded in parts,
    because activations other than TopK hold several dense copies."""
    rows = x.flatten(0, 1)
    group = torch.arange(len(x), device=x.device, dtype=torch.int32).repeat_interleave(x.shape[1])
    n_rows = max(1, CHUNK_ELEMENTS // model.n_latents)
    pairs = zip(rows.split(n_rows), group.split(n_rows), strict=True)
    parts = [model.dense(part, replace(call, group=own)) for part, own in pairs]
    return torch.cat(parts).view(*x.shape[:2], -1)
