"""What tells two networks of one shape apart: a digest of their weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def fingerprint(modules: Iterable[nn.Module]) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of all parameters and buffers, by name and in order."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def pipeline_fingerprints(pipe: Any) -> dict[str, str]:
    """What tells two pipelines of one name apart: component -> :func:`fingerprint` of every network, and of the
    scheduler's configuration. Reads all weights once, about a second a GB."""
    found = {name: fingerprint([part]) for name, part in sorted(pipe.components.items()) if isinstance(part, nn.Module)}
    # Entries with a leading underscore say by which version and from where it was loaded.
    config = {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    text = json.dumps([type(pipe.scheduler).__name__, config], sort_keys=True, default=str)
    return {**found, "scheduler": hashlib.sha256(text.encode()).hexdigest()[:16]}
