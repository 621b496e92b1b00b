"""Editing: latents changed inside a running pipeline. Names are loaded when they are first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tide.deferred import deferred

if TYPE_CHECKING:
    from tide.editing.bank import Bank
    from tide.editing.bank_file import load_bank, save_bank
    from tide.editing.beside import Beside
    from tide.editing.change import Change, WhereLatents
    from tide.editing.context import edit
    from tide.editing.contrast import Contrast, Keep, SteerBounded
    from tide.editing.draw import draw_edits, draw_image, draw_latents
    from tide.editing.edits import (
        Add,
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
        differing_tokens,
        most_different_tokens,
        renormalise,
    )
    from tide.editing.masks import image_mask, read_mask, token_mask
    from tide.editing.nearest import SteerNearest, SteerTowardsNearest
    from tide.editing.previews import LatentColours, watched
    from tide.editing.prompts import changed_prompt
    from tide.editing.recipe import Recipe
    from tide.editing.recipe_drawing import draw_recipe
    from tide.editing.recipe_source import recipe_code, recipe_command
    from tide.editing.steer import RawEdit, Steer, SteerPerImage, SteerTowards
    from tide.editing.strength import Strength
    from tide.editing.target_file import load_target, save_target
    from tide.editing.targets import image_contrast, image_target, prompt_target
    from tide.editing.where import Detector, Where
    from tide.editing.where_pictures import Overlay, overlays

__all__ = [
    "Add",
    "Bank",
    "Beside",
    "Change",
    "Compose",
    "Contrast",
    "Detector",
    "Edit",
    "Erase",
    "Inject",
    "Invert",
    "Keep",
    "LatentColours",
    "Overlay",
    "PerImage",
    "Place",
    "RawEdit",
    "Recipe",
    "Replace",
    "Scale",
    "ScaleTarget",
    "Steer",
    "SteerBounded",
    "SteerNearest",
    "SteerPerImage",
    "SteerTowards",
    "SteerTowardsNearest",
    "Strength",
    "Swap",
    "Target",
    "Where",
    "WhereLatents",
    "changed_prompt",
    "differing_tokens",
    "draw_edits",
    "draw_image",
    "draw_latents",
    "draw_recipe",
    "edit",
    "image_contrast",
    "image_mask",
    "image_target",
    "load_bank",
    "load_target",
    "most_different_tokens",
    "overlays",
    "prompt_target",
    "read_mask",
    "recipe_code",
    "recipe_command",
    "renormalise",
    "save_bank",
    "save_target",
    "token_mask",
    "watched",
]

__getattr__, __dir__ = deferred(
    __name__,
    {
        "bank": "Bank",
        "bank_file": "load_bank save_bank",
        "beside": "Beside",
        "change": "Change WhereLatents",
        "context": "edit",
        "contrast": "Contrast Keep SteerBounded",
        "draw": "draw_edits draw_image draw_latents",
        "edits": "Add Compose Edit Erase Inject Invert PerImage Place Replace Scale ScaleTarget Swap Target "
        "differing_tokens most_different_tokens renormalise",
        "masks": "image_mask read_mask token_mask",
        "nearest": "SteerNearest SteerTowardsNearest",
        "previews": "LatentColours watched",
        "prompts": "changed_prompt",
        "recipe": "Recipe",
        "recipe_drawing": "draw_recipe",
        "recipe_source": "recipe_code recipe_command",
        "steer": "RawEdit Steer SteerPerImage SteerTowards",
        "strength": "Strength",
        "target_file": "load_target save_target",
        "targets": "image_contrast image_target prompt_target",
        "where": "Detector Where",
        "where_pictures": "Overlay overlays",
    },
)
