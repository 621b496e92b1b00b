"""``tide bank``, and ``tide edit`` with the names of a bank."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tests.helpers.banks import small_bank
from tide.cli.bank import FILE
from tide.editing import load_bank, save_bank
from tide.loading import load_adapter, load_sae
from tide.runs import contents

DRAW = ["--prompt", "a red house", "--n-steps", 2, "--guidance", 2]
READ = ["--images-per-concept", 4, "--timesteps", 2, "--tokens", 16]


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture(scope="module")
def sae(checkpoint, pipeline):
    return load_sae(checkpoint, load_adapter(str(pipeline), device="cpu"))


@pytest.fixture(scope="module")
def bank(sae, tmp_path_factory):
    path = tmp_path_factory.mktemp("banks") / "bank.safetensors"
    save_bank(path, small_bank(sae))
    return path


# -- making one ---------------------------------------------------------------------------------------------------


def test_words_of_captions(cli, checkpoint, pipeline, images, sae, tmp_path):
    out = tmp_path / "out"
    line = ["--pipeline", pipeline, "--data", images, "--concepts", "near,far", "--contrasts", "near=far", *READ]
    result = cli("bank", "--sae", checkpoint, *line, "--out", out)
    assert result.code == 0, result.err
    found = load_bank(out / FILE)
    found.check_model(sae)
    assert list(found.concepts) == ["near", "far"]
    assert list(found.contrasts) == [("near", "far")]
    assert found.concepts["near"].tokens.shape == found.contrasts["near", "far"].keys.shape == (2, 16, 192)
    assert found.contrasts["near", "far"].values.any()
    report, holds = json.loads((out / "bank.json").read_text()), contents(out)
    assert (holds.kind, holds.files) == ("bank", {FILE: "table", "bank.json": "figures"})
    assert report["timesteps"] == found.timesteps.tolist()
    for name, row in report["concepts"].items():
        assert row["latents"] == found.concepts[name].features.tolist()
        assert f"{name}: 16 tokens; told with an AUROC of {row['auroc']:.2f} on other images." in result.out
    assert result.out.endswith(f"Recorded near, far, near to far at block 6; see {out}/{FILE}.\n")


@pytest.mark.slow
def test_concepts_of_scenes(cli, checkpoint, sae, tmp_path):
    """Under their masks, and not on the ground around them."""
    out = tmp_path / "out"
    line = ["--pipeline", "scenes", "--concepts", "red,house", "--contrasts", "red=blue", "--images-per-concept", 48]
    result = cli("bank", "--sae", checkpoint, *line, "--timesteps", 2, "--tokens", 16, "--out", out)
    assert result.code == 0, result.err
    found = load_bank(out / FILE)
    assert list(found.concepts) == ["red", "house"]
    assert found.contrasts["red", "blue"].keys.shape == (2, 16, 192)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--data", "{images}", "--concepts", "zeppelin"], "no caption holds 'zeppelin'"),
        (["--data", "{images}", "--concepts", "near", "--contrasts", "near"], "is not a change of a word"),
        (["--concepts", "near"], "what to record concepts in is not clear; give --data"),
    ],
)
def test_what_cannot_be_recorded(cli, checkpoint, pipeline, images, tmp_path, line, message):
    words = [each.format(images=images) for each in line]
    result = cli("bank", "--sae", checkpoint, "--pipeline", pipeline, *words, "--out", tmp_path / "out")
    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "out").exists()


# -- editing with it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [[], ["--what-by", "mean"], ["--what-by", "latents", "--what-from", "red"]], ids=" ".join
)
def test_a_concept_is_put_where_another_is(cli, checkpoint, bank, tmp_path, options):
    out = tmp_path / "out"
    line = ["--bank", bank, "--where", "house", "--what", "blue", *options, "--strength", 0.5, 1, "--show-where"]
    result = cli("edit", "--sae", checkpoint, *DRAW, *line, "--out", out)
    assert result.code == 0, result.err
    rows = json.loads((out / "edit.json").read_text())["edits"]
    assert [row["strength"] for row in rows] == [0.5, 1.0]
    for row in rows:
        assert 0 < row["edited_tokens"] <= 2 * 64
        assert len(row["tokens_by_step"]) == 2
    assert rows[0]["activation_change"] < rows[1]["activation_change"]
    assert not np.array_equal(pixels(out / "before.png"), pixels(out / "after-1.png"))
    assert (out / "where.png").is_file()


def test_a_contrast_goes_from_one_concept_to_the_other(cli, checkpoint, bank, tmp_path):
    line = ["--bank", bank, "--what", "blue", "--what-by", "contrast"]
    result = cli("edit", "--sae", checkpoint, *DRAW, *line, "--what-from", "red", "--out", tmp_path / "out")
    assert result.code == 0, result.err
    result = cli("edit", "--sae", checkpoint, *DRAW, *line, "--out", tmp_path / "other")
    assert result.err == (
        "tide: error: a contrast goes from one concept to another; name the source (the bank has red to blue)\n"
    )


def test_a_folder_that_tide_bank_wrote_will_do(cli, checkpoint, bank, tmp_path):
    (tmp_path / FILE).write_bytes(bank.read_bytes())
    line = ["--bank", tmp_path, "--where", "house,red", "--erase", 3]
    result = cli("edit", "--sae", checkpoint, *DRAW, *line, "--out", tmp_path / "out")
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--erase", "1", "--where", "house"], "--where names 'house'; give --bank"),
        (["--what", "blue"], "--what names a concept; give --bank"),
        (["--erase", "1", "--bank", "{bank}"], "nothing of --bank is asked for"),
        (["--what", "bleu", "--bank", "{bank}"], "does not hold 'bleu'; did you mean 'blue'?"),
        (["--erase", "1", "--where", "hause", "--bank", "{bank}"], "does not hold 'hause'; did you mean 'house'?"),
        (["--what", "blue", "--bank", "{bank}", "--renormalise"], "--renormalise keeps the norm of latents"),
        (["--what", "blue", "--bank", "/none/bank"], "/none/bank does not exist"),
    ],
)
def test_what_does_not_go_together(cli, checkpoint, bank, tmp_path, line, message):
    words = [each.format(bank=bank) for each in line]
    result = cli("edit", "--sae", checkpoint, *DRAW, *words, "--out", tmp_path / "out")
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
