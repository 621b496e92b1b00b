"""Sana-Sprint: Sana distilled for guidance and for few steps, which its scheduler counts as angles."""

from __future__ import annotations

from dataclasses import replace
from math import hypot
from typing import Any

import torch
from torch import Tensor

from tide.adapters.families.sana import SanaAdapter
from tide.adapters.registry import declared


@declared
class SanaSprintAdapter(SanaAdapter):
    """At the angle a the scheduler has sigma_data (cos(a) image + sin(a) noise). The pipeline gives the transformer
    (1 - s) image + s noise, with s = sin(a) / (cos(a) + sin(a)), and gets noise - image: flow matching at the timestep
    1000 s."""

    spec = replace(
        SanaAdapter.spec,
        family="sana_sprint",
        models="Sana-Sprint",
        pipelines={"SanaSprintPipeline": (), "SanaSprintImg2ImgPipeline": ("image",)},
        refused={},
        text=replace(SanaAdapter.spec.text, arguments={}),
        received="t / 1000",
        conditioning="embedded guidance",
        guidance="none",
        notes=("guidance_scale is the embedded one.", "Timesteps are 1000 times the share of noise."),
    )
    timestep_scale = 1 / 1000

    def from_scheduler(self, timestep: Tensor) -> Tensor:
        share = torch.sin(timestep) / (torch.cos(timestep) + torch.sin(timestep))
        return 1000 * share.clamp(max=1)  # the pipeline's first angle is a little more than a right one

    def to_scheduler(self, timestep: Tensor) -> Tensor:
        return torch.atan2(timestep, 1000 - timestep)

    @property
    def run_timesteps(self) -> Tensor:
        return super().run_timesteps[:-1]  # the last angle is where the run ends

    def sampling_timesteps(self, n_steps: int) -> Tensor:
        return super().sampling_timesteps(n_steps)[:-1]

    def schedule_arguments(self, n_steps: int) -> dict[str, Any]:
        return {"max_timesteps": 1.5708, "intermediate_timesteps": 1.3 if n_steps == 2 else None}

    def of_step(self, prediction: Tensor, timestep: Any, sample: Tensor) -> tuple[Tensor, float, Tensor]:
        prediction, at, sample = super().of_step(prediction, timestep, sample)
        share, unit = at / 1000, self.pipe.scheduler.config.sigma_data
        length = hypot(share, 1 - share)
        given = sample / unit * length
        return (prediction / unit * length - (1 - 2 * share) * given) / length**2, at, given

    def run_pipeline(self, prompts: Any, n_steps: int, *args: Any, **kwargs: Any) -> Tensor:
        return super().run_pipeline(prompts, n_steps, *args, **{**self.schedule_arguments(n_steps), **kwargs})
