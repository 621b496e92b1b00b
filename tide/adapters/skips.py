"""Refuses whatever makes a transformer skip blocks or replace their outputs."""

from __future__ import annotations

from typing import Any

from torch import nn

from tide.errors import TideError

#: Modules of diffusers whose hooks replace a block's output by something else than the block computes.
SKIPPING = {
    "context_parallel": "context parallelism",
    "faster_cache": "FasterCache",
    "first_block_cache": "First Block Cache",
    "layer_skip": "a skip of layers",
    "mag_cache": "MagCache",
    "pyramid_attention_broadcast": "Pyramid Attention Broadcast",
    "sea_cache": "SeaCache",
    "taylorseer_cache": "TaylorSeer",
    "text_kv_cache": "a cache of the text's keys and values",
}
#: Modules whose hooks leave every block's output to the block: they move or cast weights, or change an attention.
HARMLESS = ("group_offloading", "layerwise_casting", "smoothed_energy_guidance_utils")


def check_nothing_skips(transformer: nn.Module) -> None:
    """Raises :class:`~tide.errors.TideError` if hooks of diffusers that skip or replace outputs are installed anywhere
    in the transformer, by whatever means, or if processes share its blocks."""
    _check_not_shared(transformer)
    found = {
        name: what
        for module in transformer.modules()
        for name, hook in _hooks(module).items()
        if (what := _skipping(hook)) is not None
    }
    if found:
        which = " and ".join(dict.fromkeys(found.values()))
        raise TideError(
            f"the transformer runs with {which}, so a block does not compute its own output in every call; "
            f"call {_remedy(transformer, list(found))} first"
        )


def _check_not_shared(transformer: Any) -> None:
    """diffusers tells by this attribute, and has no way back: what it changed in the layers stays."""
    config = getattr(transformer, "_parallel_config", None)
    if config is not None:
        kind = "tensor" if getattr(config, "context_parallel_config", None) is None else "context"
        raise TideError(
            f"the transformer runs with {kind} parallelism, so this process has a part of each block; load it without "
            "parallel_config and enable_parallelism, and start a process with a whole one on each GPU"
        )


def _hooks(module: nn.Module) -> dict[str, Any]:
    registry = vars(module).get("_diffusers_hook")
    return {} if registry is None else registry.hooks


def _skipping(hook: Any) -> str | None:
    """The feature that a hook belongs to, if it may skip or replace outputs; for an unknown hook, its own name."""
    for cls in type(hook).__mro__:
        home = cls.__module__.rpartition(".")[2] if cls.__module__.startswith("diffusers.hooks.") else ""
        if home in SKIPPING:
            return SKIPPING[home]
        if home in HARMLESS:
            return None
    replaces = hasattr(hook, "new_forward") or getattr(hook, "_is_stateful", False)
    return f"the hook {type(hook).__name__}" if replaces else None


def _remedy(transformer: Any, names: list[str]) -> str:
    if getattr(transformer, "is_cache_enabled", False):
        return "pipe.transformer.disable_cache()"
    return f"HookRegistry.check_if_exists_or_initialize(pipe.transformer).remove_hook(name) for each of {names}"
