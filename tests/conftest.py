"""Tiny PixArt pipelines with random weights, made once; a test that changes one copies it first."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in the background like this, and tests send Ctrl+C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

if not torch.cuda.is_available():
    # Before diffusers, which imports Triton, reads it. "auto" passes interpreted kernels over; tests name them.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# No test may depend on a hub, or wait until it does not answer. Also before diffusers, which imports the hub's client.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel
from huggingface_hub import constants

from tests.helpers.hub_server import TOKEN, Hub, hub_server
from tide.adapters import Adapter, adapter_for
from tide.scenes.pipeline import build_pipeline

if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton"):
    from tests.helpers.interpreter import patch_once

    patch_once()


def pytest_collection_finish() -> None:
    """What is imported and collected by now lives to the end: the collector need not go through it again."""
    gc.collect()
    gc.freeze()


def _transformer(**kwargs: object) -> PixArtTransformer2DModel:
    """Three blocks; width 48, divisible by 3 as the size embedders ask for."""
    torch.manual_seed(1)
    return PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=12,
        num_layers=3,
        cross_attention_dim=48,
        caption_channels=128,
        sample_size=128,
        **kwargs,
    ).eval()


@pytest.fixture(scope="session")
def alpha() -> PixArtAlphaPipeline:
    """The bundled architecture (8 blocks, width 192, v-prediction), no branch of a block silent."""
    torch.manual_seed(0)
    pipe = build_pipeline()
    for parameter in pipe.transformer.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def adapter(alpha: PixArtAlphaPipeline) -> Adapter:
    return adapter_for(alpha)


@pytest.fixture(scope="session")
def alpha_with_sizes(alpha: PixArtAlphaPipeline) -> PixArtAlphaPipeline:
    """As alpha at 1024 pixels: resolution and aspect ratio condition the timestep embedding."""
    pipe = PixArtAlphaPipeline(**{**alpha.components, "transformer": _transformer()})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def sigma(alpha: PixArtAlphaPipeline) -> PixArtSigmaPipeline:
    """As Sigma at 1024 pixels: sample_size 128 without size conditions, epsilon prediction."""
    scheduler = type(alpha.scheduler).from_config(alpha.scheduler.config, prediction_type="epsilon")
    transformer = _transformer(use_additional_conditions=False)
    pipe = PixArtSigmaPipeline(**{**alpha.components, "transformer": transformer, "scheduler": scheduler})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    """A stand-in for the Hub with an empty cache, online and without a token; xet, which it does not speak, is off."""
    with hub_server() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


@pytest.fixture
def token(hub, monkeypatch) -> str:
    """The token that may read private repositories and write, in the environment."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return TOKEN
