"""PixArt alpha and PixArt Sigma: one transformer class, two pipelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn

from tide.adapters.base import Adapter, Block, Chunk, Text, check_tensor, register
from tide.errors import TideError
from tide.sae.modulation import Modulation, ModulationConfig

_MODULES = {"attention": "attn1", "feed_forward": "ff"}
#: Rows of the adaLN-single table, in sixths: shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp.
_SHIFT_SCALE: dict[Chunk, tuple[int, int]] = {"msa": (0, 1), "mlp": (3, 4)}


@register(PixArtTransformer2DModel)
class PixArtAdapter(Adapter):
    """Blocks hold image tokens only, modulated by adaLN-single: one projection of the timestep embedding for
    all blocks, plus a table of six rows in each. Where ``use_additional_conditions`` is set (alpha at 1024
    pixels), resolution and aspect ratio are embedded and added to the timestep embedding."""

    family = "pixart"

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.transformer.transformer_blocks)

    @property
    def d_model(self) -> int:
        return int(self.transformer.inner_dim)

    def hook_module(self, block: int, tensor: str = "output") -> nn.Module:
        check_tensor(tensor)
        module = self.blocks[self.resolve_block(block)]
        return module if tensor == "output" else getattr(module, _MODULES[tensor])

    def token_grid(self, latent_height: int, latent_width: int) -> tuple[int, int]:
        patch = self.transformer.config.patch_size
        return latent_height // patch, latent_width // patch

    @torch.no_grad()
    def conditioning_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
        if not self.transformer.use_additional_conditions:
            return None
        arguments = self.arguments(args, kwargs)
        batch_size = len(arguments["hidden_states"])
        sizes = arguments["added_cond_kwargs"]
        emb = self.transformer.adaln_single.emb
        parts = []
        embedders = {"resolution": emb.resolution_embedder, "aspect_ratio": emb.aspect_ratio_embedder}
        for name, embedder in embedders.items():
            waves = emb.additional_condition_proj(sizes[name].flatten())
            parts.append(embedder(waves.to(embedder.linear_1.weight.dtype)).reshape(batch_size, -1))
        return torch.cat(parts, dim=1).float()

    def modulation(self, block: Block, chunk: Chunk = "msa", *, next_block: bool = False) -> Modulation:
        index = self.resolve_block(block) + next_block
        if index == self.n_blocks:
            raise TideError(f"block {block} is the last one and has no next block; use its own modulation")
        if chunk not in _SHIFT_SCALE:
            raise TideError(f"chunk {chunk!r} is unknown; use one of {', '.join(_SHIFT_SCALE)}")
        shift, scale = _SHIFT_SCALE[chunk]
        adaln = self.transformer.adaln_single
        embedder, proj, d = adaln.emb.timestep_embedder, adaln.emb.time_proj, self.d_model
        sixths = [scale, shift]
        table = self.transformer.transformer_blocks[index].scale_shift_table.float()
        return Modulation.copied(
            ModulationConfig(
                d_model=d,
                d_embedding=embedder.linear_2.out_features,
                n_frequencies=proj.num_channels,
                timestep_factor=float(proj.scale),
                flip_sin_to_cos=proj.flip_sin_to_cos,
                downscale_freq_shift=float(proj.downscale_freq_shift),
                conditioned=self.transformer.use_additional_conditions,
            ),
            linear_1=embedder.linear_1,
            linear_2=embedder.linear_2,
            weight=torch.cat([adaln.linear.weight[i * d : (i + 1) * d] for i in sixths]),
            bias=torch.cat([adaln.linear.bias[i * d : (i + 1) * d].float() + table[i] for i in sixths]),
        )

    def conditional_rows(self, batch_size: int, do_cfg: bool) -> Tensor:
        """Under guidance the pipelines call the transformer with [unconditional, conditional] rows."""
        if do_cfg and batch_size % 2:
            raise TideError(f"a guided call has an even number of rows, this one {batch_size}; set do_cfg=False")
        return torch.arange(batch_size) >= (batch_size // 2 if do_cfg else 0)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None = None) -> dict[str, Tensor]:
        """``encoder_hidden_states [B, L, c]``, in the transformer's dtype, ``encoder_attention_mask [B, L]``.

        L is ``max_sequence_length``, by default the pipeline's own (120 for alpha, 300 for Sigma).
        """
        if self.pipe.text_encoder is None or self.pipe.tokenizer is None:
            raise TideError("the pipeline has no text encoder; load it with one or pass embeddings")
        length = {} if max_sequence_length is None else {"max_sequence_length": max_sequence_length}
        embeds, mask, _, _ = self.pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False, **length)
        return {"encoder_hidden_states": embeds.to(self.dtype), "encoder_attention_mask": mask}

    def denoise(self, latents: Tensor, timestep: Tensor | float, text: Text) -> Tensor:
        """The learned variance, where the model has one, is dropped."""
        batch_size = len(latents)
        latents = latents.to(self.device, self.dtype)
        steps = torch.as_tensor(timestep, device=latents.device).reshape(-1).expand(batch_size)
        prediction = self.transformer(
            latents,
            timestep=steps,
            added_cond_kwargs=self._sizes(latents),
            return_dict=False,
            **{name: value.to(latents.device) for name, value in text.items()},
        )[0]
        return prediction[:, : self.latent_channels].float()

    def _sizes(self, latents: Tensor) -> dict[str, Tensor | None]:
        """Resolution and aspect ratio as the alpha pipeline passes them, in the dtype in which it does."""
        if not self.transformer.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        height, width = (side * self.pipe.vae_scale_factor for side in latents.shape[-2:])
        return {
            "resolution": latents.new_tensor([[height, width]]).repeat(len(latents), 1),
            "aspect_ratio": latents.new_tensor([[height / width]]).repeat(len(latents), 1),
        }

    def generate(
        self,
        prompts: Sequence[str],
        *,
        n_steps: int,
        guidance_scale: float,
        generators: list[torch.Generator],
        **kwargs: Any,
    ) -> Tensor:
        """``kwargs`` go to the pipeline; resolution binning and caption cleaning are off unless given."""
        return self.pipe(
            list(prompts),
            num_inference_steps=n_steps,
            guidance_scale=guidance_scale,
            generator=generators,
            output_type="latent",
            **{"use_resolution_binning": False, "clean_caption": False, **kwargs},
        ).images
