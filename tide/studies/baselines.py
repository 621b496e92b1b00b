"""What trained latents must beat: parts of the pipeline drawn at random in their place."""

from __future__ import annotations

import torch

from tide.adapters import Adapter, adapter_for
from tide.scenes.pipeline import build_transformer, load_pipeline

#: Of the weights of the random transformer.
SEED = 20_000


def scenes_adapter(device: torch.device | str = "cpu", *, random: bool = False) -> Adapter:
    """The bundled pipeline on ``device``; with ``random`` its transformer has the weights that a training starts
    from, the same in every process."""
    pipe = load_pipeline()
    if random:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            transformer = build_transformer().eval()
        transformer.register_to_config(_name_or_path="scenes, random weights")
        pipe.register_modules(transformer=transformer)
    return adapter_for(pipe.to(device))
