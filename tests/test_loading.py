"""Pipelines and checkpoints by name: what is refused, paths of both kinds, and a name read without weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tide import loading
from tide.errors import TideError
from tide.loading import load_adapter, load_sae
from tide.pipeline_names import BUNDLED, recorded_pipeline
from tide.sae import TIDE, TIDEConfig
from tide.scenes.pipeline import DATA


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "dtype 'float16' is unknown; use one of bf16, fp16, fp32"),
        ({"dtype": ""}, "dtype '' is unknown; use one of bf16, fp16, fp32"),
        ({"device": "cpu", "offload": True}, "offload moves models between a GPU and the CPU"),
        ({"trust_remote_code": True}, "trust_remote_code is for pipelines that bring code, not the bundled one"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(TideError) as raised:
        load_adapter(BUNDLED, **options)
    assert str(raised.value).startswith(message)


@pytest.fixture(scope="module")
def bundled():
    return load_adapter(BUNDLED, device="cpu", denoiser_only=True)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_is_a_string_or_a_path(kind, bundled):
    assert bundled.name == BUNDLED
    folder = DATA / "pipeline"
    assert load_adapter(kind(folder), device="cpu", denoiser_only=True).name == str(folder.resolve())


def test_a_bug_in_the_check_of_a_folder_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(loading, "check_folder", lambda *_a, **_k: (_ for _ in ()).throw(TypeError("a bug")))
    with pytest.raises(TypeError, match="a bug"):
        load_adapter(DATA / "pipeline", device="cpu", denoiser_only=True)


def config(**changes) -> TIDEConfig:
    return TIDEConfig(d_model=192, n_latents=64, k=4, block=6, **changes)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_checkpoint_is_a_string_or_a_path(tmp_path, kind, bundled):
    TIDE(config(pipeline=BUNDLED)).save_pretrained(tmp_path)
    assert load_sae(kind(tmp_path), bundled, block="penultimate").config.block == 6
    assert recorded_pipeline(kind(tmp_path)) == BUNDLED


def test_a_checkpoint_without_a_block(tmp_path, bundled):
    TIDE(TIDEConfig(d_model=192, n_latents=64, k=4)).save_pretrained(tmp_path)
    with pytest.raises(TideError, match="does not know its block"):
        load_sae(tmp_path, bundled)


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        (None, None),
        ("a/name", "a/name"),
        ("/folder/transformer", "/folder"),
        (str(DATA / "pipeline" / "transformer"), BUNDLED),
    ],
)
def test_the_pipeline_of_a_checkpoint_is_read_without_its_weights(tmp_path, monkeypatch, recorded, expected):
    TIDE(config(pipeline=recorded)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["pipeline"] == recorded
    monkeypatch.setattr("tide.sae.checkpoint.read_tensors", lambda *_a: pytest.fail("the weights were read"))
    assert recorded_pipeline(tmp_path) == expected
