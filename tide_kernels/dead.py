"""The dead latents of a step: what the auxiliary term selects from, multiplies by and sends gradients to.

`Gathered` copies the rows of up to a bucket of dead latents into a small autoencoder, whose products cost
``bucket / n_latents`` of the whole one's. The bucket is a size that the caller knows, so that shapes depend on no data
and nothing is read back from a GPU. `Masked` is for callers who know none: it takes all latents and hides those alive.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from tide_kernels.dispatch import Choice, choose
from tide_kernels.options import LossOptions
from tide_kernels.ranks import ALONE, Group


class DeadLatents(Protocol):
    """The latents that the auxiliary term may use."""

    choice: Choice  # of the regime for their density
    k: int  # places of a code
    W_enc: Tensor  # [rows, d_model], as W_dec
    W_dec: Tensor
    gradients: dict[str, Tensor]  # of the rows, and of scale and shift

    def pre_activations(self, x_mod: Tensor, pre: Tensor | None) -> Tensor:
        """Their pre-activations, [n_tokens, rows], 0 where a row is no dead latent. ``pre`` holds those of all latents
        and is left as it is; None where they do not exist."""

    def finish(self) -> None:
        """Adds what ``gradients`` gathered to the gradients of the step."""


_FINE = 128  # rows of a bucket from which a power of two has sizes between it and the next


def bucket_for(n_dead: int) -> int:
    """A size with room for ``n_dead`` latents, of few: a power of two or, above 128, one of the three sizes that divide
    the way to the next into quarters. Products with it cost at most a quarter more than with its dead latents alone."""
    above = 1 << max(0, n_dead - 1).bit_length()
    step = above if above <= _FINE else above // 8
    return -(-max(1, n_dead) // step) * step


def dead_latents(
    dead: Tensor,
    options: LossOptions,
    choice: Choice,
    W_enc: Tensor,
    b_enc: Tensor | None,
    W_dec: Tensor,
    gradients: dict[str, Tensor],
    shared: Group = ALONE.latents,
) -> DeadLatents | None:
    """The latents marked by ``dead [n_latents]`` in the form that ``options.dead_bucket`` asks for; None without any,
    unless other ranks of ``shared``, which share the latents, may have some.

    Without a bucket a CPU counts them, since reading its own memory costs nothing, and a GPU masks.
    """
    bucket = options.dead_bucket
    if bucket is not None and shared.several:  # it is that of all ranks, and this one takes what lower ones leave
        dead = dead & (dead.cumsum(0) + shared.of_lower(dead.sum()) <= bucket)
    if bucket is None and dead.device.type != "cpu":
        return Masked(dead, options, choice, W_enc, b_enc, W_dec, gradients)
    bucket = max(int(dead.sum()), int(shared.several)) if bucket is None else min(bucket, len(dead))
    return Gathered(dead, bucket, options, choice, W_enc, b_enc, W_dec, gradients) if bucket else None


class Masked:
    """All latents, with the pre-activations of those alive set to 0."""

    def __init__(
        self,
        dead: Tensor,
        options: LossOptions,
        choice: Choice,
        W_enc: Tensor,
        b_enc: Tensor | None,
        W_dec: Tensor,
        gradients: dict[str, Tensor],
    ) -> None:
        self.alive, self.k, self.choice = ~dead, min(options.k_aux, len(dead)), choice
        self.W_enc, self.b_enc, self.W_dec, self.gradients = W_enc, b_enc, W_dec, gradients

    def pre_activations(self, x_mod: Tensor, pre: Tensor | None) -> Tensor:
        if pre is None:
            pre = self.choice.ops.pre_activations(x_mod, self.W_enc, self.b_enc)
        return pre.masked_fill(self.alive, 0)

    def finish(self) -> None:
        pass


class Gathered:
    """The first ``bucket`` dead latents, by index.

    Places of the bucket that no dead latent takes go to the first latents that are alive: all rows are distinct, so
    that gradients are added to them in no particular order. Their weights and gradients are replaced by 0.
    """

    def __init__(
        self,
        dead: Tensor,
        bucket: int,
        options: LossOptions,
        choice: Choice,
        W_enc: Tensor,
        b_enc: Tensor | None,
        W_dec: Tensor,
        gradients: dict[str, Tensor],
    ) -> None:
        self.k = min(options.k_aux, bucket)
        self.choice = choose(
            choice.backend, options.regime, device=dead.device, dtype=W_enc.dtype, n_latents=bucket, k=self.k
        )
        self.latents = _dead_first(dead)[:bucket]
        self.unused = ~dead.index_select(0, self.latents)
        self.W_enc = self._rows(W_enc)
        self.b_enc = None if b_enc is None else self._rows(b_enc)
        self.W_dec = self._rows(W_dec)
        self.totals = {name: gradients[name] for name in ("W_enc", "b_enc", "W_dec") if name in gradients}
        own = {
            name: choice.ops.zeros((bucket, *total.shape[1:]), total.dtype, total.device)
            for name, total in self.totals.items()
        }
        self.gradients = gradients | own

    def _rows(self, table: Tensor) -> Tensor:
        return self._clear_unused(table.index_select(0, self.latents))

    def _clear_unused(self, rows: Tensor) -> Tensor:
        return rows.masked_fill_(self.unused.view(-1, *[1] * (rows.dim() - 1)), 0)

    def pre_activations(self, x_mod: Tensor, pre: Tensor | None) -> Tensor:
        # A CPU copies columns in less time than it multiplies, a GPU the other way round.
        return self.product(x_mod) if pre is None or pre.device.type != "cpu" else self.columns(pre)

    def columns(self, pre: Tensor) -> Tensor:
        """The pre-activations from those of all latents."""
        return pre.index_select(1, self.latents).masked_fill_(self.unused, 0)

    def product(self, x_mod: Tensor) -> Tensor:
        """The pre-activations from the tokens."""
        return self.choice.ops.pre_activations(x_mod, self.W_enc, self.b_enc)

    def finish(self) -> None:
        for name, total in self.totals.items():
            total.index_add_(0, self.latents, self._clear_unused(self.gradients[name]))


def _dead_first(dead: Tensor) -> Tensor:
    """All latents, those of ``dead`` before the others, ascending in both."""
    rank, each = dead.cumsum(0), torch.arange(len(dead), device=dead.device)
    place = torch.where(dead, rank - 1, rank[-1:] + each - rank)
    return torch.empty_like(each).scatter_(0, place, each)
