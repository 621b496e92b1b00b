"""Editing: latents changed inside a running pipeline."""

from tide.editing.context import Steer, SteerTowards, edit
from tide.editing.contrast import Contrast, Keep, SteerBounded
from tide.editing.edits import (
    Compose,
    Edit,
    Erase,
    Inject,
    Invert,
    PerImage,
    Place,
    Replace,
    Scale,
    ScaleTarget,
    Swap,
    Target,
    most_different_tokens,
    renormalise,
)
from tide.editing.masks import image_mask, token_mask

__all__ = [
    "Compose",
    "Contrast",
    "Edit",
    "Erase",
    "Inject",
    "Invert",
    "Keep",
    "PerImage",
    "Place",
    "Replace",
    "Scale",
    "ScaleTarget",
    "Steer",
    "SteerBounded",
    "SteerTowards",
    "Swap",
    "Target",
    "edit",
    "image_mask",
    "most_different_tokens",
    "renormalise",
    "token_mask",
]
