"""The scale and shift of eq. 8: a copy of the adaptive LayerNorm (adaLN) of one transformer block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

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
        n_frequencies: width of the sinusoidal projection of the timestep; 0 where a call's conditioning is all that
            the projection reads, because the model has no timestep embedding that could be copied.
        timestep_factor, timestep_offset: the model projects offset + factor * timestep.
        flip_sin_to_cos, downscale_freq_shift: as in ``diffusers.models.embeddings.get_timestep_embedding``.
        has_scale, has_shift: False where the model's adaLN has none (it then stays zero).
        conditioned: the model adds a vector to the timestep embedding (size, pooled prompt, class), and
            :meth:`Modulation.forward` asks for it.
        activation: the projection reads SiLU(temb), and not temb itself.
        d_hidden: width between the two layers of the timestep embedding; None: ``d_embedding``.
        max_period: of the sinusoids, as in ``get_timestep_embedding``.
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
    activation: bool = True
    d_hidden: int | None = None
    max_period: float = 10000.0

    def __post_init__(self) -> None:
        if not self.n_frequencies and not self.conditioned:
            raise TideError("a modulation without a timestep embedding needs conditioning; set conditioned")
        if not (self.has_scale or self.has_shift):
            raise TideError("a modulation needs a scale or a shift; set has_scale or has_shift")


class ScaleShift(NamedTuple):
    """The modulation of rows as the kernels take it: ``scale, shift [groups, d_model]`` of eq. 8, and each row's
    ``group [N]`` int32, None where all are of a single group. All three are None without modulation.

    ``threshold`` is what pre-activations have to exceed (:meth:`tide.sae.activation.Activation.thresholds`): ``[]``,
    ``[n_latents]`` or, where it knows the timestep, ``[groups, n_latents]``; None of an activation that has none.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    group: Tensor | None = None
    threshold: Tensor | None = None

    def to(self, dtype: torch.dtype) -> ScaleShift:
        """Scale and shift in ``dtype``; the threshold keeps its precision."""
        scale, shift = (None if each is None else each.to(dtype) for each in (self.scale, self.shift))
        return self._replace(scale=scale, shift=shift)

    def tables(self) -> dict[str, Any]:
        """Scale, shift and group by their names, as every kernel takes them."""
        return {"scale": self.scale, "shift": self.shift, "group": self.group}


class Modulation(nn.Module):
    """(scale, shift) of a block as a function of the timestep, in the model's own parametrisation::

        temb  = linear_2(SiLU(linear_1(sinusoid(timestep_offset + timestep_factor * t)))) + conditioning
        scale, shift = linear(SiLU(temb))

    without the second SiLU where the model has none. ``linear`` holds the rows of the model's adaLN projection that
    make this scale and shift; where the model also has a table per block (adaLN-single of PixArt), the table's rows are
    part of the bias. All parameters are fp32. Without arguments to copy from, they are initialised as PixArt's own are.

    Args:
        config: sizes and constants of the embedding.
        generator: of the initialisation, on the CPU; None draws from the global one.
    """

    def __init__(self, config: ModulationConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        n_rows = (config.has_scale + config.has_shift) * config.d_model
        layers: list[nn.Linear] = []
        if config.n_frequencies:
            hidden = config.d_hidden or config.d_embedding
            self.linear_1 = nn.utils.skip_init(nn.Linear, config.n_frequencies, hidden)
            self.linear_2 = nn.utils.skip_init(nn.Linear, hidden, config.d_embedding)
            layers = [self.linear_1, self.linear_2]
        self.linear = nn.utils.skip_init(nn.Linear, config.d_embedding, n_rows)
        for layer in (*layers, self.linear):
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
        linear_1: tuple[Tensor, Tensor] | None,
        linear_2: tuple[Tensor, Tensor] | None,
        weight: Tensor,
        bias: Tensor,
    ) -> Modulation:
        """A modulation that starts as a model's adaLN.

        Args:
            linear_1, linear_2: weight and bias of the two layers of the model's timestep MLP, or None without one.
            weight, bias: rows of the adaLN projection, ``[rows, d_embedding]`` and ``[rows]``: those of the scale,
                then those of the shift (the ones the model has). A table is added into the bias.
        """
        modulation = cls(config)
        with torch.no_grad():
            for name, source in (("linear_1", linear_1), ("linear_2", linear_2)):
                if source is not None:
                    own: Any = modulation.get_submodule(name)
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

    def forward(self, timestep: Tensor, conditioning: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``timestep [groups]``, ``conditioning [groups, d_embedding]`` to scale and shift ``[groups, d_model]``.

        Raises :class:`~tide.errors.TideError` if conditioning is missing, or given although the model has none.
        """
        return self.scale_and_shift(self.embedding(timestep, conditioning))

    def embedding(self, timestep: Tensor, conditioning: Tensor | None = None) -> Tensor:
        """``temb [groups, d_embedding]``; arguments and errors as for :meth:`forward`.

        Computed in the parameters' precision, whatever the autocast state: there are few groups, and a sinusoid of the
        timestep rounded to bf16 no longer distinguishes neighbouring timesteps.
        """
        config = self.config
        if config.conditioned != (conditioning is not None):
            raise TideError(
                "this modulation also depends on the model's conditioning; pass conditioning= as collected"
                if config.conditioned
                else "this modulation depends on the timestep alone; leave conditioning out"
            )
        if not config.n_frequencies:
            assert conditioning is not None
            return conditioning.to(self.linear.weight)
        # diffusers takes as long to import as all else together, and reading a checkpoint's config needs none of it.
        from diffusers.models.embeddings import get_timestep_embedding

        weight = self.linear_1.weight
        with torch.autocast(weight.device.type, enabled=False):
            waves = get_timestep_embedding(
                config.timestep_offset + config.timestep_factor * timestep.to(weight.device).float().reshape(-1),
                config.n_frequencies,
                flip_sin_to_cos=config.flip_sin_to_cos,
                downscale_freq_shift=config.downscale_freq_shift,
                max_period=config.max_period,
            )
            embedding: Tensor = self.linear_2(F.silu(self.linear_1(waves.to(weight.dtype))))
        return embedding if conditioning is None else embedding + conditioning.to(embedding)

    def scale_and_shift(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """``[groups, d_model]`` each, of ``embedding [groups, d_embedding]``."""
        config = self.config
        with torch.autocast(embedding.device.type, enabled=False):
            rows = self.linear(F.silu(embedding) if config.activation else embedding)
        zeros = rows.new_zeros(len(rows), config.d_model)
        scale = rows[:, : config.d_model] if config.has_scale else zeros
        shift = rows[:, -config.d_model :] if config.has_shift else zeros
        return scale, shift
