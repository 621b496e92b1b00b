"""What is special of PRX: guided runs of several images, its size embedding, its sinusoid, ftfy, its pixel pipeline."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.prx import pipeline_prx

from tests.helpers.families import adapter, draw, hooks_of, misfit, pipeline, prepared
from tests.helpers.families.prx import FAMILY, build_prx
from tide.adapters import adapter_for, tap
from tide.errors import TideError


def pipeline_with(**config: Any) -> Any:
    """The tiny pipeline, with another transformer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = build_prx()
        own = {name: value for name, value in pipe.transformer.config.items() if not name.startswith("_")}
        pipe.transformer = diffusers.PRXTransformer2DModel(**{**own, **config})
        return prepared(pipe)


def test_several_images_under_guidance():
    """The pipeline alone draws one at a time only: it makes two timesteps whatever the number of rows."""
    pipe, seen = pipeline("prx"), []
    arguments = {"guidance_scale": 3.0, "num_inference_steps": 2, "use_resolution_binning": False}
    with tap(adapter_for(pipe), {1: lambda x, call: seen.append(call)}):
        pipe("a red cube", height=32, width=16, output_type="latent", **arguments)
    assert [(len(call.timestep), call.conditional.tolist()) for call in seen] == [(2, [False, True])] * 2
    with pytest.raises(RuntimeError, match="must match the size"):
        pipe(list(FAMILY.prompts), height=32, width=16, output_type="latent", **arguments)
    assert torch.isfinite(draw("prx", guided=True)).all()
    assert hooks_of(pipe) == 0


def test_the_size_is_embedded_where_the_model_does():
    assert adapter("prx").modulation(0).config.conditioned
    pipe = pipeline_with(resolution_embeds=False)
    assert not adapter_for(pipe).modulation(0).config.conditioned
    assert misfit(pipe, "prx", 1) < 1e-5


def test_the_sinusoid_is_the_models():
    pipe = pipeline_with(time_factor=500.0, time_max_period=200)
    assert misfit(pipe, "prx", 1) < 1e-5


def test_prompts_are_cleaned_with_ftfy(monkeypatch):
    monkeypatch.delattr(pipeline_prx, "ftfy")
    with pytest.raises(TideError, match="pip install ftfy"):
        adapter_for(pipeline("prx"))


def test_the_pixel_pipeline_is_refused():
    pixels = object.__new__(diffusers.PRXPixelPipeline)
    vars(pixels)["transformer"] = pipeline("prx").transformer
    with pytest.raises(TideError, match=r"PRXPixelPipeline is not supported \(it denoises pixels"):
        adapter_for(pixels)
