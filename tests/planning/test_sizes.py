"""Sizes of pipelines from their configurations, without weights and without a network."""

from __future__ import annotations

import json

import diffusers
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tide.errors import TideError
from tide.planning import given_sizes, sizes_of
from tide.planning.sizes import KNOWN

#: Published numbers of parameters of the transformer, in billions, beside those of text encoders and VAE.
PARAMETERS = {
    "PixArt-alpha/PixArt-XL-2-1024-MS": 0.611,
    "stabilityai/stable-diffusion-3-medium-diffusers": 2.03,
    "stabilityai/stable-diffusion-3.5-large": 8.1,
    "black-forest-labs/FLUX.1-dev": 11.9,
}
T5, CLIP_L, CLIP_G, VAE = 4.762, 0.123, 0.694, 0.084


@pytest.fixture(autouse=True)
def offline(monkeypatch) -> None:
    """Whoever asks the network fails."""
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))


@pytest.mark.parametrize(
    ("name", "encoders"),
    [
        ("PixArt-alpha/PixArt-XL-2-1024-MS", T5),
        ("stabilityai/stable-diffusion-3-medium-diffusers", T5 + CLIP_L + CLIP_G),
        ("stabilityai/stable-diffusion-3.5-large", T5 + CLIP_L + CLIP_G),
        ("black-forest-labs/FLUX.1-dev", T5 + CLIP_L),
    ],
)
def test_known_pipelines_have_their_published_size(name, encoders):
    # Positional tables, which are no weights, and roundings of the published figures: 3 %.
    assert sizes_of(name).n_weights / 1e9 == pytest.approx(PARAMETERS[name] + encoders + VAE, rel=0.03)


@pytest.mark.parametrize("name", json.loads(KNOWN.read_text()))
def test_tokens_of_a_known_pipeline_are_those_of_its_size(name):
    found = sizes_of(name)
    assert found.n_tokens == found.n_pixels / 16**2  # 8 pixels a latent, 2 latents a token
    assert found.n_blocks >= 24


def test_another_size_has_its_own_tokens():
    name = "PixArt-alpha/PixArt-XL-2-1024-MS"
    assert sizes_of(name, (512, 1024)).n_tokens == 32 * 64
    with pytest.raises(TideError, match="does not divide into tokens; use multiples of 16"):
        sizes_of(name, (500, 1024))


def test_a_folder_is_read_from_its_configurations(alpha, tmp_path):
    alpha.save_pretrained(tmp_path)
    bundled = sizes_of("scenes")
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()
    found = sizes_of(tmp_path)
    for name in ("d_model", "n_blocks", "n_tokens", "n_pixels", "n_weights", "family"):
        assert getattr(found, name) == getattr(bundled, name), name


def meta(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, device="meta")


#: What the transformers of real pipelines are called with, for one image.
CALLS = {
    "PixArt-alpha/PixArt-XL-2-512x512": {
        "hidden_states": meta(1, 4, 64, 64),
        "encoder_hidden_states": meta(1, 120, 4096),
        "timestep": meta(1),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    },
    "facebook/DiT-XL-2-256": {
        "hidden_states": meta(1, 4, 32, 32),
        "timestep": meta(1),
        "class_labels": meta(1).long(),
    },
    "stabilityai/stable-diffusion-3-medium-diffusers": {
        "hidden_states": meta(1, 16, 128, 128),
        "encoder_hidden_states": meta(1, 333, 4096),
        "pooled_projections": meta(1, 2048),
        "timestep": meta(1),
    },
    "black-forest-labs/FLUX.1-dev": {
        "hidden_states": meta(1, 4096, 64),
        "encoder_hidden_states": meta(1, 512, 4096),
        "pooled_projections": meta(1, 768),
        "timestep": meta(1),
        "guidance": meta(1),
        "img_ids": meta(4096, 3),
        "txt_ids": meta(512, 3),
    },
}


@pytest.mark.parametrize("name", CALLS)
def test_operations_of_a_pass_are_close_to_those_that_torch_counts(name):
    """Not counted: embeddings, modulation, captions that attend (an eighth of Flux's tokens)."""
    configs = json.loads(KNOWN.read_text())[name]["transformer"]
    kind = getattr(diffusers, configs["_class_name"])
    with torch.device("meta"):
        transformer = kind.from_config({key: value for key, value in configs.items() if not key.startswith("_")})
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            transformer(**CALLS[name])
    assert 0.85 < sizes_of(name).pass_flops / counted.get_total_flops() < 1.05


def test_given_sizes():
    found = given_sizes(1152, 28, 4096)
    weights = 28 * 12 * 1152**2
    assert (found.n_weights, found.encode_flops) == (weights, 0)
    assert found.pass_flops == 2 * weights * 4096 + 4 * 28 * 4096**2 * 1152
    with pytest.raises(TideError, match="tokens 0 is too small"):
        given_sizes(1152, 28, 0)


def test_an_unknown_pipeline_names_the_options_to_give():
    with pytest.raises(TideError, match=r"sizes of a/b are not known.*--d-model, --blocks and --tokens.*PixArt-XL-2"):
        sizes_of("a/b")


def test_configurations_that_make_no_pipeline(alpha, tmp_path):
    alpha.save_pretrained(tmp_path)
    config = tmp_path / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_attention_heads": "six"}))
    with pytest.raises(TideError, match="make no pipeline"):
        sizes_of(tmp_path)
