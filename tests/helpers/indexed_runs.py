"""A small run with an index of a folder of captioned images, with names and notes."""

from __future__ import annotations

from pathlib import Path

import torch

from tide.adapters import Adapter
from tide.data import open_source
from tide.index import Index, build_index
from tide.interpretation.names import NAMES, Entry, Names, Score
from tide.pictures import to_image
from tide.sae import TIDE, TIDEConfig
from tide.scenes import images_of, prompts

N_LATENTS, N_IMAGES = 96, 6
#: A latent that never fires.
DEAD = 70


def make_indexed_run(adapter: Adapter, folder: Path) -> Path:
    """96 latents, of which number 70 never fires, trained on a pipeline and read on images in folders of this machine;
    the most active latent is named, the one after it in number has a note."""
    images = folder / "photos"
    images.mkdir()
    pairs = prompts("train", N_IMAGES, 3)
    for i, (image, (_, caption)) in enumerate(zip(images_of([s for s, _ in pairs]), pairs, strict=True)):
        to_image(image).save(images / f"{i}.png")
        (images / f"{i}.txt").write_text(caption)
    torch.manual_seed(0)
    model = TIDE(TIDEConfig(adapter.d_model, N_LATENTS, 8, block=6, pipeline=str(folder / "pipeline")))
    with torch.no_grad():
        model.b_enc[DEAD] = -1e6
    run = folder / "one"
    model.save_pretrained(run)
    source = open_source(images, adapter, batch_size=N_IMAGES)
    index = build_index(adapter, model, source, run, timesteps=torch.tensor([700, 200]))
    latent = most_active(index)
    Names(run / NAMES).add(
        [
            Entry(latent, "person:Ada", "2026-01-01T00:00:00Z", name="tall door"),
            Entry(latent, f"model:{folder}/weights", "2026-01-01T00:00:00Z", name="a roof", score=Score(0.9, 4)),
            Entry(latent, "person:Ada", "2026-01-01T00:00:00Z", note="seen twice"),
            Entry((latent + 1) % N_LATENTS, "person:Ada", "2026-01-01T00:00:00Z", note="ask Bob"),
        ]
    )
    return run


def most_active(index: Index) -> int:
    return int(index.columns()["frequency"].argmax())
