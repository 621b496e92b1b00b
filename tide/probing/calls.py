"""A pipeline's smallest telling run: two prompts, few steps, a picture that is higher than wide."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tide.adapters.vae import pixels_per_latent, vae_of
from tide.errors import TideError

#: What is drawn; their encodings differ in every row.
PROMPTS = ("a red cube", "a house, far away")
#: Of pipelines that draw classes.
CLASSES = ("1", "7")
NEGATIVE = "a tree"
#: Enough to see whether timesteps lie on a line.
STEPS = 3
#: Rows of latents at most; there are half as many columns.
MOST_ROWS = 16
#: Pixels that the sides of a picture have to be multiples of in most pipelines.
MULTIPLE = 32
#: Tokens of a short tokenizer, which is the limit of its text encoder; CLIP's 77 is none.
SHORT = 77
#: Arguments that change a size or a prompt behind one's back, or need a library for it.
_PLAIN = {"use_resolution_binning": False, "clean_caption": False}


def parameters_of(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """The arguments of the pipeline's call."""
    return inspect.signature(type(pipe).__call__).parameters


def scales_of(pipe: Any) -> list[str]:
    """The arguments of guidance, from the most to the least usual."""
    return [name for name in ("guidance_scale", "true_cfg_scale") if name in parameters_of(pipe)]


def side_of_latent(pipe: Any) -> int:
    """Side of the square of pixels that one latent represents."""
    scale = getattr(pipe, "vae_scale_factor", None) or getattr(pipe, "vae_scale_factor_spatial", None)
    return int(scale or pixels_per_latent(vae_of(pipe, "give the size of latents")))


def small_latents(own: Sequence[int], scale: int) -> tuple[int, int]:
    """Rows and columns of a small picture of a pipeline whose own latents are of this size, of ``scale`` pixels each;
    multiples of the pixels that most pipelines ask for."""
    columns = max(min(int(own[-2]), MOST_ROWS) // 2, MULTIPLE // scale, 1)
    return 2 * columns, columns


def own_latents(pipe: Any, transformer: Any) -> tuple[int, int]:
    """Rows and columns of the latents that a pipeline without an adapter draws, as far as it says so."""
    config = getattr(transformer, "config", {})
    side = config.get("sample_size") or getattr(pipe, "default_sample_size", None)
    if isinstance(side, Sequence):
        return int(side[0]), int(side[-1])
    if side is None:
        height = parameters_of(pipe).get("height")
        pixels = None if height is None else height.default
        side = pixels // side_of_latent(pipe) if isinstance(pixels, int) else 2 * MOST_ROWS
    return int(side), int(side)


def small_size(pipe: Any, own: Sequence[int]) -> dict[str, int]:
    """Height, width and frames as the pipeline takes them; nothing where it draws one size only."""
    taken = parameters_of(pipe)
    if not {"height", "width"} <= taken.keys():
        return {}
    scale = side_of_latent(pipe)
    rows, columns = small_latents(own, scale)
    # Two frames of latents: the first one is often encoded alone.
    clip = {"num_frames": 1 + int(getattr(pipe, "vae_scale_factor_temporal", None) or 1)}
    return {"height": rows * scale, "width": columns * scale, **(clip if "num_frames" in taken else {})}


def prompt_length(pipe: Any) -> dict[str, int]:
    """The limit of a short tokenizer as the pipeline takes it."""
    limit = getattr(getattr(pipe, "tokenizer", None), "model_max_length", None)
    short = isinstance(limit, int) and limit < SHORT and "max_sequence_length" in parameters_of(pipe)
    return {"max_sequence_length": limit} if short else {}  # type: ignore[dict-item]


def plain_arguments(pipe: Any) -> dict[str, Any]:
    """Those that let the pipeline draw exactly what it is asked for."""
    return {name: value for name, value in _PLAIN.items() if name in parameters_of(pipe)}


class _AtOne:
    """Of a pipeline, what its guidance may depend on, at a scale of 1."""

    _guidance_scale = 1.0


def unguided_scale(pipe: Any) -> float:
    """The scale of a run without guidance: 1, or 0 of pipelines that guide at 1 as well."""
    guides = getattr(type(pipe), "do_classifier_free_guidance", None)
    if not isinstance(guides, property) or guides.fget is None:
        return 1.0
    try:
        return 0.0 if guides.fget(_AtOne()) else 1.0
    except AttributeError:  # it depends on more than the scale
        return 1.0


def guidance_arguments(pipe: Any, guided: bool, *, names: Sequence[str] | None = None) -> dict[str, Any]:
    """What makes a run guided, or not: ``names`` are the scales that do."""
    given: dict[str, Any] = dict.fromkeys(scales_of(pipe), unguided_scale(pipe))
    if guided:
        given |= dict.fromkeys(scales_of(pipe) if names is None else names, 3.0)
        if "negative_prompt" in parameters_of(pipe):
            given["negative_prompt"] = [NEGATIVE] * len(PROMPTS)
    return given


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]


def run_arguments(pipe: Any, size: Mapping[str, int]) -> dict[str, Any]:
    """Arguments of a small run of a pipeline that has no adapter."""
    if "prompt" not in parameters_of(pipe):
        raise TideError(
            f"{type(pipe).__name__} takes no prompt, so it cannot be probed; write the adapter by hand "
            "(docs/adapters.md)"
        )
    return {
        "prompt": list(PROMPTS),
        "num_inference_steps": STEPS,
        "generator": generators(),
        **size,
        **prompt_length(pipe),
        **plain_arguments(pipe),
    }
