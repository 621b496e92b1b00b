"""Installs edits in a pipeline for the duration of a ``with`` block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tide.adapters import Adapter, Call, adapter_for, tap
from tide.adapters.guidance import Guidance, watch_guidance
from tide.editing.edits import Branch, Edit, Place, renormalise
from tide.errors import TideError
from tide.sae.model import TIDE

#: Tokens are edited in chunks of this many rows, so that dense latents stay small at 4096 tokens and n = 73728.
ROWS_PER_CHUNK = 2048


@dataclass(frozen=True)
class Steer:
    """Adds ``factor * direction`` to raw activations, without an SAE: the baseline of section 6.

    ``direction`` is ``[timesteps, d_model]`` or, as a map over the image, ``[timesteps, tokens, d_model]``, or one
    such map per image of the batch, ``[timesteps, images, tokens, d_model]``, in activation units; the recorded
    timestep nearest to the call's is used.
    """

    timesteps: Tensor
    direction: Tensor
    factor: float = 1.0

    def activations(self, x: Tensor, place: Place) -> Tensor:
        nearest = self.direction[int((self.timesteps - place.timestep).abs().argmin())]
        if nearest.ndim == 3:
            nearest = nearest[place.image, place.token]
        elif nearest.ndim == 2:
            nearest = nearest[place.token]
        return x + self.factor * nearest.to(x)


def _step_range(steps: tuple[float, float] | None) -> tuple[float, float]:
    if steps is None:
        return 0.0, 1.0
    first, last = steps
    if not 0 <= first < last <= 1:
        raise TideError(f"steps = {steps} must be two fractions of the sampling run, 0 <= first < last <= 1")
    return float(first), float(last)


def _progress(pipe: Any, timestep: float) -> float:
    """How far the sampling run is, 0 at its first step and 1 after its last, from the scheduler's own timesteps."""
    schedule = pipe.scheduler.timesteps.float().cpu()
    return float((schedule - timestep).abs().argmin()) / len(schedule)


def edited_activations(
    sae: TIDE,
    edit: Edit,
    x: Tensor,
    place: Place,
    *,
    conditioning: Tensor | None = None,
    group: Tensor | None = None,
    renorm: bool = False,
) -> Tensor:
    """``x + decode(z') - decode(z)`` for rows ``x [N, d_model]`` at one timestep; rows with ``z' = z`` keep their bits.

    ``conditioning [groups, d_embedding]`` with ``group [N]`` as in :meth:`tide.TIDE.encode`.
    """
    n_groups = 1 if conditioning is None else len(conditioning)
    if group is None or conditioning is None:
        group = torch.zeros(len(x), dtype=torch.int32, device=x.device)
    timestep = torch.full((n_groups,), place.timestep, device=x.device)
    z = sae.encode(x.float(), timestep, conditioning, group).dense(sae.n_latents)
    changed = edit.latents(z, place)
    if renorm:
        changed = renormalise(changed, z)
    moved = (changed != z).any(1, keepdim=True)
    return torch.where(moved, (x.float() + sae.decode_dense(changed - z)).to(x.dtype), x)


