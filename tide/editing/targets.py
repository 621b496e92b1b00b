"""What edits move towards: latents along a prompt's own sampling run or on an image, and the contrast of two prompts.

``n_steps``, ``guidance_scale``, ``seed`` and ``size`` are those of the run that will be edited
(:func:`tide.editing.draw_edits`): a target has values at each of its timesteps.
"""

from __future__ import annotations

from functools import partial

import torch
from PIL.Image import Image
from torch import Tensor

from tide.adapters import Adapter
from tide.adapters.sizes import caption_length, image_size, n_tokens
from tide.checks import GUIDANCE
from tide.editing.context import refuse_transcoder
from tide.editing.draw import draw_latents
from tide.editing.edits import Target
from tide.editing.record import check_target_size, record_contrast, record_targets, run_noised
from tide.images.tensors import to_tensor
from tide.sae.model import TIDE


def prompt_target(
    adapter: Adapter,
    model: TIDE,
    prompt: str,
    *,
    n_steps: int = 20,
    guidance_scale: float = GUIDANCE,
    seed: int = 0,
    size: tuple[int, ...] | None = None,
    pooled: bool = False,
) -> Target:
    """The latents that ``model``'s block has while the pipeline draws ``prompt``.

    Args:
        pooled: averaged over the image.
        adapter: of the pipeline.
        model: the TIDE, on the pipeline's device.
        prompt: what is drawn.
        n_steps, guidance_scale, seed, size: as for :func:`draw_edits`.

    Returns:
        A target with values ``[timesteps, tokens, n_latents]``, or ``[timesteps, n_latents]`` if ``pooled``, float32
        on the CPU.

    Raises:
        TideError: the latents would take more than :data:`~tide.editing.record.TARGET_BYTES`, or the
            steps or the size do not fit the pipeline.
    """
    size = image_size(adapter, size)
    _check_size(adapter, model, n_steps, size, pooled)
    draw = partial(draw_latents, adapter, prompt, n_steps=n_steps, guidance_scale=guidance_scale, seed=seed, size=size)
    return record_targets(adapter, model, draw, pooled=pooled, dtype=torch.float32).targets[0]


def image_target(
    adapter: Adapter,
    model: TIDE,
    prompt: str,
    image: Image,
    *,
    n_steps: int = 20,
    seed: int = 0,
    size: tuple[int, ...] | None = None,
    pooled: bool = False,
) -> Target:
    """The latents that ``model``'s block has on ``image`` under ``prompt``, noised to every timestep of a run
    (Algorithm 1). ``image`` is fitted to ``size``. Returns and raises as :func:`prompt_target`.

    ``adapter``, ``model``, ``n_steps``, ``seed``, ``size`` and ``pooled`` are as there.
    """
    size = image_size(adapter, size)
    _check_size(adapter, model, n_steps, size, pooled)
    run = partial(
        run_noised,
        adapter,
        _encoded(adapter, image, size),
        [prompt],
        adapter.sampling_timesteps(n_steps),
        seed=seed,
        max_sequence_length=caption_length(adapter),
    )
    return record_targets(adapter, model, run, pooled=pooled, dtype=torch.float32).targets[0]


def image_contrast(
    adapter: Adapter,
    model: TIDE,
    image: Image,
    present: str,
    absent: str,
    *,
    n_steps: int = 20,
    seed: int = 0,
    size: tuple[int, ...] | None = None,
) -> tuple[Target, Target]:
    """For :class:`~tide.editing.Contrast`: the latents on ``image``, noised as in :func:`image_target`, under the
    prompt ``present`` and, with the same noise, under ``absent``.

    ``adapter``, ``model``, ``n_steps``, ``seed`` and ``size`` are as for :func:`prompt_target`.

    Returns:
        Two targets with values ``[timesteps, tokens, n_latents]``, float16 on the CPU.

    Raises:
        TideError: as :func:`prompt_target`.
    """
    refuse_transcoder(model)
    size = image_size(adapter, size)
    steps = adapter.sampling_timesteps(n_steps)
    check_target_size(len(steps), n_tokens(adapter, size), model.n_latents, "lower n_steps")
    block = model.config.trained_block
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


def _check_size(adapter: Adapter, model: TIDE, n_steps: int, size: tuple[int, ...], pooled: bool) -> None:
    tokens = 1 if pooled else n_tokens(adapter, size)
    steps = len(adapter.sampling_timesteps(n_steps))
    check_target_size(steps, tokens, model.n_latents, "pool the target or lower n_steps")


def _encoded(adapter: Adapter, image: Image, size: tuple[int, ...]) -> Tensor:
    """The image through the VAE, ``[1, c, h, w]``."""
    return adapter.encode_images(to_tensor(image, size)[None])
