"""A prompt drawn without an edit, and with edits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from tide.adapters import Adapter
from tide.adapters.sizes import image_size, sampling_arguments
from tide.checks import GUIDANCE
from tide.editing.beside import Beside
from tide.editing.context import check_change, edit
from tide.editing.edits import Branch, Edit
from tide.editing.met import Met
from tide.editing.progress import check_steps
from tide.editing.steer import RawEdit
from tide.editing.where import Where
from tide.errors import TideError, TideWarning
from tide.pictures import to_image
from tide.sae.model import TIDE

#: What helps where an edited image has overflowed.
REMEDY = "lower the edit's strength or the guidance scale, or load the pipeline in fp32"


def draw_latents(
    adapter: Adapter,
    prompt: str,
    *,
    n_steps: int = 20,
    guidance_scale: float = GUIDANCE,
    seed: int = 0,
    size: tuple[int, ...] | None = None,
) -> Tensor:
    """The pipeline's final latents of one prompt, scaled, ``[1, c, h, w]``. The arguments are those of
    :func:`draw_edits`.

    So ``adapter`` draws with ``n_steps`` steps, ``guidance_scale``, ``seed`` and ``size`` as there.
    """
    return adapter.generate(
        [prompt],
        n_steps=n_steps,
        guidance_scale=guidance_scale,
        generators=[torch.Generator().manual_seed(seed)],
        **sampling_arguments(adapter, image_size(adapter, size)),
    )


def check_drawn(drawn: Tensor, remedy: str) -> None:
    """Raises :class:`~tide.errors.TideError` for latents or an image that are not finite: numbers have overflowed."""
    if not torch.isfinite(drawn).all():
        raise TideError(f"what the pipeline draws is not finite; {remedy}")


def draw_image(
    adapter: Adapter,
    prompt: str,
    *,
    n_steps: int = 20,
    guidance_scale: float = GUIDANCE,
    seed: int = 0,
    size: tuple[int, ...] | None = None,
) -> Image:
    """The pipeline's image of one prompt.

    Args:
        adapter: the pipeline.
        prompt: what to draw.
        n_steps, guidance_scale, seed, size: as for :func:`draw_edits`.

    Raises :class:`~tide.errors.TideError` if it is not finite.
    """
    latents = draw_latents(adapter, prompt, n_steps=n_steps, guidance_scale=guidance_scale, seed=seed, size=size)
    check_drawn(latents, REMEDY)
    image = adapter.decode_latents(latents)[0]
    check_drawn(image, REMEDY)
    return to_image(image)


def check_branch(met: Met) -> None:
    """Raises :class:`~tide.errors.TideError` if a run of the pipeline had no rows of the edit's branch."""
    if not met.rows:
        raise TideError(f"this pipeline's calls have no {met.branch} rows at these steps; choose another branch")


def draw_edits(
    adapter: Adapter,
    model: TIDE,
    prompt: str,
    edits: Mapping[str, Edit | RawEdit | Beside],
    *,
    n_steps: int = 20,
    guidance_scale: float = GUIDANCE,
    seed: int = 0,
    size: tuple[int, ...] | None = None,
    steps: tuple[float, float] | None = None,
    tokens: Tensor | Where | Mapping[str, Tensor | Where] | None = None,
    branch: Branch = "conditional",
    renormalise: bool = False,
    on_met: Callable[[str, Met], None] | None = None,
    around: Callable[[str, Met], AbstractContextManager[Any]] | None = None,
) -> tuple[Image, dict[str, Image]]:
    """Draws a prompt without an edit and with each of ``edits``, from the same noise.

    Args:
        adapter: the pipeline.
        model: the TIDE whose latents are edited, on the pipeline's device.
        prompt: what is drawn.
        edits: name -> edit, of latents or of raw activations (:class:`~tide.editing.Steer`,
            :class:`~tide.editing.Beside` and their like); for one edit at several strengths see
            :class:`~tide.editing.Strength`.
        n_steps: sampling steps.
        guidance_scale: of classifier-free guidance; at most 1 is without.
        seed: of the noise.
        size: height and width in pixels; default the pipeline's own.
        steps: the part of the run to edit, as fractions, first <= step / n_steps < last; default all of it.
        tokens: bool ``[tokens]``, the image tokens to edit (:func:`~tide.editing.read_mask`), or a
            :class:`~tide.editing.Where`, or one of them by the name of each edit; default all.
        branch: the rows of guidance to edit, "conditional", "unconditional" or "both".
        renormalise: keep each token's latent norm (eqs 9, 19).
        on_met: called with the name of each edit and what it met, once its image is drawn; default a warning
            (:class:`~tide.errors.TideWarning`) about an edit that changes nothing or names inactive latents.
        around: called with the name of each edit and what it has met so far; the context that it returns is open while
            the edit is drawn (:func:`~tide.editing.overlays`, :func:`~tide.editing.watched`).

    Returns:
        The unedited image, and the edited images by the names of their edits.

    Raises:
        TideError: an edit, the steps, the tokens or the size do not fit the model or the pipeline; nothing of the run
            is of ``branch``; what is drawn is not finite.
    """
    adapter.check_steps(n_steps)
    check_steps(steps, n_steps)
    for name, each in edits.items():
        check_change(adapter, model, each, branch)
        if isinstance(tokens, Mapping) and name not in tokens:
            raise TideError(f"tokens holds no mask for the edit {name!r}; give one for every edit")
    pixels = image_size(adapter, size)

    draw = partial(draw_image, adapter, prompt, n_steps=n_steps, guidance_scale=guidance_scale, seed=seed, size=pixels)
    before, after = draw(), {}
    for name, each in edits.items():
        mask = tokens[name] if isinstance(tokens, Mapping) else tokens
        options: dict[str, Any] = {"steps": steps, "tokens": mask, "branch": branch, "renormalise": renormalise}
        with edit(adapter.pipe, model, each, **options, warns=False) as met:
            with nullcontext() if around is None else around(name, met):
                after[name] = draw()
        check_branch(met)
        (on_met or _warn)(name, met)
    return before, after


def _warn(name: str, met: Met) -> None:
    if met.remark is not None:
        warnings.warn(f"edit {name!r}: {met.remark}", TideWarning, stacklevel=3)
