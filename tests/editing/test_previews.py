"""Sampling runs watched step by step, and colours of latents without a decoder."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import tide
from tests.helpers.families import CORE, FAMILIES, STEPS
from tests.helpers.families import adapter as family_adapter
from tests.helpers.families import draw as draw_family
from tide.adapters import adapter_for
from tide.editing import LatentColours, draw_latents, watched
from tide.errors import TideError

RUN = {"n_steps": 4, "guidance_scale": 2.0, "seed": 1}


@pytest.mark.parametrize("name", CORE)
def test_every_family(name):
    """Each step once, latents unpacked and of the prompts' rows alone, and not a bit of the run changed."""
    found = family_adapter(name)
    n_images, seen = len(FAMILIES[name].prompts), []
    with watched(found, lambda *step: seen.append(step), size=FAMILIES[name].size, n_images=n_images):
        drawn = draw_family(name, guided=True)
    assert torch.equal(drawn, draw_family(name, guided=True))
    assert [step[:2] for step in seen] == [(i, STEPS) for i in range(STEPS)]
    assert all(clean.shape == drawn.shape and clean.dtype == torch.float32 for _, _, clean in seen)
    assert all(clean.isfinite().all() for _, _, clean in seen)


def test_two_images_are_not_taken_for_two_branches(alpha):
    """Only some pipelines step the rows of both branches; of the others every row is an image."""
    seen = []
    with (
        pytest.raises(TideError, match="draws 2 images at a time and not 1"),
        watched(adapter_for(alpha), lambda *step: seen.append(step)),
    ):
        alpha(["a red house", "a tree"], num_inference_steps=2, **adapter_for(alpha).call_defaults)
    assert not seen


def with_scheduler(pipe, name: str, **options):
    """The same pipeline with another scheduler of the same noise schedule."""
    scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **options)
    other = type(pipe)(**{**pipe.components, "scheduler": scheduler})
    other.set_progress_bar_config(disable=True)
    return other


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("DDIMScheduler", {"clip_sample": False}), ("EulerDiscreteScheduler", {})],
    ids=["DDIM", "Euler"],
)
def test_the_clean_latents_are_those_of_the_scheduler(alpha, name, options, kind):
    """Also of one that keeps latents in other units than the model's."""
    pipe = with_scheduler(alpha, name, prediction_type=kind, **options)
    adapter, seen, expected = adapter_for(pipe), [], []
    step = pipe.scheduler.step

    def keep(*args, return_dict=True, **kwargs):
        result = step(*args, **kwargs)
        expected.append(result.pred_original_sample)
        return result if return_dict else (result.prev_sample,)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe.scheduler, "step", keep)
        with watched(adapter, lambda i, n, clean: seen.append(clean)):
            draw_latents(adapter, "a red house", **RUN)
    assert len(seen) == len(expected) == 4
    for clean, right in zip(seen, expected, strict=True):
        torch.testing.assert_close(clean, right, rtol=1e-3, atol=1e-3 * float(right.abs().max()))


def test_a_second_order_scheduler_shows_each_step_once(alpha):
    adapter, seen = adapter_for(with_scheduler(alpha, "HeunDiscreteScheduler")), []
    plain = draw_latents(adapter, "a red house", **RUN)
    with watched(adapter, lambda i, n, clean: seen.append((i, n))):
        assert torch.equal(draw_latents(adapter, "a red house", **RUN), plain)
        draw_latents(adapter, "a red house", **{**RUN, "n_steps": 2})
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (0, 2), (1, 2)]


def test_arguments_by_keyword_and_a_learned_variance(adapter, monkeypatch):
    """The step's arguments come by position or by name; of twice as many channels the first half counts."""
    scheduler, seen = adapter.pipe.scheduler, []
    monkeypatch.setattr(scheduler, "step", lambda model_output, timestep, sample, **_: (sample,))
    monkeypatch.setattr(scheduler, "timesteps", torch.tensor([900, 500]))
    prediction, sample = torch.randn(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    doubled = torch.cat([prediction, torch.full_like(prediction, 9.0)], 1)
    with watched(adapter, lambda i, n, clean: seen.append(clean)):
        scheduler.step(prediction, 500, sample, return_dict=False)
        scheduler.step(model_output=doubled, timestep=torch.tensor(500), sample=sample)
    assert len(seen) == 2
    for clean in seen:
        assert torch.equal(clean, adapter.predicted_clean(prediction, sample, 500.0))


def test_contexts_may_overlap(adapter):
    first, second = [], []
    with watched(adapter, lambda i, n, _: first.append(i)):
        with watched(adapter, lambda i, n, _: second.append(i)):
            draw_latents(adapter, "a red house", **RUN)
        draw_latents(adapter, "a red house", **RUN)
    assert first == [0, 1, 2, 3] * 2
    assert second == [0, 1, 2, 3]
    assert "step" not in vars(adapter.pipe.scheduler)


@pytest.fixture(scope="module")
def scenes():
    """The bundled pipeline, and images of it: to fit on, and others."""
    adapter = tide.load_adapter("scenes")
    source = tide.open_source("scenes", adapter, images=16)
    images = torch.cat([batch for batch, _ in source])
    return adapter, images[:8], images[8:]


def test_the_map_explains_colours_of_images_that_were_not_fitted(scenes):
    adapter, fitted, others = scenes
    colours = LatentColours.fit(adapter, fitted)
    latents = adapter.encode_images(others)
    pooled = torch.nn.functional.adaptive_avg_pool2d(others, latents.shape[-2:])
    pictures = [np.asarray(colours.image(each[None])) for each in latents]
    found = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1
    explained = 1 - (found - pooled).square().mean() / (pooled - pooled.mean((0, 2, 3), keepdim=True)).square().mean()
    assert explained > 0.8


def test_a_picture_has_a_pixel_for_each_latent():
    weights = torch.zeros(2 * 9 + 1, 3)
    weights[4, 0] = 1.0  # the first channel of the latent itself
    weights[9 + 3, 1] = 0.2  # the second of its neighbour on the left
    weights[-1, 2] = -1.0
    picture = LatentColours(weights).image(torch.tensor([[[[1.0, -1.0, 0.0]], [[5.0, -5.0, 0.0]]]]))
    assert isinstance(picture, Image.Image)
    assert picture.size == (3, 1)
    assert [picture.getpixel((x, 0)) for x in range(3)] == [(255, 255, 0), (0, 255, 0), (128, 0, 0)]


def test_what_does_not_fit(adapter):
    with pytest.raises(TideError, match=r"images are \[3, 8, 8\]; give some as"):
        LatentColours.fit(adapter, torch.zeros(3, 8, 8))
    with pytest.raises(TideError, match=r"latents are \[2, 2, 1, 1\]; give those of one image, \[1, 2, h, w\]"):
        LatentColours(torch.zeros(19, 3)).image(torch.zeros(2, 2, 1, 1))
    with pytest.raises(TideError, match="draws 1 images at a time and not 3"), watched(adapter, print, n_images=3):
        draw_latents(adapter, "a red house", **RUN)
    with pytest.raises(TideError, match="does not divide into tokens"), watched(adapter, print, size=(65, 64)):
        pass
