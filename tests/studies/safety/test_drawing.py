"""Requests are drawn as the pipeline draws their prompts, each from its own seed, whatever they are batched with."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from tide.editing import Steer, edit
from tide.errors import TideError
from tide.scenes.annotate import encode_captions, generate_images
from tide.studies.safety.drawing import draw_requests
from tide.studies.safety.prompts import Unwanted, allowed, asking
from tide.studies.safety.rivals import UNGUARDED, Rival, filtered, negative
from tide.studies.tasks import swap_word

HOUSE = Unwanted("class", "house")
REQUESTS = [replace(request, n_steps=3) for request in [*asking(HOUSE, "dev", 2), *allowed(HOUSE, "dev", 2)]]


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-4)


def test_images_are_those_of_the_pipeline(bundled):
    images = draw_requests(bundled, REQUESTS)
    same = generate_images(bundled, [r.prompt for r in REQUESTS], [r.seed for r in REQUESTS], n_steps=3)
    assert near(images, same)


def test_requests_of_different_settings_come_back_in_their_order(bundled):
    mixed = [
        replace(r, guidance=g, n_steps=n) for r, g, n in zip(REQUESTS, (2.0, 1.0, 2.0, 4.0), (3, 3, 2, 3), strict=True)
    ]
    together = draw_requests(bundled, mixed, batch_size=2)
    alone = torch.cat([draw_requests(bundled, [request]) for request in mixed])
    assert near(together, alone)
    assert not near(together, draw_requests(bundled, REQUESTS))


def test_a_rivals_prompt_is_what_is_drawn(bundled):
    swapped = [replace(r, prompt=swap_word(r.prompt, "house", "sphere")) for r in REQUESTS]
    assert near(draw_requests(bundled, REQUESTS, filtered(HOUSE)), draw_requests(bundled, swapped))


def test_a_negative_prompt_acts_under_guidance_alone(bundled):
    plain, against = draw_requests(bundled, REQUESTS), draw_requests(bundled, REQUESTS, negative(HOUSE))
    assert not near(plain, against)
    unguided = [replace(request, guidance=1.0) for request in REQUESTS]
    assert near(draw_requests(bundled, unguided), draw_requests(bundled, unguided, negative(HOUSE)))


def test_the_pipeline_runs_inside_of_the_rivals_context(bundled):
    opened = []

    @contextmanager
    def context(pipe):
        handle = pipe.transformer.register_forward_pre_hook(lambda *_: opened.append(True))
        try:
            yield
        finally:
            handle.remove()

    draw_requests(bundled, REQUESTS, Rival("counting", context=context))
    assert len(opened) == 3
    draw_requests(bundled, REQUESTS, UNGUARDED)
    assert len(opened) == 3


def test_an_edit_of_activations_meets_the_same_rows_as_in_any_run(bundled):
    """Those of the prompts, in its part of the run."""
    change = Steer(torch.tensor([500.0]), torch.full((1, 192), 0.5))
    steps = {"block": 3, "steps": (0.0, 0.5)}
    with edit(bundled.pipe, None, change, **steps) as met:
        edited = generate_images(bundled, [r.prompt for r in REQUESTS], [r.seed for r in REQUESTS], n_steps=3)
    mets = []

    @contextmanager
    def context(pipe):
        with edit(pipe, None, change, **steps) as met:
            mets.append(met)
            yield

    assert near(draw_requests(bundled, REQUESTS, Rival("steered", context=context)), edited)
    assert (mets[0].calls, mets[0].in_steps, mets[0].rows) == (met.calls, met.in_steps, met.rows) == (3, 2, 8)


def test_given_embeddings_replace_the_prompts(bundled):
    text = encode_captions(bundled, [r.prompt for r in REQUESTS[::-1]])
    swapped = [replace(r, prompt=other.prompt) for r, other in zip(REQUESTS, REQUESTS[::-1], strict=True)]
    assert near(draw_requests(bundled, REQUESTS, text=text, batch_size=3), draw_requests(bundled, swapped))
    with pytest.raises(TideError, match="the text has other rows than the 3 requests"):
        draw_requests(bundled, REQUESTS[:3], text=text)


def test_no_requests_are_refused(bundled):
    with pytest.raises(TideError, match="there are no requests to draw; give at least one"):
        draw_requests(bundled, [])
