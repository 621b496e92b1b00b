"""Tiny pipelines of classes that draw from pictures: of Flux 2, Qwen-Image, Z-Image, Chroma and FIBO."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import diffusers
import torch
from torch import nn

from tests.helpers.families import FAMILIES, prepared

#: Of the families whose other pipelines are built here.
OF_FAMILIES = ("flux2", "qwen_image", "z_image", "chroma", "bria_fibo")


class Processor:
    """Reads prompts as a processor of texts and pictures does, and looks at no picture."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: list[str], images: Any, **options: Any) -> Any:
        return self.tokenizer(text, **options)


@cache
def picture_pipeline(name: str, family: str) -> Any:
    """A tiny pipeline of the class ``diffusers.<name>``, shared by the tests."""
    cls: Any = getattr(diffusers, name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = FAMILIES[family].build()
        parts = {**base.components, "processor": Processor(base.tokenizer), "is_distilled": False}
        if "ControlNet" in name:
            parts["controlnet"] = _controlnet(parts["transformer"], name)
        if name == "ChromaInpaintPipeline":  # which asks for it, in diffusers 0.42
            parts["transformer"].register_to_config(guidance_embeds=False)
        taken = inspect.signature(cls.__init__).parameters
        pipe = cls(**{part: value for part, value in parts.items() if part in taken})
    if hasattr(base, "default_sample_size"):
        pipe.default_sample_size = base.default_sample_size
    return prepared(pipe)


def _controlnet(transformer: Any, name: str) -> nn.Module:
    net: Any
    inpaints = "Inpaint" in name
    if name.startswith("Qwen"):
        options = {"num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
        # Of each token a square of 2 x 2 latents of the mask.
        net = diffusers.QwenImageControlNetModel.from_transformer(
            transformer, extra_condition_channels=4 * inpaints, **options
        )
    else:
        net = diffusers.ZImageControlNetModel(
            control_layers_places=[0, 1],
            control_refiner_layers_places=[0],
            control_in_dim=9 if inpaints else 4,  # a picture, a mask and the picture without what is masked
            add_control_noise_refiner="control_noise_refiner",
            dim=48,
            n_refiner_layers=1,
            n_heads=3,
            n_kv_heads=3,
        )
    return net
