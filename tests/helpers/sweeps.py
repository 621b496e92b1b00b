"""Small layer sweeps that tests share."""

from __future__ import annotations

from typing import Any

from tide.adapters import Adapter
from tide.data import open_source
from tide.evaluation import sweep
from tide.sae import TIDE, TIDEConfig

#: Two timesteps, 16 tokens of each of 16 images.
OPTIONS: dict[str, Any] = {"token_fraction": 0.25, "timesteps": 2, "loss_images": 3, "seed": 3}


def models(adapter: Adapter, blocks: tuple[int, ...] = (2, 6)) -> dict[int, TIDE]:
    return {block: TIDE(TIDEConfig(adapter.d_model, 256, 16, block=block), seed=block) for block in blocks}


def small_sweep(adapter: Adapter, of: dict[int, TIDE] | None = None, **options: Any) -> dict[str, Any]:
    """The sweep of scenes; ``options`` replace those of :data:`OPTIONS`."""
    source = open_source("scenes", adapter, images=16, batch_size=8, scene_split="test")
    return sweep(adapter, models(adapter) if of is None else of, source, **{**OPTIONS, **options})
