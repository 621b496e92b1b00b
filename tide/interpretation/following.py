"""A prompt followed along its sampling run, alone or beside another prompt that is drawn from the same noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tide.adapters import Adapter
from tide.adapters.sizes import image_size, n_tokens
from tide.checks import GUIDANCE
from tide.editing.draw import check_drawn, draw_latents
from tide.errors import TideError
from tide.interpretation.abrupt_change import SHORTEST, AbruptChange, abrupt_change
from tide.interpretation.trajectory import (
    Change,
    Trajectory,
    raw_step_changes,
    record_trajectory,
    run_distances,
    step_changes,
)
from tide.sae.model import TIDE

#: Bytes that the recorded codes and activations of a run may take.
RUN_BYTES = 8 * 10**9


@dataclass(frozen=True)
class Followed:
    """What :func:`follow` finds.

    Attributes:
        prompt: what was drawn.
        towards: the other prompt, if there is one.
        source: the prompt's run.
        target: the other prompt's run, if there is one.
        columns: name -> a value for each step. "timestep"; cosine similarity (mean over tokens) and mean squared
            difference of the latents, and of the raw activations, to those of the next step, None at the last step;
            and of the latents to the target's at the same step.
        change: the deepest dip of the latents' cosine with the next step, if it has one.
    """

    prompt: str
    towards: str | None
    source: Trajectory
    target: Trajectory | None
    columns: dict[str, list[float | None]]
    change: AbruptChange | None

    @property
    def n_steps(self) -> int:
        """Steps of the run."""
        return len(self.source.codes)

    @property
    def changed_at(self) -> int | None:
        """The first step after the abrupt change."""
        return None if self.change is None else self.change.index + 1

    @property
    def same(self) -> bool:
        """Whether both prompts draw the same image, as two words that the text encoder does not know do."""
        return self.target is not None and torch.equal(self.source.final, self.target.final)

    @property
    def rows(self) -> list[dict[str, float | None]]:
        """:attr:`columns` step by step."""
        return [{"step": i, **{name: values[i] for name, values in self.columns.items()}} for i in range(self.n_steps)]


def check_length(n_steps: int) -> None:
    """Raises :class:`~tide.errors.TideError` for fewer steps than an abrupt change can be found in."""
    if n_steps <= SHORTEST:
        raise TideError(f"n_steps = {n_steps} is too few to find a change in; give at least {SHORTEST + 1}")


def follow(
    adapter: Adapter,
    model: TIDE,
    prompt: str,
    towards: str | None = None,
    *,
    n_steps: int = 20,
    guidance_scale: float = GUIDANCE,
    seed: int = 0,
    size: tuple[int, ...] | None = None,
) -> Followed:
    """Draws a prompt and compares the latents of consecutive steps (section 5.5, Fig. 5).

    Args:
        adapter: the pipeline.
        model: the TIDE whose block is followed, on the pipeline's device.
        prompt: what is drawn.
        towards: another prompt, drawn from the same noise, to compare with.
        n_steps: sampling steps, at least 4.
        guidance_scale: of classifier-free guidance; at most 1 is without.
        seed: of the noise.
        size: height and width in pixels; default the pipeline's own.

    Raises:
        TideError: the steps or the size do not fit the pipeline; the run would take more than :data:`RUN_BYTES`; what
            is drawn is not finite.
    """
    check_length(n_steps)
    size = image_size(adapter, size)
    n_bytes = n_steps * n_tokens(adapter, size) * (6 * model.config.k + 2 * model.d_model)
    if n_bytes > RUN_BYTES:
        raise TideError(f"the run's latents take {n_bytes / 1e9:.0f} GB; lower n_steps or the size")

    def draw(prompt: str) -> Tensor:
        drawn = draw_latents(adapter, prompt, n_steps=n_steps, guidance_scale=guidance_scale, seed=seed, size=size)
        check_drawn(drawn, "lower the guidance scale or load the pipeline in fp32")
        return drawn

    source = record_trajectory(adapter, model, partial(draw, prompt))
    target = None if towards is None else record_trajectory(adapter, model, partial(draw, towards))
    latents = step_changes(source)
    columns, change = _columns(source, target, latents), abrupt_change(latents.cosine[:, 0].tolist())
    return Followed(prompt, towards, source, target, columns, change)


def _columns(source: Trajectory, target: Trajectory | None, latents: Change) -> dict[str, list[float | None]]:
    raw = raw_step_changes(source)
    columns: dict[str, list[float | None]] = {
        "timestep": source.timesteps.tolist(),
        "cosine with the next step": [*latents.cosine[:, 0].tolist(), None],
        "mse to the next step": [*latents.mse[:, 0].tolist(), None],
        "raw cosine with the next step": [*raw.cosine[:, 0].tolist(), None],
        "raw mse to the next step": [*raw.mse[:, 0].tolist(), None],
    }
    if target is not None:
        apart = run_distances(source, target)
        columns |= {
            "cosine with the target": apart.cosine[:, 0].tolist(),
            "mse to the target": apart.mse[:, 0].tolist(),
        }
    return columns
