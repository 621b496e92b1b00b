"""What a transformer is asked at several steps: noisy latents along a sampling run, or images with noise mixed in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tide.activations import Prepared
from tide.adapters import Adapter
from tide.adapters.base import Text
from tide.adapters.sizes import caption_length, image_size, latent_size
from tide.checks import GUIDANCE
from tide.editing.draw import draw_latents
from tide.errors import TideError
from tide.interpretation.trajectory import scheduler_steps

#: The guidance scale of distilled models, which is given to the transformer beside the prompts. It is the run's.
EMBEDDED = "guidance"


@dataclass(frozen=True)
class Steps:
    """Noisy ``latents [steps, images, c, h, w]`` at the scheduler's ``timesteps [steps]``, float32 on the CPU, and the
    images' prompts, one row each in every step.

    Attributes:
        timesteps: ``[steps]`` float32.
        latents: ``[steps, images, c, h, w]`` float32.
        text: the prompts as arguments of the transformer, a row for each image.
    """

    timesteps: Tensor
    latents: Tensor
    text: Text

    def __post_init__(self) -> None:
        n_rows = {len(value) for value in self.text.values()}
        if self.latents.ndim < 5 or 0 in self.latents.shape or self.latents.shape[:1] != self.timesteps.shape:
            raise TideError(
                f"latents {list(self.latents.shape)} must be [steps, images, c, h, w], with timesteps [steps] and not "
                f"{list(self.timesteps.shape)}"
            )
        if n_rows - {self.n_images}:
            raise TideError(f"{self.n_images} images and text of {max(n_rows)} rows; give one prompt an image")

    @property
    def n_images(self) -> int:
        """Images at each step."""
        return self.latents.shape[1]


@torch.no_grad()
def steps_of_run(
    adapter: Adapter,
    prompt: str,
    *,
    n_steps: int = 20,
    guidance_scale: float = GUIDANCE,
    seed: int = 0,
    size: tuple[int, ...] | None = None,
) -> Steps:
    """Draws a prompt and keeps what the model is asked at every step. The arguments are those of
    :func:`tide.editing.draw_edits`.

    ``adapter`` draws ``prompt`` with ``n_steps`` steps, ``guidance_scale`` and ``seed``.

    Raises :class:`~tide.errors.TideError` if the steps or the size do not fit the pipeline.
    """
    shape = latent_size(adapter, size := image_size(adapter, size))
    timesteps: list[float] = []
    latents: list[Tensor] = []

    def keep(_: Tensor, timestep: float, given: Tensor) -> None:
        # The pipeline may step the rows of both branches, which hold the same latents.
        timesteps.append(timestep)
        latents.append(adapter.unpacked(given.float(), shape)[-1:].cpu())

    with scheduler_steps(adapter, keep):
        draw_latents(adapter, prompt, n_steps=n_steps, guidance_scale=guidance_scale, seed=seed, size=size)
    text = adapter.encode_prompts([prompt], caption_length(adapter))
    if EMBEDDED in text:
        text[EMBEDDED] = torch.full_like(text[EMBEDDED], guidance_scale)
    return Steps(torch.tensor(timesteps), torch.stack(latents), text)


@torch.no_grad()
def steps_of_images(adapter: Adapter, images: Prepared, timesteps: Tensor, *, seed: int = 0) -> Steps:
    """Images noised to each of ``timesteps [steps]``, with one noise for all of them (Algorithm 1).

    ``images`` are what :func:`tide.activations.prepare` gives with ``adapter``; ``seed`` is that of the noise.
    """
    noise = torch.randn(images.latents.shape, generator=torch.Generator().manual_seed(seed))
    latents = [adapter.add_noise(images.latents, noise, t).cpu() for t in timesteps.tolist()]
    return Steps(timesteps.float().cpu(), torch.stack(latents), images.text)
