"""``tide adapters``: a newcomer's transformer, from its folder to an edit by the steps of docs/adapters.md."""

from __future__ import annotations

import importlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler

from tests.helpers.adapters import own_modules
from tests.helpers.families import pipeline as tiny
from tests.helpers.others import build_unet
from tests.helpers.pages import blocks
from tests.helpers.unknown import unknown

#: The bar: seconds from the folder to the edit.
BAR = 600


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Iterator[Path]:
    """The current folder, with the model of docs/adapters.md, which TIDE does not know, saved as a pipeline."""
    (model,) = (each for each in blocks("docs/adapters.md") if each.file == "my_model.py")
    (tmp_path / "my_model.py").write_text(model.text)
    monkeypatch.chdir(tmp_path)
    with own_modules(tmp_path):
        module = importlib.import_module("my_model")
        torch.manual_seed(0)
        pipe = module.MyPipeline(module.MyTransformer(), AutoencoderTiny(), DDIMScheduler())
        pipe.save_pretrained("my-pipeline")
        yield tmp_path


PROBE = ("adapters", "probe", "--pipeline", "my-pipeline", "--code", "my_model.py", "--write", "my_family.py")
OWN = ("--adapter", "my_family.py", "--pipeline", "my-pipeline")


def test_from_a_folder_to_an_edit(cli, folder, images):
    began = time.monotonic()
    probed = cli(*PROBE)
    assert probed.code == 0, probed.err
    assert "10 of 10 checks passed." in probed.out
    checked = cli("adapters", "check", *OWN)
    assert (checked.code, checked.out.splitlines()[-1]) == (0, "10 of 10 checks passed.")
    assert "failed" not in checked.out
    small = ("--steps", "4", "--set", "n_latents=64", "k=8", "batch_tokens=32")
    for words in (
        ("collect", "--data", images, "--block", "1", "--out", "acts"),
        ("train", "--store", "acts", "--out", "sae", *small),
        ("edit", "--sae", "sae", "--prompt", "a red house", "--erase-top", "4", "--n-steps", "4", "--out", "edit"),
    ):
        result = cli(*words, *OWN)
        assert result.code == 0, result.err
    assert (folder / "edit" / "strip.png").is_file()
    assert time.monotonic() - began < BAR


def test_what_the_probe_says_of_the_newcomer(cli, folder):
    out = cli(*PROBE).out
    for line in (
        "blocks              3 of MyBlock, width 32, output: image, text",
        "  attention         none to hook",
        "  feed_forward      mix (image -> image)",
        "  modulation msa    chunks shift 0, scale 1 of blocks.0.adaln",
        "timestep            timestep = t / 1000",
        "text                prompt = output 0",
        "guidance            conditional, unconditional, by guidance_scale",
    ):
        assert line in out.splitlines()
    assert "not found: what the VAE decodes: the pipeline did not call it; check encode_images" in out
    text = (folder / "my_family.py").read_text()
    assert "# not found: what the VAE decodes" in text
    assert len(text.splitlines()) <= 40
    assert "max_shift" not in text  # a default


def test_what_is_hooked_in_its_pipeline(cli, folder):
    cli(*PROBE)
    found = cli("adapters", *OWN, "--json")
    assert found.code == 0, found.err
    said = {each["what"]: each["said"] for each in json.loads(found.out)}
    assert said["blocks 0 to 2"] == "blocks, 3 of MyBlock"
    assert said["  feed_forward of 0"] == "mix [2, 8, 32]"
    assert said["image tokens"] == "4 x 4 = 16 at the pipeline's own size, 8 x 8 latents"