@contextmanager
def edit(
    pipe: Any,
    sae: TIDE | None,
    change: Edit | Steer,
    *,
    block: int | str | None = None,
    steps: tuple[float, float] | None = None,
    tokens: Tensor | None = None,
    branch: Branch = "conditional",
    renormalise: bool = False,
) -> Iterator[None]:
    """Every image that ``pipe`` draws inside the ``with`` block is edited.

    Args:
        sae: the TIDE whose latents are edited; ``None`` for :class:`Steer`, which needs ``block``.
        change: an :class:`~tide.editing.edits.Edit`, or :class:`Steer`.
        block: where to edit; by default the block the SAE was trained on.
        steps: part of the sampling run, as fractions of its steps; ``None`` is all of it.
        tokens: bool ``[tokens]``, or ``[images, tokens]`` for a batch: edit only these image tokens.
        branch: the rows of classifier-free guidance to edit.
        renormalise: keep each token's latent norm (eqs 9, 19).

    The hooks are removed when the block ends, also when the pipeline raises. Nested blocks edit several blocks of
    the transformer at once. Raises :class:`~tide.errors.TideError` for features out of range, a target of another
    SAE, a mask of another size, steps outside the run, or an SAE of another width or block.
    """
    adapter = adapter_for(pipe)
    first, last = _step_range(steps)
    if branch not in ("conditional", "unconditional", "both"):
        raise TideError(f"branch = {branch!r} is unknown; use 'conditional', 'unconditional' or 'both'")
    tensor = "output" if sae is None else sae.config.tensor
    at = adapter.resolve_block(_chosen_block(sae, block))
    if sae is None:
        if not isinstance(change, Steer):
            raise TideError("an edit of latents needs sae=; only Steer works without one")
    elif isinstance(change, Edit):
        change.check(sae.n_latents)
        if sae.d_model != adapter.d_model:
            raise TideError(f"the SAE has width {sae.d_model} and the transformer {adapter.d_model}; use its own SAE")

    def on_call(x: Tensor, call: Call) -> Tensor | None:
        if not first <= _progress(pipe, float(call.timestep[0])) < last:
            return None
        mask = _token_mask(tokens, x, _rows(adapter, guidance, len(x), branch))
        n_images = len(x) // 2 if guidance.active else len(x)
        return _apply(sae, change, x, call, mask, n_images, renormalise)

    with watch_guidance(pipe) as guidance, tap(adapter, {at: on_call}, tensor=tensor):
        yield


def _chosen_block(sae: TIDE | None, block: int | str | None) -> int | str:
    if block is not None:
        return block
    if sae is None or sae.config.block is None:
        raise TideError("which block to edit is not known; pass block=")
    return sae.config.block


def _rows(adapter: Adapter, guidance: Guidance, batch: int, branch: Branch) -> Tensor:
    conditional = adapter.conditional_rows(batch, guidance.active)
    if branch == "both":
        return torch.ones_like(conditional)
    return conditional if branch == "conditional" else ~conditional


def _token_mask(tokens: Tensor | None, x: Tensor, rows: Tensor) -> Tensor:
    """bool ``[B, T]``: what to edit. A mask per image follows the images' order within each guidance branch."""
    batch, n_tokens = x.shape[:2]
    mask = torch.zeros(batch, n_tokens, dtype=torch.bool, device=x.device)
    if tokens is None:
        mask[rows] = True
        return mask
    if tokens.dtype != torch.bool or tokens.shape[-1] != n_tokens:
        raise TideError(
            f"tokens is {tokens.dtype} {list(tokens.shape)}; it must be bool and cover the image's {n_tokens} tokens"
        )
    if tokens.ndim == 1:
        mask[rows] = tokens.to(x.device)
        return mask
    n_images = len(tokens)
    if batch % n_images:
        raise TideError(f"tokens holds {n_images} masks, which does not fit a batch of {batch} rows")
    every = tokens.to(x.device).repeat(batch // n_images, 1)
    mask[rows] = every[rows.to(x.device)]
    return mask


@torch.no_grad()
def _apply(
    sae: TIDE | None, change: Edit | Steer, x: Tensor, call: Call, mask: Tensor, n_images: int, renorm: bool
) -> Tensor | None:
    if not mask.any():
        return None
    out = x.clone()
    row, position = mask.nonzero(as_tuple=True)
    for timestep in call.timestep[mask.any(1)].unique().tolist():
        here = (call.timestep[row] == timestep).nonzero().flatten()
        for part in here.split(ROWS_PER_CHUNK):
            rows, positions = row[part], position[part]
            place = Place(timestep, positions, rows % n_images)
            tokens = x[rows, positions]
            if isinstance(change, Steer):
                out[rows, positions] = change.activations(tokens, place).to(x.dtype)
            else:
                assert sae is not None
                out[rows, positions] = edited_activations(
                    sae, change, tokens, place, conditioning=call.conditioning, group=rows.int(), renorm=renorm
                )
    return out
