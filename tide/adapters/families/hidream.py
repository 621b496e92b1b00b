"""HiDream: double-stream, then single-stream blocks with experts, modulated by timestep and pooled prompts."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tide.adapters.base import Text as EncodedText
from tide.adapters.declared import DeclaredAdapter
from tide.adapters.registry import declared
from tide.adapters.spec import Blocks, Embedding, Spec, Text

#: The states of all layers of Llama, ``[layers, B, L, c]`` in a call of the transformer.
_LLAMA = "encoder_hidden_states_llama3"
#: The attention, the feed-forward and the projection of a block.
_MODULES, _LINEAR = ("block.attn1", "block.ff_i"), "block.adaLN_modulation.1"


@declared
class HiDreamAdapter(DeclaredAdapter):
    """Image tokens come first, and behind them padding, where an image is not a square."""

    spec = Spec(
        family="hidream",
        transformer="HiDreamImageTransformer2DModel",
        models="HiDream-I1 Full, Dev, Fast",
        pipelines={"HiDreamImagePipeline": ()},
        blocks=(
            Blocks("double_stream_blocks", "image, text", *_MODULES, "image, text", linear=_LINEAR),
            Blocks("single_stream_blocks", "image + text", *_MODULES, linear=_LINEAR).throughout(),
        ),
        embedding=Embedding(
            "", None, "t_embedder.time_proj", "t_embedder.timestep_embedder", conditioned=True, added="p_embedder"
        ),
        text=Text({"encoder_hidden_states_t5": 0, _LLAMA: 2, "pooled_embeds": 4}),
        conditioning="pooled prompt",
        guidance="unconditional, conditional",
        width="inner_dim",
        sign=-1,
        timestep_argument="timesteps",
        size="default_sample_size",
        max_shift=1.15,
        notes=("The pipeline draws every image with the area of its own size: others are scaled to it.",),
    )

    def encode_prompts(self, prompts: Any, max_sequence_length: int | None = None) -> dict[str, Tensor]:
        """As for every adapter: the states of Llama's layers ``[B, layers, L, c]`` have their rows first, too."""
        text = super().encode_prompts(prompts, max_sequence_length)
        return {**text, _LLAMA: text[_LLAMA].transpose(0, 1)}

    def text_arguments(self, text: EncodedText, n_images: int | None) -> dict[str, Any]:
        return {**text, _LLAMA: text[_LLAMA].transpose(0, 1)}

    def _shifted_by(self) -> int:
        """The pipeline shifts every schedule as for its largest image."""
        return int(self.transformer.max_seq)
