"""``tide edit --beside``: raw activations move to what the target's prompt makes of the same noise."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tide.editing import Beside, draw_edits
from tide.loading import load_sae

RUN = ["--prompt", "a red cube, near", "--change", "red=blue", "--n-steps", "2", "--guidance", "2", "--beside"]


def test_it_draws_what_the_library_draws(cli, checkpoint, pipeline, adapter, tmp_path):
    out = tmp_path / "out"
    result = cli("edit", "--sae", checkpoint, "--pipeline", pipeline, *RUN, "--strength", 0.5, 1, "--out", out)
    assert result.code == 0, result.err
    model = load_sae(checkpoint, adapter)
    edits = {f"{factor:g}": Beside(adapter, "a blue cube, near", factor) for factor in (0.5, 1.0)}
    before, after = draw_edits(adapter, model, "a red cube, near", edits, n_steps=2, guidance_scale=2.0)
    for name, picture in {"before": before, **{f"after-{name}": each for name, each in after.items()}}.items():
        assert np.array_equal(np.asarray(Image.open(out / f"{name}.png")), np.asarray(picture))
    rows = json.loads((out / "edit.json").read_text())["edits"]
    assert [row["strength"] for row in rows] == [0.5, 1.0]
    assert all(row["changed_tokens"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--contrast", "--towards-image", "none.png"], "--contrast is not used with --beside; leave it off"),
        (["--search"], "--search is not used with --beside; leave it off"),
        (["--branch", "both"], "--branch is not used with --beside; leave it off"),
    ],
)
def test_what_is_refused(cli, checkpoint, tmp_path, options, message):
    result = cli("edit", "--sae", checkpoint, *RUN, *options, "--out", tmp_path / "out")
    assert result.code == 2
    assert result.err.startswith(f"tide: error: {message}")
    assert not (tmp_path / "out").exists()


def test_a_target_is_needed(cli, checkpoint, tmp_path):
    words = ["--prompt", "a red cube", "--erase", "1", "--beside", "--out", tmp_path / "out"]
    result = cli("edit", "--sae", checkpoint, *words)
    assert result.code == 2
    assert result.err.startswith("tide: error: --beside is not used without a target; leave it off")
