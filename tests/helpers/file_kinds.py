"""Every kind of file that TIDE reads: what makes a good one, small, and what reads it."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.helpers.banks import small_bank
from tests.helpers.tiny_clip import save_tiny_clip
from tide.activations import ActivationStore, StoreWriter, image_folder
from tide.activations.batch import ActivationBatch
from tide.activations.source import read_prompts
from tide.editing import Change, Recipe, Target, load_bank, save_bank
from tide.editing.target_file import load_target, save_target
from tide.evaluation.scorers import CLIPScorer
from tide.evaluation.scorers.base import read_weights
from tide.files import write_json, write_sealed
from tide.images import open_picture
from tide.interpretation.atlas import Atlas, ImageText, Label
from tide.interpretation.names import Entry, Names, Score
from tide.runs import Contents, contents, write_run
from tide.sae import TIDE, ModulationConfig, TIDEConfig
from tide.scenes import Judge, load_judge
from tide.studies.grid import Cell, run_cells
from tide.studies.models import Models
from tide.training import TrainConfig, Trainer, is_trained
from tide_kernels.triton import configs


class Kind(NamedTuple):
    #: Writes good files into an empty folder.
    make: Callable[[Path], Any]
    #: Reads them, as a user would have them read; raises for bad ones.
    read: Callable[[Path], Any]
    #: Whether a hundred are read in seconds.
    quick: bool = True


def model() -> TIDE:
    torch.manual_seed(0)
    modulation = ModulationConfig(d_model=8, d_embedding=6, n_frequencies=4)
    return TIDE(TIDEConfig(d_model=8, n_latents=12, k=3, modulation=modulation, family="pixart", block=6))


def make_target(folder: Path) -> None:
    save_target(folder / "target.safetensors", Target(torch.tensor([900.0, 300.0]), torch.rand(2, 4, 12)), model())


def make_bank(folder: Path) -> None:
    save_bank(folder / "bank.safetensors", small_bank(model(), n=3))


def make_recipe(folder: Path) -> None:
    changes = (Change((1, 7), "scale", 2.0), Change((3,), "add", -0.5, (0.25, 1.0), (0, 9)))
    Recipe("a red house", changes, seed=4, size=(64, 64), sae="0123456789abcdef").save(folder / "recipe.json")


def make_atlas(folder: Path) -> None:
    n, t, m = 5, 3, 2
    labels = tuple(Label("roof", "part", 0.9) if i in (0, 4) else None for i in range(n))
    images, values = torch.tensor([[1, 0]] * n), torch.rand(n, m)
    maps = torch.randint(0, 255, (n, m, 2, 2), dtype=torch.uint8)
    tables = torch.rand(t, n), torch.rand(t, n)
    texts = {0: ImageText("a/0.png", "a red roof"), 1: ImageText("1.png", "")}
    Atlas(torch.arange(3.0), *tables, images, values, maps, 2, 4, labels, torch.rand(n), texts).save(folder, note="x")


HOLDS = Contents(kind="atlas", blocks=[6], family="pixart", measured={"dead": 0.1}, files={"atlas.json": "index"})

DATA = {"images": 3, "sizes": {"rows": 4}, "seed": 0}


def cells() -> list[Cell]:
    def never() -> dict[str, Any]:
        raise AssertionError("a finished cell is not computed again")

    return [Cell(name, {"data": DATA, "lr": 0.1}, never, lambda: 1.0) for name in ("a", "b")]


def make_cells(folder: Path) -> None:
    figures = {"held_out": {"mse": 0.1, "l0 at": {"0-100": 3.0}}, "curve": [[1, 0.5], [2, 0.4]]}
    for cell in cells():
        content = {"name": cell.name, "config": cell.config, "seconds": 1.0, "result": figures}
        write_sealed(folder / "cells" / f"{cell.name}.json", content)


def read_cells(folder: Path) -> None:
    """A missing one is computed again."""
    if all((folder / "cells" / f"{cell.name}.json").exists() for cell in cells()):
        run_cells(cells(), folder, lambda text: None)


def read_data(folder: Path) -> None:
    bench: Any = SimpleNamespace(config=lambda: DATA)
    Models(bench, TrainConfig(), folder)._check_data(folder / "data.json")


CONFIG = TrainConfig(steps=2, n_latents=12, k=3, batch_tokens=8, log_every=1, checkpoint_every=1)


def make_training(folder: Path) -> None:
    history = [{"step": float(step), "loss": 1.0, "mse": 0.5} for step in (1, 2)]
    write_json(folder / "training.json", {"config": CONFIG.to_dict(), "history": history})


def make_options(folder: Path) -> None:
    lines = ["steps: 10", "lr: 1e-3", "betas: [0.9, 0.99]", "loss:", "  mse: 2.0", "modulation: false"]
    (folder / "options.yaml").write_text("\n".join(lines))


def make_images(folder: Path) -> None:
    """Of every format and several modes, one a caption's way."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 9, 3), dtype=np.uint8))
    for name, mode in {"a.png": "RGBA", "b.jpg": "RGB", "c.webp": "RGB", "d.bmp": "RGB", "e.png": "P"}.items():
        noise.convert(mode).save(folder / name)
    lines = [{"file_name": "a.png", "text": "one"}, {"file_name": "b.jpg", "text": "two"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "c.txt").write_text("three")


def read_images(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".jsonl", ".txt"):
            open_picture(path)
    list(image_folder(folder, 8, on_error="raise"))


def make_weights(folder: Path) -> None:
    save_file({"features.0.weight": torch.rand(3, 2), "features.0.bias": torch.rand(3)}, folder / "w.safetensors")


def make_tuned(folder: Path) -> None:
    key = configs.key("encoder_gradients", "sm_90", torch.bfloat16, 1152)
    (folder / "tuned.json").write_text(json.dumps({key: {"BLOCK_M": 64, "num_warps": 8, "num_stages": 2}}))


def read_tuned(folder: Path) -> None:
    former = os.environ.get("TIDE_KERNELS_CACHE")
    os.environ["TIDE_KERNELS_CACHE"] = str(folder / "tuned.json")
    configs.reload()
    try:
        configs.lookup("encoder_gradients", "sm_90", torch.bfloat16, 1152)
    finally:
        if former is None:
            del os.environ["TIDE_KERNELS_CACHE"]
        else:
            os.environ["TIDE_KERNELS_CACHE"] = former
        configs.reload()


def read_clip(folder: Path) -> None:
    with contextlib.redirect_stderr(io.StringIO()):  # bars of progress
        CLIPScorer(folder).similarity(torch.zeros(1, 3, 40, 40), ["a house"])


def batch(seed: int) -> ActivationBatch:
    generator = torch.Generator().manual_seed(seed)
    return ActivationBatch(
        x=torch.randn(16, 8, generator=generator),
        timestep=torch.tensor([900.0, 300.0]),
        group=torch.arange(2, dtype=torch.int32).repeat(8),
        conditioning=None,
        sample=torch.arange(16) // 2 + 8 * seed,
        token=torch.arange(16, dtype=torch.int32),
        paired=True,
    )


def make_store(folder: Path) -> None:
    with StoreWriter(folder / "store", info={"block": 6, "seed": 0}, shard_bytes=1) as writer:
        for seed in range(2):
            writer.add(batch(seed))


def read_store(folder: Path) -> None:
    store = ActivationStore(folder / "store")
    assert sum(len(each) for each in store.batches(8, buffer_rows=4096)) == len(store)


def make_resume(folder: Path) -> None:
    Trainer(model(), CONFIG, folder / "run", progress=False).fit([batch(0), batch(1)])
    for path in (folder / "run" / "tensorboard").iterdir():
        path.unlink()


def read_resume(folder: Path) -> None:
    """As a run of the same configuration that was stopped would; all its steps are done."""
    Trainer(model(), CONFIG, folder / "run", progress=False).fit([], resume=True)


def make_names(folder: Path) -> None:
    at = "2026-11-28T09:00:00Z"
    entries = [
        Entry(1, "person:anna", at, "roof", "of houses", True),
        Entry(2, "clip", at, "sky", score=Score(0.9, 20)),
    ]
    Names(folder / "names.jsonl").add(entries)


KINDS: dict[str, Kind] = {
    "checkpoint": Kind(lambda folder: model().save_pretrained(folder), TIDE.from_pretrained),
    "atlas": Kind(make_atlas, Atlas.load),
    "target": Kind(make_target, lambda folder: load_target(folder / "target.safetensors", model())),
    "bank": Kind(make_bank, lambda folder: load_bank(folder / "bank.safetensors")),
    "recipe": Kind(make_recipe, lambda folder: Recipe.load(folder / "recipe.json")),
    "judge": Kind(lambda folder: Judge(width=8).save_pretrained(folder), load_judge),
    "cells": Kind(make_cells, read_cells),
    "models' data": Kind(lambda folder: write_json(folder / "data.json", DATA), read_data),
    "training": Kind(make_training, lambda folder: is_trained(folder, CONFIG)),
    "options": Kind(make_options, lambda folder: TrainConfig.from_yaml(folder / "options.yaml")),
    "images": Kind(make_images, read_images),
    "prompts": Kind(
        lambda folder: (folder / "prompts.txt").write_text("a house\na tree\n"),
        lambda folder: read_prompts(folder / "prompts.txt"),
    ),
    "weights of a scorer": Kind(
        make_weights, lambda folder: read_weights(folder / "w.safetensors", "features.0.weight", "others")
    ),
    "CLIP": Kind(save_tiny_clip, read_clip, quick=False),
    "activation store": Kind(make_store, read_store),
    "stopped training": Kind(make_resume, read_resume),
    "tuned kernels": Kind(make_tuned, read_tuned),
    "names": Kind(make_names, lambda folder: Names(folder / "names.jsonl", 12).read()),
    "record of a run": Kind(lambda folder: write_run(folder, HOLDS), contents),
}
