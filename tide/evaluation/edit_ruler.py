"""What an edit does to a finished picture, measured by the model that drew it: effect and damage."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from tide.activations.collect import Prepared
from tide.adapters import Adapter
from tide.adapters.sizes import caption_length
from tide.editing import draw_latents
from tide.editing.draw import check_drawn
from tide.evaluation.diffusion_loss import diffusion_loss

#: Where in the sampling run finished pictures are read: neither hidden by noise nor nearly without any.
READ_AT = (0.3, 0.5, 0.7)


class EditTrial(NamedTuple):
    """What is drawn: a prompt from the noise of ``seed``. ``target``: the prompt whose picture an edit should reach."""

    prompt: str
    seed: int = 0
    target: str | None = None


@dataclass(frozen=True)
class Drawer:
    """How pictures are drawn; ``on_run`` is called after each."""

    adapter: Adapter
    n_steps: int
    guidance_scale: float
    size: tuple[int, ...]
    on_run: Callable[[], object]

    def draw(self, prompt: str, seed: int) -> Tensor:
        """Final latents ``[1, c, h, w]``, float32."""
        run: dict[str, Any] = {"n_steps": self.n_steps, "guidance_scale": self.guidance_scale, "size": self.size}
        latents = draw_latents(self.adapter, prompt, seed=seed, **run).float()
        self.on_run()
        return latents


@dataclass(frozen=True)
class Ruler:
    """Measures the finished pictures of a trial, as latents ``[1, c, h, w]``."""

    adapter: Adapter
    trial: EditTrial
    timesteps: Tensor
    source: Tensor
    target: Tensor | None
    #: Prompt -> the model's loss on the picture that was drawn of it.
    losses: dict[str, float]

    @classmethod
    def of(cls, drawer: Drawer, trial: EditTrial) -> Ruler:
        adapter, drawn = drawer.adapter, {}
        for prompt in dict.fromkeys(each for each in (trial.prompt, trial.target) if each is not None):
            drawn[prompt] = drawer.draw(prompt, trial.seed)
            check_drawn(drawn[prompt], "lower the guidance scale or load the pipeline in fp32")
        grid = adapter.sampling_timesteps(drawer.n_steps)
        timesteps = grid[[int(share * len(grid)) for share in READ_AT]].unique().flip(0)
        losses = {prompt: _loss(adapter, latents, prompt, timesteps) for prompt, latents in drawn.items()}
        target = None if trial.target is None else drawn[trial.target]
        return cls(adapter, trial, timesteps, drawn[trial.prompt], target, losses)

    def damage(self, edited: Tensor) -> float:
        """The diffusion loss on ``edited`` over that on the picture that was drawn of the same prompt, the lowest of
        the prompts; infinite where it is not a number."""
        ratios = [
            _loss(self.adapter, edited, prompt, self.timesteps) / max(loss, 1e-12)
            for prompt, loss in self.losses.items()
        ]
        return min((ratio for ratio in ratios if math.isfinite(ratio)), default=math.inf)

    def effect(self, edited: Tensor) -> float:
        """How far ``edited`` has moved, as :func:`tide.evaluation.search_edits` defines it."""
        if self.target is None:
            return float((edited - self.source).norm() / self.source.norm())
        return _share_of_way(self.source, self.target, edited)


def _share_of_way(source: Tensor, wanted: Tensor, reached: Tensor) -> float:
    """``<reached - source, wanted - source> / |wanted - source|^2``; NaN where there is no way to go."""
    way = wanted - source
    length = float(way.square().sum())
    return float(((reached - source) * way).sum()) / length if length else math.nan


def _loss(adapter: Adapter, latents: Tensor, prompt: str, timesteps: Tensor) -> float:
    """The diffusion loss on a finished picture under a prompt."""
    text = adapter.encode_prompts([prompt], caption_length(adapter))
    found = diffusion_loss(adapter, [Prepared(latents, text)], 0, {}, timesteps=timesteps)
    return float(found["clean"]["loss"])
