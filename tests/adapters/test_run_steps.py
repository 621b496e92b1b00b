"""Steps of an edit as fractions of the run that is really made: from an image, of second order, on schedules of one's
own."""

from __future__ import annotations

import copy
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from tests.helpers.families import CORE, draw, pipeline, prepared
from tests.helpers.families.sd3 import build_sd3
from tide.adapters import adapter_for
from tide.editing import Steer, edit
from tide.editing.progress import check_steps, is_within, run_position
from tide.errors import TideError, TideWarning

#: diffusers' schedulers on NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")

BLOCK = 1
HALVES = ((0.0, 0.5), (0.5, 1.0))


class Noted(Steer):
    """Changes nothing, and notes the calls that it is asked about."""

    def at(self, place):
        noted.append(place.timestep)
        return super().at(place)


noted: list[float] = []


def edited_calls(pipe: Any, steps: tuple[float, float], run: Any) -> tuple[list[int], int]:
    """The numbers of the transformer's calls that an edit of ``steps`` reaches, and how many calls there are."""
    noted.clear()
    at: list[int] = []
    reached: list[int] = []

    def after(*_: Any) -> None:
        if len(noted) > len(reached):
            reached.append(len(at))
        at.append(len(at))

    handle = pipe.transformer.register_forward_hook(after)
    nothing = Noted(torch.tensor([1.0]), torch.zeros(1, adapter_for(pipe).d_model))
    try:
        with edit(pipe, None, nothing, block=BLOCK, steps=steps):
            run()
    finally:
        handle.remove()
    return reached, len(at)


def sd3(scheduler: Any = None) -> Any:
    shared = pipeline("sd3")
    return type(shared)(**{**shared.components, "scheduler": scheduler or copy.deepcopy(shared.scheduler)})


