"""The tokens of one step, encoded a chunk at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from tide_kernels.codes import Tokens
from tide_kernels.dispatch import Choice
from tide_kernels.modulation import modulated
from tide_kernels.options import LossArguments
from tide_kernels.ranks import ALONE, Ranks


class Batch:
    """The tokens of a step that this one of ``ranks`` holds, and the encoder's weights in the dtype of products."""

    def __init__(self, arguments: LossArguments, choice: Choice, ranks: Ranks = ALONE) -> None:
        self.x, parameters, self.group, _, self.dtype, self.options, target = arguments
        self.target = self.x if target is None else target
        self.choice, self.ranks = choice, ranks
        self.scale, self.shift = parameters.scale, parameters.shift
        self.W_enc = parameters.W_enc.to(self.dtype)
        self.b_enc = None if parameters.b_enc is None else parameters.b_enc.to(self.dtype)
        self.n_tokens, self.n_latents = len(self.x), len(self.W_enc)
        # Of all ranks.
        self.all_tokens = ranks.n_tokens(self.n_tokens, self.x.device)
        self.all_latents = ranks.n_latents(self.n_latents)
        ops, topk = choice.ops, self.options.activation == "topk"
        # Whether pre-activations stay inside the backend, and a chunk holds codes alone.
        self.compact = choice.regime == "sparse" and (ops.select_product if topk else ops.code_above) is not None
        # Ranks that share the latents work on the same chunks.
        of_each = -(-self.all_latents // ranks.latents.count)
        self.chunk = self.options.tokens_per_chunk(self.n_tokens, of_each, self.x.device, self.compact)
        self.starts = range(0, self.n_tokens, self.chunk)

    def tokens(self, start: int) -> Tokens:
        return self._tokens(slice(start, start + self.chunk))

    def sample(self, most: int) -> Tokens:
        """Of all ranks together about so many tokens at most, evenly spaced."""
        # An odd step takes both tokens of pairs alike: one of them may have the larger values throughout.
        step = -(-self.all_tokens // most) | 1
        return self._tokens(slice(step // 2, None, step))

    def _tokens(self, rows: slice) -> Tokens:
        x, target, group = self.x[rows], self.target[rows], None if self.group is None else self.group[rows]
        layer_norm = self.options.layer_norm
        x_mod = modulated(self.choice.ops, x, self.scale, self.shift, group, layer_norm, self.dtype)
        return Tokens(x, x_mod, self.scale, self.shift, group, layer_norm, target)

    def pre_activations(self, tokens: Tokens) -> Tensor:
        return self.choice.ops.pre_activations(tokens.x_mod, self.W_enc, self.b_enc)

    def above(
        self, tokens: Tokens, pre: Tensor | None, threshold: Tensor, group: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`select_above` of a chunk, whose pre-activations may not exist. On a CPU, where it costs nothing to know the
        longest row, the code has room for it and no more; elsewhere it has the capacity asked for."""
        capacity = self.options.places(self.n_latents)
        values, indices, count = self._above(tokens, pre, threshold, group, capacity)
        if self.x.device.type != "cpu":
            return values, indices, count
        longest = max(1, int(count.max())) if len(count) else 1
        if longest > capacity:
            return self._above(tokens, pre, threshold, group, longest)
        return values[:, :longest].contiguous(), indices[:, :longest].contiguous(), count

    def _above(
        self, tokens: Tokens, pre: Tensor | None, threshold: Tensor, group: Tensor | None, capacity: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        ops = self.choice.ops
        if pre is not None:
            return ops.select_above(pre, threshold, group, None, capacity)
        return ops.above(tokens.x_mod, self.W_enc, self.b_enc, threshold, group, capacity)


def overflowing(count: Tensor, capacity: int) -> Tensor:
    """How many rows have more entries than places, a scalar int64."""
    return (count > capacity).sum(dtype=torch.int64)
