"""Small indexes of the bundled pipeline, and all that is in one."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

import tide
from tide.activations import Source
from tide.adapters import Adapter
from tide.index import Index, build_index, index_of
from tide.sae import TIDE, TIDEConfig

#: The figures of :func:`built`; batches of two images, the last of one.
IMAGES, LATENTS, TIMESTEPS = 7, 64, torch.tensor([700, 200])


def untrained(adapter: Adapter, n_latents: int = LATENTS, k: int = 8, seed: int = 0) -> TIDE:
    return TIDE(TIDEConfig(adapter.d_model, n_latents, k, block=6), seed=seed)


def scenes(adapter: Adapter, n: int = IMAGES, batch_size: int = 2) -> Source:
    return tide.open_source("scenes", adapter, images=n, batch_size=batch_size, scene_split="test")


def built(adapter: Adapter, run: Path, **options: Any) -> Index:
    """An index of the first scenes; ``options`` replace arguments of :func:`tide.index.build_index`."""
    given = {"model": None, "source": None, "timesteps": TIMESTEPS, **options}
    model, source = given.pop("model") or untrained(adapter), given.pop("source") or scenes(adapter)
    return build_index(adapter, model, source, run, **given)


def contents(run: Path) -> dict[str, Any]:
    """Everything that an index holds: bytes of files, of tensors, and rows of tables."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in index_of(run).rglob("*") if path.is_file()):
        name = str(path.relative_to(index_of(run)))
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                for each in file.keys():
                    value = file.get_tensor(each)
                    found[f"{name} {each}"] = (value.dtype, tuple(value.shape), value.numpy().tobytes())
        elif path.suffix == ".sqlite":
            with closing(sqlite3.connect(path)) as db:
                for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                    found[f"{name} {table}"] = db.execute(f"SELECT * FROM {table}").fetchall()
        else:
            found[name] = path.read_bytes()
    return found
