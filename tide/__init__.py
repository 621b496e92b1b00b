"""TIDE: temporal-aware sparse autoencoders for diffusion transformers (arXiv 2503.07050).

Names are loaded when they are first used, so that ``import tide`` is quick and touches no device.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tide import scenes
    from tide.activations import CollectOptions, Prompts, collect, collect_to_disk
    from tide.adapters import adapter_for
    from tide.data import open_source
    from tide.editing import (
        Add,
        Change,
        Contrast,
        Detector,
        Erase,
        Inject,
        Invert,
        Keep,
        PerImage,
        Recipe,
        Replace,
        Scale,
        ScaleTarget,
        Steer,
        Strength,
        Swap,
        Target,
        Where,
        WhereLatents,
        changed_prompt,
        draw_edits,
        draw_recipe,
        edit,
        image_contrast,
        image_target,
        prompt_target,
    )
    from tide.errors import TideError, TideWarning
    from tide.evaluation import EditTrial, evaluate, evaluate_blocks, evaluation_text, search_edits, sweep
    from tide.evaluation.sweep_page import write_sweep
    from tide.guards import guard
    from tide.interpretation import caption_concepts, follow, make_atlas
    from tide.loading import load_adapter, load_sae, load_saes
    from tide.sae import TIDE, TIDEConfig
    from tide.sharing import pull, push
    from tide.training import (
        TrainConfig,
        Trainer,
        from_block_stores,
        from_pool,
        from_stores,
        live,
        live_blocks,
        train,
        train_blocks,
    )

#: Module -> the names that are taken from it.
_NAMES = {
    "tide.activations": "CollectOptions Prompts collect collect_to_disk",
    "tide.adapters": "adapter_for",
    "tide.data": "open_source",
    "tide.editing": "Add Change Contrast Detector Erase Inject Invert Keep PerImage Recipe Replace Scale ScaleTarget "
    "Steer Strength Swap Target Where WhereLatents changed_prompt draw_edits draw_recipe edit image_contrast "
    "image_target prompt_target",
    "tide.errors": "TideError TideWarning",
    "tide.evaluation": "EditTrial evaluate evaluate_blocks evaluation_text search_edits sweep",
    "tide.evaluation.sweep_page": "write_sweep",
    "tide.guards": "guard",
    "tide.interpretation": "caption_concepts follow make_atlas",
    "tide.loading": "load_adapter load_sae load_saes",
    "tide.sae": "TIDE TIDEConfig",
    "tide.sharing": "pull push",
    "tide.training": "TrainConfig Trainer from_block_stores from_pool from_stores live live_blocks train train_blocks",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [
    "TIDE",
    "Add",
    "Change",
    "CollectOptions",
    "Contrast",
    "Detector",
    "EditTrial",
    "Erase",
    "Inject",
    "Invert",
    "Keep",
    "PerImage",
    "Prompts",
    "Recipe",
    "Replace",
    "Scale",
    "ScaleTarget",
    "Steer",
    "Strength",
    "Swap",
    "TIDEConfig",
    "Target",
    "TideError",
    "TideWarning",
    "TrainConfig",
    "Trainer",
    "Where",
    "WhereLatents",
    "adapter_for",
    "caption_concepts",
    "changed_prompt",
    "collect",
    "collect_to_disk",
    "draw_edits",
    "draw_recipe",
    "edit",
    "evaluate",
    "evaluate_blocks",
    "evaluation_text",
    "follow",
    "from_block_stores",
    "from_pool",
    "from_stores",
    "guard",
    "image_contrast",
    "image_target",
    "live",
    "live_blocks",
    "load_adapter",
    "load_sae",
    "load_saes",
    "make_atlas",
    "open_source",
    "prompt_target",
    "pull",
    "push",
    "scenes",
    "search_edits",
    "sweep",
    "train",
    "train_blocks",
    "write_sweep",
]


def __getattr__(name: str) -> Any:
    if name == "scenes":
        return import_module("tide.scenes")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'tide' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
