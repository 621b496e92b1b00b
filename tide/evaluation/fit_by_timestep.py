"""How well tokens are reconstructed at each timestep and at all of them, with standard errors over the images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tide.devices import in_double
from tide.evaluation.block_tokens import BlockTokens
from tide.sae.codes import Codes
from tide.sae.model import TIDE
from tide.sae.position import Position

#: From rows and where they stand to their reconstruction and, if there are any, their latents.
Rebuild = Callable[[Tensor, Position], tuple[Tensor, Codes | None]]


def by_model(model: TIDE) -> Rebuild:
    """The model's reconstruction and its latents."""

    def rebuild(x: Tensor, position: Position) -> tuple[Tensor, Codes | None]:
        codes = model.encode(x, position)
        return model.decode(codes, position), codes

    return rebuild


def by_projection(project: Callable[[Tensor], Tensor]) -> Rebuild:
    """A reconstruction that needs nothing but the rows."""
    return lambda x, position: (project(x), None)


@torch.no_grad()
def fit_by_timestep(
    rebuild: Rebuild, tokens: BlockTokens, device: torch.device, *, scale: float, n_latents: int | None = None
) -> dict[str, Any]:
    """The figures of :func:`~tide.evaluation.evaluate_reconstruction`, ``"explained_variance"``, ``"cosine"``,
    ``"mse_normalised"``, and of latents ``"l0"`` and ``"dead"``, over all tokens and timesteps, and under
    ``"timestep"`` at each.

    Variance at a timestep is about the mean of that timestep. ``"errors"``: standard errors over the images, each of
    which counts once; of the explained variance, a ratio of sums, by its linearisation.
    """
    parts = [_Step.of(rebuild, x, position, tokens, n_latents) for x, position in tokens.steps(device)]
    whole = _Step.joined(parts, tokens)
    d_model = tokens.x.shape[-1]
    at = {f"{t:g}": part.figures(scale, d_model) for t, part in zip(tokens.timesteps.tolist(), parts, strict=True)}
    return {**whole.figures(scale, d_model), "timestep": at}


@dataclass(frozen=True)
class _Step:
    """Sums over the tokens of each image, float64 ``[images]``: squared ``error``, ``energy`` about the mean,
    ``cosine`` of the ``directed`` tokens, ``active`` latents, all of ``tokens`` tokens; ``fired [n_latents]`` bool."""

    tokens: int
    error: Tensor
    energy: Tensor
    cosine: Tensor
    directed: Tensor
    active: Tensor | None
    fired: Tensor | None

    @classmethod
    def of(cls, rebuild: Rebuild, x: Tensor, position: Position, tokens: BlockTokens, n_latents: int | None) -> _Step:
        n_images, n_tokens = tokens.x.shape[1:3]
        x_hat, codes = rebuild(x, position)

        def by_image(rows: Tensor) -> Tensor:
            return in_double(rows).view(n_images, n_tokens).sum(1).cpu()

        fired = None
        if codes is not None and n_latents is not None:
            used = codes.indices[codes.values != 0].long()
            fired = (torch.bincount(used, minlength=n_latents) > 0).cpu()
        return cls(
            n_tokens,
            by_image((x_hat - x).square().sum(1)),
            by_image((x - x.mean(0)).square().sum(1)),
            by_image(F.cosine_similarity(x, x_hat, dim=1)),
            by_image((x != 0).any(1)),
            None if codes is None else by_image((codes.values != 0).sum(1)),
            fired,
        )

    @classmethod
    def joined(cls, parts: list[_Step], tokens: BlockTokens) -> _Step:
        """All timesteps as one; the energy is about the mean over all of them."""
        mean = tokens.x.float().mean((0, 1, 2))
        energy = sum(in_double((x.float() - mean).square()).sum((1, 2)) for x in tokens.x)

        def total(name: str) -> Any:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else torch.stack(values).sum(0)

        sums = {name: total(name) for name in ("error", "cosine", "directed", "active", "fired")}
        fired = None if sums["fired"] is None else sums["fired"] > 0
        return cls(parts[0].tokens * len(parts), **{**sums, "energy": energy, "fired": fired})

    def figures(self, scale: float, d_model: int) -> dict[str, Any]:
        unit = self.tokens * d_model * scale**2
        found = {
            "explained_variance": _one_minus(*ratio(self.error, self.energy)),
            "cosine": ratio(self.cosine, self.directed),
            "mse_normalised": ratio(self.error, torch.full_like(self.error, unit)),
        }
        if self.active is not None:
            found["l0"] = ratio(self.active, torch.full_like(self.active, self.tokens))
        figures: dict[str, Any] = {name: value for name, (value, _) in found.items()}
        if self.fired is not None:
            figures["dead"] = float((~self.fired).float().mean())
        return {**figures, "errors": {name: error for name, (_, error) in found.items()}}


def ratio(over: Tensor, under: Tensor) -> tuple[float, float]:
    """``r = sum over / sum under`` of the values of each image, float64 ``[images]``, and its standard error.

    Linearised: that of the mean of ``over - r under``, divided by the mean of ``under``. NaN where ``under`` sums to
    zero; the error is infinite for a single image.
    """
    total = float(under.sum())
    if total == 0:
        return math.nan, math.nan
    found = float(over.sum()) / total
    if len(over) < 2:
        return found, math.inf
    spread = float((over - found * under).std())
    return found, spread / math.sqrt(len(over)) / abs(total / len(under))


def _one_minus(value: float, error: float) -> tuple[float, float]:
    return 1 - value, error
