"""What a pipeline's folder, a checkpoint and a store do not do unasked: run code, read pickles, load a pipeline."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from tests.helpers.cli_samples import SMALL
from tide import loading
from tide.adapters import adapter_for
from tide.adapters.trust import check_folder
from tide.cli import common, trust
from tide.errors import TideError


@pytest.fixture(autouse=True)
def agreeing() -> None:
    """Here nobody is asked in a test's stead."""


@pytest.fixture
def folder(pipeline, tmp_path) -> Path:
    """A copy of the pipeline, to be tampered with."""
    return shutil.copytree(pipeline, tmp_path / "folder")


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


#: A module that says that it ran by making a file beside the pipeline.
CODE = "import pathlib\n(pathlib.Path({ran!r})).touch()\nfrom diffusers import *\n"


def pipelines_code(folder: Path) -> Path:
    (folder / "mine.py").write_text(CODE.format(ran=str(folder.parent / "ran")) + PIPELINE)
    change(folder / "model_index.json", _class_name=["mine", "Mine"])
    return folder / "mine.py"


PIPELINE = """
from diffusers import PixArtAlphaPipeline
class Mine(PixArtAlphaPipeline):
    pass
"""
TRANSFORMER = """
from diffusers import PixArtTransformer2DModel
class Mine(PixArtTransformer2DModel):
    pass
"""


def components_code(folder: Path) -> Path:
    (folder / "transformer/mine.py").write_text(CODE.format(ran=str(folder.parent / "ran")) + TRANSFORMER)
    change(folder / "model_index.json", transformer=["mine", "Mine"])
    return folder / "transformer/mine.py"


def code_in_the_librarys_name(folder: Path) -> Path:
    file = folder / "transformer/diffusers.py"
    file.write_text(CODE.format(ran=str(folder.parent / "ran")) + TRANSFORMER)
    change(folder / "model_index.json", transformer=["diffusers", "Mine"])
    return file


def a_module_of_python(folder: Path) -> Path:
    change(folder / "model_index.json", transformer=["antigravity", "Mine"])
    return folder / "model_index.json"


def a_module_that_is_loaded_already(folder: Path) -> Path:
    change(folder / "model_index.json", transformer=["tide.scenes.pipeline", "Mine"])
    return folder / "model_index.json"


def a_way_out_of_the_folder(folder: Path) -> Path:
    change(folder / "model_index.json", transformer=["../../mine", "Mine"])
    return folder / "model_index.json"


def auto_map(part: str, file: str) -> Any:
    def tamper(folder: Path) -> Path:
        change(folder / part / file, auto_map={"AutoModel": "mine.Mine"})
        return folder / part / file

    return tamper


def trusting_config(folder: Path) -> Path:
    change(folder / "text_encoder/config.json", trust_remote_code=True)
    return folder / "text_encoder/config.json"


def auto_map_beside_the_index(folder: Path) -> Path:
    """Diffusers loads a component without a folder from the pipeline's own."""
    for file in (folder / "tokenizer").iterdir():
        file.rename(folder / file.name)
    (folder / "tokenizer").rmdir()
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.Mine", None]})
    return folder / "tokenizer_config.json"


TAMPERED = {
    "pipeline": pipelines_code,
    "component": components_code,
    "component called diffusers": code_in_the_librarys_name,
    "module of Python": a_module_of_python,
    "module that is loaded": a_module_that_is_loaded_already,
    "path": a_way_out_of_the_folder,
    "text encoder's auto_map": auto_map("text_encoder", "config.json"),
    "tokenizer's auto_map": auto_map("tokenizer", "tokenizer_config.json"),
    "transformer's auto_map": auto_map("transformer", "config.json"),
    "auto_map beside the index": auto_map_beside_the_index,
    "trusting configuration": trusting_config,
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_code_of_a_folder_is_refused_and_named(cli, folder, images, tmp_path, kind):
    file = TAMPERED[kind](folder)
    result = cli("collect", "--pipeline", folder, "--data", images, "--block", 0, "--out", tmp_path / "out")
    assert result.code == 2
    assert result.err.startswith(f"tide: error: {file} brings ")
    assert result.err.endswith("; read it, and add --trust-remote-code to run it\n")
    assert result.err.count("\n") == 1
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["pipeline", "component"])
def test_code_runs_where_it_is_asked_for(folder, tmp_path, kind):
    TAMPERED[kind](folder)
    pipe = loading._from_pretrained(str(folder), torch.float32, {}, trust=True)
    assert (tmp_path / "ran").exists()
    assert adapter_for(pipe).family == "pixart"
    assert "Mine" in (type(pipe).__name__, type(pipe.transformer).__name__)


def test_the_bundled_pipeline_has_no_code_to_trust(cli, images, tmp_path):
    command = ["collect", "--pipeline", "scenes", "--data", images, "--trust-remote-code", "--out", tmp_path / "out"]
    message = "trust_remote_code is for pipelines that bring code, not the bundled one; leave it off"
    assert cli(*command) == (2, "", f"tide: error: {message}\n")


def test_a_part_that_is_not_loaded_may_be_anything(folder):
    auto_map("text_encoder", "config.json")(folder)
    with pytest.raises(TideError, match="auto_map"):
        check_folder(folder, trust=False)
    check_folder(folder, trust=False, left_out={"text_encoder": None})


