"""Targets recorded along a prompt's own run and on an image."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from tests.helpers.edit_samples import N
from tide.editing import draw_latents, image_contrast, image_target, prompt_target
from tide.editing.record import record_contrast, record_targets
from tide.errors import TideError
from tide.images.tensors import to_tensor
from tide.sae import TIDE, TIDEConfig

RUN = {"n_steps": 3, "seed": 4}
IMAGE = Image.linear_gradient("L").resize((64, 64)).convert("RGB")


def test_a_prompts_own_run(adapter, sae):
    """The latents that a recording of the run keeps as float16."""
    found = prompt_target(adapter, sae, "a tree", guidance_scale=2.0, **RUN)
    kept = record_targets(adapter, sae, lambda: draw_latents(adapter, "a tree", guidance_scale=2.0, **RUN))
    assert found.values.shape == (3, 64, N)
    assert found.values.dtype == torch.float32
    assert torch.equal(found.timesteps, kept.timesteps)
    torch.testing.assert_close(found.values, kept.targets[0].values.float(), rtol=2**-10, atol=1e-4)
    pooled = prompt_target(adapter, sae, "a tree", guidance_scale=2.0, pooled=True, **RUN)
    torch.testing.assert_close(pooled.values, found.pooled().values)


def test_an_image(adapter, sae):
    """The two sides of its contrast are its latents under two prompts, but for their rounding to float16."""
    present, absent = image_contrast(adapter, sae, IMAGE, "a tree", "a house", **RUN)
    for prompt, side in (("a tree", present), ("a house", absent)):
        found = image_target(adapter, sae, prompt, IMAGE, **RUN)
        assert torch.equal(found.timesteps, adapter.sampling_timesteps(3).float())
        torch.testing.assert_close(found.values, side.values.float(), rtol=2**-10, atol=1e-3)
        pooled = image_target(adapter, sae, prompt, IMAGE, pooled=True, **RUN)
        torch.testing.assert_close(pooled.values, found.pooled().values)
    assert not torch.equal(present.values, absent.values)


def test_the_contrast_is_that_of_one_reference(adapter, sae):
    found = image_contrast(adapter, sae, IMAGE, "a tree", "a house", **RUN)
    references = adapter.encode_images(to_tensor(IMAGE, 64)[None])
    steps = adapter.sampling_timesteps(3)
    prompts = (["a tree"], ["a house"])
    kept = record_contrast(adapter, [6], references, prompts, steps, seed=4, max_sequence_length=20)[6]
    for mine, theirs in zip(found, kept.targets(sae)[0], strict=True):
        assert torch.equal(mine.values, theirs.values)


def test_what_cannot_be_recorded(adapter, sae, monkeypatch):
    with pytest.raises(TideError, match="this SAE does not know its block"):
        prompt_target(adapter, TIDE(TIDEConfig(192, N, 4)), "a tree", **RUN)
    monkeypatch.setattr("tide.editing.record.TARGET_BYTES", 10**4)
    for record in (prompt_target, lambda *given, **run: image_target(*given, IMAGE, **run)):
        with pytest.raises(TideError, match="at 3 steps of 64 tokens; pool the target or lower n_steps"):
            record(adapter, sae, "a tree", **RUN)
    with pytest.raises(TideError, match="at 3 steps of 64 tokens; lower n_steps"):
        image_contrast(adapter, sae, IMAGE, "a tree", "a house", **RUN)
