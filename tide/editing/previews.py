"""A sampling run watched step by step: the image that each step predicts, and its colours without a decoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from tide.adapters import Adapter
from tide.adapters.schedule import step_arguments
from tide.adapters.sizes import image_size, latent_size
from tide.adapters.standins import listened
from tide.clip import filmstrip
from tide.editing.progress import run_call
from tide.errors import TideError
from tide.pictures import to_image

#: A latent and its neighbours.
AROUND = 9
#: Gets the step, counted from 0, the number of steps, and the clean latents ``[images, c, h, w]``.
OnStep = Callable[[int, int, Tensor], None]


@contextmanager
def watched(
    adapter: Adapter, on_step: OnStep, *, size: tuple[int, ...] | None = None, n_images: int = 1
) -> Iterator[None]:
    """While open, calls ``on_step`` after each sampling step of the pipeline with the clean latents that the model's
    prediction implies, guidance included: scaled, float32, on the pipeline's device.

    What is drawn keeps its bits. An exception that ``on_step`` raises ends the run and passes through. Of a step in
    which a second-order scheduler is called twice, the first call is shown.

    Args:
        size: of the images in pixels; default the pipeline's own.
        n_images: that the pipeline draws at a time.
        adapter: of the pipeline that draws.
        on_step: called with the step, the number of steps and the clean latents ``[n_images, c, h, w]``.

    Raises:
        TideError: the size does not fit the pipeline, it draws another number of images, or its scheduler has no noise
            schedule that is known.
    """
    scheduler = adapter.pipe.scheduler
    shape = latent_size(adapter, image_size(adapter, size))
    found: tuple[int, int, Tensor] | None = None

    def before(*args: Any, **kwargs: Any) -> None:
        nonlocal found
        model_output, timestep, sample = step_arguments(scheduler, args, kwargs)
        at = float(torch.as_tensor(timestep).flatten()[0])
        call, n_calls, order = run_call(scheduler, at, adapter.run_timesteps)
        if call % order:
            found = None
            return
        clean = _clean(adapter, model_output, timestep, sample, shape, n_images)
        found = call // order, math.ceil(n_calls / order), clean

    def after(_: Any) -> None:
        if found is not None:
            on_step(*found)

    with listened(scheduler, "step", before=before, after=after):
        yield


@torch.no_grad()
def _clean(
    adapter: Adapter, prediction: Tensor, timestep: Any, sample: Tensor, shape: tuple[int, ...], n_images: int
) -> Tensor:
    """The clean latents ``[n_images, c, *shape]`` of one call of the scheduler."""
    prediction, at, sample = adapter.of_step(prediction, timestep, sample)
    if adapter.steps_both_branches and len(sample) == 2 * n_images:
        rows = adapter.conditional_rows(len(sample), True).to(sample.device)
        prediction, sample = prediction[rows], sample[rows]
    elif len(sample) != n_images:
        raise TideError(f"the pipeline draws {len(sample)} images at a time and not {n_images}; say so by n_images=")
    prediction = prediction[:, : sample.shape[1]]  # without a learned variance
    prediction, sample = adapter.unpacked(prediction, shape), adapter.unpacked(sample, shape)
    return adapter.predicted_clean(prediction, sample, at)


@dataclass(frozen=True)
class LatentColours:
    """A linear map from latents to colours, for previews that need no decoder.

    The colour of a latent is read from itself and its eight neighbours: the latent alone explains half of the variance
    of the bundled pipeline's colours.

    Attributes:
        weights: ``[9 c + 1, 3]`` float32 on the CPU: what each channel of each of the nine and, last, a constant add to
            red, green and blue in [-1, 1].
    """

    weights: Tensor

    @classmethod
    def fit(cls, adapter: Adapter, images: Tensor) -> LatentColours:
        """The map that comes closest, by least squares, to a few ``images [B, 3, H, W]`` in [-1, 1] that are averaged
        to the size of their latents.

        Raises :class:`~tide.errors.TideError` for images of another shape, and for a pipeline without a VAE.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not len(images):
            raise TideError(f"images are {list(images.shape)}; give some as [B, 3, H, W] in [-1, 1]")
        # One at a time: on a large pipeline a batch may take more memory than a drawing does.
        latents = torch.cat([adapter.encode_images(image[None]) for image in images])
        latents = latents[:, :, 0] if latents.ndim == 5 else latents  # of a pipeline of videos, to which each is a clip
        colours = F.adaptive_avg_pool2d(images.float().cpu(), (latents.shape[-2], latents.shape[-1]))
        wanted = colours.permute(0, 2, 3, 1).flatten(0, 2)
        return cls(torch.linalg.lstsq(_rows(latents).double(), wanted.double()).solution.float())

    def image(self, latents: Tensor) -> Image:
        """A picture of ``latents [1, c, h, w]``, w pixels wide and h high; of ``[1, c, f, h, w]`` a
        :func:`~tide.clip.filmstrip` of their frames."""
        channels = (len(self.weights) - 1) // AROUND
        if latents.ndim == 5:
            return filmstrip([self.image(frame) for frame in latents.unbind(2)])
        if latents.ndim != 4 or latents.shape[:2] != (1, channels):
            raise TideError(f"latents are {list(latents.shape)}; give those of one image, [1, {channels}, h, w]")
        kernel = self.weights[:-1].T.reshape(3, channels, 3, 3)
        return to_image(F.conv2d(_padded(latents), kernel, self.weights[-1])[0])


def _padded(latents: Tensor) -> Tensor:
    return F.pad(latents.float().cpu(), (1, 1, 1, 1), mode="replicate")


def _rows(latents: Tensor) -> Tensor:
    """``[B, c, h, w]`` to ``[B * h * w, 9 c + 1]`` float32 on the CPU: each latent with its neighbours, where those
    beyond the edge repeat it, and 1."""
    around = F.unfold(_padded(latents), kernel_size=3)
    return F.pad(around.transpose(1, 2).flatten(0, 1), (0, 1), value=1.0)
