"""A random tiny pipeline and a folder of captioned images on disk, and what the commands make of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers.cli_samples import N_IMAGES, SMALL
from tide.cli.app import main
from tide.data import open_source
from tide.index import build_index
from tide.loading import load_sae
from tide.pictures import to_image
from tide.scenes import images_of, prompts


class Result(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def cli(capsys) -> Cli:
    """Runs the command line in this process."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(each) for each in arguments])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture(autouse=True)
def agreeing(monkeypatch) -> None:
    """Whoever is asked whether to load the pipeline that a file names says yes; see test_trust.py for the rest."""
    monkeypatch.setattr("tide.cli.trust._agreed", lambda question: True)


@pytest.fixture(scope="session")
def pipeline(alpha, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pipeline")
    alpha.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def narrow_pipeline(alpha_with_sizes, tmp_path_factory) -> Path:
    """Width 48, 3 blocks, conditioned on the image's size."""
    path = tmp_path_factory.mktemp("narrow")
    alpha_with_sizes.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("images")
    pairs = prompts("train", N_IMAGES, 3)
    lines = []
    for i, (image, (_, caption)) in enumerate(zip(images_of([s for s, _ in pairs]), pairs, strict=True)):
        to_image(image).save(path / f"{i:02d}.png")
        lines.append(json.dumps({"file_name": f"{i:02d}.png", "text": caption}))
    (path / "metadata.jsonl").write_text("\n".join(lines))
    return path


@pytest.fixture(scope="session")
def store(pipeline, images, tmp_path_factory) -> Path:
    """Activations of blocks 3 and 6, collected in one pass."""
    path = tmp_path_factory.mktemp("stores") / "store"
    options = ["--token-fraction", "1/2", "--batch-size", "4", "--block", "3", "penultimate"]
    assert main(["collect", "--pipeline", str(pipeline), "--data", str(images), "--out", str(path), *options]) == 0
    return path


@pytest.fixture(scope="session")
def checkpoint(store, pipeline, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "tide"
    options = ["--pipeline", str(pipeline), "--out", str(path), "--steps", "8", *SMALL]
    assert main(["train", "--store", str(store / "block-6"), *options]) == 0
    return path


@pytest.fixture(scope="session")
def indexed(adapter, checkpoint, images, tmp_path_factory) -> Path:
    """A copy of the checkpoint with an index of the images at two timesteps."""
    path = tmp_path_factory.mktemp("indexed") / "tide"
    shutil.copytree(checkpoint, path)
    source = open_source(images, adapter, batch_size=N_IMAGES)
    build_index(adapter, load_sae(path, adapter), source, path, timesteps=adapter.sampling_timesteps(2))
    return path
