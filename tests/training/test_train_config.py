"""The configuration: the same as a mapping and as YAML, every value checked."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import yaml

from tide.errors import TideError
from tide.sae import ModelOptions, ModulationConfig
from tide.training import LossConfig, ProgressiveK, RevivalConfig, TrainConfig

CHANGED = TrainConfig(
    modulation_init="random",
    pre_norm="layernorm",
    n_latents=100,
    k=7,
    centre=True,
    lr=2e-5,
    betas=(0.8, 0.95),
    loss=LossConfig(temporal=3e-7, reg=0.0, prefixes=(0.1, 0.5)),
    progressive_k=ProgressiveK(shape="off"),
    revival=RevivalConfig(every=0),
    precision="bf16",
)


@pytest.mark.parametrize("config", [TrainConfig(), CHANGED], ids=["defaults", "changed"])
def test_yaml_round_trip(tmp_path, config):
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(config.to_dict()))
    assert TrainConfig.from_yaml(path) == config
    assert TrainConfig.from_yaml(str(path)) == config


def test_what_is_left_out_has_its_default():
    found = TrainConfig.from_dict({"lr": 5e-4, "loss": {"mse": 2.0}})
    assert found == TrainConfig(lr=5e-4, loss=LossConfig(mse=2.0))


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("lr: 1e-3", "lr", 1e-3),
        ("steps: 5", "steps", 5),
        ("clip: 1", "clip", 1.0),
        ("k: null", "k", None),
        ("betas: [0.9, 1e-1]", "betas", (0.9, 0.1)),
    ],
    ids=["YAML 1.1 reads 1e-3 as a word", "int", "int for a float", "null", "list for a tuple"],
)
def test_values_as_yaml_has_them(tmp_path, text, name, value):
    (tmp_path / "a.yaml").write_text(text)
    found = getattr(TrainConfig.from_yaml(tmp_path / "a.yaml"), name)
    assert found == value
    assert type(found) is type(value)


def test_yaml_reads_off_as_false(tmp_path):
    (tmp_path / "a.yaml").write_text("progressive_k: {shape: off}")
    assert TrainConfig.from_yaml(tmp_path / "a.yaml").progressive_k.shape == "off"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"lrr": 1}, r"^unknown option 'lrr' in the training configuration; known: pre_norm, .*checkpoint_every$"),
        ({"loss": {"mae": 1}}, r"^unknown option 'mae' in loss; known: mse, cosine, "),
        ({"revival": 3}, r"^revival = 3 must be a group of options: after_tokens, every$"),
        ({"loss": None}, r"^loss = None must be a group of options: mse"),
        ({"lr": "fast"}, r"^lr = 'fast' must be a number$"),
        ({"lr": True}, r"^lr = True must be a number$"),
        ({"steps": 1.5}, r"^steps = 1.5 must be a whole number$"),
        ({"modulation": "yes"}, r"^modulation = 'yes' must be true or false$"),
        ({"betas": 0.9}, r"^betas = 0.9 must be 2 numbers, as in \[0.1, 0.9\]$"),
        ({"loss": {"prefixes": 0.5}}, r"^loss.prefixes = 0.5 must be a list of numbers, as in \[0.1, 0.9\]$"),
        ({"loss": {"prefixes": ["x"]}}, r"^loss.prefixes = 'x' must be a number$"),
        ({"betas": [0.9]}, r"^betas = \[0.9\] must be 2 numbers"),
        ({"precision": "fp16"}, r"^precision = 'fp16' is unknown; use one of fp32, bf16$"),
        ({"progressive_k": {"shape": "cosin"}}, r"^progressive_k.shape = 'cosin' is unknown; use one of linear"),
        ({"loss": {"mse": "x"}}, r"^loss.mse = 'x' must be a number$"),
    ],
)
def test_bad_mappings(raw, message):
    with pytest.raises(TideError, match=message):
        TrainConfig.from_dict(raw)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(steps=0), "steps = 0 must be at least 1"),
        (lambda: TrainConfig(batch_tokens=7), "batch_tokens = 7 must be even: neighbouring timesteps come in pairs"),
        (lambda: TrainConfig(density=0.0), r"density = 0.0 must lie in \(0, 1\]"),
        (lambda: TrainConfig(density=1.1), r"density = 1.1 must lie in \(0, 1\]"),
        (lambda: TrainConfig(lr=0.0), "lr = 0.0 must be positive"),
        (lambda: TrainConfig(lr=float("nan")), "lr = nan must be positive"),
        (lambda: TrainConfig(modulation_lr=0.0), "modulation_lr = 0.0 must be positive"),
        (lambda: TrainConfig(clip=-1.0), "clip = -1.0 must be positive"),
        (lambda: TrainConfig(warmup=1.5), "warmup = 1.5 must be between 0 and 1"),
        (lambda: TrainConfig(weight_decay=-1.0), "weight_decay = -1.0 must be at least 0"),
        (lambda: TrainConfig(precision="fp16"), "precision = 'fp16' is unknown"),
        (
            lambda: TrainConfig(modulation_init="copy"),
            "modulation_init = 'copy' is unknown; use one of identity, adaln, random",
        ),
        (
            lambda: TrainConfig(modulation_trainable=False),
            "a modulation that starts as the identity and is not trained has no effect; set modulation_init = adaln",
        ),
        (lambda: ProgressiveK(start=0.5), "start = 0.5 must be at least 1"),
        (lambda: ProgressiveK(length=1.2), "length = 1.2 must be between 0 and 1"),
        (lambda: ProgressiveK(shape="step"), "shape = 'step' is unknown"),
        (lambda: RevivalConfig(every=-1), "every = -1 must be at least 0"),
        (lambda: RevivalConfig(after_tokens=0), "after_tokens = 0 must be at least 1"),
        (lambda: LossConfig(temporal=-1.0), "temporal = -1.0 must be at least 0"),
        (lambda: LossConfig(delta=0.0), "delta = 0.0 must be positive"),
        (
            lambda: LossConfig(prefixes=(0.5, 0.25)),
            r"loss.prefixes = \[0.5, 0.25\] must ascend between 0 and 1, as in \[0.0625, 0.25\]",
        ),
        (lambda: LossConfig(prefixes=(0.0, 0.5)), r"loss.prefixes = \[0.0, 0.5\] must ascend between 0 and 1"),
        (lambda: LossConfig(prefixes=(1.0,)), r"loss.prefixes = \[1.0\] must ascend between 0 and 1"),
        (lambda: LossConfig(prefixes=(float("nan"),)), r"loss.prefixes = \[nan\] must ascend between 0 and 1"),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(TideError, match=message):
        make()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", r"could not be read as YAML \(.*\); correct it"),
        ("- 1", "holds no mapping of options"),
        ("", "holds no mapping of options"),
        ("a: &x [1]\nb: [*x, *x]", r"could not be read as YAML \(aliases .* are not supported; write the values out"),
    ],
    ids=["not YAML", "a list", "empty", "aliases, which can stand for any amount of memory"],
)
def test_bad_files(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(TideError, match=message) as caught:
        TrainConfig.from_yaml(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)
    with pytest.raises(TideError, match="does not exist; check the path"):
        TrainConfig.from_yaml(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (3072, 64)),
        ({"density": 0.05}, (3072, 154)),
        ({"expansion": 4, "density": 0.01}, (768, 8)),
        ({"n_latents": 10, "k": 3}, (10, 3)),
        ({"n_latents": 10, "density": 0.001}, (10, 1)),
        ({"n_latents": 10, "k": 10}, (10, 10)),
    ],
    ids=["64 of 16 d", "5 %", "rounded", "set", "never below 1", "k = n"],
)
def test_sizes(options, expected):
    assert TrainConfig(**options).sizes(192) == expected


@pytest.mark.parametrize("k", [0, 11])
def test_k_outside_of_n(k):
    with pytest.raises(TideError, match=f"k = {k} must lie between 1 and n_latents = 10; lower k or raise n_latents"):
        TrainConfig(n_latents=10, k=k).sizes(192)


def test_the_default_k_needs_as_many_latents():
    with pytest.raises(
        TideError, match=r"k = 64 \(the default\) must lie between 1 and n_latents = 48; lower k or raise"
    ):
        TrainConfig(n_latents=48).sizes(192)


def test_the_default_rate_falls_with_the_width_as_the_entries_of_a_unit_row_do():
    assert TrainConfig().learning_rate(192) == pytest.approx(4e-3, rel=0.01)
    assert TrainConfig().learning_rate(4 * 192) == pytest.approx(TrainConfig().learning_rate(192) / 2)
    assert TrainConfig(lr=1e-3).learning_rate(192) == 1e-3


def test_the_models_options_are_the_models():
    """Every one of them reaches the model's config; a plain SAE has no use for those of the modulation."""
    options = {"pre_norm": "layernorm", "undo": True, "activation": "jumprelu", "bandwidth": 0.7, "centre": True,
               "timestep_thresholds": True, "match_l0": True}  # fmt: skip
    assert options.keys() == {option.name for option in fields(ModelOptions)}
    config = TrainConfig(n_latents=64, k=8, **options)
    found = config.model_config(16, ModulationConfig(16, 8), block=3)
    assert {name: getattr(found, name) for name in options} == options
    assert (found.d_model, found.n_latents, found.k, found.block) == (16, 64, 8, 3)
    plain = replace(config, modulation=False).model_config(16, None)
    assert (plain.pre_norm, plain.undo, plain.timestep_thresholds, plain.activation) == (
        "none",
        False,
        False,
        "jumprelu",
    )


