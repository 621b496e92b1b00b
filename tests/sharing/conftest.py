"""A checkpoint as training leaves it, with what must not be sent beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tide.fingerprint import fingerprint
from tide.pictures import to_image
from tide.runs import Contents, write_run
from tide.sae import TIDE, TIDEConfig


def checkpoint_in(folder: Path, block: int = 26) -> Path:
    config = TIDEConfig(d_model=8, n_latents=32, k=4, block=block, family="pixart", pipeline="/home/me/PixArt")
    TIDE(config, seed=block).save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps({"history": [{"mse": 0.1}]}))
    (folder / "names.jsonl").write_text('{"latent": 3, "name": "/house/"}\n')
    (folder / "resume").mkdir()
    (folder / "resume" / "state.safetensors").write_bytes(b"secret")
    holds = Contents(
        kind="autoencoder", blocks=[block], configuration={"steps": 50, "device": "cpu"}, measured={"mse": 0.1}
    )
    arguments = {"data": "/home/me/photos", "seed": 0, "fast": False, "set": [["k=4"], ["lr=1"]]}
    made = {"command": "train", "arguments": arguments, "seed": 0, "versions": {}, "machine": {}}
    write_run(folder, holds, {**made, "arguments": {"data": "/home/me/earlier"}})
    write_run(folder, holds, made)
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    return checkpoint_in(tmp_path / "runs" / "tide")


@pytest.fixture
def blocks(tmp_path) -> Path:
    for block in (3, 26):
        checkpoint_in(tmp_path / "set" / f"block-{block}", block)
    return tmp_path / "set"


@pytest.fixture
def results(run, tmp_path) -> Path:
    folder = tmp_path / "eval"
    folder.mkdir()
    to_image(torch.zeros(3, 4, 4)).save(folder / "map.png")
    holds = Contents(
        kind="evaluation",
        autoencoder={"weights": fingerprint([TIDE.from_pretrained(run)])},
        data={"name": "/home/me/photos", "images": 12},
        measured={"l0": 4.0, "recovered": None},
        files={"map.png": "picture", "metrics.json": "figures"},
    )
    made = {"command": "evaluate", "arguments": {"fast": True, "sae": str(run), "seed": 0}, "seed": 0}
    write_run(folder, holds, {**made, "versions": {}, "machine": {}})
    return folder
