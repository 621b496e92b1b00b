"""What edits move towards: latents along a prompt's own sampling run or on an image, and the contrast of two prompts.

``n_steps``, ``guidance_scale``, ``seed`` and ``size`` are those of the run that will be edited
(:func:`tide.editing.draw_edits`): a target has values at each of its timesteps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from tide.activations.data import to_tensor
from tide.adapters import Adapter, Block, Call, of_prompt, tap
from tide.adapters.sizes import caption_length, image_size, n_tokens
from tide.editing.draw import draw_latents
from tide.editing.edits import Target
from tide.editing.record import record_contrast
from tide.errors import TideError
from tide.sae.model import TIDE, inference

#: Bytes that a recorded target may take in memory.
TARGET_BYTES = 8 * 10**9


def prompt_target(
    adapter: Adapter,
    model: TIDE,
    prompt: str,
    *,
    n_steps: int = 20,
    guidance_scale: float = 4.5,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    pooled: bool = False,
) -> Target:
    """The latents that ``model``'s block has while the pipeline draws ``prompt``.

    Args:
        pooled: averaged over the image.

    Returns:
        A target with values ``[timesteps, tokens, n_latents]``, or ``[timesteps, n_latents]`` if ``pooled``, float32
        on the CPU.

    Raises:
        TideError: the latents would take more than :data:`TARGET_BYTES`, or the steps or the size do not fit the
            pipeline.
    """
    size = image_size(adapter, size)
    draw = partial(draw_latents, adapter, prompt, n_steps=n_steps, guidance_scale=guidance_scale, seed=seed, size=size)
    return _record(adapter, model, prompt, draw, n_steps=n_steps, size=size, pooled=pooled)


def image_target(
    adapter: Adapter,
    model: TIDE,
    prompt: str,
    image: Image,
    *,
    n_steps: int = 20,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    pooled: bool = False,
) -> Target:
    """The latents that ``model``'s block has on ``image`` under ``prompt``, noised to every timestep of a run
    (Algorithm 1). ``image`` is fitted to ``size``. Returns and raises as :func:`prompt_target`."""
    size = image_size(adapter, size)
    run = partial(_noised, adapter, prompt, image, n_steps=n_steps, seed=seed, size=size)
    return _record(adapter, model, prompt, run, n_steps=n_steps, size=size, pooled=pooled)


def image_contrast(
    adapter: Adapter,
    model: TIDE,
    image: Image,
    present: str,
    absent: str,
    *,
    n_steps: int = 20,
    seed: int = 0,
    size: tuple[int, int] | None = None,
) -> tuple[Target, Target]:
    """For :class:`~tide.editing.Contrast`: the latents on ``image``, noised as in :func:`image_target`, under the
    prompt ``present`` and, with the same noise, under ``absent``.

    Returns:
        Two targets with values ``[timesteps, tokens, n_latents]``, float16 on the CPU.

    Raises:
        TideError: as :func:`prompt_target`.
    """
    size = image_size(adapter, size)
    steps = adapter.sampling_timesteps(n_steps)
    _check_bytes(len(steps), n_tokens(adapter, size), model.n_latents * 4, "lower --n-steps")
    block = _block_of(model)
    found = record_contrast(
        adapter,
        [block],
        _encoded(adapter, image, size),
        ([present], [absent]),
        steps,
        tensor=model.config.tensor,
        seed=seed,
        max_sequence_length=caption_length(adapter),
    )
    return found[adapter.resolve_block(block)].targets(model)[0]


def _record(
    adapter: Adapter,
    model: TIDE,
    prompt: str,
    run: Callable[[], Any],
    *,
    n_steps: int,
    size: tuple[int, int],
    pooled: bool,
) -> Target:
    """The latents of the prompt's rows at every step of ``run``."""
    steps = adapter.sampling_timesteps(n_steps)
    tokens = 1 if pooled else n_tokens(adapter, size)
    _check_bytes(len(steps), tokens, model.n_latents * 4, "add --towards-pooled or lower --n-steps")
    timesteps: list[float] = []
    values: list[torch.Tensor] = []

    def record(x: torch.Tensor, call: Call) -> None:
        with inference(model):
            z = torch.cat(
                [
                    model.encode(part.float(), call.timestep, call.conditioning).dense(model.n_latents)
                    for part in x[0].split(512)
                ]
            )
        timesteps.append(float(call.timestep[0]))
        values.append((z.mean(0) if pooled else z).cpu())

    with tap(adapter, {_block_of(model): of_prompt(record)}, model.config.tensor):
        run()
    if not timesteps:
        raise TideError(f"the model met no row of the prompt {prompt!r}, so there is no target; give another prompt")
    return Target(torch.tensor(timesteps), torch.stack(values))


def _block_of(model: TIDE) -> Block:
    if model.config.block is None:
        raise TideError("this SAE does not know its block; train it with `tide train`")
    return model.config.block


def _check_bytes(n_steps: int, n_tokens: int, each: int, remedy: str) -> None:
    if (n_bytes := n_steps * n_tokens * each) > TARGET_BYTES:
        raise TideError(
            f"the target's latents take {n_bytes / 1e9:.0f} GB at {n_steps} steps of {n_tokens} tokens; {remedy}"
        )


def _noised(adapter: Adapter, prompt: str, image: Image, *, n_steps: int, seed: int, size: tuple[int, int]) -> None:
    """Runs the model on the image at every timestep, noised from ``seed`` (Algorithm 1)."""
    text = adapter.encode_prompts([prompt], caption_length(adapter))
    latents = _encoded(adapter, image, size)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    for t in adapter.sampling_timesteps(n_steps).tolist():
        with torch.no_grad():
            adapter.denoise(adapter.add_noise(latents, noise, t), t, text)


def _encoded(adapter: Adapter, image: Image, size: tuple[int, int]) -> Tensor:
    """The image through the VAE, ``[1, c, h, w]``."""
    return adapter.encode_images(to_tensor(image, size)[None])
