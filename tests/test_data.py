"""Images by name: what is refused, and that a folder may be a string or a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.families import adapter
from tide.data import DEFAULT_SCENES, open_source
from tide.errors import TideError
from tide.pictures import to_image
from tide.scenes import images_of, scenes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "images = 0 must be at least 1, or None for all of them"),
        ({"images": -1}, "images = -1 must be at least 1, or None for all of them"),
        ({"scene_split": "foo"}, "scene_split 'foo' is unknown; use one of train, dev, test"),
        ({"size": (32, 32)}, "scenes are 64 x 64 pixels; leave size off"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(TideError) as raised:
        open_source("scenes", adapter("pixart"), **options)
    assert str(raised.value) == message


@pytest.mark.parametrize(("images", "expected"), [(None, DEFAULT_SCENES), (3, 3)])
def test_scenes_are_as_many_as_asked_for(images, expected):
    assert open_source("scenes", adapter("pixart"), images=images).n_images == expected


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_is_a_string_or_a_path(tmp_path, kind):
    to_image(images_of(list(scenes("train", 1, 0)))[0]).save(tmp_path / "one.png")
    source = open_source(kind(tmp_path), adapter("pixart"))
    assert (source.name, source.n_images) == (str(tmp_path.resolve()), 1)


def test_a_named_data_set_needs_a_number_of_images(monkeypatch):
    monkeypatch.setattr("tide.data.open_data", lambda *_a, **_k: [])
    with pytest.raises(TideError, match="x/y does not say how many images it has; set images to the number to read"):
        open_source("x/y", adapter("pixart"))
