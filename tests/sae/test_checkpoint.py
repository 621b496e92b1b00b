"""Checkpoints: bit-equal round trips, one-line errors for what is not one, and no harm done by a failed save."""

from __future__ import annotations

import errno
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tide.errors import TideError
from tide.files import replace_file
from tide.images.trained import TrainedOn
from tide.sae import TIDE, ModulationConfig, Position, TIDEConfig

MODULATION = ModulationConfig(d_model=6, d_embedding=10, n_frequencies=8, conditioned=True)


def model(*, seed: int = 0, **options) -> TIDE:
    where = {"family": "pixart", "pipeline": "some/model", "block": 6, "tensor": "attention"}
    sae = TIDE(TIDEConfig(6, 20, **{"k": 3, "modulation": MODULATION, **where, **options}), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    sae.calibrate(
        torch.randn(30, 6, generator=generator), Position(3.0, torch.randn(1, 10) if sae.modulation else None)
    )
    return sae


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model().save_pretrained(tmp_path / "sae")
    return tmp_path / "sae"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"modulation": None, "family": None, "block": None},
        {"encoder_bias": False, "decoder_bias": False},
        {"undo": True, "pre_norm": "layernorm"},
    ],
    ids=["tide", "sae", "no biases", "undo"],
)
def test_round_trip_is_bit_equal(tmp_path, options):
    original = model(**options)
    original.save_pretrained(str(tmp_path / "new" / "folder"))
    loaded = TIDE.from_pretrained(str(tmp_path / "new" / "folder"), backend="reference")
    assert loaded.config == original.config
    assert loaded.backend == "reference"
    assert not loaded.training
    before, after = original.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]), name
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["config.json", "model.safetensors"]


def test_what_is_written(saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["format"] == "tide-sae/1"
    assert (config["family"], config["block"], config["tensor"]) == ("pixart", 6, "attention")
    assert config["versions"]["torch"] == torch.__version__
    assert {"W_enc", "b_enc", "W_dec", "b_dec", "activation_scale"} < load_file(saved / "model.safetensors").keys()


IMAGES = TrainedOn(("photos", "scenes"), frozenset({"00" * 8, "pixels 0123456789abcdef", "fedcba9876543210"}), 0.1)


@pytest.mark.parametrize("trained_on", [None, IMAGES, TrainedOn(("prompts.txt",), frozenset())], ids=["", "3", "none"])
def test_the_images_that_trained_it_are_kept(tmp_path, trained_on):
    original = model()
    original.trained_on = trained_on
    original.save_pretrained(tmp_path)
    assert TIDE.from_pretrained(tmp_path).trained_on == trained_on
    config = json.loads((tmp_path / "config.json").read_text())
    n = None if trained_on is None else len(trained_on.images)
    assert config.get("trained_on", {}).get("images") == n
    if trained_on == IMAGES:
        assert config["trained_on"] == {"data": ["photos", "scenes"], "images": 3, "hold_out": 0.1}
    model().save_pretrained(tmp_path)  # one that does not say
    assert TIDE.from_pretrained(tmp_path).trained_on is None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: edit_config(f, trained_on=None), r"\(trained_on\): "),
        (lambda f: edit_config(f, trained_on={"data": ["a"], "hold_out": 0.1}), r"\(trained_on\): images is missing"),
        (
            lambda f: edit_config(f, trained_on={"data": ["a"], "images": 2, "hold_out": 0.1}),
            r"trained_on is of 2 images and their digests are torch.uint8 \[3, 9\]; the files are of different",
        ),
        (lambda f: edit_weights(f, trained_on=None), "trained_on is of 3 images and their digests are none"),
        (lambda f: edit_weights(f, trained_on=torch.ones(3, 9)), r"digests are torch.float32 \[3, 9\]"),
    ],
    ids=["no entry", "half an entry", "another number", "no digests", "not digests"],
)
def test_a_record_of_images_that_does_not_fit(tmp_path, spoil, message):
    original = model()
    original.trained_on = IMAGES
    original.save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(TideError, match=message):
        TIDE.from_pretrained(tmp_path)


def test_weights_of_another_precision_are_read_as_float32(saved):
    tensors = {name: value.half() for name, value in load_file(saved / "model.safetensors").items()}
    save_file(tensors, saved / "model.safetensors")
    loaded = TIDE.from_pretrained(saved)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.W_enc.detach(), tensors["W_enc"].float())


def test_expectations_that_hold(saved):
    TIDE.from_pretrained(saved, d_model=6, block=6, family="pixart", tensor="attention", k=None)


