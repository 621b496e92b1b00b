"""CogView 4 and CogView3-Plus: text and image in two streams, modulated by the timestep and by sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tide.adapters.base import Text as EncodedText
from tide.adapters.declared import DeclaredAdapter
from tide.adapters.registry import declared
from tide.adapters.spec import Blocks, Embedding, Spec, Text


class _CogView(DeclaredAdapter):
    """What both share."""

    def call_arguments(self, latents: Tensor, steps: Tensor, text: EncodedText) -> dict[str, Any]:
        """The size of the image, which is not cropped."""
        sides = [side * self.pixels_per_latent for side in latents.shape[-2:]]
        size = latents.new_tensor([sides]).repeat(len(latents), 1)
        return {"original_size": size, "target_size": size, "crop_coords": torch.zeros_like(size)}


@declared
class CogView4Adapter(_CogView):
    """The transformer gets timesteps that are not shifted by the size, while the noise is."""

    spec = Spec(
        family="cogview4",
        transformer="CogView4Transformer2DModel",
        models="CogView 4",
        pipelines={"CogView4Pipeline": (), "CogView4ControlPipeline": ("control_image",)},
        # The chunks of image and text take turns.
        blocks=(Blocks(output="image, text", attention_output="image, text", chunks={"msa": (0, 2), "mlp": (6, 8)}),),
        embedding=Embedding("time_condition_embed", conditioned=True),
        text=Text(),
        conditioning="size and crop of the image",
        guidance="two calls",
        negative=1,
        channels="out_channels",
        shifts_latents=False,
        notes=("The same timestep is more noise in a larger image.",),
    )

    def signal_and_noise(self, timestep: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor]:
        """As for every adapter, with the noise of images of the size of ``like``."""
        _, share = super().signal_and_noise(timestep, like)
        scheduler = self.pipe.scheduler
        if scheduler.config.use_dynamic_shifting:
            sigma = scheduler.time_shift(self._shift(*like.shape[-2:]), 1.0, share)
        else:
            sigma = scheduler.shift * share / (1 + (scheduler.shift - 1) * share)
        return 1 - sigma, sigma

    def _shift(self, *size: int) -> float:
        """By which the pipeline shifts the schedule of latents of this ``size``."""
        config, (rows, columns) = self.pipe.scheduler.config, self.token_grid(*size)
        share = rows * columns / config.get("base_image_seq_len", 256)
        return float(share**0.5 * config.get("max_shift", 0.75) + config.get("base_shift", 0.25))

    def schedule_arguments(self, n_steps: int) -> dict[str, Any]:
        last = self.pipe.scheduler.config.num_train_timesteps
        timesteps = np.linspace(last, 1.0, n_steps).astype(np.int64).astype(np.float32)
        return {"timesteps": timesteps, "sigmas": timesteps / last, "mu": self._shift(*self.default_latents)}


@declared
class CogView3PlusAdapter(_CogView):
    """One feed-forward for the text and the image behind it."""

    spec = Spec(
        family="cogview3plus",
        transformer="CogView3PlusTransformer2DModel",
        models="CogView3-Plus",
        pipelines={"CogView3PlusPipeline": ()},
        blocks=(
            Blocks(
                output="image, text",
                attention_output="image, text",
                feed_forward_output="text + image",
                feed_forward_input="text + image",
            ),
        ),
        embedding=Embedding("time_condition_embed", conditioned=True),
        text=Text(),
        conditioning="size and crop of the image",
        guidance="unconditional, conditional",
        width="inner_dim",
        flow_matching=False,
        shifts_latents=False,
    )