def quietly(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def from_image(scheduler: Any = None) -> Any:
    return quietly(diffusers.StableDiffusion3Img2ImgPipeline(**sd3(scheduler).components))


def image_to_image(pipe: Any, strength: float, n_steps: int, **kwargs: Any) -> None:
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pipe(
        "a tree",
        image=picture,
        strength=strength,
        num_inference_steps=n_steps,
        guidance_scale=1.0,
        output_type="latent",
        max_sequence_length=20,
        height=32,
        width=32,
        **kwargs,
    )


FLOW = {
    "euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "heun": lambda: diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0),
}


@pytest.mark.parametrize("scheduler", FLOW)
@pytest.mark.parametrize(("strength", "n_steps", "made"), [(0.5, 8, 4), (0.25, 8, 2), (1.0, 4, 4), (0.6, 10, 6)])
def test_from_an_image_fractions_are_of_the_steps_that_are_left(scheduler, strength, n_steps, made):
    pipe = from_image(FLOW[scheduler]())
    first, second = (edited_calls(pipe, steps, lambda: image_to_image(pipe, strength, n_steps)) for steps in HALVES)
    n_calls = 2 * made - 1 if scheduler == "heun" else made
    in_first = made if scheduler == "heun" else made // 2
    assert first == (list(range(in_first)), n_calls)
    assert second == (list(range(in_first, n_calls)), n_calls)


def calls_of(step: int, n_steps: int) -> list[int]:
    """Of a second-order scheduler: two a step, one in the last."""
    return [call for call in (2 * step, 2 * step + 1) if call < 2 * n_steps - 1]


SECOND_ORDER = [
    diffusers.HeunDiscreteScheduler,
    diffusers.KDPM2DiscreteScheduler,
    diffusers.KDPM2AncestralDiscreteScheduler,
]


@pytest.mark.parametrize("scheduler", SECOND_ORDER)
@pytest.mark.parametrize("n_steps", [4, 5])
def test_second_order_schedulers(scheduler, n_steps):
    shared = pipeline("pixart")
    own = scheduler.from_config(shared.scheduler.config)
    pipe = quietly(type(shared)(**{**shared.components, "scheduler": own}))
    reached = [edited_calls(pipe, steps, lambda: draw("pixart", pipe=pipe, n_steps=n_steps)) for steps in HALVES]
    steps = [step for step in range(n_steps) if step / n_steps < 0.5]
    in_first = [call for step in steps for call in calls_of(step, n_steps)]
    n_calls = 2 * n_steps - 1
    assert reached == [(in_first, n_calls), (list(range(len(in_first), n_calls)), n_calls)]


FIRST_ORDER = [
    diffusers.DDIMScheduler,
    diffusers.DDPMScheduler,
    diffusers.DEISMultistepScheduler,
    diffusers.DPMSolverSinglestepScheduler,
    diffusers.EulerAncestralDiscreteScheduler,
    diffusers.EulerDiscreteScheduler,
    diffusers.UniPCMultistepScheduler,
]


@pytest.mark.parametrize("scheduler", FIRST_ORDER)
def test_first_order_schedulers(scheduler):
    shared = pipeline("pixart")
    pipe = quietly(type(shared)(**{**shared.components, "scheduler": scheduler.from_config(shared.scheduler.config)}))
    for steps, expected in ((HALVES[0], [0, 1, 2]), (HALVES[1], [3, 4, 5]), ((0.0, 0.01), [0]), ((5 / 6, 1.0), [5])):
        assert edited_calls(pipe, steps, lambda: draw("pixart", pipe=pipe, n_steps=6)) == (expected, 6)


def test_a_scheduler_that_repeats_a_timestep():
    """PNDM makes its second step twice: six calls for five steps, each of them a step of the run."""
    shared = pipeline("pixart")
    own = diffusers.PNDMScheduler.from_config(shared.scheduler.config, skip_prk_steps=True)
    pipe = quietly(type(shared)(**{**shared.components, "scheduler": own}))
    assert edited_calls(pipe, HALVES[0], lambda: draw("pixart", pipe=pipe, n_steps=5)) == ([0, 1, 2], 6)
    assert edited_calls(pipe, HALVES[1], lambda: draw("pixart", pipe=pipe, n_steps=5)) == ([3, 4, 5], 6)


def test_runs_one_after_the_other_in_one_context():
    """Each counts its own steps from the first, also after a run that was broken off."""
    pipe = from_image()

    def runs() -> None:
        image_to_image(pipe, 0.5, 8)
        image_to_image(pipe, 1.0, 2)
        with pytest.raises(RuntimeError, match="stop"):
            image_to_image(pipe, 1.0, 6, callback_on_step_end=stop)
        image_to_image(pipe, 0.5, 8)

    def stop(_pipe: Any, i: int, t: Any, tensors: Any) -> Any:
        if i == 1:
            raise RuntimeError("stop")
        return tensors

    assert edited_calls(pipe, HALVES[0], runs)[0] == [0, 1, 4, 6, 7, 8, 9]


def test_two_pipelines_that_share_a_scheduler():
    """From an image, then without one: the second run begins at the first step again."""
    first = from_image()
    second = quietly(diffusers.StableDiffusion3Pipeline(**first.components))
    image_to_image(first, 0.5, 8)
    assert edited_calls(second, HALVES[0], lambda: draw("sd3", pipe=second, n_steps=4)) == ([0, 1], 4)


@pytest.mark.parametrize("name", ["sd3", "flux", "lumina2", "lumina_next", "sana", "pixart"])
def test_a_schedule_of_ones_own(name):
    """Unevenly spaced: the fourth of five calls is step 3 however near its neighbour is."""
    pipe = pipeline(name)
    given = {"timesteps": [900, 890, 300, 290, 10]} if name == "pixart" else {"sigmas": [1.0, 0.98, 0.96, 0.2, 0.1]}
    if name == "sana":  # its scheduler takes none
        given = {}
    for steps, expected in (((0.0, 0.4), [0, 1]), ((0.6, 1.0), [3, 4])):
        assert edited_calls(pipe, steps, lambda: draw(name, n_steps=5, **given)) == (expected, 5)


@pytest.mark.parametrize("name", CORE)
def test_calls_of_two_kinds_in_a_step_are_one_step(name):
    pipe, n_steps = pipeline(name), 4
    per_step = 2 if name in ("flux", "lumina2") else 1
    reached, n_calls = edited_calls(pipe, HALVES[1], lambda: draw(name, n_steps=n_steps, guided=True))
    assert n_calls == per_step * n_steps
    assert reached == list(range(2 * per_step, n_calls, per_step))


def test_nothing_met_from_an_image_is_told_of():
    pipe = from_image()
    with pytest.warns(TideWarning, match="none of its 2 calls of the block was of the steps 0.1 to 0.4"):
        assert edited_calls(pipe, (0.1, 0.4), lambda: image_to_image(pipe, 0.5, 4)) == ([], 2)


# -- the parts themselves -----------------------------------------------------------------------------------------


def test_half_precision_timesteps_in_a_dense_schedule():
    """bfloat16 has 997 and 1000 alike; the scheduler's own count does not."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1, 1e-3, 1000))
    found = []
    for t in scheduler.timesteps[:20]:
        found.append(run_position(scheduler, float(t.bfloat16())))
        scheduler.step(torch.zeros(1), t, torch.zeros(1))
    assert found == [(step, 1000) for step in range(20)]


@pytest.mark.parametrize("done", [0, 2, 4], ids=["before the run", "in a run", "after the run"])
def test_calls_outside_of_a_run_have_the_nearest_step(done):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    for t in scheduler.timesteps[:done]:
        scheduler.step(torch.zeros(1), t, torch.zeros(1))
    for step, t in enumerate(scheduler.timesteps.tolist()):
        assert run_position(scheduler, t + 1.0) == (step, 4)


@pytest.mark.parametrize("n_steps", [1, 2, 3, 5, 7, 10, 20, 30, 49])
def test_parts_that_meet_cover_every_step_once(n_steps):
    """However the fractions were computed."""
    for k in range(1, n_steps):
        for cut in (k / n_steps, 1 - (n_steps - k) / n_steps, sum([1 / n_steps] * k)):
            of_first = [is_within(step, n_steps, (0.0, cut)) for step in range(n_steps)]
            assert of_first == [step < k for step in range(n_steps)]
            assert [is_within(step, n_steps, (cut, 1.0)) for step in range(n_steps)] == [not x for x in of_first]


@pytest.mark.filterwarnings("ignore::tide.TideWarning")
def test_the_command_line_refuses_what_would_meet_no_step():
    pipe = quietly(prepared(build_sd3()))
    for steps in ((0.0, 0.1), (0.26, 0.49), (0.25, 0.3), (1 - 1 / 4, 1.0), (0.76, 1.0)):
        reached, _ = edited_calls(pipe, steps, lambda: draw("sd3", pipe=pipe, n_steps=4))
        if reached:
            check_steps(steps, 4)
        else:
            with pytest.raises(TideError, match="holds none of the 4 sampling steps"):
                check_steps(steps, 4)
