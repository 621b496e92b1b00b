"""A folder to run the pages in: captioned pictures, as the pages name them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tide.pictures import to_image
from tide.scenes import combinations, images_of

#: Words that the pages look for; half of the pictures show each.
CLASSES = ("house", "tree")


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photos")
    scenes = [next(s for s in combinations("train")[i::7] if s.cls == CLASSES[i % 2]) for i in range(12)]
    lines = []
    for i, (scene, image) in enumerate(zip(scenes, images_of(scenes), strict=True)):
        to_image(image).save(path / f"{i:02d}.png")
        caption = f"a {scene.colour} {scene.cls}, {scene.depth}"
        lines.append(json.dumps({"file_name": f"{i:02d}.png", "text": caption}))
    (path / "metadata.jsonl").write_text("\n".join(lines))
    return path


@pytest.fixture
def folder(photos, tmp_path, monkeypatch) -> Path:
    """The current folder while a test runs; it holds ``photos/``."""
    shutil.copytree(photos, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    return tmp_path
