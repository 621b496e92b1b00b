"""What is special of Sana-Sprint: angles for timesteps, latents in units of the data, no rows of guidance."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import pytest
import torch

from tests.helpers.families import adapter, draw, pipeline, prepared
from tests.helpers.families.sana_sprint import build_sana_sprint
from tide.adapters import adapter_for, tap
from tide.adapters.schedule import step_arguments
from tide.adapters.standins import listened
from tide.editing import Steer, edit
from tide.editing.previews import watched


@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_timesteps_are_shares_of_noise(n_steps):
    """1000 times what the transformer is given; of two steps the second is where the pipeline puts it."""
    pipe, given, seen = pipeline("sana_sprint"), [], []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda _m, _a, kwargs: given.append(kwargs["timestep"].tolist()), with_kwargs=True
    )
    with tap(adapter_for(pipe), {0: lambda x, call: seen.append(call.timestep)}):
        draw("sana_sprint", n_steps=n_steps)
    handle.remove()
    torch.testing.assert_close(torch.stack(seen) / 1000, torch.tensor(given))
    own = adapter("sana_sprint")
    torch.testing.assert_close(own.sampling_timesteps(n_steps), torch.stack(seen)[:, 0], rtol=0, atol=0.01)
    torch.testing.assert_close(own.to_scheduler(own.sampling_timesteps(n_steps)), own.run_timesteps, rtol=0, atol=1e-5)


def test_a_step_of_the_scheduler_is_one_of_flow_matching():
    """Noised latents as the scheduler holds them, and the prediction as it gets it, lead to the image and the noise."""
    own = adapter("sana_sprint")
    unit = own.pipe.scheduler.config.sigma_data
    image, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    for angle in torch.tensor([1.5, 1.0, 0.2]):
        sample = unit * (angle.cos() * image + angle.sin() * noise)
        predicted = unit * (angle.cos() * noise - angle.sin() * image)
        velocity, t, given = own.of_step(predicted, angle.expand(2), sample)
        torch.testing.assert_close(velocity, noise - image, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(given, own.add_noise(image, noise, t), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own.predicted_clean(velocity, given, t), image, rtol=1e-4, atol=1e-4)


def test_the_model_is_given_what_the_step_says():
    own, calls, steps = adapter("sana_sprint"), [], []

    def keep(*args: Any, **kwargs: Any) -> None:
        steps.append(own.of_step(*step_arguments(own.pipe.scheduler, args, kwargs)))

    handle = own.transformer.register_forward_hook(
        lambda _m, args, _k, output: calls.append((output[0], args[0])), with_kwargs=True
    )
    with listened(own.pipe.scheduler, "step", before=keep):
        draw("sana_sprint")
    handle.remove()
    for (velocity, _, given), (output, latents) in zip(steps, calls, strict=True):
        torch.testing.assert_close(velocity, output, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(given, latents, rtol=1e-4, atol=1e-5)


def test_previews_end_on_the_image():
    own, shown = adapter("sana_sprint"), []
    with watched(own, lambda *step: shown.append(step), size=(64, 32), n_images=2):
        drawn = draw("sana_sprint")
    assert [step[:2] for step in shown] == [(0, 3), (1, 3), (2, 3)]
    torch.testing.assert_close(shown[-1][2], drawn, rtol=1e-4, atol=1e-4)


@cache
def image_to_image() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return prepared(diffusers.SanaSprintImg2ImgPipeline(**build_sana_sprint().components))


def test_image_to_image():
    """It begins at a later step of its schedule, whose first one is edited."""
    pipe, seen = image_to_image(), []
    own = adapter_for(pipe)
    change = Steer(torch.tensor([500.0]), torch.ones(1, own.d_model))
    options = {"pipe": pipe, "n_steps": 4, "image": torch.rand(1, 3, 64, 32), "strength": 0.5}
    plain = draw("sana_sprint", **options)
    with tap(own, {0: lambda x, call: seen.append(float(call.timestep[0]))}):
        draw("sana_sprint", **options)
    assert seen == pytest.approx(own.sampling_timesteps(4)[2:].tolist(), rel=1e-4)
    with edit(pipe, None, change, block=1, steps=(0, 0.5)) as met:
        assert not torch.equal(draw("sana_sprint", **options), plain)
    assert (met.calls, met.in_steps) == (2, 1)
