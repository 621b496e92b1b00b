"""`tide train`: from a store, from several, live; configuration from file and command line; resumed."""

from __future__ import annotations

import json

import pytest
import torch
from cli_samples import SMALL

from tide import TIDE
from tide.activations import ActivationStore
from tide.commands.settings import train_config
from tide.commands.train import mixed
from tide.errors import TideError
from tide.training import TrainConfig, Trainer


def weights(path) -> dict[str, torch.Tensor]:
    return TIDE.from_pretrained(path).state_dict()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    train_step = Trainer._train_step

    def interrupted(trainer: Trainer, batch):
        if trainer.step == step:
            raise KeyboardInterrupt
        return train_step(trainer, batch)

    monkeypatch.setattr(Trainer, "_train_step", interrupted)


def test_resume_ends_where_an_uninterrupted_run_does(cli, store, checkpoint, tmp_path, monkeypatch):
    command = ["train", "--store", store / "block-6", "--out", tmp_path / "tide", "--steps", 8, *SMALL]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        result = cli(*command)
    assert result.code == 130
    assert result.err == (
        "tide: interrupted; the last checkpoint is kept: the same command with --resume goes on from it\n"
    )
    assert cli(*command).err == (
        f"tide: error: {tmp_path}/tide already holds a checkpoint; add --resume, or choose another folder\n"
    )
    assert cli(*command, "--resume").code == 0
    assert equal(weights(tmp_path / "tide"), weights(checkpoint))
    result = cli(*command, "--resume", "--set", "lr=1e-4")
    assert (result.code, result.err) == (
        2,
        f"tide: error: {tmp_path}/tide was started with another lr (its default); "
        "use the same configuration or another folder\n",
    )


def test_live_stream(cli, pipeline, images, tmp_path):
    options = ["--pipeline", pipeline, "--data", images, "--token-fraction", "1/4", "--block", 2, *SMALL]
    result = cli("train", *options, "--steps", 6, "--cache", "--out", tmp_path / "live")
    assert result.code == 0
    assert result.err == ""
    assert result.out.startswith("Trained a TIDE of 96 latents, k = 8, on block 2 for 6 steps: mse ")
    model = TIDE.from_pretrained(tmp_path / "live")
    assert model.config.pipeline == str(pipeline)
    assert model.config.block == 2
    assert cli("train", *options, "--steps", 6, "--out", tmp_path / "again").code == 0
    assert equal(weights(tmp_path / "live"), weights(tmp_path / "again"))


def test_live_stream_resumes(cli, pipeline, images, tmp_path, monkeypatch):
    command = ["train", "--pipeline", pipeline, "--data", images, "--token-fraction", "1/4", "--steps", 6, *SMALL]
    command += ["--out", tmp_path / "live"]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert cli(*command).code == 130
    assert cli(*command, "--resume").code == 0
    history = json.loads((tmp_path / "live/training.json").read_text())["history"]
    assert history[-1]["step"] == 6


def test_plain_sae_needs_no_pipeline(cli, store, tmp_path, monkeypatch):
    monkeypatch.setattr("tide.commands.common._from_pretrained", lambda *_: pytest.fail("the pipeline was loaded"))
    options = ["--store", store / "block-3", "--sae", "--steps", 2, *SMALL]
    result = cli("train", *options, "--out", tmp_path / "sae")
    assert result.code == 0
    assert "plain SAE of 96 latents" in result.out
    model = TIDE.from_pretrained(tmp_path / "sae")
    assert model.modulation is None
    assert model.config.block == 3
    assert model.config.family == "pixart"


def test_the_text_encoder_is_not_loaded_for_a_store(cli, store, tmp_path, monkeypatch):
    from diffusers import DiffusionPipeline

    given = {}
    load = DiffusionPipeline.from_pretrained.__func__

    def spy(cls, name, **kwargs):
        given.update(kwargs)
        return load(cls, name, **kwargs)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(spy))
    assert cli("train", "--store", store / "block-3", "--steps", 1, *SMALL, "--out", tmp_path / "t").code == 0
    assert {name: given[name] for name in ("text_encoder", "tokenizer", "vae")} == dict.fromkeys(
        ("text_encoder", "tokenizer", "vae")
    )


