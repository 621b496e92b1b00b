"""The index of clips: what an atlas has, thumbnails and pictures of frames, and what the page is sent."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import families
from tests.helpers.clips import clip_folder
from tide.browser import wire
from tide.browser.export import export
from tide.browser.runs import find_runs
from tide.data import open_source
from tide.index import Index, build_index
from tide.index.atlas_files import thumbnails
from tide.index.naming import heat, pictures
from tide.index.sheets import parted
from tide.interpretation import read_atlas
from tide.sae import TIDE, TIDEConfig

N, N_LATENTS, FRAMES, SIZE = 6, 32, 9, (64, 32)
TIMESTEPS = torch.tensor([400, 100])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = clip_folder(tmp_path_factory.mktemp("clips"), N, FRAMES, SIZE)
    return lambda: open_source(folder, families.adapter("wan"), size=(FRAMES, *SIZE), batch_size=3)


@pytest.fixture(scope="module")
def sae(run) -> TIDE:
    model = TIDE(TIDEConfig(32, N_LATENTS, 8, family="wan", block=1), seed=0)
    model.save_pretrained(run)
    return model


@pytest.fixture(scope="module")
def index(run, sae, source) -> Index:
    return build_index(families.adapter("wan"), sae, source(), run, timesteps=TIMESTEPS)


def test_is_the_atlas_of_the_clips(index, sae, source):
    atlas, own = read_atlas(families.adapter("wan"), sae, source(), TIMESTEPS, top_images=8)
    found = index.atlas()
    for name in ("frequency", "mean", "top_images", "maps", "frame_frequency", "frame_mean"):
        assert torch.equal(getattr(found, name), getattr(atlas, name)), name
    assert (found.n_frames, found.n_tokens) == (FRAMES, 24)
    small = thumbnails(index)
    assert [each.shape for each in small] == [each.shape for each in own] == [(8, *SIZE, 3)] * N
    assert np.abs(small[1].astype(int) - own[1]).mean() < 4


def test_an_interrupted_reading_goes_on(run, sae, source, index, tmp_path):
    sae.save_pretrained(tmp_path)

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "images" and done == 3:
            raise KeyboardInterrupt

    adapter = families.adapter("wan")
    with pytest.raises(KeyboardInterrupt):
        build_index(adapter, sae, source(), tmp_path, timesteps=TIMESTEPS, on_progress=interrupt)
    again = build_index(adapter, sae, source(), tmp_path, timesteps=TIMESTEPS)
    assert torch.equal(again.atlas().frame_mean, index.atlas().frame_mean)


def test_pictures_have_the_shown_frames_side_by_side(index):
    assert index.n_shown == 8
    assert index.facts["frames"]["shown"] == [0, 1, 2, 3, 5, 6, 7, 8]
    assert index.facts["frames"]["map"] == [0, 1, 1, 1, 2, 2, 2, 2]
    assert (index.facts["map"], index.facts["grid"]) == ([3, 4, 2], [3, 4, 2])
    assert index.facts["picture"] == list(SIZE)
    picture = Image.open(io.BytesIO(index.picture(0)))
    assert picture.size == (8 * SIZE[1], SIZE[0])
    frames = [np.asarray(each) for each in parted(index.picture(0), 8)]
    assert not np.array_equal(frames[0], frames[1])


def test_sheets_have_a_thumbnail_of_every_frame(index):
    height, width = index.facts["tile"]
    sheet = Image.open(index.sheet(0))
    assert sheet.size == (16 * width, 3 * height)  # 6 clips of 8 frames
    number = 8 * 3 + 5  # frame 5 of clip 3
    x, y = number % 16 * width, number // 16 * height
    tile = np.asarray(sheet.crop((x, y, x + width, y + height))).astype(int)
    small = parted(index.picture(3), 8)[5].resize((width, height), Image.Resampling.LANCZOS)
    assert np.abs(tile - np.asarray(small)).mean() < 4


def test_what_the_page_is_sent(index):
    assert wire.facts(index)["frames"] == index.facts["frames"]
    latent = int(index.columns()["frequency"].argmax())
    sent = wire.latent(index, latent)
    atlas = index.atlas()
    assert sent["frameMeans"] == pytest.approx(atlas.frame_mean[:, latent].tolist())
    assert sent["motion"] == pytest.approx(float(atlas.motion[latent]))
    json.dumps(sent)


def test_maps_beside_pictures_for_who_finds_names(index):
    latent = int(index.columns()["frequency"].argmax())
    for image in range(N):
        assert heat(index)(latent, image).shape == (4, 8 * 2)
        assert pictures(index)[image].shape == (SIZE[0], 8 * SIZE[1], 3)


def test_an_export_has_every_sheet(index, run, tmp_path, monkeypatch):
    monkeypatch.setattr("tide.browser.files.SHEET_SIDE", 4)  # so that 48 thumbnails take three
    monkeypatch.setattr(Index, "sheet", lambda self, number: self.folder / "sheets" / "0.jpg")
    export(find_runs([run]), tmp_path / "out")
    (sheets,) = (tmp_path / "out").glob("api/runs/*/sheets")
    assert len(list(sheets.iterdir())) == 3
