"""How prompts become arguments of the transformer, and where guidance puts those of the negative prompt."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tide.adapters.spec import Guidance
from tide.probing.calls import parameters_of, plain_arguments
from tide.probing.recording import Pass, Run
from tide.probing.values import close

#: Arguments of ``encode_prompt`` that a run sets by itself.
_OF_RUN = ("device", "dtype", "do_classifier_free_guidance", "lora_scale", "clip_skip", "negative_prompt", "prompt")


@dataclass
class FoundText:
    """What a :class:`~tide.adapters.spec.Text` says, and the first argument that holds the prompts."""

    outputs: dict[str, int] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    as_called: tuple[str, ...] = ()
    length: str | None = None
    guidance: float | None = None
    guidance_factor: float = 1.0
    mask_of_all: str | None = None
    missing: list[str] = field(default_factory=list)


@dataclass
class FoundGuidance:
    """Where the rows of the negative prompt are, and which argument of the pipeline asks for them."""

    rows: Guidance | None = None
    negative: int | None = None
    scale: str = "guidance_scale"
    both_stepped: bool = False


def find_text(pipe: Any, run: Run, n_tokens: int) -> FoundText:
    """Which outputs of ``encode_prompt`` reach which arguments, in a run without guidance on so many image tokens."""
    if not run.encoded:
        return FoundText(missing=["the pipeline has no encode_prompt; override encode_prompts"])
    given, result = run.encoded[0]
    parts = result if isinstance(result, tuple | list) else (result,)
    first = run.passes[0].arguments
    outputs = _matched(first, parts, len(given["prompt"]))
    found = FoundText(outputs, _encode_arguments(pipe), _as_called(pipe, given))
    taken = inspect.signature(pipe.encode_prompt).parameters
    found.length = "max_sequence_length" if "max_sequence_length" in taken else None
    found.guidance = _embedded_guidance(pipe, first)
    if found.guidance is not None:  # the run's own scale is 1
        found.guidance_factor = float(torch.as_tensor(first["guidance"]).flatten()[0])
    longer = _longer_mask(first, parts, n_tokens)
    if longer is not None and longer[0] not in outputs:
        found.mask_of_all, outputs[longer[0]] = longer
    if not outputs:
        found.missing.append("no output of encode_prompt is an argument of the transformer; override encode_prompts")
    return found


def _matched(arguments: Mapping[str, Any], parts: Any, n_rows: int) -> dict[str, int]:
    """Arguments that are an output with a row for each prompt, or equal one."""

    def place(value: Any) -> int | None:
        tensors = [i for i, part in enumerate(parts) if isinstance(part, Tensor) and part.ndim and len(part) == n_rows]
        same = [i for i in tensors if parts[i] is value]
        equal = [i for i in tensors if _equal(parts[i], value)]
        return next(iter(same + equal), None)

    places = {name: place(value) for name, value in arguments.items() if isinstance(value, Tensor)}
    found = {name: i for name, i in places.items() if i is not None}
    # The states of the text first: by them the prompt's calls are told from the negative prompt's.
    return dict(sorted(found.items(), key=lambda each: -arguments[each[0]].is_floating_point()))


def _longer_mask(arguments: Mapping[str, Any], parts: Any, n_tokens: int) -> tuple[str, int] | None:
    """The argument that is an output with ones for the image tokens behind it, and the output's place."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor) or value.ndim != 2:
            continue
        for i, part in enumerate(parts):
            behind = isinstance(part, Tensor) and (len(value), value.shape[1] - n_tokens) == tuple(part.shape)
            if behind and _equal(part, value[:, :-n_tokens]) and bool(value[:, -n_tokens:].all()):
                return name, i
    return None


def _equal(part: Tensor, value: Any) -> bool:
    if not isinstance(value, Tensor) or part.shape != value.shape:
        return False
    return close(part.float(), value.float()) and bool(part.any() or not value.any())


def _encode_arguments(pipe: Any) -> dict[str, Any]:
    """What ``encode_prompt`` needs besides the prompts."""
    taken = inspect.signature(pipe.encode_prompt).parameters
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    needed = [each for each in list(taken.values())[1:] if each.default is each.empty and each.kind not in kinds]
    arguments: dict[str, Any] = {each.name: None for each in needed}
    if "do_classifier_free_guidance" in taken:
        arguments["do_classifier_free_guidance"] = False
    return arguments


def _as_called(pipe: Any, given: Mapping[str, Any]) -> tuple[str, ...]:
    """Arguments whose default differs between ``encode_prompt`` and the pipeline's call."""
    call, own = parameters_of(pipe), inspect.signature(pipe.encode_prompt).parameters
    return tuple(
        name
        for name, parameter in own.items()
        if name in given
        and name in call
        and name not in _OF_RUN
        and not name.endswith("_per_prompt")
        and name not in plain_arguments(pipe)
        and call[name].default not in (inspect.Parameter.empty, None)
        and call[name].default != parameter.default
    )


def _embedded_guidance(pipe: Any, arguments: Mapping[str, Any]) -> float | None:
    if arguments.get("guidance") is None or not getattr(pipe.transformer.config, "guidance_embeds", False):
        return None
    default = parameters_of(pipe).get("guidance_scale")
    return None if default is None or not isinstance(default.default, int | float) else float(default.default)


def find_guidance(plain: Run, guided: Run, text: FoundText, latents: str) -> FoundGuidance:
    """Of a run of the same prompts with guidance, against one without."""
    found = FoundGuidance(both_stepped=_rows(guided.steps[0]["sample"]) > _rows(plain.steps[0]["sample"]))
    n_plain, n_guided = (_rows(run.passes[0].arguments[latents]) for run in (plain, guided))
    name = next(iter(text.outputs), None)
    if len(guided.passes) == 2 * len(plain.passes):
        found.rows = "two calls"
        if name is not None:
            found.negative = _negative_place(guided, name, text.outputs[name])
    elif n_guided == 2 * n_plain and name is not None:
        found.rows = _order(plain.passes[0], guided.passes[0], name)
    return found


def _order(plain: Pass, guided: Pass, name: str) -> Guidance | None:
    """Which half of the guided call's text is the prompts'."""
    own = plain.arguments[name]
    halves = guided.arguments[name].chunk(2)
    width = min(own.shape[1], halves[0].shape[1]) if own.ndim > 2 else None
    off = [float((_cut(half, width).float() - _cut(own, width).float()).norm()) for half in halves]
    if off[0] == off[1]:
        return None
    return "conditional, unconditional" if off[0] < off[1] else "unconditional, conditional"


def _cut(text: Tensor, width: int | None) -> Tensor:
    return text if width is None else text[:, :width]


def _negative_place(guided: Run, name: str, place: int) -> int | None:
    """The place of the negative embeddings in one call's result; None if ``encode_prompt`` was called for them."""
    if len(guided.encoded) > 1:
        return None
    parts = guided.encoded[0][1]
    for each in guided.passes[:2]:
        for i, part in enumerate(parts if isinstance(parts, tuple | list) else ()):
            if i != place and isinstance(part, Tensor) and _equal(part, each.arguments[name]):
                return i
    return None


def _rows(value: Any) -> int:
    return len(value) if isinstance(value, Tensor | list) else torch.as_tensor(value).numel()
