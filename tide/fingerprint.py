"""Digests of weights, which distinguish networks of the same shape."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from tide.adapters.quantised import plain_tensors
from tide.adapters.weights import present, unwrapped
from tide.errors import TideError


def fingerprint(modules: Iterable[nn.Module]) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of all parameters and buffers, by name and in order.

    Offloaded weights are loaded for it, and wrappers of a model do not count. Raises :class:`~tide.errors.TideError`
    for weights that are not loaded.

    ``modules`` are the model's, such as its transformer alone.
    """
    digest = hashlib.sha256()
    for module in map(unwrapped, modules):
        with present(module, module):
            _add(digest, module)
    return digest.hexdigest()[:16]


def _add(digest: Any, module: nn.Module) -> None:
    for name, value in sorted(module.state_dict().items()):
        if value.is_meta:
            raise TideError(f"the weights {name} of a {type(module).__name__} are not loaded; load them first")
        digest.update(name.encode())
        for part in plain_tensors(value):
            digest.update(part.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())


def pipeline_fingerprints(pipe: Any) -> dict[str, str]:
    """Distinguishes pipelines of the same name: component -> :func:`fingerprint` of every network and the
    scheduler's configuration. Reads all weights once, which takes about a second per GB."""
    found = {name: fingerprint([part]) for name, part in sorted(pipe.components.items()) if isinstance(part, nn.Module)}
    # Entries with a leading underscore say by which version and from where it was loaded.
    config = {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    text = json.dumps([type(pipe.scheduler).__name__, config], sort_keys=True, default=str)
    return {**found, "scheduler": hashlib.sha256(text.encode()).hexdigest()[:16]}
