"""What is said of pipelines that no adapter serves: what they draw with, and a remedy that can be followed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from tests.helpers.families import pipeline
from tests.helpers.others import build_unet
from tests.helpers.unknown import unknown
from tide import loading
from tide.adapters import adapter_for
from tide.adapters.registry import specs
from tide.adapters.unsupported import nearest
from tide.errors import TideError
from tide.loading import load_adapter

INSTEAD = "use a pipeline of one of the families that `tide adapters` lists (docs/adapters.md)"
UNET = (
    "StableDiffusionPipeline draws with a UNet (UNet2DConditionModel), and TIDE hooks diffusion transformers only; "
    + INSTEAD
)


def said(pipe: Any) -> str:
    with pytest.raises(TideError) as raised:
        adapter_for(pipe)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_unet():
    assert said(build_unet()) == UNET


def test_a_transformer_without_an_adapter():
    with unknown("lumina_next"):
        assert said(pipeline("lumina_next")) == (
            "LuminaNextDiT2DModel has no adapter; the nearest family is lumina2 (Lumina2Transformer2DModel). To add "
            "one, let `tide adapters probe --pipeline P --write my_family.py` propose it (docs/adapters.md), and name "
            "the file with --adapter (in Python: import it first)"
        )


def test_the_nearest_family_is_told_by_the_name_and_by_the_modules_of_a_loaded_model():
    known, model = specs(), pipeline("sana").transformer
    assert nearest("Flux9Transformer2DModel", known).family == "flux"
    assert nearest("Unheard", known, model).transformer == "SanaTransformer2DModel"
    others = [each for each in known if each.transformer != "SanaTransformer2DModel"]
    found = nearest("Unheard", others, model)
    assert (found.blocks[0].path, found.blocks[0].attention) == ("transformer_blocks", "attn1")


@pytest.mark.parametrize("pipe", ["scenes", Path("scenes"), None, 3, torch.nn.Linear(1, 1)], ids=repr)
def test_what_is_no_pipeline(pipe):
    assert said(pipe) == (
        f"a {type(pipe).__name__} is not a pipeline with a transformer; give a loaded one, or tide.load_adapter its "
        "name"
    )


def test_a_pipeline_without_its_transformer():
    own = pipeline("pixart")
    parts = {**own.components, "transformer": None}
    assert said(type(own)(**parts)) == (
        f"PixArtAlphaPipeline has no diffusion transformer, and TIDE hooks nothing else; {INSTEAD}"
    )


# -- told from model_index.json, before anything is read or downloaded ----------------------------------------------

#: Pipelines of diffusers, the part that draws, its class, and what is said of it.
OTHERS = {
    "StableDiffusionXLPipeline": ("unet", "UNet2DConditionModel", "draws with a UNet (UNet2DConditionModel)"),
    "LatentConsistencyModelPipeline": ("unet", "UNet2DConditionModel", "draws with a UNet"),
    "KandinskyV22Pipeline": ("unet", "UNet2DConditionModel", "draws with a UNet"),
    "StableCascadeDecoderPipeline": ("decoder", "StableCascadeUNet", "draws with a UNet (StableCascadeUNet)"),
    "WuerstchenDecoderPipeline": ("decoder", "WuerstchenDiffNeXt", "has no diffusion transformer"),
    "AmusedPipeline": ("transformer", "UVit2DModel", "UVit2DModel has no adapter"),
    "OmniGenPipeline": ("transformer", "OmniGenTransformer2DModel", "has no adapter; the nearest family is"),
    "HunyuanImagePipeline": ("transformer", "HunyuanImageTransformer2DModel", "has no adapter; the nearest family is"),
    "EasyAnimatePipeline": ("transformer", "EasyAnimateTransformer3DModel", "has no adapter; the nearest family is"),
    "SanaVideoPipeline": ("transformer", "SanaVideoTransformer3DModel", "the nearest family is sana"),
}


def folder_of(folder: Path, name: Any, **parts: Any) -> Path:
    """A pipeline's folder that holds nothing but its index."""
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name, "_diffusers_version": "0", **parts}))
    return folder


@pytest.mark.parametrize("name", [name for name in OTHERS if hasattr(diffusers, name)])
def test_others_are_refused_before_they_are_read(name, tmp_path):
    part, kind, expected = OTHERS[name]
    folder = folder_of(tmp_path, name, **{part: ["diffusers", kind]}, vae=["diffusers", "AutoencoderKL"])
    with pytest.raises(TideError) as raised:
        load_adapter(folder, device="cpu")
    assert expected in str(raised.value)
    assert ("--adapter" in str(raised.value)) == (part == "transformer")
    assert INSTEAD.split(" (")[0] in str(raised.value) or part == "transformer"


def test_a_name_of_a_hub_is_refused_before_it_is_downloaded(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, "StableDiffusionPipeline", unet=["diffusers", "UNet2DConditionModel"])
    index = json.loads((folder / "model_index.json").read_text())
    monkeypatch.setattr(diffusers.DiffusionPipeline, "load_config", lambda *_, **__: index)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", lambda *_, **__: pytest.fail("it was downloaded"))
    with pytest.raises(TideError) as raised:
        load_adapter("some/model", device="cpu")
    assert str(raised.value) == UNET


def test_a_pipeline_that_this_diffusers_does_not_have(tmp_path):
    folder = folder_of(tmp_path, "TomorrowPipeline", transformer=["diffusers", "TomorrowTransformer"])
    message = f"{folder} is a TomorrowPipeline, which diffusers {diffusers.__version__} does not have; update diffusers"
    with pytest.raises(TideError, match=f"^{message}, or name the module .* with --adapter$"):
        load_adapter(folder, device="cpu")


@pytest.mark.parametrize("index", [[], "words", {"transformer": "x"}, {"_class_name": 3}, {"_class_name": None}])
def test_a_damaged_index_is_one_line(index, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(TideError, match=r"could not be loaded|does not name its pipeline's class"):
        load_adapter(tmp_path, device="cpu")


@pytest.mark.parametrize("name", ["pixart", "dit"])
def test_a_config_of_the_old_class_is_read(name, tmp_path):
    """The published PixArt and DiT name ``Transformer2DModel``, which their config turns into the class of today."""
    own = pipeline(name)
    own.save_pretrained(tmp_path)
    index, config = tmp_path / "model_index.json", tmp_path / "transformer" / "config.json"
    changed = {**json.loads(index.read_text()), "transformer": ["diffusers", "Transformer2DModel"]}
    index.write_text(json.dumps(changed))
    norm = {"pixart": "ada_norm_single", "dit": "ada_norm_zero"}[name]
    old = {**json.loads(config.read_text()), "_class_name": "Transformer2DModel", "norm_type": norm}
    config.write_text(json.dumps(old))
    assert load_adapter(tmp_path, device="cpu").family == name


def test_loading_reads_the_index_once_it_is_known_to_be_served(tmp_path, monkeypatch):
    pipeline("dit").save_pretrained(tmp_path)
    read: list[str] = []
    monkeypatch.setattr(loading, "check_served", lambda name, index, **_: read.append(index["_class_name"]))
    assert load_adapter(tmp_path, device="cpu").family == "dit"
    assert read == ["DiTPipeline"]
