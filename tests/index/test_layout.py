"""What an index takes, said before it is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.indexes import built, scenes, untrained
from tide.index.layout import FOLDER, index_bytes, index_of, sizes_in_words

LATENTS, IMAGES, K = 256, 12, 16


def test_the_parts_are_about_as_large_as_they_are_said_to_be(adapter, tmp_path):
    timesteps = adapter.sampling_timesteps(4)
    built(
        adapter, tmp_path, model=untrained(adapter, LATENTS, K), source=scenes(adapter, IMAGES, 6), timesteps=timesteps
    )
    size = {path.name: path.stat().st_size for path in index_of(tmp_path).rglob("*") if path.is_file()}
    real = {
        "latents": size["by_latent.safetensors"] + size["index.sqlite"],
        "what fires where": size["codes.safetensors"] + size["heights.safetensors"],
        "peaks": size["firing.safetensors"],
        "pictures": size["pictures.bin"] + size["0.jpg"],
    }
    said = index_bytes(LATENTS, IMAGES, 4, 64, K, (64, 64))
    assert said.keys() == real.keys()
    for name, n in real.items():
        assert n / 2 <= said[name] <= 2 * n, name
    assert sum(real.values()) / 1.3 <= sum(said.values()) <= 1.3 * sum(real.values())


def test_never_more_latents_fire_in_an_image_than_there_are():
    assert index_bytes(100, 10, 1, 256, 64)["peaks"] == 100 * 10 * 8


@pytest.mark.parametrize(("size", "like"), [((1024, 1024), (384, 384)), ((2048, 1024), (384, 192))])
def test_large_images_are_kept_smaller(size, like):
    assert index_bytes(100, 10, 1, 64, 8, size) == index_bytes(100, 10, 1, 64, 8, like)
    assert index_bytes(100, 10, 1, 64, 8)["pictures"] == index_bytes(100, 10, 1, 64, 8, (384, 384))["pictures"]


def test_the_sentence():
    assert sizes_in_words(73_728, 10_000, 10, 256, 64) == (
        "An index of 73,728 latents on 10,000 images takes about 3.5 GB (latents 518 MB, what fires where 2.46 GB, "
        "peaks 136 MB, pictures 385 MB), and 1.81 GB of memory while it is made"
    )


def test_its_place():
    assert index_of("runs/a") == Path("runs/a") / FOLDER
