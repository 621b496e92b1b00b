"""CogVideoX: text and video in two streams of one width, behind one norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tide.adapters.base import Text as EncodedText
from tide.adapters.declared import DeclaredAdapter
from tide.adapters.registry import declared
from tide.adapters.spec import THIRDS, Blocks, Embedding, Spec, Text


@declared
class CogVideoXAdapter(DeclaredAdapter):
    """The transformer and the pipeline have frames before channels. In 1.5 a token is of two frames of latents: an odd
    number of them gets one more in front, which decoding leaves out."""

    spec = Spec(
        family="cogvideox",
        transformer="CogVideoXTransformer3DModel",
        models="CogVideoX 2B, 5B, 1.5",
        pipelines={
            "CogVideoXPipeline": (),
            "CogVideoXImageToVideoPipeline": ("image",),
            "CogVideoXVideoToVideoPipeline": ("video",),
            "CogVideoXFunControlPipeline": ("control_video",),
        },
        blocks=(
            Blocks(
                output="image, text",
                attention_output="image, text",
                feed_forward_input="text + image",
                feed_forward_output="text + image",
                linear={"msa": "norm1.linear", "mlp": "norm2.linear"},
                chunks=THIRDS,
            ),
        ),
        embedding=Embedding("", embedder="time_embedding", conditioned="ofs_embedding", added="ofs_embedding"),
        text=Text(),
        conditioning="an offset (1.5 from pictures), else none",
        guidance="unconditional, conditional",
        flow_matching=False,
        draws="videos",
        channels="out_channels",
        shifts_latents=False,
        result="frames",
        notes=("Clips of 8 k + 1 frames are decoded as they were encoded. 2B wants texts of 226 tokens.",),
    )

    @property
    def default_latents(self) -> tuple[int, ...]:
        config = self.transformer.config
        return self.latent_frames(config.sample_frames), config.sample_height, config.sample_width

    @property
    def _frames_per_token(self) -> int:
        return int(self.transformer.config.patch_size_t or 1)

    def latent_frames(self, frames: int) -> int:
        n = super().latent_frames(frames)
        return n + -n % self._frames_per_token

    def clip_frames(self, latent_frames: int) -> int:
        n = latent_frames - (self._frames_per_token - 1)
        return super().clip_frames(n) if n % 2 else n * self.frames_per_latent

    def grid_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, ...] | None:
        frames, _, *size = self.arguments(args, kwargs)["hidden_states"].shape[1:]
        return self.token_grid(frames, *size)

    def packed(self, latents: Tensor) -> Tensor:
        return latents.transpose(1, 2)

    def unpacked(self, latents: Tensor, size: tuple[int, ...]) -> Tensor:
        return latents.transpose(1, 2)

    def call_arguments(self, latents: Tensor, steps: Tensor, text: EncodedText) -> dict[str, Any]:
        if not self.transformer.config.use_rotary_positional_embeddings:
            return {}
        height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
        places = self.pipe._prepare_rotary_positional_embeddings(height, width, latents.shape[2], latents.device)
        return {"image_rotary_emb": places}

    def generate(self, prompts: Any, **kwargs: Any) -> Tensor:
        return self.unpacked(super().generate(prompts, **kwargs), ())

    def encode_images(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        latents = super().encode_images(images, generator)
        return torch.cat([latents[:, :, : -latents.shape[2] % self._frames_per_token], latents], dim=2)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return super().decode_latents(latents[:, :, self._frames_per_token - 1 :])
