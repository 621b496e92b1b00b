"""Weights rounded to bfloat16, which the kernels read in place of the float32 ones that AdamW updates."""

from __future__ import annotations

import torch
from torch import Tensor

from tide.errors import TideError
from tide.sae.model import TIDE

_NAMES = ("W_enc", "W_dec")


class RoundedWeights:
    """bfloat16 copies of a model's two weights, always in the same memory.

    The model's own weights stay float32 and are the master weights: the optimiser, its moments, checkpoints and
    whatever else changes or measures the model know them alone. An update below bfloat16's resolution, 2^-8 of a
    weight, adds up in them until the copy moves.

    Raises :class:`~tide.errors.TideError` for a model whose loss is not fused, and does not take other weights than the
    model's.
    """

    def __init__(self, model: TIDE) -> None:
        if not model.fused:
            what = "undo" if model.config.undo else f"activation = {model.config.activation}"
            raise TideError(
                f"precision = bf16_weights does not serve {what}; use bf16, or one of topk, batch_topk and jumprelu "
                "without undo"
            )
        self.model = model
        self._copies = {name: torch.empty_like(getattr(model, name), dtype=torch.bfloat16) for name in _NAMES}

    @torch.no_grad()
    def now(self) -> dict[str, Tensor]:
        """The copies of the weights as they are now, by name."""
        torch._foreach_copy_(list(self._copies.values()), [getattr(self.model, name) for name in self._copies])
        return self._copies