def test_changed_by_full_names():
    config = TrainConfig(steps=7).changed({"k": 8, "loss.temporal": 0.5, "progressive_k.shape": "off"})
    expected = TrainConfig(steps=7, k=8, loss=LossConfig(temporal=0.5), progressive_k=ProgressiveK(shape="off"))
    assert config == expected


@pytest.mark.parametrize("name", ["denisty", "loss.denisty", "nothing.mse", "loss", "k.mse"])
def test_only_options_can_be_changed(name):
    with pytest.raises(TideError, match=f"'{name}' is not an option of the training configuration"):
        TrainConfig().changed({name: 0.5})


@pytest.mark.parametrize(("options", "message"), [
    ({"activation": "relu"}, "shard_latents = 2 cannot train activation = relu; use topk, batch_topk or jumprelu"),
    ({"undo": True}, "shard_latents = 2 cannot train undo; use topk, batch_topk or jumprelu without undo"),
    ({"loss": LossConfig(prefixes=(0.5,))}, "shard_latents = 2 cannot train loss.prefixes, which cut through the ra"),
    ({"shard_latents": 0}, "shard_latents = 0 must be at least 1"),
])  # fmt: skip
def test_what_ranks_that_divide_the_latents_cannot_train(options, message):
    with pytest.raises(TideError, match=f"^{message}"):
        TrainConfig(**{"shard_latents": 2, **options})


def test_latents_that_ranks_cannot_divide():
    with pytest.raises(TideError, match=r"^n_latents = 66 cannot be divided among 4 ranks; give a multiple of shard_"):
        TrainConfig(n_latents=66, k=4, shard_latents=4).sizes(16)
