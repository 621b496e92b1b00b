"""TIDE: temporal-aware sparse autoencoders for diffusion transformers (arXiv 2503.07050).

Names are loaded when they are first used, so that ``import tide`` is quick and touches no device.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tide import scenes
    from tide.adapters import adapter_for
    from tide.editing import (
        Contrast,
        Erase,
        Inject,
        Invert,
        Keep,
        PerImage,
        Replace,
        Scale,
        ScaleTarget,
        Steer,
        Swap,
        Target,
        edit,
    )
    from tide.errors import TideError, TideWarning
    from tide.sae import TIDE, TIDEConfig
    from tide.training import TrainConfig, Trainer

_HOME = {
    "TIDE": "tide.sae",
    "TIDEConfig": "tide.sae",
    "TideError": "tide.errors",
    "TideWarning": "tide.errors",
    "TrainConfig": "tide.training",
    "Trainer": "tide.training",
    "adapter_for": "tide.adapters",
    **dict.fromkeys(
        (
            "Contrast",
            "Erase",
            "Inject",
            "Invert",
            "Keep",
            "PerImage",
            "Replace",
            "Scale",
            "ScaleTarget",
            "Steer",
            "Swap",
            "Target",
            "edit",
        ),
        "tide.editing",
    ),
}

__all__ = [
    "TIDE",
    "Contrast",
    "Erase",
    "Inject",
    "Invert",
    "Keep",
    "PerImage",
    "Replace",
    "Scale",
    "ScaleTarget",
    "Steer",
    "Swap",
    "TIDEConfig",
    "Target",
    "TideError",
    "TideWarning",
    "TrainConfig",
    "Trainer",
    "adapter_for",
    "edit",
    "scenes",
]


def __getattr__(name: str) -> Any:
    if name == "scenes":
        return import_module("tide.scenes")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'tide' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
