"""Eqs 3 and 4 with the pipeline's noise schedule: diffusion (``alphas_cumprod``) or flow matching."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tide.errors import TideError


def signal_and_noise(scheduler: Any, timestep: Tensor | float, like: Tensor, *, flow: bool) -> tuple[Tensor, Tensor]:
    """The factors of image and noise at ``timestep``, shaped to multiply ``like [B, c, ...]``, float32.

    sqrt(abar_t) and sqrt(1 - abar_t); with ``flow`` 1 - sigma and sigma, where sigma = t / num_train_timesteps (the
    schedulers shift sigma, not this relation).
    """
    if flow:
        sigma = _flow_sigma(scheduler, timestep).to(like.device).reshape(-1, *(1,) * (like.ndim - 1))
        return 1 - sigma, sigma
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        raise TideError(f"{type(scheduler).__name__} has no alphas_cumprod; use DPM-Solver, DDIM or DDPM")
    index = torch.as_tensor(timestep, device="cpu").round().long().reshape(-1)
    check_range(index, len(alphas) - 1)
    abar = alphas.cpu()[index].to(like.device, torch.float32).reshape(-1, *(1,) * (like.ndim - 1))
    return abar.sqrt(), (1 - abar).sqrt()


def _flow_sigma(scheduler: Any, timestep: Tensor | float) -> Tensor:
    name, config = type(scheduler).__name__, scheduler.config
    # Sana-Sprint's (SCM) counts angles; its adapter turns them into shares of noise.
    if not name.startswith(("FlowMatch", "SCM")) and not getattr(config, "use_flow_sigmas", False):
        raise TideError(
            f"{name} is not a flow-matching schedule; use FlowMatchEuler, or DPM-Solver with use_flow_sigmas"
        )
    steps = torch.as_tensor(timestep, device="cpu", dtype=torch.float32).reshape(-1)
    check_range(steps, config.num_train_timesteps)
    return steps / config.num_train_timesteps


def check_range(steps: Tensor, last: int) -> None:
    """Raises :class:`~tide.errors.TideError` unless all ``steps`` are from 0 to ``last``."""
    wrong = [t for t in (steps.max().item(), steps.min().item()) if not 0 <= t <= last]
    if wrong:
        raise TideError(f"timestep {wrong[0]:g} does not exist; this scheduler has 0..{last}")


def noise_of(prediction: Tensor, latents: Tensor, signal: Tensor, sigma: Tensor, kind: str) -> Tensor:
    """The noise in ``latents``, which are signal times image and sigma times noise, that a model's ``prediction`` of
    this ``kind`` implies, float32.

    Flow-matching models predict the velocity noise - image: noise = x_t + (1 - sigma) velocity.
    """
    prediction, latents = prediction.float(), latents.float()
    if kind == "velocity":
        return latents + signal * prediction
    if kind == "epsilon":
        return prediction
    if kind == "v_prediction":
        return signal * prediction + sigma * latents
    if kind == "sample":
        return (latents - signal * prediction) / sigma
    raise TideError(f"prediction_type {kind!r} is unknown; use epsilon, v_prediction or sample")


def clean_of(prediction: Tensor, latents: Tensor, signal: Tensor, sigma: Tensor, kind: str) -> Tensor:
    """The image in ``latents`` that a model's ``prediction`` implies (eq. 3 solved for x_0), float32. Velocity and
    v-prediction tell it without any signal left, too."""
    prediction, latents = prediction.float(), latents.float()
    if kind == "velocity":
        return latents - sigma * prediction
    if kind == "v_prediction":
        return signal * latents - sigma * prediction
    if kind == "sample":
        return prediction
    return (latents - sigma * noise_of(prediction, latents, signal, sigma, kind)) / signal


def sampling_timesteps(scheduler: Any, n_steps: int, **arguments: Any) -> Tensor:
    """The timesteps of a run of ``n_steps`` steps, descending, on the CPU; ``arguments`` are what else the
    pipeline passes to ``set_timesteps``."""
    if not 1 <= n_steps <= scheduler.config.num_train_timesteps:
        raise TideError(f"{n_steps} sampling steps asked for; give 1..{scheduler.config.num_train_timesteps}")
    # set_timesteps resets a scheduler's state, so it is called on a copy.
    scheduler = type(scheduler).from_config(scheduler.config)
    scheduler.set_timesteps(n_steps, **arguments)
    return torch.unique(scheduler.timesteps.cpu()).flip(0)  # second-order schedulers repeat timesteps


def step_arguments(scheduler: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Any, Tensor]:
    """Prediction, timestep and noisy latents of a call of the scheduler's ``step``, wherever it takes them."""
    given = inspect.signature(type(scheduler).step).bind(scheduler, *args, **kwargs).arguments
    return given["model_output"], given["timestep"], given["sample"]


def resolution_shift(scheduler: Any, n_tokens: int, *, max_shift: float) -> dict[str, float]:
    """``mu`` for a schedule that is shifted by the image's size, on a line through two sizes that its config names;
    empty for any other. ``max_shift`` is the pipeline's default at the larger of the two."""
    config = scheduler.config
    if not getattr(config, "use_dynamic_shifting", False):
        return {}
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", max_shift)
    return {"mu": low + (high - low) * (n_tokens - few) / (many - few)}
