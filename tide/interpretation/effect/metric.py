"""What latents have an effect on: a number of the model's prediction at a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tide.adapters import Adapter
from tide.adapters.base import Text
from tide.adapters.sizes import caption_length
from tide.errors import TideError
from tide.interpretation.effect.steps import EMBEDDED


@dataclass(frozen=True)
class Asked:
    """One step as the model meets it: noisy ``latents [images, c, h, w]`` at a timestep of the scheduler, the images'
    prompts, and ``own [images, c, h, w]``, what the model predicts for them.

    Attributes:
        timestep: the scheduler's.
        latents: ``[images, c, h, w]``.
        text: the prompts as arguments of the transformer.
        own: the model's prediction ``[images, c, h, w]``.
    """

    timestep: float
    latents: Tensor
    text: Text
    own: Tensor


#: From predictions ``[..., images, c, h, w]``, of clips with frames before h, to a number for each, ``[..., images]``.
#: Gradients flow through it.
Measure = Callable[[Tensor], Tensor]
#: What is measured at a step. It is called once a step; a measure that is the same at every step is
#: ``lambda asked: measure``.
Metric = Callable[[Asked], Measure]


def towards(own: Tensor, wanted: Tensor) -> Measure:
    """How far a prediction has gone from ``own`` to ``wanted``, both ``[images, c, h, w]``: the share of the way, 0 at
    ``own`` and 1 at ``wanted``::

        m(p) = <p - own, wanted - own> / |wanted - own|^2

    Raises :class:`~tide.errors.TideError` where both are the same.
    """
    way = wanted - own
    image = tuple(range(1 - own.ndim, 0))  # the dimensions of one image, or clip
    length = way.square().sum(image)
    if not bool((length > 0).all()):
        raise TideError("both prompts predict the same, so there is no way to go; name words that the model knows")
    return lambda prediction: ((prediction - own) * way).sum(image) / length


def towards_prompt(adapter: Adapter, prompts: Sequence[str]) -> Metric:
    """:func:`towards` what the model predicts for the same noisy latents under other ``prompts``, one an image.

    The metric raises :class:`~tide.errors.TideError` for another number of images, and where both prompts predict the
    same.

    ``adapter`` is of the pipeline whose latents are asked about.
    """
    text = adapter.encode_prompts(list(prompts), caption_length(adapter))

    def metric(asked: Asked) -> Measure:
        if len(asked.latents) != len(prompts):
            raise TideError(
                f"{len(asked.latents)} images and {len(prompts)} prompts to move towards; give one an image"
            )
        run = {name: value for name, value in asked.text.items() if name == EMBEDDED}
        with torch.no_grad():
            return towards(asked.own, adapter.denoise(asked.latents, asked.timestep, {**text, **run}))

    return metric
