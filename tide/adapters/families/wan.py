"""Wan: videos, drawn by one transformer or by two that take over from each other."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tide.adapters.declared import DeclaredAdapter
from tide.adapters.registry import declared
from tide.adapters.spec import Blocks, Embedding, Spec, Text
from tide.errors import TideError


@declared
class WanAdapter(DeclaredAdapter):
    """In 2.2 ``transformer`` draws at timesteps from a boundary on, ``transformer_2`` below it."""

    spec = Spec(
        family="wan",
        transformer="WanTransformer3DModel",
        models="Wan 2.1, 2.2",
        pipelines={
            "WanPipeline": (),
            "WanImageToVideoPipeline": ("image",),
            "WanVideoToVideoPipeline": ("video",),
            "LucyEditPipeline": ("video",),
        },
        blocks=(
            Blocks("blocks", feed_forward="ffn", linear="/condition_embedder.time_proj", table="scale_shift_table"),
        ),
        embedding=Embedding("condition_embedder", sinusoid="timesteps_proj", embedder="time_embedder"),
        text=Text(as_called=("max_sequence_length",)),
        guidance="two calls",
        negative=1,
        draws="videos",
        channels="out_channels",
        size="call",
        scales_channels=True,
        result="frames",
        notes=("Of 2.2's two transformers the second is component='transformer_2'; an SAE belongs to one of them.",),
    )

    def __init__(self, pipe: Any, component: str = "transformer") -> None:
        super().__init__(pipe, component)
        config = getattr(pipe, "config", {})
        ratio = config.get("boundary_ratio")
        self.runs_in_turn = ratio is not None
        #: The timestep below which ``transformer_2`` runs.
        self._boundary = (ratio or 0) * 1000
        if config.get("expand_timesteps") and "ImageToVideo" in type(pipe).__name__:
            raise TideError(
                f"{type(pipe).__name__} gives this model the first frame at a timestep of its own, which is not "
                "supported; draw from the prompt with WanPipeline"
            )

    def sampling_timesteps(self, n_steps: int) -> Tensor:
        """As for every adapter; of two transformers, the timesteps of this one."""
        steps = super().sampling_timesteps(n_steps)
        first = steps >= self._boundary
        return steps[~first if self.component == "transformer_2" else first]
