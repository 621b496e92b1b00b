"""A small checkpoint with an index, some of whose latents are made to fire as a test wants."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tide.adapters import Adapter
from tide.data import open_source
from tide.index import Index, build_index
from tide.sae import TIDE, TIDEConfig

N_LATENTS, N_IMAGES = 64, 64
#: A third of the captions hold it.
WORD = "snow"
#: Latents that fire on the images with the word and on no others; on none; and on those of the first half with the word
#: but of the second without it (every second image is one of a half).
EXACT, SILENT, TURNING = 0, 1, 2


def planted_index(adapter: Adapter, folder: Path) -> Index:
    """The index of an untrained model of ``adapter``'s block 6 in its ``folder``. :data:`EXACT` and :data:`TURNING` are
    labelled with the word, as by masks."""
    model = TIDE(TIDEConfig(adapter.d_model, N_LATENTS, 8, family="pixart", block=6), seed=0)
    model.save_pretrained(folder)
    source = open_source("scenes", adapter, images=N_IMAGES)
    index = build_index(adapter, model, source, folder, timesteps=adapter.sampling_timesteps(2))
    shows = showing(index)
    fires = {EXACT: shows, SILENT: np.zeros(N_IMAGES, bool), TURNING: shows ^ (np.arange(N_IMAGES) % 2 == 1)}
    _plant(index, fires)
    with closing(sqlite3.connect(index.folder / "index.sqlite")) as db, db:
        db.execute("UPDATE latents SET concept = NULL, level = NULL, auroc = NULL")
        db.execute(
            f"UPDATE latents SET concept = '{WORD}', level = 'scene', auroc = 0.99 WHERE latent IN ({EXACT}, {TURNING})"
        )
    return Index(folder)


def showing(index: Index) -> np.ndarray:
    """Which images have the word in their captions, bool ``[images]``."""
    said = index.query("SELECT caption FROM images ORDER BY image")
    return np.array([re.search(rf"\b{WORD}\b", row["caption"]) is not None for row in said])


def _plant(index: Index, fires: dict[int, np.ndarray]) -> None:
    path = index.folder / "firing.safetensors"
    of = {latent: index.firing(latent) for latent in range(N_LATENTS)}
    rng = np.random.default_rng(0)
    for latent, where in fires.items():
        images = np.flatnonzero(where).astype(np.int32)
        of[latent] = images, (1 + rng.random(len(images))).astype(np.float16)
    starts = np.cumsum([0, *(len(images) for images, _ in of.values())]).astype(np.int64)
    former = load_file(path)
    found = {"starts": starts} | {
        name: np.concatenate([each[i] for each in of.values()]) for i, name in enumerate(("images", "peaks"))
    }
    assert {name: value.dtype for name, value in former.items()} == {name: value.dtype for name, value in found.items()}
    save_file(found, path)
