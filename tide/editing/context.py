"""Installs edits in a pipeline for the duration of a ``with`` block."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tide.adapters import Adapter, Block, Call, adapter_for, tap
from tide.editing.edits import Branch, Edit, Place, check_map, renormalise
from tide.editing.progress import is_within, run_position, step_range
from tide.errors import TideError, TideWarning
from tide.sae.model import TIDE

#: Elements of the dense latents of one chunk of tokens (256 MB in float32), so that 4096 tokens and n = 73728 fit.
CHUNK_ELEMENTS = 2**26


@dataclass(frozen=True)
class Steer:
    """Adds ``factor * direction`` to raw activations, without an SAE: the baseline of section 6.

    ``direction`` is ``[timesteps, d_model]`` or, as a map over the image, ``[timesteps, tokens, d_model]``, or one
    such map per image of the batch, ``[timesteps, images, tokens, d_model]``, in activation units; a map of one token
    holds for all. The recorded timestep nearest to the call's is used.
    """

    timesteps: Tensor
    direction: Tensor
    factor: float = 1.0

    def __post_init__(self) -> None:
        shape = list(self.direction.shape)
        if len(shape) not in (2, 3, 4) or shape[:1] != list(self.timesteps.shape) or not shape[0]:
            raise TideError(
                f"direction {shape} must be [timesteps, d_model], [timesteps, tokens, d_model] or "
                f"[timesteps, images, tokens, d_model], with timesteps [timesteps] and not {list(self.timesteps.shape)}"
            )

    def check(self, d_model: int) -> None:
        """Raises :class:`~tide.errors.TideError` if the direction is not one of a transformer of this width."""
        if self.direction.shape[-1] != d_model:
            raise TideError(
                f"the direction has width {self.direction.shape[-1]} and the transformer {d_model}; "
                "take it from the block that is steered"
            )

    def at(self, place: Place) -> Tensor:
        """The direction of each row ``[N, d_model]`` (or ``[d_model]`` if it has no place)."""
        nearest = self.direction[int((self.timesteps - place.timestep).abs().argmin())]
        if nearest.ndim == 1:
            return nearest
        image, token = place.image.to(nearest.device), place.token.to(nearest.device)
        if nearest.shape[-2] == 1:
            token = torch.zeros_like(token)
        else:
            check_map(nearest.shape[-2], place, "the direction")
        if nearest.ndim == 2:
            return nearest[token]
        if len(image) and int(image.max()) >= len(nearest):
            raise TideError(f"the batch has more images than the direction's {len(nearest)}; give a map an image")
        return nearest[image, token]

    def activations(self, x: Tensor, place: Place) -> Tensor:
        """``x [N, d_model]``, the activations at ``place``, moved."""
        return x + self.factor * self.at(place).to(x)


@dataclass(frozen=True)
class SteerTowards(Steer):
    """Moves raw activations towards recorded ones: ``x + factor * (direction - x)``, ``direction`` being the target's
    activations at the same step and place."""

    def activations(self, x: Tensor, place: Place) -> Tensor:
        """``x [N, d_model]``, the activations at ``place``, moved."""
        return torch.lerp(x, self.at(place).to(x), self.factor)


@dataclass
class Met:
    """How many rows of the transformer's calls belonged to the edit's steps and branch; with 0, nothing was edited.

    ``calls`` counts the calls in which the block ran, ``in_steps`` those of them within the steps.
    """

    rows: int = 0
    calls: int = 0
    in_steps: int = 0

    def reason(self, steps: tuple[float, float], branch: Branch) -> str:
        """Why there were no rows, in words."""
        calls = f"{self.calls} call{'' if self.calls == 1 else 's'}"
        if not self.in_steps:
            return f"none of its {calls} of the block was of the steps {steps[0]:g} to {steps[1]:g}"
        hint = "; a run without guidance has none" if branch == "unconditional" else ""
        return f"its {calls} of the block had no {branch} rows{hint}"


def edited_activations(sae: TIDE, edit: Edit, x: Tensor, place: Place, *, renorm: bool = False) -> Tensor:
    """``x + decode(z') - decode(z)`` for rows ``x [N, d_model]`` at ``place``; rows with ``z' = z`` keep their bits."""
    z = sae.encode(x.float(), place).dense(sae.n_latents)
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
    block: Block | None = None,
    steps: tuple[float, float] | None = None,
    tokens: Tensor | None = None,
    branch: Branch = "conditional",
    renormalise: bool = False,
) -> Iterator[Met]:
    """Every image that ``pipe`` draws inside the ``with`` block is edited; ``as`` gives the :class:`Met` rows so far.

    Args:
        sae: the TIDE whose latents are edited; ``None`` for :class:`Steer`, which needs ``block``.
        change: an :class:`~tide.editing.edits.Edit`, or :class:`Steer`.
        block: where to edit; by default the block the SAE was trained on.
        steps: part of the sampling run, as fractions of the steps that it makes (an image-to-image run makes fewer than
            asked for; a step of a second-order scheduler is two calls), the first included and the last not; ``None``
            is all of it.
        tokens: edit only these image tokens: bool ``[tokens]``, or ``[images, tokens]`` with a mask for every image of
            the batch (``num_images_per_prompt`` of each prompt, one after the other).
        branch: the rows of classifier-free guidance to edit. A run without guidance has only conditional rows.
        renormalise: keep each token's latent norm (eqs 9, 19).

    The hooks are removed when the block ends, also when the pipeline raises. Nested blocks edit several blocks of
    the transformer at once, and may end in any order. A compiled transformer runs eagerly meanwhile. Warns
    (:class:`~tide.errors.TideWarning`) at the end if the pipeline ran and no row was of these steps and this branch.
    Raises :class:`~tide.errors.TideError` for features out of range, a target of another
    SAE, steps outside the run, or an SAE of another width, family or block; once the pipeline runs and the size of the
    image is known, for a mask or a map of another size; for caches that skip blocks; and for a call whose rows cannot
    be assigned to prompts.
    """
    adapter = adapter_for(pipe)
    part = step_range(steps)
    _check_rows(tokens, branch)
    at = _chosen_block(adapter, sae, block)
    _check_change(adapter, sae, change)
    met = Met()

    def on_call(x: Tensor, call: Call) -> Tensor | None:
        met.calls += 1
        if steps is not None and not is_within(*run_position(pipe.scheduler, float(call.timestep[0])), part):
            return None
        met.in_steps += 1
        image, rows = _images_and_rows(call.conditional, branch)
        met.rows += int(rows.sum())
        mask = _token_mask(tokens, x, image.to(x.device), rows.to(x.device))
        return _apply(sae, change, x, call, mask, image.to(x.device), renormalise)

    with tap(adapter, {at: on_call}, tensor=_tensor(sae)):
        yield met
    if met.calls and not met.rows:
        warnings.warn(f"the pipeline ran and nothing was edited: {met.reason(part, branch)}", TideWarning, stacklevel=3)


def _check_rows(tokens: Tensor | None, branch: Branch) -> None:
    if branch not in ("conditional", "unconditional", "both"):
        raise TideError(f"branch = {branch!r} is unknown; use 'conditional', 'unconditional' or 'both'")
    if tokens is not None and (tokens.dtype != torch.bool or tokens.ndim not in (1, 2)):
        raise TideError(f"tokens is {tokens.dtype} {list(tokens.shape)}; it must be bool [tokens] or [images, tokens]")


def _check_change(adapter: Adapter, sae: TIDE | None, change: Edit | Steer) -> None:
    if isinstance(change, Steer):
        change.check(adapter.d_model)
    elif not isinstance(change, Edit):
        raise TideError(f"{type(change).__name__} is not an edit; give one of tide.editing, or a sum of them")
    elif sae is None:
        raise TideError("an edit of latents needs sae=; only Steer works without one")
    else:
        _check_sae(adapter, sae)
        change.check(sae.n_latents)


def _tensor(sae: TIDE | None) -> str:
    return "output" if sae is None else sae.config.tensor


def _chosen_block(adapter: Adapter, sae: TIDE | None, block: Block | None) -> int:
    trained_on = None if sae is None else sae.config.block
    asked = trained_on if block is None else block
    if asked is None:
        raise TideError("which block to edit is not known; pass block=")
    index = adapter.resolve_block(asked)
    if trained_on is not None and index != adapter.resolve_block(trained_on):
        raise TideError(f"the SAE was trained on block {trained_on}, not {index}; use one trained there")
    return index


def _check_sae(adapter: Adapter, sae: TIDE) -> None:
    config = sae.config
    if config.d_model != adapter.d_model:
        raise TideError(f"the SAE has width {config.d_model} and the transformer {adapter.d_model}; use its own SAE")
    if config.family not in (None, adapter.family):
        raise TideError(f"the SAE was trained on {config.family}, this is {adapter.family}; use its own SAE")
    if config.undo:
        raise TideError("an SAE that undoes its modulation cannot edit; train one with undo=False")


def _images_and_rows(conditional: Tensor, branch: Branch) -> tuple[Tensor, Tensor]:
    """For each row of a call ``[B]``: its image, and whether it is edited under ``branch``.

    Conditional and unconditional rows each come in the order of the images.
    """
    image = torch.where(conditional, conditional.cumsum(0), (~conditional).cumsum(0)) - 1
    if branch == "both":
        return image, torch.ones_like(conditional)
    return image, conditional if branch == "conditional" else ~conditional


def _token_mask(tokens: Tensor | None, x: Tensor, image: Tensor, rows: Tensor) -> Tensor:
    """bool ``[B, T]``: the tokens to edit of the ``rows [B]``, which show the images ``image [B]``."""
    batch, n_tokens = x.shape[:2]
    if tokens is None:
        return rows[:, None].expand(batch, n_tokens)
    if tokens.shape[-1] != n_tokens:
        raise TideError(f"tokens is {list(tokens.shape)} and the image has {n_tokens} tokens; make a mask of its size")
    if tokens.ndim == 1:
        return rows[:, None] & tokens.to(x.device)
    n_images = int(image.max()) + 1
    if len(tokens) != n_images:
        raise TideError(f"tokens holds {len(tokens)} masks and the pipeline draws {n_images} images; give one an image")
    return rows[:, None] & tokens.to(x.device)[image]


@torch.no_grad()
def _apply(
    sae: TIDE | None, change: Edit | Steer, x: Tensor, call: Call, mask: Tensor, image: Tensor, renorm: bool
) -> Tensor | None:
    if not mask.any():
        return None
    if sae is not None and sae.W_enc.device != x.device:
        raise TideError(f"the SAE is on {sae.W_enc.device} and the transformer on {x.device}; move it with .to()")
    out = x.clone()
    row, position = mask.nonzero(as_tuple=True)
    n_rows = max(1, CHUNK_ELEMENTS // (x.shape[-1] if sae is None else sae.n_latents))
    for timestep in call.timestep[mask.any(1)].unique().tolist():
        here = (call.timestep[row] == timestep).nonzero().flatten()
        for part in here.split(n_rows):
            rows, positions = row[part], position[part]
            group = None if call.conditioning is None else rows.int()
            place = Place(timestep, call.conditioning, group, token=positions, image=image[rows], n_tokens=x.shape[1])
            tokens = x[rows, positions]
            if isinstance(change, Steer):
                out[rows, positions] = change.activations(tokens, place).to(x.dtype)
            else:
                assert sae is not None
                out[rows, positions] = edited_activations(sae, change, tokens, place, renorm=renorm)
    return out
