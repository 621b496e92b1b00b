"""Latents along a sampling run (section 5.5, Fig. 5): changes from step to step, and distances between two runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tide.adapters import Adapter, Call, of_prompt, tap
from tide.adapters.schedule import step_arguments
from tide.adapters.standins import listened
from tide.devices import in_double
from tide.errors import TideError
from tide.interpretation.reading import PIECE
from tide.sae.model import TIDE, Codes, inference


@dataclass(frozen=True)
class Trajectory:
    """One sampling run, the conditional rows alone.

    ``codes``, one a step: values float16 and indices ``[images * tokens, k]``; ``raw [steps, images, tokens, d_model]``
    float16, the block's own activations; ``clean [steps, images, c, h, w]``, the image that the model predicts at each
    step, guidance included, as scaled latents; ``final [images, c, h, w]``.

    Attributes:
        timesteps: ``[steps]``, the scheduler's.
        codes: one a step.
        raw: ``[steps, images, tokens, d_model]`` float16.
        clean: ``[steps, images, c, h, w]``.
        final: ``[images, c, h, w]``.
        n_latents: how many latents the autoencoder has.
    """

    timesteps: Tensor
    codes: list[Codes]
    raw: Tensor
    clean: Tensor
    final: Tensor
    n_latents: int

    @property
    def n_images(self) -> int:
        """Images of the run."""
        return self.raw.shape[1]

    @property
    def n_tokens(self) -> int:
        """Tokens of an image."""
        return self.raw.shape[2]


class Change(NamedTuple):
    """Cosine similarity (the mean over tokens) and mean squared difference (over tokens and features), each ``[pairs,
    images]`` float32."""

    cosine: Tensor
    mse: Tensor


def scheduler_steps(adapter: Adapter, keep: Callable[[Tensor, float, Tensor], None]) -> AbstractContextManager[None]:
    """Passes ``keep`` the arguments of every step of the pipeline's scheduler: prediction, timestep, and the noisy
    latents as the model was given them."""
    scheduler = adapter.pipe.scheduler

    def before(*args: Any, **kwargs: Any) -> None:
        keep(*adapter.of_step(*step_arguments(scheduler, args, kwargs)))

    return listened(scheduler, "step", before=before)


@torch.no_grad()
def record_trajectory(adapter: Adapter, model: TIDE, run: Callable[[], Tensor]) -> Trajectory:
    """Calls ``run``, which draws with the pipeline and returns its final latents, and records the SAE's block at every
    step.

    ``model`` is an SAE that knows its block, on the device of ``adapter``.

    Raises :class:`~tide.errors.TideError` if the pipeline made fewer than two steps.
    """
    block = model.config.trained_block
    timesteps: list[float] = []
    codes: list[Codes] = []
    raw: list[Tensor] = []
    steps: list[tuple[Tensor, Tensor, float]] = []

    def keep(x: Tensor, call: Call) -> None:
        with inference(model):
            values, indices = model.encode(x.float(), call)
        timesteps.append(float(call.timestep[0]))
        codes.append(Codes(values.half().cpu(), indices.cpu()))
        raw.append(x.half().cpu())

    def predicted(prediction: Tensor, timestep: float, sample: Tensor) -> None:
        if adapter.runs_in_turn and len(steps) == len(timesteps):
            return  # the step of another transformer
        n_images = len(raw[-1])
        if len(sample) == 2 * n_images:  # the pipeline steps the rows of both branches
            rows = adapter.conditional_rows(len(sample), True).to(sample.device)
            prediction, sample = prediction[rows], sample[rows]
        steps.append((prediction.float().cpu(), sample.float().cpu(), timestep))

    with tap(adapter, {block: of_prompt(keep)}, model.config.tensor), scheduler_steps(adapter, predicted):
        final = run().float().cpu()
    if len(timesteps) < 2 or len(timesteps) != len(steps):
        raise TideError(
            f"the pipeline made {len(timesteps)} calls for the prompt in {len(steps)} steps; let it draw in two "
            "steps or more, with one call each"
        )
    size = tuple(final.shape[2:])
    images = [
        adapter.predicted_clean(adapter.unpacked(prediction, size), adapter.unpacked(sample, size), t)
        for prediction, sample, t in steps
    ]
    return Trajectory(torch.tensor(timesteps), codes, torch.stack(raw), torch.stack(images), final, model.n_latents)


# -- comparing --------------------------------------------------------------------------------------------


def _compared(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """For each row: cosine (1 for two rows of zeros, 0 for one) and mean squared difference."""
    cosine = F.cosine_similarity(first, second, dim=1)
    both_empty = ~(first.any(1) | second.any(1))
    return torch.where(both_empty, 1.0, cosine), (first - second).square().mean(1)


def _codes_compared(first: Codes, second: Codes, n_latents: int) -> tuple[Tensor, Tensor]:
    parts = []
    rows = max(1, PIECE // n_latents)
    for start in range(0, len(first.values), rows):
        part = slice(start, start + rows)
        dense = [Codes(c.values[part].float(), c.indices[part]).dense(n_latents) for c in (first, second)]
        parts.append(_compared(*dense))
    cosine, mse = zip(*parts, strict=True)
    return torch.cat(cosine), torch.cat(mse)


def _change(pairs: list[tuple[Tensor, Tensor]], n_images: int) -> Change:
    cosine, mse = (torch.stack(each).unflatten(1, (n_images, -1)).mean(2) for each in zip(*pairs, strict=True))
    return Change(cosine, mse)


def step_changes(run: Trajectory) -> Change:
    """Latents of each step against those of the next: ``[steps - 1, images]``.

    ``run`` has at least two steps.
    """
    return _change([_codes_compared(a, b, run.n_latents) for a, b in pairwise(run.codes)], run.n_images)


def raw_step_changes(run: Trajectory) -> Change:
    """As :func:`step_changes`, of the block's activations themselves."""
    rows = run.raw.flatten(1, 2).float()
    return _change([_compared(a, b) for a, b in pairwise(rows)], run.n_images)


