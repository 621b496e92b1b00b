"""What a guard adds to a step of the transformer, in multiply-adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from tide.adapters import Adapter
from tide.adapters.base import Text
from tide.adapters.sizes import caption_length, image_size, latent_size, n_tokens
from tide.editing.where import Detector
from tide.guards.definition import Guard
from tide.guards.words import STATES


@dataclass(frozen=True)
class Cost:
    """Multiply-adds for one image and one step: of products of matrices, and of what the guard adds to tokens.

    Attributes:
        detectors: of the latents that tell images and tokens.
        modulation: of the scale and shift in front of them.
        words: of the map of words, in steps in which the image is flagged.
        moved: of moving every token, in steps in which the image is flagged; mostly few are moved.
        transformer: of one call for the prompt. Guidance calls it for a negative prompt as well, which the guard does
            not read.
    """

    detectors: int
    modulation: int
    words: int
    moved: int
    transformer: int

    @property
    def guard(self) -> int:
        """Of a flagged image, the dearest."""
        return self.detectors + self.modulation + self.words + self.moved

    @property
    def share(self) -> float:
        """The guard's beside the transformer's."""
        return self.guard / self.transformer

    def __str__(self) -> str:
        return (
            f"the guard takes {self.guard / 1e9:.3g} billion multiply-adds a step and the transformer "
            f"{self.transformer / 1e9:.4g} billion: {self.share:.2%}"
        )


@torch.no_grad()
def guard_cost(
    adapter: Adapter, guard: Guard, size: tuple[int, ...] | None = None, *, text: Text | None = None
) -> Cost:
    """The cost of ``guard`` in images of ``size``, height and width in pixels (default: the pipeline's own).

    Runs the transformer once, on an image of zeros, which on the meta device computes nothing. ``text``: the
    transformer's arguments of one prompt (default: those of an empty one).

    ``adapter`` is of a pipeline that the guard was made for.

    Raises:
        TideError: the size does not divide into tokens.
    """
    pixels = image_size(adapter, size)
    text = adapter.encode_prompts([""], caption_length(adapter)) if text is None else text
    latents = torch.zeros(1, adapter.latent_channels, *latent_size(adapter, pixels), device=adapter.device)
    timestep = float(guard.when.timesteps[0])
    detectors = [guard.when, *(guard.where.detectors if guard.where is not None else ())]
    states = text.get(STATES)
    return cost_of(
        n_tokens(adapter, pixels),
        adapter.d_model,
        latents=[_encoded(each) for each in detectors],
        modulation=_weights(guard.when.model.modulation),
        text=0 if states is None else states.shape[-2],
        d_text=0 if guard.words is None else guard.words.width,
        rank=0 if guard.words is None else guard.words.rank,
        moves=guard.what is not None,
        transformer=multiply_adds(lambda: adapter.denoise(latents, timestep, text)),
    )


def cost_of(
    tokens: int,
    d_model: int,
    *,
    latents: list[int],
    modulation: int,
    text: int,
    d_text: int,
    rank: int,
    moves: bool,
    transformer: int,
) -> Cost:
    """:class:`Cost` from plain numbers.

    Args:
        tokens: of the image.
        d_model: their width.
        latents: for each detector, the latents that it has to encode.
        modulation: multiply-adds of one scale and shift.
        text: tokens of the prompt, of width ``d_text``.
        rank: of the map of words.
        moves: whether tokens are moved.
        transformer: multiply-adds of one call.
    """
    return Cost(
        detectors=tokens * d_model * sum(latents),
        # Each detector makes scale and shift once for an image, and applies them to each token.
        modulation=len(latents) * (modulation + tokens * d_model) if modulation else 0,
        words=2 * text * d_text * rank,
        moved=tokens * d_model if moves else 0,
        transformer=transformer,
    )


def multiply_adds(run: Callable[[], Any]) -> int:
    """Those of the products of matrices in ``run()``; on the meta device nothing is computed."""
    with FlopCounterMode(display=False, custom_mapping=_BESIDE) as counted:
        run()
    return int(counted.get_total_flops()) // 2  # it counts a multiply-add as two operations


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


#: What PyTorch's counter does not know: attention as it runs on CPUs.
_BESIDE = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


def _encoded(detector: Detector) -> int:
    """The latents that a detector has to encode (:meth:`TIDE.latents_of`)."""
    return detector.model.n_latents if detector.model.competes else detector.features.numel()


def _weights(module: nn.Module | None) -> int:
    """The entries of its matrices, each of which is one multiply-add for a row."""
    return 0 if module is None else sum(each.numel() for each in module.state_dict().values() if each.ndim > 1)
