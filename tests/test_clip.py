"""Clips that are drawn: side by side in one picture, and moving in a file."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from tide.clip import clip_writer, fewer_frames, filmstrip, frames_of, is_clip
from tide.pictures import picture_writer, to_image


def frames(n: int) -> list[Image.Image]:
    return [Image.new("RGB", (6, 4), (20 * i,) * 3) for i in range(n)]


def test_a_filmstrip_is_taken_apart_again():
    strip = filmstrip(frames(5))
    assert strip.size == (30, 4)
    assert is_clip(strip)
    assert [frame.getpixel((0, 0)) for frame in frames_of(strip)] == [(20 * i,) * 3 for i in range(5)]
    picture = frames(1)[0]
    assert frames_of(picture) == [picture]
    assert not is_clip(picture)


@pytest.mark.parametrize(("n", "kept"), [(3, [0, 1, 2]), (4, [0, 1, 2, 3]), (9, [0, 3, 5, 8])])
def test_fewer_frames_are_evenly_spread_with_the_first_and_the_last(n, kept):
    found = frames_of(fewer_frames(filmstrip(frames(n)), 4))
    assert [frame.getpixel((0, 0))[0] // 20 for frame in found] == kept


def test_a_clip_of_a_pipeline_becomes_a_filmstrip():
    clip = torch.linspace(-1, 1, 3)[None, :, None, None].expand(3, 3, 4, 6)
    assert [frame.getpixel((0, 0))[0] for frame in frames_of(to_image(clip))] == [0, 128, 255]


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_a_file_that_moves(tmp_path, suffix):
    clip_writer(frames(4), suffix, rate=5)(tmp_path / f"a{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as found:
        assert found.n_frames == 4
        found.seek(1)
        found.load()  # WebP says it with the frame
        assert found.info["duration"] == 200


def test_a_clip_is_written_as_webp_and_a_picture_as_png(tmp_path):
    for name, picture, kind in (("clip", filmstrip(frames(3)), "WEBP"), ("picture", frames(1)[0], "PNG")):
        picture_writer(picture)(tmp_path / name)
        with Image.open(tmp_path / name) as found:
            assert found.format == kind