def run_distances(first: Trajectory, second: Trajectory) -> Change:
    """Latents of two runs at each of their steps: ``[steps, images]``.

    ``first`` and ``second`` are runs of one model.

    Raises :class:`~tide.errors.TideError` unless both ran at the same timesteps over as many images and tokens.
    """
    shapes = [(r.n_images, r.n_tokens, r.n_latents, len(r.timesteps)) for r in (first, second)]
    if shapes[0] != shapes[1] or not torch.equal(first.timesteps, second.timesteps):
        raise TideError(
            f"one run has (images, tokens, latents, steps) {shapes[0]} and the other {shapes[1]}; draw both with the "
            "same SAE, sizes and schedule"
        )
    pairs = zip(first.codes, second.codes, strict=True)
    return _change([_codes_compared(a, b, first.n_latents) for a, b in pairs], first.n_images)


def active_shares(run: Trajectory, level: Tensor, n_levels: int) -> Tensor:
    """The share of every level among the active latents of each step, ``[steps, n_levels]``.

    ``level [n_latents]`` is each latent's level, 0 to ``n_levels - 1``.
    """
    if level.shape != (run.n_latents,) or not 0 <= int(level.min()) <= int(level.max()) < n_levels:
        raise TideError(
            f"level is {list(level.shape)} of {int(level.min())}..{int(level.max())}; give each of {run.n_latents} "
            f"latents one of 0..{n_levels - 1}"
        )
    counts = [
        in_double(torch.bincount(level[codes.indices[codes.values > 0].long()], minlength=n_levels))
        for codes in run.codes
    ]
    table = torch.stack(counts)
    return (table / table.sum(1, keepdim=True).clamp(min=1)).float()
