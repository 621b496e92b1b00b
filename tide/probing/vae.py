"""What lies between the latents that a pipeline draws and those that its VAE decodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tide.probing.values import rounding

_CLOSE = 2e-3


@dataclass
class FoundScaling:
    """What a :class:`~tide.adapters.spec.Spec` says of the VAE; ``shifts`` None where it cannot be told."""

    shifts: bool | None = None
    by_channel: bool = False
    has_frames: bool = False
    missing: list[str] = field(default_factory=list)


def find_scaling(vae: Any, drawn: Tensor, decoded: Tensor | None) -> FoundScaling:
    """``drawn`` are the latents that the pipeline ends on, ``decoded`` what its VAE was given in the same run."""
    if decoded is None:
        return FoundScaling(missing=["what the VAE decodes: the pipeline did not call it; check encode_images"])
    found = FoundScaling(has_frames=decoded.ndim == drawn.ndim + 1)
    latents = decoded.squeeze(2) if found.has_frames else decoded
    if latents.shape != drawn.shape:
        shapes = f"{list(latents.shape)} of {list(drawn.shape)}"
        found.missing.append(f"how the VAE's latents are made ({shapes}); override encode_images and decode_latents")
        return found
    factor, mean = _line(drawn.float(), latents.float())
    close = _CLOSE * rounding(vae)
    scale, shift = (getattr(vae.config, name, None) for name in ("scaling_factor", "shift_factor"))
    if _alike(factor, 1 / (scale or 1.0), close):
        if _alike(mean, 0.0, close):
            found.shifts = False if shift else None
            return found
        if shift and _alike(mean, shift, close):
            found.shifts = True
            return found
    buffers = dict(vae.named_buffers())
    statistics = [
        buffers[name] if name in buffers else getattr(vae.config, name, None)
        for name in ("latents_mean", "latents_std")
    ]
    if all(each is not None for each in statistics):
        means, stds = (torch.as_tensor(each).float().flatten() for each in statistics)
        if _alike(mean, means, close) and _alike(factor, stds / (scale or 1.0), close):
            found.by_channel = True
            return found
    found.missing.append(
        f"how the VAE's latents are scaled: latents / {1 / float(factor.mean()):.4g} + {float(mean.mean()):.4g} on "
        "average is decoded; override encode_images and decode_latents"
    )
    return found


def _line(drawn: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor]:
    """(factor, mean) of each channel: decoded = factor drawn + mean, by least squares."""
    x, y = (each.transpose(0, 1).flatten(1) for each in (drawn, decoded))
    centred = x - x.mean(1, keepdim=True)
    factor = (centred * (y - y.mean(1, keepdim=True))).sum(1) / centred.square().sum(1).clamp(min=1e-12)
    return factor, y.mean(1) - factor * x.mean(1)


def _alike(found: Tensor, expected: Any, close: float) -> bool:
    expected = torch.as_tensor(expected, dtype=torch.float32).to(found.device)
    most = close * (1 + float(expected.abs().max()))
    return found.shape == (found + expected).shape and float((found - expected).abs().max()) < most