def test_an_expectation_of_what_was_not_recorded_holds(tmp_path):
    model(block=None).save_pretrained(tmp_path)
    assert TIDE.from_pretrained(tmp_path, block=3).config.block is None


# -- bad checkpoints ------------------------------------------------------------------------------------------


def edit_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder: Path, **changes) -> None:
    tensors = load_file(folder / "model.safetensors") | changes
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "model.safetensors")


def truncated(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"W_enc": 1}))


def zipped(folder: Path) -> None:
    torch.save({"W_enc": torch.ones(2)}, folder / "model.safetensors")


BAD = {
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json does not exist; check the path"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors does not exist; the checkpoint"),
    "config is a folder": (
        lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()),
        r"config\.json is not a file; check the path",
    ),
    "config truncated": (lambda f: truncated(f, "config.json"), r"config\.json is not valid JSON .* make it again"),
    "config is binary": (
        lambda f: (f / "config.json").write_bytes(b"\x80\x81\xff"),
        r"config\.json is not UTF-8 text .* make it again",
    ),
    "config of another kind": (
        lambda f: (f / "config.json").write_text('{"d_model": 6}'),
        "is not the config of a TIDE checkpoint; give the folder that",
    ),
    "config is a list": (
        lambda f: (f / "config.json").write_text("[1]"),
        "is not the config of a TIDE checkpoint; give the folder that",
    ),
    "config lacks a field": (
        lambda f: (f / "config.json").write_text('{"format": "tide-sae/1", "d_model": 6}'),
        "k is missing; the file is damaged or of another version, make it again",
    ),
    "a size is a word": (lambda f: edit_config(f, k="3"), "k is '3' and must be a whole number; .* make it again"),
    "a size is a fraction": (
        lambda f: edit_config(f, n_latents=20.5),
        r"n_latents is 20\.5 and must be a whole",
    ),
    "a number is not finite": (
        lambda f: edit_config(f, bandwidth=float("inf")),
        "bandwidth is inf and must be",
    ),
    "modulation of an unknown field": (
        lambda f: edit_config(f, modulation={"d_model": 6, "d_embedding": 10, "depth": 2}),
        r"modulation\.depth is unknown; a newer version may have written it",
    ),
    "k above n": (lambda f: edit_config(f, k=21), "k = 21 must lie between 1 and n_latents = 20; lower k"),
    "weights truncated": (
        lambda f: truncated(f, "model.safetensors"),
        r"not a readable safetensors file \(truncated or foreign.*make it again",
    ),
    "weights empty": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        r"not a readable safetensors file \(truncated or foreign.*make it again",
    ),
    "weights pickled": (pickled, r"not a readable safetensors file \(a pickle, which is never loaded.*make it again"),
    "weights of torch.save": (zipped, r"not a readable safetensors file \(a pickle, which is never loaded.*make it"),
    "a tensor is missing": (
        lambda f: edit_weights(f, W_dec=None),
        "lacks W_dec; config.json and model",
    ),
    "a tensor too many": (lambda f: edit_weights(f, W_gate=torch.ones(2)), "holds W_gate, which nothing asks for"),
    "a size that no memory holds": (
        lambda f: edit_config(f, n_latents=10**15),
        r"W_enc has shape \[20, 6\], the config asks for \[1000000000000000, 6\]",
    ),
    "weights not finite": (
        lambda f: edit_weights(f, W_dec=torch.full((20, 6), float("nan"))),
        "W_dec holds NaN or inf; config.json and model.safetensors are of different checkpoints, or damaged",
    ),
    "finite only in float64": (
        lambda f: edit_weights(f, W_dec=torch.full((20, 6), 1e300, dtype=torch.float64)),
        "W_dec holds NaN or inf",
    ),
    "whole numbers as weights": (
        lambda f: edit_weights(f, W_dec=torch.ones(20, 6, dtype=torch.int32)),
        "W_dec is int32, not float32",
    ),
    "a scale of zero": (
        lambda f: edit_weights(f, activation_scale=torch.zeros(())),
        "activation_scale is 0 and must be positive",
    ),
    "a negative scale": (
        lambda f: edit_weights(f, activation_scale=torch.tensor(-2.0)),
        "activation_scale is -2 and must be positive",
    ),
    "weights of a TIDE, config of an SAE": (
        lambda f: edit_config(f, modulation=None),
        r"holds modulation\.linear.*of different checkpoints",
    ),
    "a tensor of another shape": (
        lambda f: edit_weights(f, W_dec=torch.ones(20, 7)),
        r"W_dec has shape \[20, 7\], the config asks for \[20, 6\]; config.json and model.safetensors are of",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_checkpoint_is_a_one_line_error(saved, name):
    spoil, message = BAD[name]
    spoil(saved)
    with pytest.raises(TideError, match=message) as caught:
        TIDE.from_pretrained(saved)
    assert "\n" not in str(caught.value)
    assert str(saved) in str(caught.value) or name == "k above n"


BAD_THRESHOLDS = {
    "BatchTopK's is missing": ("batch_topk", {"activation.threshold": None}, "lacks activation.threshold; config"),
    "JumpReLU's are missing": ("jumprelu", {"activation.slow_log_threshold": None}, "lacks activation.slow_log_thre"),
    "negative": (
        "batch_topk",
        {"activation.threshold": torch.tensor(-1.0)},
        "threshold is -1 and must be at least 0",
    ),
    "not finite": ("batch_topk", {"activation.threshold": torch.tensor(float("nan"))}, "threshold holds NaN or inf; "),
    "of another size": ("batch_topk", {"activation.threshold": torch.ones(3)}, r"threshold has shape \[3\]"),
    "of another activation": ("jumprelu", {"activation.threshold": torch.ones(())}, "holds activation.threshold"),
}


@pytest.mark.parametrize("name", BAD_THRESHOLDS)
def test_a_bad_stored_threshold_is_a_one_line_error(tmp_path, name):
    activation, changes, message = BAD_THRESHOLDS[name]
    TIDE(TIDEConfig(6, 20, 3, activation=activation)).save_pretrained(tmp_path)
    edit_weights(tmp_path, **changes)
    with pytest.raises(TideError, match=message) as caught:
        TIDE.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_an_activation_of_a_newer_version_is_a_one_line_error(saved):
    edit_config(saved, activation="hyperrelu")
    with pytest.raises(TideError, match=r"activation is 'hyperrelu' and must be 'topk' or .* of another version"):
        TIDE.from_pretrained(saved)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("d_model", 1152, r"was trained on d_model 6, not 1152; use a checkpoint made for this d_model$"),
        ("block", 5, r"was trained on block 6, not 5; use a checkpoint made for this block$"),
        ("family", "flux", r"was trained on family 'pixart', not 'flux'; use a checkpoint made for this family$"),
        ("tensor", "output", r"was trained on tensor 'attention', not 'output'; use a"),
    ],
)
def test_a_checkpoint_for_something_else(saved, name, value, message):
    with pytest.raises(TideError, match=message):
        TIDE.from_pretrained(saved, **{name: value})