def test_several_stores_are_mixed_by_their_sizes(cli, pipeline, images, store, tmp_path):
    one = store / "block-6"
    options = ["--token-fraction", "1/4", "--seed", 7, "--block", 6]
    assert cli("collect", "--pipeline", pipeline, "--data", images, *options, "--out", tmp_path / "two").code == 0
    command = ["train", "--store", one, tmp_path / "two", "--steps", 4, *SMALL, "--out", tmp_path / "t"]
    assert cli(*command).code == 0
    stores = [ActivationStore(one), ActivationStore(tmp_path / "two")]
    whole = mixed(stores, 64, seed=1, buffer_rows=1024, start=0)
    first = [next(whole).x for _ in range(9)]
    resumed = mixed(stores, 64, seed=1, buffer_rows=1024, start=5)
    assert all(torch.equal(next(resumed).x, x) for x in first[5:])
    assert cli("train", "--store", one, store / "block-3", "--out", tmp_path / "x").err == (
        f"tide: error: {store}/block-3 is of block 3 and {one} of 6; train on stores of one block\n"
    )


def test_file_then_set_then_options(tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text("lr: 1e-4\nloss:\n  temporal: 0.5\nprogressive_k: {shape: off}\nsteps: 5\n")
    config = train_config(file, ["loss.temporal=1e-3", "k=64", "betas=[0.8, 0.9]"], {"steps": 7, "seed": None})
    assert config.lr == 1e-4  # YAML reads it as a word
    assert config.loss.temporal == 1e-3
    assert config.progressive_k.shape == "off"
    assert (config.k, config.steps, config.betas, config.seed) == (64, 7, (0.8, 0.9), 0)


def test_every_field_can_be_set():
    raw = TrainConfig().to_dict()
    keys = [
        each
        for key, value in raw.items()
        for each in ([f"{key}.{name}" for name in value] if isinstance(value, dict) else [key])
    ]

    def of(key: str) -> object:
        value: object = raw
        for part in key.split("."):
            value = value[part]  # type: ignore[index]
        return "null" if value is None else list(value) if isinstance(value, tuple) else value

    without_effect = {"modulation_chunk", "bandwidth", "loss.k_aux"}  # beside the other defaults
    assert train_config(None, [f"{key}={of(key)}" for key in keys if key not in without_effect], {}) == TrainConfig()


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("steps=abc", "steps = 'abc' must be a whole number"),
        ("steps=0", "steps = 0 must be at least 1"),
        ("lr=fast", "lr = 'fast' must be a number"),
        ("lr=true", "lr = True must be a number"),
        ("modulation=1", "modulation = 1 must be true or false"),
        ("modulation_init=copy", "modulation_init = 'copy' is unknown; use one of identity, adaln, random"),
        ("betas=0.9", "betas = 0.9 must be 2 numbers, as in [0.9, 0.99]"),
        ("batch_tokens=63", "batch_tokens = 63 must be even: neighbouring timesteps come in pairs"),
        (
            "loss=1",
            "--set loss names a group; set one of loss.mse, loss.cosine, loss.temporal, loss.sparsity, "
            "loss.reg, loss.auxk, loss.k_aux, loss.s_target, loss.delta",
        ),
        ("lr", "--set lr is no assignment; write it as --set loss.temporal=1e-3"),
        ("lr=[", "--set lr=[ could not be read; write a number, a word or a list"),
    ],
)
def test_bad_settings(assignment, message):
    with pytest.raises(TideError) as error:
        train_config(None, [assignment], {})
    assert str(error.value) == message


def test_unknown_setting_lists_the_known():
    with pytest.raises(TideError, match=r"--set loss.tempo is no option .* known: modulation, .*loss.temporal"):
        train_config(None, ["loss.tempo=1"], {})