def test_an_adapter_that_does_not_fit_is_told_by_a_line_and_the_exit_code(cli, folder):
    cli(*PROBE)
    file = folder / "wrong.py"
    file.write_text((folder / "my_family.py").read_text().replace("image, text", "text, image"))
    shutil.move(folder / "my_family.py", folder / "right.py")
    result = cli("adapters", "check", "--pipeline", "my-pipeline", "--adapter", "wrong.py")
    assert result.code == 1
    line = next(line for line in result.out.splitlines() if line.startswith("failed"))
    assert line.split("   ")[-1].strip() == "the tokens of block 0 are [2, 1, 32], expected [2, 8, 32]"
    assert "passed." in result.out.splitlines()[-1]


@pytest.mark.parametrize("name", ["pixart", "flux"])
def test_a_real_transformer(cli, tmp_path, name):
    """Of diffusers, whose adapter TIDE has lost: the file serves its pipeline."""
    tiny(name).save_pretrained(tmp_path / "pipeline")
    file = tmp_path / f"own_{name}.py"
    with own_modules(tmp_path), unknown(name):
        probed = cli("adapters", "probe", "--pipeline", tmp_path / "pipeline", "--write", file)
        assert probed.code == 0, probed.err
        assert "11 of 11 checks passed." in probed.out
        assert "not found" not in probed.out
        described = cli("adapters", "--pipeline", tmp_path / "pipeline", "--adapter", file)
        assert f"family{' ' * 15}{name}" in described.out


def test_the_list_of_families(cli):
    found = cli("adapters")
    assert found.code == 0
    assert found.out.splitlines()[0].split() == [
        *("family", "draws", "models", "transformer", "pipelines", "needs", "diffusers")
    ]
    assert "FluxTransformer2DModel" in found.out
    assert {each["family"] for each in json.loads(cli("adapters", "--json").out)} >= {"flux", "pixart", "sd3"}


# -- bad input --------------------------------------------------------------------------------------------------------


def test_an_unknown_transformer_names_the_nearest_family_and_the_probe(cli, tmp_path):
    tiny("sd3").save_pretrained(tmp_path / "p")
    with unknown("sd3"):
        for words in (("adapters",), ("adapters", "check"), ("collect", "--data", "scenes", "--out", tmp_path / "o")):
            result = cli(*words, "--pipeline", tmp_path / "p")
            assert result.code == 2
            assert result.err.count("\n") == 1
            assert "SD3Transformer2DModel has no adapter; the nearest family is " in result.err
            assert "`tide adapters probe --pipeline P --write my_family.py`" in result.err


def test_bad_input_is_one_line(cli, tmp_path, folder):
    (tmp_path / "there.py").write_text("# mine\n")
    build_unet().save_pretrained(tmp_path / "unet")
    probe = ("adapters", "probe", "--pipeline")
    for words, said in (
        ((*probe, "my-pipeline", "--write", "there.py"), "there.py exists; give another name, or remove it"),
        ((*probe, "my-pipeline", "--write", "a/b.py"), "the folder of a/b.py does not exist; make it first"),
        ((*probe, "my-pipeline", "--write", "x.txt"), "x.txt is not the name of a module"),
        ((*probe, "my-pipeline"), "where the adapter is to be written is not named"),
        (
            (*probe, "my-pipeline", "--write", "new.py"),
            "update diffusers, or name the module that defines it with --code",
        ),
        ((*probe, "my-pipeline", "--write", "new.py", "--code", "no.py"), "no.py does not exist"),
        ((*probe, "unet", "--write", "new.py"), "StableDiffusionPipeline draws with a UNet (UNet2DConditionModel)"),
        (("adapters", "probe", "--write", "new.py"), "--write is not used without --pipeline"),
        (("adapters", "check"), "what to check is not named; give --pipeline"),
        (("adapters", "look"), "'look' is not an action; use probe or check, or leave it off"),
        (("adapters", "--pipeline", "scenes", "--component", "transformer_2"), "the pipeline has no transformer_2"),
    ):
        result = cli(*words)
        assert result.code == 2, words
        assert result.err.count("\n") == 1
        assert said in result.err
    assert (tmp_path / "there.py").read_text() == "# mine\n"
    assert not (tmp_path / "new.py").exists()
