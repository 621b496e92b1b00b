"""Small runs of a pipeline behind its adapter, whatever the family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

from tide.adapters import Adapter, Call, tap
from tide.adapters.declared import DeclaredAdapter
from tide.probing import calls

#: A timestep in the middle of the schedule.
MIDDLE = 500.0


@dataclass
class Bench:
    """A pipeline, its small size, and what its runs give.

    Args:
        adapter: of the pipeline.
        measured: the size of the latents is that of a run, and not what the adapter says of it.
    """

    adapter: Adapter
    measured: bool = False

    @property
    def prompts(self) -> Sequence[str]:
        return calls.PROMPTS if "prompt" in calls.parameters_of(self.adapter.pipe) else calls.CLASSES

    @cached_property
    def pixels(self) -> dict[str, int]:
        """Height, width and frames as :meth:`Adapter.generate` takes them; nothing where the pipeline has one size."""
        own = self.adapter
        if own.draws == "audio":
            return {}
        small = {**calls.small_size(own.pipe, own.default_latents)}
        return {**small, "num_frames": self._frames} if own.draws == "videos" else small

    @property
    def _frames(self) -> int:
        """Of a short clip: two latents, or as many as the model is made for."""
        own = self.adapter
        latents = own.transformer.config.get("video_length", 2)
        return next(n for n in range(1, 10**4) if own.latent_frames(n) == latents)

    @cached_property
    def size(self) -> tuple[int, ...]:
        """Of the latents, behind their channels, as a run draws them."""
        own = self.adapter
        if not self.pixels:
            return tuple(own.default_latents)
        if self.measured:
            return tuple(self.draw().shape[2:])
        if isinstance(own, DeclaredAdapter):
            return tuple(own.drawn_size(self.pixels))
        return tuple(self.pixels[name] // own.pixels_per_latent for name in ("height", "width"))

    @property
    def grid(self) -> tuple[int, ...]:
        return self.adapter.token_grid(*self.size)

    @property
    def tokens(self) -> list[int]:
        """The shape of a block's image tokens, of both prompts."""
        return [len(self.prompts), prod(self.grid), self.adapter.d_model]

    @cached_property
    def text(self) -> dict[str, Tensor]:
        length = calls.prompt_length(self.adapter.pipe).get("max_sequence_length")
        return self.adapter.encode_prompts(self.prompts, length)

    def latents(self, seed: int = 3) -> Tensor:
        shape = (len(self.prompts), self.adapter.latent_channels, *self.size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.adapter.device)

    def pictures(self) -> Tensor:
        """Two images in [-1, 1], or clips of a pipeline of videos."""
        frames = [self.pixels["num_frames"]] if self.adapter.draws == "videos" else []
        sides = [side * self.adapter.pixels_per_latent for side in self.size[-2:]]
        generator = torch.Generator().manual_seed(0)
        return (torch.rand(len(self.prompts), 3, *frames, *sides, generator=generator) * 2 - 1).to(self.adapter.device)

    def denoise(self, timestep: Tensor | float = MIDDLE) -> Tensor:
        """One call of the transformer on noise and both prompts."""
        with torch.no_grad():
            return self.adapter.denoise(self.latents(), timestep, self.text)

    def draw(self, *, guided: bool = False, **options: Any) -> Tensor:
        """The latents of a run of the pipeline, the same ones each time."""
        adapter = self.adapter
        given = calls.guidance_arguments(adapter.pipe, guided)
        own = adapter.spec.guidance_scale if isinstance(adapter, DeclaredAdapter) else "guidance_scale"
        scale = given.pop(own, 3.0 if guided else 1.0)
        given.pop("guidance_scale", None)
        return adapter.generate(
            self.prompts,
            n_steps=calls.STEPS,
            guidance_scale=scale,
            generators=calls.generators()[: len(self.prompts)],
            **{**self.pixels, **calls.prompt_length(adapter.pipe), **given, **options},
        )

    def tapped(self, block: int, *, guided: bool = False) -> list[tuple[Tensor, Call]]:
        """The block's image tokens at every call of a run."""
        seen: list[tuple[Tensor, Call]] = []
        with tap(self.adapter, {block: lambda x, call: seen.append((x.clone(), call))}):
            self.draw(guided=guided)
        return seen
