"""The edits that the options of ``tide edit`` ask for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from tide import editing
from tide.adapters import Adapter
from tide.cli.command import left_behind
from tide.cli.edit_options import EditOptions
from tide.editing import Contrast, Replace, ScaleTarget, Strength, Target
from tide.editing.contrast import sparse_again
from tide.images import open_picture
from tide.sae import TIDE

#: By the names of their pictures.
Edits = dict[str, editing.Edit | editing.RawEdit | editing.Beside]


class Change(NamedTuple):
    """From a strength to the edit, and the maps of latents that it moves between."""

    edit: Callable[[float], editing.Edit]
    maps: Callable[[], tuple[Target, Target]]


def edits_of(
    asked: EditOptions, adapter: Adapter, model: TIDE
) -> tuple[Edits, Tensor | editing.Where | dict[str, Tensor] | None]:
    """The edits, and the image tokens that they edit, as :func:`tide.editing.draw_edits` takes them."""
    bright = None if asked.mask is None else editing.read_mask(asked.mask, adapter, asked.size)
    bank = asked.from_bank.load(adapter)
    mask = asked.drawn_mask.mask(model, bright, bank)
    if asked.what is not None:
        assert bank is not None
        at = {name: each["strength"] for name, each in asked.settings.items()}
        return {name: asked.from_bank.edit(bank, model, asked.what, strength) for name, strength in at.items()}, mask
    if asked.beside:
        assert asked.target_prompt is not None
        towards = partial(editing.Beside, adapter, asked.target_prompt)
        return {name: towards(each["strength"]) for name, each in asked.settings.items()}, mask
    if asked.target_prompt is None and asked.target is None:
        edit = _edit(asked)
        return {name: Strength(edit, each["strength"]) for name, each in asked.settings.items()}, mask
    change = _change_towards(asked, adapter, model)
    edits: Edits = {name: change.edit(each["strength"]) for name, each in asked.settings.items()}
    if not asked.altered:
        return edits, mask
    maps = change.maps()
    tokens = {n: editing.most_different_tokens(*maps, each["tokens"]) for n, each in asked.settings.items()}
    return edits, tokens


def _edit(asked: EditOptions) -> editing.Edit:
    """The edit of the prompt's own latents."""
    if asked.scale is not None:
        return editing.Scale(*asked.scale)
    if asked.erase is not None:
        return editing.Erase(asked.erase)
    if asked.erase_top is not None:
        return editing.Erase(top_k=asked.erase_top)
    if asked.invert is not None:
        return editing.Invert(asked.invert)
    return editing.Invert(top_k=asked.invert_top)


def _change_towards(asked: EditOptions, adapter: Adapter, model: TIDE) -> Change:
    """The edit that ``--towards``, ``--change`` or ``--target`` ask for."""
    if asked.contrast:
        pair = _contrast(asked, adapter, model)
        return Change(lambda strength: sparse_again(Contrast(*pair, strength), model), lambda: pair)
    if asked.target is not None:
        target = editing.load_target(asked.target, model)
        target = target.pooled() if asked.towards_pooled else target
    else:
        assert asked.target_prompt is not None
        target = _recorded(asked, adapter, model, asked.target_prompt)
    if asked.save_target is not None:
        editing.save_target(asked.save_target, target, model)
        left_behind.set(f"the target is kept in {asked.save_target}")

    def maps() -> tuple[Target, Target]:
        return _recorded(asked, adapter, model, asked.prompt), target

    if (top := asked.towards_top) is not None:
        return Change(lambda strength: ScaleTarget(target, top, strength), maps)
    return Change(lambda strength: Replace(target, strength), maps)


def _recorded(asked: EditOptions, adapter: Adapter, model: TIDE, prompt: str) -> Target:
    """A prompt's latents at every step: along its own sampling run from the same seed, or on the target image."""
    n_steps, seed, size, pooled = asked.steps_drawn, asked.seed, asked.size, asked.towards_pooled
    if asked.towards_image is not None:
        image = open_picture(Path(asked.towards_image))
        return editing.image_target(adapter, model, prompt, image, n_steps=n_steps, seed=seed, size=size, pooled=pooled)
    return editing.prompt_target(adapter, model, prompt, **asked.sampling, pooled=pooled)


def _contrast(asked: EditOptions, adapter: Adapter, model: TIDE) -> tuple[Target, Target]:
    """The latents of the target image under the target's prompt and under ``--prompt``."""
    assert asked.towards_image is not None
    assert asked.target_prompt is not None
    present, absent = editing.image_contrast(
        adapter,
        model,
        open_picture(Path(asked.towards_image)),
        asked.target_prompt,
        asked.prompt,
        n_steps=asked.steps_drawn,
        seed=asked.seed,
        size=asked.size,
    )
    return (present.pooled(), absent.pooled()) if asked.towards_pooled else (present, absent)
