"""A small run with its index, and when the page that shows it is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tide import open_source
from tide.index import build_index
from tide.loading import load_adapter
from tide.sae import TIDE, TIDEConfig


def make_run(folder: Path, *, seed: int = 0, n_latents: int = 96, images: int = 12) -> Path:
    """The checkpoint of an untrained TIDE on the bundled pipeline, and its index."""
    adapter = load_adapter("scenes")
    model = TIDE(
        TIDEConfig(adapter.d_model, n_latents, 8, block=6, family=adapter.family, pipeline="scenes"), seed=seed
    )
    with torch.no_grad():
        model.activation_scale.fill_(20.0)
    model.save_pretrained(folder)
    source = open_source("scenes", adapter, images=images, scene_split="test")
    build_index(adapter, TIDE.from_pretrained(folder), source, folder, timesteps=adapter.sampling_timesteps(3))
    return folder


def drawn(page: Any) -> None:
    """Waits until the cards on screen have their pictures."""
    page.wait_for_selector("canvas.strip[data-drawn=yes]")
