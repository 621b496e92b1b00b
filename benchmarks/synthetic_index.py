"""An index of any size with the files of a real one, to measure the browser with: what is in it is random."""

from __future__ import annotations

import io
from dataclasses import asdict
from math import ceil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from tide.files.rows import GrowingRows
from tide.files.writing import write_json
from tide.index.layout import (
    BY_LATENT,
    CODES,
    DRAWN,
    FACTS,
    FIRING,
    FORMAT,
    HEIGHTS,
    NEIGHBOURS,
    PICTURES,
    PLACE,
    SHEET_SIDE,
    SHEETS,
    SKETCH,
    TABLES,
    TILE,
    TOP,
    index_of,
)
from tide.index.tables import write_tables
from tide.sae.config import TIDEConfig

STEPS, SIDE = 10, 8
WORDS = "roof wall window snow grass sand sky tree leaf cloud wheel water stone fur eye hand shadow edge".split()
LEVELS = ("part", "ground", "texture", "place")
#: The index of the issue's bars.
LATENTS, IMAGES = 73_728, 10_000


def synthetic_index(run: Path, n_latents: int = LATENTS, n_images: int = IMAGES, seed: int = 0) -> None:
    """Writes ``run/index``, without a checkpoint. A tenth of the latents never fire, and a third has a name."""
    folder = index_of(run)
    (folder / SHEETS).mkdir(parents=True)
    config = TIDEConfig(1152, n_latents, 64, block=13, pipeline="none", family="pixart")
    generator = torch.Generator().manual_seed(seed)
    dead = torch.rand(n_latents, generator=generator) < 0.1
    frequency = 10 ** (-4 * torch.rand(n_latents, STEPS, generator=generator))
    frequency[dead] = 0
    _by_latent(folder, n_latents, n_images, frequency, dead, generator)
    _places(folder, n_latents, n_images)
    offsets = _pictures(folder, n_images, seed)
    words = np.random.default_rng(seed)
    named = words.random(n_latents) < 0.33
    labels = [
        (f"{words.choice(WORDS)} {words.choice(WORDS)}", str(words.choice(LEVELS)), 0.8 + 0.2 * float(words.random()))
        if name and not silent
        else (None, None, None)
        for name, silent in zip(named, dead.tolist(), strict=True)
    ]
    activity, step = frequency.mean(1).tolist(), frequency.argmax(1).tolist()
    write_tables(
        folder / TABLES,
        ((i, activity[i], step[i], 1.0, *labels[i], float(words.random()), 40) for i in range(n_latents)),
        (
            (i, f"{i:05}.jpg", f"a picture of {words.choice(WORDS)} and {words.choice(WORDS)}", *offsets[i])
            for i in range(n_images)
        ),
    )
    write_json(
        folder / FACTS,
        {
            "format": FORMAT,
            "n_latents": n_latents,
            "n_images": n_images,
            "n_tokens": SIDE**2,
            "dead": int(dead.sum()),
            "grid": [SIDE, SIDE],
            "map": [SIDE, SIDE],
            "timesteps": torch.linspace(999, 100, STEPS).tolist(),
            "block": 13,
            "family": "pixart",
            "pipeline": "none",
            "sae": "0" * 16,
            "sae_config": asdict(config),
            "data": "random pictures",
            "data_digest": "0" * 16,
            "labels": "captions",
            "monosemanticity": "captions",
            "picture": [TILE, TILE],
            "tile": [TILE, TILE],
            "seed": seed,
        },
    )


def _by_latent(
    folder: Path, n: int, n_images: int, frequency: torch.Tensor, dead: torch.Tensor, generator: torch.Generator
) -> None:
    def images(m: int) -> torch.Tensor:
        found = torch.randint(0, n_images, (n, m), generator=generator, dtype=torch.int32)
        return found.masked_fill(dead[:, None], -1)

    def maps(*shape: int) -> torch.Tensor:
        return torch.randint(0, 256, (n, *shape, SIDE, SIDE), generator=generator, dtype=torch.uint8)

    def near() -> torch.Tensor:
        return torch.randint(0, n, (n, NEIGHBOURS), generator=generator, dtype=torch.int32)

    def values(m: int) -> torch.Tensor:
        return torch.rand(n, m, generator=generator).sort(1, descending=True).values

    save_file(
        {
            "frequency": frequency,
            "mean": frequency * 0.5,
            "top_images": images(TOP),
            "top_values": values(TOP),
            "top_maps": maps(TOP),
            "drawn_images": images(DRAWN),
            "drawn_values": values(DRAWN),
            "drawn_maps": maps(DRAWN),
            "mean_map": maps(),
            "sketch": torch.randn(n, SKETCH, generator=generator).half(),
            "fires": near(),
            "fires_cosine": values(NEIGHBOURS),
            "writes": near(),
            "writes_cosine": values(NEIGHBOURS),
        },
        folder / BY_LATENT,
    )
    starts = torch.arange(n + 1)
    save_file({"starts": starts, "images": torch.zeros(n, dtype=torch.int32), "peaks": torch.ones(n)}, folder / FIRING)


def _places(folder: Path, n_latents: int, n_images: int) -> None:
    """Ten different images, again and again, so that the disk's work is the real one."""
    rng = np.random.default_rng(0)
    latents = rng.integers(0, n_latents, (10, STEPS, SIDE**2, PLACE), dtype="i4")
    heights = np.sort(rng.random((10, STEPS, SIDE**2, PLACE), dtype="f4"))[..., ::-1]
    for name, file, values, kind in (("codes", CODES, latents, "i4"), ("heights", HEIGHTS, heights, "f2")):
        rows = GrowingRows(folder / file, name, values.shape[1:], kind)
        for first in range(0, n_images, 10):
            rows.append(values[: n_images - first])
        rows.close()


def _pictures(folder: Path, n_images: int, seed: int) -> list[tuple[int, int]]:
    """Pictures and sheets of coloured noise; returns where each picture begins and ends."""
    rng = np.random.default_rng(seed)
    jpegs = []
    for _ in range(64):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((TILE, TILE), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        jpegs.append(buffer.getvalue())
    offsets, at = [], 0
    with (folder / PICTURES).open("wb") as file:
        for i in range(n_images):
            data = jpegs[i % len(jpegs)]
            file.write(data)
            offsets.append((at, at + len(data)))
            at += len(data)
    for sheet in range(ceil(n_images / SHEET_SIDE**2)):
        coarse = Image.fromarray(rng.integers(0, 256, (8 * SHEET_SIDE, 8 * SHEET_SIDE, 3), dtype=np.uint8))
        whole = coarse.resize((SHEET_SIDE * TILE, SHEET_SIDE * TILE), Image.Resampling.BICUBIC)
        whole.save(folder / SHEETS / f"{sheet}.jpg", "JPEG", quality=90)
    return offsets