def test_a_field_that_there_is_not(saved):
    with pytest.raises(TypeError, match=r"^a checkpoint has no field 'blok' to check; known: activation, "):
        TIDE.from_pretrained(saved, blok=6)


def test_a_pickle_is_not_even_opened_by_its_loader(saved, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("unpickled")

    pickled(saved)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    with pytest.raises(TideError, match="never loaded"):
        TIDE.from_pretrained(saved)


# -- saving ---------------------------------------------------------------------------------------------------


def no_space(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def half_written(_tensors, path, **_kwargs):
    Path(path).write_bytes(b"half of a fi")
    no_space()


@pytest.mark.parametrize("failing", ["weights", "config"])
def test_a_failed_save_leaves_the_old_checkpoint(saved, monkeypatch, failing):
    """Also when it is the second file that does not fit: the pair stays one checkpoint."""
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    other = model(seed=1, k=2)
    if failing == "weights":
        monkeypatch.setattr("tide.files.tensors.save_file", half_written)
    else:
        monkeypatch.setattr(Path, "write_text", no_space)
    with pytest.raises(TideError, match=r"could not be written \(.*No space left.*\); free some space") as caught:
        other.save_pretrained(saved)
    assert "\n" not in str(caught.value)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    monkeypatch.undo()
    assert TIDE.from_pretrained(saved).config.k == 3
    other.save_pretrained(saved)
    assert TIDE.from_pretrained(saved).config.k == 2


def test_saving_where_a_file_is_in_the_way(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(TideError, match=r"could not be written .*; free some space or choose another folder"):
        model().save_pretrained(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == ""


def test_any_other_error_leaves_no_temporary_file(saved):
    def fail(path: Path) -> None:
        path.write_text("part")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(saved / "config.json", fail)
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "model.safetensors"]
    TIDE.from_pretrained(saved)
