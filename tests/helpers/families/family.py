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

    ``size`` is of the images in pixels, ``grid`` of their tokens; ``guided`` what makes a run guided.
    """

    build: Callable[[], Any]
    size: tuple[int, int]
    grid: tuple[int, int]
    norms: Norms
    guided: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 3.0, "negative_prompt": "a tree"})
    arguments: Mapping[str, Any] = field(default_factory=lambda: {"max_sequence_length": 20})
    prompts: tuple[str, str] = ("a red cube", "a house, far")

    def norms_of(self, block: nn.Module) -> Norms:
        return {"msa": ("norm.norm", "proj_mlp")} if hasattr(block, "proj_mlp") else self.norms
