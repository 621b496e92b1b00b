"""HunyuanDiT: blocks with long skips, modulated by a shift alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tide.adapters.base import Text as EncodedText
from tide.adapters.base import check_text_encoder
from tide.adapters.declared import DeclaredAdapter
from tide.adapters.pipelines import PAG
from tide.adapters.registry import declared
from tide.adapters.spec import Blocks, Embedding, Spec, Text

#: Tokens of the prompt for BERT and for T5, as in the pipeline.
_LENGTHS = (77, 256)
#: Side, in pixels, of the images to whose grid of positions all others are fitted.
_BASE_SIZE = 512
#: The original size of the image that the pipeline tells the model by default.
_ORIGINAL_SIZE = (1024, 1024)


@declared
class HunyuanDiTAdapter(DeclaredAdapter):
    """A vector made of the pooled T5 embeddings and, up to version 1.1, of image sizes and a style is added to the
    timestep embedding."""

    spec = Spec(
        family="hunyuan",
        transformer="HunyuanDiT2DModel",
        models="HunyuanDiT 1.0 to 1.2",
        pipelines={"HunyuanDiTPipeline": (), "HunyuanDiTControlNetPipeline": ("control_image",)},
        refused={"HunyuanDiTPAGPipeline": (PAG, "HunyuanDiTPipeline")},
        blocks=(Blocks("blocks", chunks={"msa": (0, None)}),),
        embedding=Embedding("time_extra_emb", conditioned=True),
        text=Text(length=None),
        conditioning="pooled T5 embeddings; sizes and style up to 1.1",
        guidance="unconditional, conditional",
        width="inner_dim",
        flow_matching=False,
        rounds_timestep=True,
        shifts_latents=False,
        call_defaults={"use_resolution_binning": False},
        notes=("The first half of blocks also enter the second by long skips: an edit there changes both paths.",),
    )

    @torch.no_grad()
    def encode_prompts(self, prompts: Any, max_sequence_length: int | None = None) -> dict[str, Tensor]:
        """Embeddings, in the transformer's dtype, and masks of BERT and of T5: ``encoder_hidden_states [B, 77, c]``,
        ``text_embedding_mask [B, 77]``, and with ``_t5`` ``[B, 256, c']`` and ``[B, 256]``.

        The model fixes both lengths; ``max_sequence_length`` has no effect.
        """
        check_text_encoder(self.pipe)
        text: dict[str, Tensor] = {}
        for i, length in enumerate(_LENGTHS):
            how: dict[str, Any] = {"max_sequence_length": length, "text_encoder_index": i, "dtype": self.dtype}
            embeds, _, mask, _ = self.pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False, **how)
            end = "_t5" if i else ""
            text |= {f"encoder_hidden_states{end}": embeds.to(self.dtype), f"text_embedding_mask{end}": mask}
        return text

    def call_arguments(self, latents: Tensor, steps: Tensor, text: EncodedText) -> dict[str, Any]:
        from diffusers.models.embeddings import get_2d_rotary_pos_embed

        height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
        # The longer side of the grid is fitted to the base size's, the other one is centred in it.
        grid = self.token_grid(*latents.shape[-2:])
        base = _BASE_SIZE // 8 // self.transformer.config.patch_size
        fitted = [round(base / max(grid) * side) for side in grid]
        first = [round((base - side) / 2) for side in fitted]
        last = [start + side for start, side in zip(first, fitted, strict=True)]
        head = self.transformer.inner_dim // self.transformer.num_heads
        rotary = get_2d_rotary_pos_embed(
            head, (tuple(first), tuple(last)), grid, device=latents.device, output_type="pt"
        )
        return {
            "image_meta_size": latents.new_tensor([[*_ORIGINAL_SIZE, height, width, 0, 0]]).repeat(len(latents), 1),
            "style": torch.zeros(len(latents), dtype=torch.int64, device=latents.device),
            "image_rotary_emb": rotary,
        }
