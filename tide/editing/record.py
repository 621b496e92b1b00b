"""Records what a block holds while the pipeline draws target prompts: what an edit towards them needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tide.adapters import Adapter, Call, tap
from tide.editing.edits import Target
from tide.errors import TideError
from tide.sae.model import TIDE, inference


@dataclass(frozen=True)
class Recording:
    """One target per image of the batch, and its raw activations ``[timesteps, images, tokens, d_model]``."""

    targets: list[Target]
    raw: Tensor

    @property
    def timesteps(self) -> Tensor:
        return self.targets[0].timesteps


def record_targets(adapter: Adapter, model: TIDE, run: Callable[[], Any]) -> Recording:
    """Calls ``run``, which draws the target prompts with the pipeline in one batch, and keeps the latents and the
    activations of the conditional rows at every step ("for every timestep, a directed vector exists between the latent
    feature and the target feature", appendix C). Latents are kept as float16.
    """
    block = model.config.block
    if block is None:
        raise TideError("this SAE does not know its block; train it with `tide train`")
    timesteps: list[float] = []
    latents: list[Tensor] = []
    raw: list[Tensor] = []

    def keep(x: Tensor, call: Call) -> None:
        rows = call.conditional.to(x.device)
        if not rows.any():
            return  # a call for the negative prompt alone
        conditioning = None if call.conditioning is None else call.conditioning[rows]
        with inference(model):
            codes = model.encode(x[rows].float(), call.timestep[rows], conditioning)
        timesteps.append(float(call.timestep[0]))
        latents.append(codes.dense(model.n_latents).view(int(rows.sum()), x.shape[1], -1).half().cpu())
        raw.append(x[rows].float().cpu())

    with tap(adapter, {block: keep}, model.config.tensor):
        run()
    if not timesteps:
        raise TideError("the pipeline made no step while the target was recorded; let it draw at least one")
    steps = torch.tensor(timesteps)
    per_image = torch.stack(latents, dim=1)
    return Recording([Target(steps, values) for values in per_image], torch.stack(raw))
