"""The picture of a followed prompt."""

from __future__ import annotations

import pytest
from PIL import Image

from tide.adapters import adapter_for
from tide.interpretation import follow
from tide.interpretation.trajectory_chart import draw_trajectory
from tide.training import TrainConfig, build_model


@pytest.mark.parametrize("towards", [None, "a blue house"], ids=["alone", "beside a target"])
def test_the_picture(alpha, tmp_path, towards):
    adapter = adapter_for(alpha)
    sae = build_model(adapter, 6, TrainConfig(n_latents=96, k=8)).eval()
    draw_trajectory(str(tmp_path / "t.png"), adapter, follow(adapter, sae, "a red house", towards, n_steps=4))
    with Image.open(tmp_path / "t.png") as picture:
        assert picture.width == (1200 if towards is None else 1800)  # panels of 4 inches at 150 dots
