"""Pictures of where an edit acts: the image that a step predicts, with the tokens that were edited in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL.Image import Image, fromarray
from torch import Tensor

from tide.adapters import Adapter
from tide.adapters.sizes import image_grid, image_size
from tide.clip import fewer_frames, filmstrip, frames_of
from tide.editing.masks import frame_shares
from tide.editing.met import Met
from tide.editing.previews import watched
from tide.errors import TideError
from tide.messages import counted
from tide.pictures import mask_overlay, to_image
from tide.strips import shown

#: Steps that are shown of a run.
SHOWN = 8


@dataclass(frozen=True, eq=False)
class Overlay:
    """One step of a run.

    Attributes:
        step: counted from 0.
        n_steps: of the run.
        pictures: of each image what the step predicts, faded outside of the mask, as :func:`tide.strips.shown` sizes
            it.
        mask: bool ``[images, tokens]`` on the CPU; None for a step that the edit leaves out, whose pictures are whole.
    """

    step: int
    n_steps: int
    pictures: tuple[Image, ...]
    mask: Tensor | None

    @property
    def label(self) -> str:
        """``step 3 of 20: 12 tokens``, in all images."""
        edited = "not edited" if self.mask is None else counted(int(self.mask.sum()), "token")
        return f"step {self.step + 1} of {self.n_steps}: {edited}"


@contextmanager
def overlays(
    adapter: Adapter, met: Met, *, size: tuple[int, ...] | None = None, n_images: int = 1, most: int = SHOWN
) -> Iterator[list[Overlay]]:
    """While open, collects pictures of what a :class:`~tide.editing.Where` draws at some steps of a run.

    It belongs inside the edit whose ``met`` it is given::

        with edit(pipe, sae, change, tokens=where) as met, overlays(adapter, met) as steps:
            pipe(prompt)

    Args:
        size, n_images: of the images that are drawn, as for :func:`~tide.editing.watched`.
        most: steps to show at most, evenly spread and with the first and the last; each takes the VAE's decoder.
        adapter: of the pipeline that draws.
        met: what the edit has met so far.

    Raises:
        TideError: the edit has no Where; ``most`` is not positive; and as :func:`~tide.editing.watched`.
    """
    if (drawn := met.drawn) is None:
        raise TideError("this edit's tokens are the same at every step; give edit a Where to see its masks")
    if most < 1:
        raise TideError(f"most = {most} must be at least 1")
    size = image_size(adapter, size)
    grid = image_grid(adapter, size)
    found: list[Overlay] = []

    def on_step(step: int, n_steps: int, clean: Tensor) -> None:
        if step not in spread(n_steps, most):
            return
        mask = drawn.now
        pictures = [to_image(adapter.decode_latents(each[None])[0]) for each in clean]
        if mask is not None:
            pictures = [_over(picture, each.view(grid)) for picture, each in zip(pictures, mask, strict=True)]
        found.append(Overlay(step, n_steps, tuple(shown(fewer_frames(each)) for each in pictures), mask))

    with watched(adapter, on_step, size=size, n_images=n_images):
        yield found


def spread(n: int, most: int) -> list[int]:
    """At most ``most`` of ``0..n - 1``, evenly spread: the last, and where there are several the first."""
    if most == 1 or n == 1:
        return [n - 1]
    n_shown = min(n, most)
    return [round(i * (n - 1) / (n_shown - 1)) for i in range(n_shown)]


def _over(picture: Image, mask: Tensor) -> Image:
    """``mask`` over the tokens, bool ``[h, w]``, or of a clip ``[f, h, w]``."""
    if mask.ndim == 3:
        frames = frames_of(picture)
        masks = frame_shares(len(frames), len(mask)).T.bool().float() @ mask.flatten(1).float()
        of_frame = masks.view(-1, *mask.shape[1:]) > 0
        return filmstrip([_over(frame, each) for frame, each in zip(frames, of_frame, strict=True)])
    return fromarray(mask_overlay(np.asarray(shown(picture)), mask.numpy()))
