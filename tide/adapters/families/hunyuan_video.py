"""HunyuanVideo: double-stream blocks, then single-stream blocks, over the tokens of a clip."""

from __future__ import annotations

from tide.adapters.declared import DeclaredAdapter
from tide.adapters.registry import declared
from tide.adapters.spec import THIRDS, Blocks, Embedding, Spec, Text


@declared
class HunyuanVideoAdapter(DeclaredAdapter):
    """The pooled prompt and, in distilled models, the embedded guidance scale are added to the timestep embedding."""

    spec = Spec(
        family="hunyuan_video",
        transformer="HunyuanVideoTransformer3DModel",
        models="HunyuanVideo, SkyReels",
        pipelines={"HunyuanVideoPipeline": (), "HunyuanSkyreelsImageToVideoPipeline": ("image",)},
        refused={
            "HunyuanVideoImageToVideoPipeline": ("some of its models modulate the first frame apart", None),
        },
        blocks=(
            Blocks(output="image, text", attention="attn", attention_output="image, text"),
            Blocks("single_transformer_blocks", "image, text", None, None, linear="norm.linear", chunks=THIRDS),
        ),
        embedding=Embedding(part=0, conditioned=True),
        text=Text(
            {"encoder_hidden_states": 0, "pooled_projections": 1, "encoder_attention_mask": 2},
            {},
            guidance=6.0,
            guidance_factor=1000,
        ),
        conditioning="pooled prompt, embedded guidance",
        guidance="two calls",
        channels="out_channels",
        draws="videos",
        size="call",
        result="frames",
        sigmas=True,
        notes=("guidance_scale is the embedded one; true guidance is true_cfg_scale and negative_prompt.",),
    )
