"""AuraFlow: double-stream blocks, then blocks over text and image in one sequence, modulated by the timestep alone."""

from __future__ import annotations

from tide.adapters.declared import DeclaredAdapter
from tide.adapters.registry import declared
from tide.adapters.spec import Blocks, Embedding, Spec, Text


@declared
class AuraFlowAdapter(DeclaredAdapter):
    """The model puts eight register tokens before the text; they count as text."""

    spec = Spec(
        family="auraflow",
        transformer="AuraFlowTransformer2DModel",
        models="AuraFlow 0.1 to 0.3",
        pipelines={"AuraFlowPipeline": ()},
        blocks=(
            Blocks("joint_transformer_blocks", "text, image", "attn", attention_output="image, text"),
            Blocks("single_transformer_blocks", "text + image", "attn").throughout(),
        ),
        embedding=Embedding("", sinusoid="time_step_embed", embedder="time_step_proj"),
        text=Text(),
        guidance="unconditional, conditional",
        width="inner_dim",
        timestep_unit=(0.0, 1 / 1000),
        rounds_timestep=True,
        size="call",
        shifts_latents=False,
    )
