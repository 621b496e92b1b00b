"""Installs edits in a pipeline for the duration of a ``with`` block."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from tide.adapters import Adapter, Block, Call, adapter_for, tap
from tide.adapters.starts import each_start
from tide.editing.beside import Beside
from tide.editing.edits import Branch, Edit, Place, renormalise
from tide.editing.met import Met
from tide.editing.progress import is_within, run_position, step_range
from tide.editing.reading import CHUNK_ELEMENTS
from tide.editing.steer import RawEdit
from tide.editing.where import Where, check_mask
from tide.editing.where_run import WhereRun, WhereRuns, drawing, fitted
from tide.errors import TideError, TideWarning
from tide.sae.config import TIDEConfig
from tide.sae.model import TIDE


def edited_activations(
    sae: TIDE, edit: Edit, x: Tensor, place: Place, *, renorm: bool = False, met: Met | None = None
) -> Tensor:
    """``x + decode(z') - decode(z)`` for rows ``x [N, d_model]`` at ``place``; rows with ``z' = z`` keep their bits.

    ``met`` counts the rows.
    """
    z = sae.encode(x.float(), place).dense(sae.n_latents)
    changed = edit.latents(z, place)
    kept = renormalise(changed, z) if renorm else changed
    moved = (kept != z).any(1, keepdim=True)
    out = torch.where(moved, (x.float() + sae.decode_dense(kept - z)).to(x.dtype), x)
    if met is not None:
        met.count(x, out, z, changed)
    return out


@contextmanager
def edit(
    pipe: Any,
    sae: TIDE | None,
    change: Edit | RawEdit | Beside,
    *,
    block: Block | None = None,
    steps: tuple[float, float] | None = None,
    tokens: Tensor | Where | Sequence[Where] | None = None,
    branch: Branch = "conditional",
    renormalise: bool = False,
    warns: bool = True,
    component: str | None = None,
) -> Iterator[Met]:
    """Every image that ``pipe`` draws inside the ``with`` block is edited; ``as`` gives what the edit has
    :class:`~tide.editing.met.Met` so far.

    Args:
        sae: the TIDE whose latents are edited; ``None`` for changes of raw activations, which need ``block``.
        change: an :class:`~tide.editing.edits.Edit`, or a change of raw activations: :class:`~tide.editing.Steer` and
            its like, or :class:`~tide.editing.Beside`.
        block: where to edit; by default the block the SAE was trained on.
        steps: part of the sampling run, as fractions of the steps that it makes (an image-to-image run makes fewer than
            asked for; a step of a second-order scheduler is two calls), the first included and the last not; ``None``
            is all of it.
        tokens: edit only these image tokens: bool ``[tokens]``, or ``[images, tokens]`` with a mask for every image of
            the batch (``num_images_per_prompt`` of each prompt, one after the other); or a
            :class:`~tide.editing.where.Where`, which draws such masks at every step that is edited, from latents of the
            same block, or one for each image.
        branch: the rows of classifier-free guidance to edit. A run without guidance has only conditional rows.
        renormalise: keep each token's latent norm (eqs 9, 19).
        warns: False for a caller that passes on :attr:`Met.remark`.
        component: the pipeline's transformer, where several take over from each other (Wan 2.2); by default the one
            that the SAE was trained on.

    The hooks are removed when the block ends, also when the pipeline raises. Nested blocks edit several blocks of
    the transformer at once, and may end in any order. A compiled transformer runs eagerly meanwhile. Warns
    (:class:`~tide.errors.TideWarning`) at the end if the pipeline ran and nothing changed, and says why: no row was of
    these steps and this branch, the mask is empty, the factor changes nothing, what the edit names was inactive; or if
    some of the latents that it names were active on none of the edited tokens. Raises
    :class:`~tide.errors.TideError` for features out of range, a target of another SAE, steps outside the run, or an SAE
    of another width, family or block, be it one that draws the mask; once the pipeline runs and the size of the image
    is known, for a mask or a map of another size; for caches that skip blocks; and for a call whose rows cannot be
    assigned to prompts.
    """
    adapter = adapter_for(pipe, component or ("transformer" if sae is None else sae.config.component))
    part = step_range(steps)
    _check_rows(tokens, branch)
    at = _chosen_block(adapter, sae, block)
    check_change(adapter, sae, change, branch)
    fixed, drawn = (tokens, None) if tokens is None or isinstance(tokens, Tensor) else (None, drawing(tokens))
    if drawn is not None:
        _check_wheres(adapter, at, _tensor(sae), drawn)
    if isinstance(change, Beside):
        for name, model in change.models.items():
            _check_place(adapter, at, _tensor(sae), model.config, f"{name} of the target are of")
    met = Met(change, part, branch, drawn=drawn)

    def on_call(x: Tensor, call: Call) -> Tensor | None:
        met.calls += 1
        if steps is not None and not is_within(
            *run_position(pipe.scheduler, float(adapter.to_scheduler(call.timestep[0])), adapter.run_timesteps), part
        ):
            if drawn is not None:
                drawn.skip()
            return None
        met.in_steps += 1
        image, rows = _images_and_rows(call.conditional, branch)
        met.rows += int(rows.sum())
        chosen = fixed if drawn is None else drawn.mask(x, call)
        mask = _token_mask(chosen, x, image.to(x.device), rows.to(x.device))
        if not mask.any():
            return None
        now = change if beside is None else beside.at(x, call)
        return _apply(sae, met, now, x, call, mask, image.to(x.device), renormalise)

    with (
        change.listening(at, _tensor(sae)) if isinstance(change, Beside) else nullcontext() as beside,
        tap(adapter, {at: on_call}, tensor=_tensor(sae)),
        nullcontext() if drawn is None else each_start(pipe, drawn.start),
    ):
        yield met
    if warns and met.remark is not None:
        warnings.warn(met.remark, TideWarning, stacklevel=3)


def _check_rows(tokens: Tensor | Where | Sequence[Where] | None, branch: Branch) -> None:
    if branch not in ("conditional", "unconditional", "both"):
        raise TideError(f"branch = {branch!r} is unknown; use 'conditional', 'unconditional' or 'both'")
    if tokens is None or isinstance(tokens, Tensor):
        check_mask(tokens, "tokens")
    elif not isinstance(tokens, Where) and not (tokens and all(isinstance(each, Where) for each in tokens)):
        raise TideError("tokens must be a bool mask, a Where, or a Where for each image; see tide.editing.edit")


def _check_wheres(adapter: Adapter, block: int, tensor: str, drawn: WhereRun | WhereRuns) -> None:
    """Raises for detectors that read other activations than are edited."""
    wheres = [run.where for run in (drawn.runs if isinstance(drawn, WhereRuns) else [drawn])]
    for config in (detector.model.config for where in wheres for detector in where.detectors):
        _check_place(adapter, block, tensor, config, "the mask is drawn by latents of")
        if config.d_model != adapter.d_model:
            raise TideError(
                f"the mask is drawn by an SAE of width {config.d_model} and the transformer has {adapter.d_model}; use "
                "its own SAE"
            )
        if config.family not in (None, adapter.family):
            raise TideError(
                f"the mask is drawn by an SAE of {config.family} and this is {adapter.family}; use its own SAE"
            )


def _check_place(adapter: Adapter, block: int, tensor: str, config: TIDEConfig, what: str) -> None:
    """Raises for a model of another block or tensor than is edited."""
    if config.block is not None and (own := adapter.resolve_block(config.block)) != block:
        raise TideError(f"{what} block {own} and block {block} is edited; use one block")
    if config.tensor != tensor:
        raise TideError(f"{what} {config.tensor} and {tensor} is edited; use one of them")


def check_change(adapter: Adapter, sae: TIDE | None, change: Edit | RawEdit | Beside, branch: Branch) -> None:
    """Raises :class:`~tide.errors.TideError` for what is no edit, or does not fit the transformer or the SAE."""
    if isinstance(change, RawEdit):
        change.check(adapter.d_model)
    elif isinstance(change, Beside):
        change.check(adapter, branch)
        if change.latents is not None:
            check_sae(adapter, change.latents)
    elif not isinstance(change, Edit):
        raise TideError(f"{type(change).__name__} is not an edit; give one of tide.editing, or a sum of them")
    elif sae is None:
        raise TideError("an edit of latents needs sae=; only Steer and its like work without one")
    else:
        check_sae(adapter, sae)
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


def check_sae(adapter: Adapter, sae: TIDE) -> None:
    """Raises :class:`~tide.errors.TideError` for an SAE that cannot edit this transformer."""
    config = sae.config
    if config.d_model != adapter.d_model:
        raise TideError(f"the SAE has width {config.d_model} and the transformer {adapter.d_model}; use its own SAE")
    if config.family not in (None, adapter.family):
        raise TideError(f"the SAE was trained on {config.family}, this is {adapter.family}; use its own SAE")
    refuse_transcoder(sae)
    if config.undo:
        raise TideError("an SAE that undoes its modulation cannot edit; train one with undo=False")


def refuse_transcoder(sae: TIDE) -> None:
    """Raises :class:`~tide.errors.TideError` for a model that cannot edit: an edit changes what was encoded by the
    difference of two decoded latents, and those of a transcoder decode to another tensor."""
    if sae.config.target is not None:
        raise TideError(
            f"the SAE is a transcoder of {sae.config.target}: its latents decode to another tensor than it encodes, so "
            "it cannot edit; use one without a target"
        )


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
    return rows[:, None] & fitted(tokens, n_tokens, int(image.max()) + 1).to(x.device)[image]


@torch.no_grad()
def _apply(
    sae: TIDE | None,
    met: Met,
    change: Edit | RawEdit | Beside,
    x: Tensor,
    call: Call,
    mask: Tensor,
    image: Tensor,
    renorm: bool,
) -> Tensor:
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
            if isinstance(change, RawEdit):
                moved = change.activations(tokens, place).to(x.dtype)
                met.count(tokens, moved)
            else:
                assert sae is not None
                assert isinstance(change, Edit)
                moved = edited_activations(sae, change, tokens, place, renorm=renorm, met=met)
            out[rows, positions] = moved
    return out
