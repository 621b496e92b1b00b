"""Clips drawn for the page: previews and results as frames side by side, and a file that moves."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
import torch
from PIL import Image

from tests.helpers import families
from tests.helpers.answers import opened
from tests.helpers.clips import clip_folder
from tide.browser.runs import find_runs
from tide.browser.studio import Studio
from tide.data import open_source
from tide.editing import Change, Recipe
from tide.index import build_index
from tide.sae import TIDE, TIDEConfig

FRAMES, SIZE = 9, (64, 32)


class Heard:
    """A teller that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def tell(self, kind: str, **said: Any) -> None:
        self.events.append({"event": kind, **said})

    def check(self) -> None:
        pass


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    adapter, folder = families.adapter("wan"), tmp_path_factory.mktemp("run")
    model = TIDE(TIDEConfig(32, 32, 8, family="wan", block=1), seed=0)
    model.save_pretrained(folder)
    clips = clip_folder(tmp_path_factory.mktemp("clips"), 4, FRAMES, SIZE)
    source = open_source(clips, adapter, size=(FRAMES, *SIZE))
    build_index(adapter, model, source, folder, timesteps=torch.tensor([200]))
    (found,) = find_runs([folder])
    return found


def test_a_drawing_of_a_clip(run, monkeypatch):
    monkeypatch.setattr("tide.browser.studio.image_size", lambda adapter, size: (FRAMES, *SIZE))  # small, as the index
    recipe = Recipe(
        "a square moves",
        (Change(tuple(range(32)), "scale", 3.0, tokens=tuple(range(8))),),
        n_steps=3,
        guidance_scale=1.0,
        size=(FRAMES, *SIZE),
    )
    heard = Heard()
    Studio(lambda _: families.adapter("wan")).draw(run, recipe, (1.0,), heard)
    steps = [each for each in heard.events if each["event"] == "step"]
    assert [each["frames"] for each in steps] == [3] * 4
    assert opened(steps[0]["jpeg"]).size == (3 * 4, 8)
    before, after = (each for each in heard.events if each["event"] == "image")
    for each in (before, after):
        assert each["frames"] == 8
        assert opened(each["png"]).size == (8 * SIZE[1], SIZE[0])
        with Image.open(io.BytesIO(base64.b64decode(each["webp"]))) as moving:
            assert (moving.n_frames, moving.size) == (FRAMES, (SIZE[1], SIZE[0]))
    assert before["png"] != after["png"]