def test_entries_that_are_no_parts_are_not_followed_out_of_the_folder(folder, tmp_path):
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModel": "mine.Mine"}}')
    change(folder / "model_index.json", **{"..": ["diffusers", "Mine"], str(tmp_path): ["diffusers", "Mine"]})
    check_folder(folder, trust=False)


def test_a_plain_folder_passes(folder):
    check_folder(folder, trust=False)


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_pickled_weights_are_never_read(folder, part, trusted, tmp_path):
    class Runs:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    (weights,) = (folder / part).glob("*.safetensors")
    stem = "diffusion_pytorch_model" if part == "transformer" else "pytorch_model"
    (folder / part / f"{stem}.bin").write_bytes(pickle.dumps(Runs()))
    loading._from_pretrained(str(folder), torch.float32, {})  # beside safetensors they are not looked at
    weights.unlink()
    with pytest.raises(TideError, match=rf"{stem}.bin is pickled, which can run code .*; save the weights as safetens"):
        loading._from_pretrained(str(folder), torch.float32, {}, trust=trusted)
    assert not (tmp_path / "ran").exists()


def test_a_pipeline_of_a_hub_is_looked_at_before_it_is_loaded(folder, monkeypatch, tmp_path):
    given: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        given.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(DiffusionPipeline, "download", download)
    assert loading._from_pretrained("some/model", torch.float32, {}).transformer is not None
    assert given == {"name": "some/model", "use_safetensors": True, "trust_remote_code": False}
    pipelines_code(folder)
    with pytest.raises(TideError, match=r"mine\.py brings code of its own"):
        loading._from_pretrained("some/model", torch.float32, {})
    assert not (tmp_path / "ran").exists()


# -- pipelines that a file names --------------------------------------------------------------------------------------


@pytest.fixture
def unloaded(monkeypatch) -> list[str]:
    """Names of the pipelines that would be loaded; loading one ends the command."""
    names: list[str] = []

    def load(name: str, **_: Any) -> None:
        names.append(name)
        raise TideError("far enough")

    monkeypatch.setattr(common, "load_adapter", load)
    return names


def commands(checkpoint: Path, store: Path, images: Path) -> dict[str, tuple[list[object], Path]]:
    """Every command that follows a name, and the file that holds it."""
    sae = ["--sae", checkpoint]
    return {
        "edit": (["edit", *sae, "--prompt", "a red house", "--erase", 1], checkpoint),
        "evaluate": (["evaluate", *sae, "--data", images], checkpoint),
        "sweep": (["sweep", *sae, "--data", images], checkpoint),
        "concepts": (["concepts", *sae, "--data", images, "--concepts", "near"], checkpoint),
        "atlas": (["atlas", *sae, "--data", images], checkpoint),
        "trajectory": (["trajectory", *sae, "--prompt", "a red house"], checkpoint),
        "effect": (["effect", *sae, "--prompt", "a red house", "--change", "red=blue"], checkpoint),
        "train": (["train", "--store", store / "block-6", *SMALL], store / "block-6"),
    }


COMMANDS = ("edit", "evaluate", "sweep", "concepts", "atlas", "trajectory", "effect", "train")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_named_pipeline_is_not_loaded_unasked(
    cli, checkpoint, store, images, pipeline, tmp_path, unloaded, monkeypatch, command
):
    arguments, source = commands(checkpoint, store, images)[command]
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))  # nobody is there
    refusal = f"{source} is of the pipeline {pipeline}, which is not loaded unasked; give --pipeline {pipeline}"
    assert cli(*arguments, "--out", tmp_path / "out") == (2, "", f"tide: error: {refusal}\n")
    assert not unloaded
    assert not (tmp_path / "out").exists()
    assert cli(*arguments, "--pipeline", pipeline, "--out", tmp_path / "out").err == "tide: error: far enough\n"
    assert unloaded == [str(pipeline)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("answer", "loads"),
    [("y\n", True), ("Yes\n", True), ("\n", False), ("n\n", False), ("", False), ("yesterday\n", False)],
    ids=["y", "yes", "enter", "n", "end of input", "another word"],
)
def test_a_person_is_asked(cli, checkpoint, pipeline, tmp_path, unloaded, monkeypatch, answer, loads):
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", err := Terminal())
    cli("edit", "--sae", checkpoint, "--prompt", "a red house", "--erase", 1, "--out", tmp_path / "out")
    assert err.getvalue().startswith(f"{checkpoint} is of the pipeline {pipeline}; load it? [y/N] tide: error: ")
    assert unloaded == ([str(pipeline)] if loads else [])


@pytest.mark.parametrize("name", [None, 5, "", " ", ["scenes"], "a\nb", "\x1b[2Jscenes"])
def test_a_name_that_is_none_is_not_shown(name):
    with pytest.raises(TideError, match=r"^here does not name its pipeline; give --pipeline$"):
        trust.followed(name, "here")


def test_the_bundled_pipeline_needs_no_question(monkeypatch):
    monkeypatch.setattr(trust, "_agreed", lambda question: pytest.fail("asked"))
    assert trust.followed("scenes", "here") == "scenes"


def test_a_plain_sae_of_a_store_records_the_name_and_loads_nothing(cli, store, pipeline, tmp_path, unloaded):
    options = ["--store", store / "block-3", "--sae", "--steps", 2, *SMALL]
    assert cli("train", *options, "--out", tmp_path / "sae").code == 0
    assert json.loads((tmp_path / "sae/config.json").read_text())["pipeline"] == str(pipeline)
    assert not unloaded
