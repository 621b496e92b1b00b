"""A folder to run the pages in: captioned pictures, as the pages name them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tide.pictures import to_image
from tide.scenes import combinations, images_of

#: Words that the pages look for; half of the pictures show each.
CLASSES = ("house", "tree")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """The current folder while a module's tests run: ``photos/`` with captions, ``prompts.txt``."""
    path = tmp_path_factory.mktemp("pages")
    photos = path / "photos"
    photos.mkdir()
    scenes = [next(s for s in combinations("train")[i::7] if s.cls == CLASSES[i % 2]) for i in range(12)]
    captions = [f"a {scene.colour} {scene.cls}, {scene.depth}" for scene in scenes]
    for i, image in enumerate(images_of(scenes)):
        to_image(image).save(photos / f"{i:02d}.png")
    lines = [json.dumps({"file_name": f"{i:02d}.png", "text": text}) for i, text in enumerate(captions)]
    (photos / "metadata.jsonl").write_text("\n".join(lines))
    to_image(image).save(path / "blue.png")
    (path / "prompts.txt").write_text("\n".join(captions))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        yield path
