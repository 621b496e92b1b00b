"""Editing: latents changed inside a running pipeline."""

from tide.editing.context import edit
from tide.editing.contrast import Contrast, Keep, SteerBounded
from tide.editing.draw import draw_edits, draw_latents
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
from tide.editing.masks import image_mask, read_mask, token_mask
from tide.editing.prompts import changed_prompt
from tide.editing.steer import Steer, SteerTowards
from tide.editing.strength import Strength
from tide.editing.target_file import load_target, save_target
from tide.editing.targets import image_contrast, image_target, prompt_target

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
    "Strength",
    "Swap",
    "Target",
    "changed_prompt",
    "draw_edits",
    "draw_latents",
    "edit",
    "image_contrast",
    "image_mask",
    "image_target",
    "load_target",
    "most_different_tokens",
    "prompt_target",
    "read_mask",
    "renormalise",
    "save_target",
    "token_mask",
]
