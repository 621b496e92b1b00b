"""What the tests know of a family beside its adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

#: Of a chunk of a block: the module that norms without modulation, and the one that reads the modulated tokens.
Norms = Mapping[str, tuple[str, str]]
JOINT: Norms = {"msa": ("norm1.norm", "attn"), "mlp": ("norm2", "ff")}
ADALN_SINGLE: Norms = {"msa": ("norm1", "attn1"), "mlp": ("norm2", "ff")}


@dataclass(frozen=True)
class Family:
    """How the tests draw with a family's pipeline, and where to look inside its blocks.

    ``size`` is of the images in pixels, or of the sound in samples, ``frames`` of a clip; ``grid`` of the tokens,
    frames first; ``guided`` what makes a run guided, ``unguided`` what makes it not. ``single`` are the norms of
    single-stream blocks.
    """

    build: Callable[[], Any]
    size: tuple[int, ...]
    grid: tuple[int, ...]
    norms: Norms
    guided: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 3.0, "negative_prompt": "a tree"})
    arguments: Mapping[str, Any] = field(default_factory=lambda: {"max_sequence_length": 20})
    prompts: tuple[str, str] = ("a red cube", "a house, far")
    unguided: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    single: Norms = field(default_factory=lambda: {"msa": ("norm.norm", "proj_mlp")})
    frames: int | None = None

    @property
    def pixels(self) -> dict[str, int]:
        """The size of what is drawn, as the pipeline takes it."""
        if len(self.size) == 1:
            return {}  # pipelines of sound have no argument for it in samples
        frames = {} if self.frames is None else {"num_frames": self.frames}
        return {"height": self.size[0], "width": self.size[1], **frames}

    def norms_of(self, block: nn.Module) -> Norms:
        return self.single if "Single" in type(block).__name__ else self.norms
