"""The picture of a followed prompt."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.helpers.sheets import places
from tide.adapters import adapter_for
from tide.interpretation import follow
from tide.interpretation.trajectory_chart import draw_trajectory
from tide.pictures import to_image
from tide.strips import shown
from tide.training import TrainConfig, build_model

PROMPT, TOWARDS = "a red house", "a blue house, $x_1^{ дом"


@pytest.mark.parametrize("towards", [None, TOWARDS], ids=["alone", "beside a target"])
def test_the_picture(alpha, tmp_path, towards):
    """Every step's image, enlarged, the runs one above the other; as many charts as there is to tell."""
    adapter = adapter_for(alpha)
    sae = build_model(adapter, 6, TrainConfig(n_latents=96, k=8)).eval()
    followed = follow(adapter, sae, PROMPT, towards, n_steps=4)
    draw_trajectory(str(tmp_path / "t.png"), adapter, followed)
    with Image.open(tmp_path / "t.png") as picture:
        assert picture.width == (1200 if towards is None else 1800)  # panels of 4 inches at 150 dots
        runs = [run for run in (followed.source, followed.target) if run is not None]
        tops = []
        for run in runs:
            images = [shown(to_image(adapter.decode_latents(clean)[0]), 128) for clean in run.clean]
            assert {image.size for image in images} == {(128, 128)}
            found = [places(picture, image) for image in images]
            assert found == sorted(found)
            tops.append(found[0][1])
            above = np.asarray(picture.convert("L"))[: found[0][1], : found[-1][0] + 128]
            assert (above < 100).any()
        assert tops == sorted(tops)
        assert len(set(tops)) == len(runs)


def test_many_large_images_are_shrunk_and_wrapped(adapter, tmp_path, monkeypatch):
    sae = build_model(adapter, 6, TrainConfig(n_latents=96, k=8)).eval()
    followed = follow(adapter, sae, PROMPT, n_steps=12)
    monkeypatch.setattr("tide.interpretation.trajectory_chart.to_image", lambda image: Image.new("RGB", (1024, 1024)))
    draw_trajectory(tmp_path / "t.png", adapter, followed)
    with Image.open(tmp_path / "t.png") as picture:
        black = (np.asarray(picture.convert("L")) == 0).mean() * picture.width * picture.height
        assert picture.width < 2500
        assert black > 12 * 256 * 256
