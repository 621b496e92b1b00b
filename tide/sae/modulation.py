"""The scale and shift of eq. 8: a copy of the adaptive LayerNorm (adaLN) of one transformer block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tide.errors import TideError


@dataclass(frozen=True)
class ModulationConfig:
    """Everything needed to rebuild a :class:`Modulation` without the diffusion model.

    Attributes:
        d_model: width of the activations that are modulated.
        d_embedding: width of the timestep embedding.
        n_frequencies: width of the sinusoidal projection of the timestep.
        timestep_factor, timestep_offset: the model projects offset + factor * timestep.
        flip_sin_to_cos, downscale_freq_shift: as in ``diffusers.models.embeddings.get_timestep_embedding``.
        has_scale, has_shift: False where the model's adaLN has none (it then stays zero).
        conditioned: the model adds a vector to the timestep embedding (size, pooled prompt, class), and
            :meth:`Modulation.forward` asks for it.
    """

    d_model: int
    d_embedding: int
    n_frequencies: int = 256
    timestep_factor: float = 1.0
    flip_sin_to_cos: bool = True
    downscale_freq_shift: float = 0.0
    has_scale: bool = True
    has_shift: bool = True
    conditioned: bool = False
    timestep_offset: float = 0.0

    def __post_init__(self) -> None:
        if not (self.has_scale or self.has_shift):
            raise TideError("a modulation needs a scale or a shift; set has_scale or has_shift")


class ScaleShift(NamedTuple):
    """The modulation of rows as the kernels take it: ``scale, shift [groups, d_model]`` of eq. 8, and each row's
    ``group [N]`` int32, None where all are of a single group. All three are None without modulation."""

    scale: Tensor | None = None
    shift: Tensor | None = None
    group: Tensor | None = None

    def to(self, dtype: torch.dtype) -> ScaleShift:
        """Scale and shift in ``dtype``."""
        scale, shift = (None if each is None else each.to(dtype) for each in (self.scale, self.shift))
        return ScaleShift(scale, shift, self.group)


class Modulation(nn.Module):
    """(scale, shift) of a block as a function of the timestep, in the model's own parametrisation::

        temb  = linear_2(SiLU(linear_1(sinusoid(timestep_offset + timestep_factor * t)))) + conditioning
        scale, shift = linear(SiLU(temb))

    ``linear`` holds the rows of the model's adaLN projection that make this scale and shift; where the model also has
    a table per block (adaLN-single of PixArt), the table's rows are part of the bias. All parameters are fp32. Without
    arguments to copy from, they are initialised as PixArt's own are.
    """

    def __init__(self, config: ModulationConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        n_rows = (config.has_scale + config.has_shift) * config.d_model
        self.linear_1 = nn.utils.skip_init(nn.Linear, config.n_frequencies, config.d_embedding)
        self.linear_2 = nn.utils.skip_init(nn.Linear, config.d_embedding, config.d_embedding)
        self.linear = nn.utils.skip_init(nn.Linear, config.d_embedding, n_rows)
        for layer in (self.linear_1, self.linear_2, self.linear):
            nn.init.normal_(layer.weight, std=0.02, generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.linear.bias, std=config.d_model**-0.5, generator=generator)

    @classmethod
    def random(cls, config: ModulationConfig, generator: torch.Generator) -> Modulation:
        """A freshly initialised modulation, for ablations; the same generator state gives the same bits."""
        return cls(config, generator)

    @classmethod
    def copied(
        cls,
        config: ModulationConfig,
        *,
        linear_1: tuple[Tensor, Tensor],
        linear_2: tuple[Tensor, Tensor],
        weight: Tensor,
        bias: Tensor,
    ) -> Modulation:
        """A modulation that starts as a model's adaLN.

        Args:
            linear_1, linear_2: weight and bias of the two layers of the model's timestep MLP.
            weight, bias: rows of the adaLN projection, ``[rows, d_embedding]`` and ``[rows]``: those of the scale,
                then those of the shift (the ones the model has). A table is added into the bias.
        """
        modulation = cls(config)
        with torch.no_grad():
            for own, source in ((modulation.linear_1, linear_1), (modulation.linear_2, linear_2)):
                own.weight.copy_(source[0])
                own.bias.copy_(source[1])
            modulation.linear.weight.copy_(weight)
            modulation.linear.bias.copy_(bias)
        return modulation

    @torch.no_grad()
    def start_as_identity(self) -> Modulation:
        """Scale and shift zero at every timestep, to be learnt from there; the timestep's embedding stays as it is."""
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        return self

    def forward(
        self, timestep: Tensor, conditioning: Tensor | None = None, tape: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """``timestep [groups]``, ``conditioning [groups, d_embedding]`` to scale and shift ``[groups, d_model]``.

        Computed in the parameters' precision, whatever the autocast state: there are few groups, and a sinusoid of the
        timestep rounded to bf16 no longer distinguishes neighbouring timesteps. ``tape`` receives what
        :meth:`add_gradients` needs.

        Raises :class:`~tide.errors.TideError` if conditioning is missing, or given although the model has none.
        """
        config = self.config
        if config.conditioned != (conditioning is not None):
            raise TideError(
                "this modulation also depends on the model's conditioning; pass conditioning= as collected"
                if config.conditioned
                else "this modulation depends on the timestep alone; leave conditioning out"
            )
        weight = self.linear_1.weight
        with torch.autocast(weight.device.type, enabled=False):
            waves = self._sinusoid(timestep.to(weight.device).float().reshape(-1)).to(weight.dtype)
            first = self.linear_1(waves)
            hidden = F.silu(first)
            embedding = self.linear_2(hidden)
            if conditioning is not None:
                embedding = embedding + conditioning.to(embedding)
            activated = F.silu(embedding)
            rows = self.linear(activated)
        if tape is not None:
            tape[:] = waves, first, hidden, embedding, activated
        if config.has_scale and config.has_shift:
            scale, shift = rows.split(config.d_model, dim=1)  # whose backward is a single op
            return scale, shift
        zeros = torch.zeros_like(rows)
        return (rows, zeros) if config.has_scale else (zeros, rows)

    @torch.no_grad()
    def add_gradients(self, tape: list[Tensor], scale: Tensor | None, shift: Tensor | None) -> None:
        """Adds to ``.grad`` of the parameters that require one, given the gradients of the scale and shift that
        :meth:`forward` returned along with ``tape``; None for one that the config lacks.

        For layers as small as these, autograd takes longer to record and find its way than to compute.
        """
        waves, first, hidden, embedding, activated = tape
        with torch.autocast(waves.device.type, enabled=False):
            grad = torch.cat([each for each in (scale, shift) if each is not None], dim=1)
            _add_layer(self.linear, activated, grad)
            grad = torch.ops.aten.silu_backward(grad @ self.linear.weight, embedding)
            _add_layer(self.linear_2, hidden, grad)
            grad = torch.ops.aten.silu_backward(grad @ self.linear_2.weight, first)
            _add_layer(self.linear_1, waves, grad)

    def _sinusoid(self, timestep: Tensor) -> Tensor:
        """``diffusers.models.embeddings.get_timestep_embedding``, with frequencies that are kept."""
        config = self.config
        half, odd = divmod(config.n_frequencies, 2)
        if (config.timestep_offset, config.timestep_factor) != (0, 1):
            timestep = config.timestep_offset + config.timestep_factor * timestep
        angles = timestep[:, None] * _frequencies(half, config.downscale_freq_shift, timestep.device)
        waves = (angles.cos(), angles.sin()) if config.flip_sin_to_cos else (angles.sin(), angles.cos())
        return F.pad(torch.cat(waves, dim=1), (0, odd)) if odd else torch.cat(waves, dim=1)


def _add_layer(layer: nn.Linear, x: Tensor, grad: Tensor) -> None:
    """Adds to those of the layer, given its input and the gradient of its output."""
    if layer.weight.requires_grad:
        _accumulate(layer.weight, grad.T @ x)
    if layer.bias.requires_grad:
        _accumulate(layer.bias, grad.sum(0))


def _accumulate(parameter: Tensor, found: Tensor) -> None:
    parameter.grad = found if parameter.grad is None else parameter.grad.add_(found)


@cache
def _frequencies(count: int, shift: float, device: torch.device) -> Tensor:
    """``10000^(-i / (count - shift))`` for i from 0 to count - 1, float32."""
    exponents = -math.log(10000) * torch.arange(count, dtype=torch.float32, device=device)
    return torch.exp(exponents / (count - shift))
