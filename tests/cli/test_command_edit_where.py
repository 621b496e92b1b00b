"""``tide edit --where``: latents draw the mask at every step."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tide.runs import contents

ALL = ",".join(map(str, range(32)))
RUN = ["--prompt", "a red house", "--erase", ALL, "--n-steps", 4, "--guidance", 2]


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_a_mask_of_latents_is_drawn_and_shown(cli, checkpoint, tmp_path):
    out = tmp_path / "out"
    options = ["--where", ALL, "--where-threshold", 1, "--where-smooth", 1, "--where-grow", 1, "--where-hold", "1/2"]
    result = cli("edit", "--sae", checkpoint, *RUN, *options, "--strength", 0.5, 1, "--show-where", "--out", out)
    assert (result.code, result.err) == (0, "")
    rows = json.loads((out / "edit.json").read_text())["edits"]
    for row in rows:
        assert len(row["tokens_by_step"]) == 4
        assert sum(row["tokens_by_step"]) == row["edited_tokens"]
        counts = row["tokens_by_step"]
        words = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        assert f"The mask had {words} of 64 tokens a step at strength {row['strength']:g}." in result.out
    assert result.out.rstrip().endswith(f"see {out / 'strip.png'} and where.png.")
    assert contents(out).files["where.png"] == "picture"
    assert pixels(out / "where.png").shape[1] > 4 * 256
    assert pixels(out / "where.png").shape[0] > 2 * 256


def test_without_showing_it_there_is_no_such_picture(cli, checkpoint, tmp_path):
    result = cli("edit", "--sae", checkpoint, *RUN, "--where", ALL, "--out", tmp_path / "out")
    assert result.code == 0
    assert not (tmp_path / "out" / "where.png").exists()


def test_latents_that_never_turn_on_leave_the_picture_and_say_so(cli, checkpoint, tmp_path):
    out = tmp_path / "out"
    result = cli("edit", "--sae", checkpoint, *RUN, "--where", "3,9", "--where-threshold", "1e6", "--out", out)
    assert result.code == 0
    said = "Nothing changed at strength 1: latents 3, 9 never passed the threshold in this run; highest score "
    assert said in result.out
    assert np.array_equal(pixels(out / "before.png"), pixels(out / "after-1.png"))
    assert json.loads((out / "edit.json").read_text())["edits"][0]["tokens_by_step"] == [0] * 4


def test_within_a_mask_of_a_picture(cli, checkpoint, tmp_path):
    """All tokens are on, and the edit reaches the left half alone."""
    half = np.zeros((64, 64), np.uint8)
    half[:, :32] = 255
    Image.fromarray(half).save(tmp_path / "half.png")
    options = ["--where", ALL, "--where-threshold", -1, "--mask", tmp_path / "half.png"]
    out = tmp_path / "out"
    assert cli("edit", "--sae", checkpoint, *RUN, *options, "--out", out).code == 0
    assert json.loads((out / "edit.json").read_text())["edits"][0]["tokens_by_step"] == [32] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--where", "100000"], "feature 100000 does not exist; this SAE has latents 0.."),
        (["--where", "1", "--where-hold", "1.5"], "--where-hold 1.5 is not a share of the threshold; give 0 to 1"),
        (["--where-grow", "1"], "--where-grow is not used without --where; leave it off"),
        (["--show-where"], "--show-where is not used without --where; leave it off"),
    ],
)
def test_what_is_refused(cli, checkpoint, tmp_path, options, message):
    result = cli("edit", "--sae", checkpoint, *RUN, *options, "--out", tmp_path / "out")
    assert result.code == 2
    assert result.err.startswith(f"tide: error: {message}")
    assert not (tmp_path / "out").exists()
