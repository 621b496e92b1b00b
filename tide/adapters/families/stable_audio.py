"""Stable Audio: the tokens are latents of sound in their order, behind one that holds timestep and duration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import pi
from typing import Any

import torch
from torch import Tensor

from tide.adapters.base import Text as EncodedText
from tide.adapters.base import check_text_encoder
from tide.adapters.declared import DeclaredAdapter
from tide.adapters.registry import declared
from tide.adapters.schedule import check_range
from tide.adapters.spec import Blocks, Place, Spec, Text

#: The token of timestep and duration stands where the text of others does.
_BEHIND: Place = "text + image"


@declared
class StableAudioAdapter(DeclaredAdapter):
    """Sound is noised to ``cos(a) sound + sin(a) noise``, where ``a = pi t / 2000``: schedulers keep ``tan(a)`` as the
    amount of noise, and as the timestep that the model is given a measure of their own."""

    spec = Spec(
        family="stable_audio",
        transformer="StableAudioDiTModel",
        models="Stable Audio Open",
        pipelines={"StableAudioPipeline": ()},
        blocks=(Blocks("transformer_blocks", _BEHIND, "attn1", "ff", *(_BEHIND,) * 4, chunks={}),),
        embedding=None,
        text=Text({"encoder_hidden_states": 0, "global_hidden_states": 1}, length=None),
        guidance="unconditional, conditional",
        draws="audio",
        result="audios",
        width="inner_dim",
        square=1,
        flow_matching=False,
        notes=("Blocks are not modulated: train with modulation = false.", "The pipeline fixes the length of prompts."),
    )

    @property
    def _counts_angles(self) -> bool:
        return "Cosine" in type(self.pipe.scheduler).__name__  # others count log(tan(a)) / 4

    def from_scheduler(self, timestep: Tensor) -> Tensor:
        return 1000 * (timestep if self._counts_angles else torch.atan((4 * timestep).exp()) * 2 / pi)

    def to_scheduler(self, timestep: Tensor) -> Tensor:
        share = timestep.float() / 1000
        inside = share.clamp(1e-4, 1 - 1e-4)  # the logarithm has no value at either end
        return share if self._counts_angles else torch.tan(inside * pi / 2).log() / 4

    def timestep_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        return self.from_scheduler(super().timestep_of(args, kwargs))

    def given_timestep(self, timestep: Tensor | float, like: Tensor) -> Tensor:
        return self.to_scheduler(super().given_timestep(timestep, like))

    def signal_and_noise(self, timestep: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor]:
        steps = torch.as_tensor(timestep, dtype=torch.float32, device=like.device).reshape(-1, 1, 1)
        check_range(steps, 1000)
        return (steps * pi / 2000).cos(), (steps * pi / 2000).sin()

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None = None) -> dict[str, Tensor]:
        """The prompts with start and end of the sound, which lasts as long as the model can draw."""
        check_text_encoder(self.pipe)
        seconds = self.default_latents[0] * self.pixels_per_latent / self.pipe.vae.config.sampling_rate
        text = self.pipe.encode_prompt(list(prompts), self.device, False)
        ends = self.pipe.encode_duration(0.0, seconds, self.device, False, len(prompts))
        parts = torch.cat([text, *ends], dim=1), torch.cat(ends, dim=2)
        return {name: self._given(part) for name, part in zip(self.spec.text.outputs, parts, strict=True)}

    def call_arguments(self, latents: Tensor, steps: Tensor, text: EncodedText) -> dict[str, Any]:
        from diffusers.models.embeddings import get_1d_rotary_pos_embed

        options = {"use_real": True, "repeat_interleave_real": False}
        length = latents.shape[-1] + text["global_hidden_states"].shape[1]
        return {"rotary_embedding": get_1d_rotary_pos_embed(self.pipe.rotary_embed_dim, length, **options)}
