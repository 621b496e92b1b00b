"""A model's adaptive LayerNorm as a :class:`~tide.sae.modulation.Modulation`, for all families."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tide.adapters.weights import computing_dtype, linear_of, present, readable
from tide.sae.modulation import Modulation, ModulationConfig


def copied_modulation(
    transformer: nn.Module,
    time_proj: Any,
    timestep_embedder: Any,
    linear: nn.Module,
    *,
    d_model: int,
    scale: int | None,
    shift: int | None,
    table_of: nn.Module | None = None,
    table: str = "scale_shift_table",
    conditioned: bool = False,
    timestep: tuple[float, float] = (0.0, 1.0),
    layers: tuple[str, str] = ("linear_1", "linear_2"),
    activation: bool = True,
) -> Modulation:
    """The modulation that a block gets from ``linear(SiLU(timestep_embedder(time_proj(t)) + conditioning))``.

    The copy is of what runs: offloaded weights are brought in, quantised ones dequantised, active adapters (LoRA)
    merged.

    Args:
        transformer: the model that contains all the others.
        time_proj: the sinusoidal projection (``Timesteps`` of diffusers, or a
            :class:`~tide.adapters.spec.Sinusoid`).
        timestep_embedder: the MLP behind it (``TimestepEmbedding``), of the linear ``layers`` and a SiLU between them.
        linear: the adaLN projection, ``[chunks * d_model, d_embedding]``.
        scale, shift: their chunk of ``linear``'s rows, counted in widths; None where the model has none.
        table_of: the block whose ``table [chunks, d_model]`` is added to the projection (adaLN-single).
        table: the name of that parameter.
        conditioned: the model adds a vector to the timestep embedding.
        timestep: (a, b) if ``time_proj`` gets a + b t for the scheduler's timestep t.
        d_model: the width of the block.
        layers: the attributes of ``timestep_embedder`` that hold its two layers.
        activation: the SiLU before ``linear``.
    """
    with present(transformer, timestep_embedder, linear, *([] if table_of is None else [table_of])):
        added = None if table_of is None else readable(table_of.get_parameter(table), "a block's table")
        dtype = computing_dtype(transformer)
        projection = linear_of(linear, "the adaLN projection", dtype)
        linear_1, linear_2 = (
            linear_of(getattr(timestep_embedder, name), "the timestep embedder", dtype) for name in layers
        )
    weight, bias = _rows(*projection, [i for i in (scale, shift) if i is not None], d_model, added)
    factor = float(getattr(time_proj, "scale", 1))
    return Modulation.copied(
        ModulationConfig(
            d_model=d_model,
            d_embedding=len(linear_2[0]),
            n_frequencies=time_proj.num_channels,
            timestep_factor=factor * timestep[1],
            timestep_offset=factor * timestep[0],
            flip_sin_to_cos=time_proj.flip_sin_to_cos,
            downscale_freq_shift=float(time_proj.downscale_freq_shift),
            has_scale=scale is not None,
            has_shift=shift is not None,
            conditioned=conditioned,
            activation=activation,
            d_hidden=None if len(linear_1[0]) == len(linear_2[0]) else len(linear_1[0]),
            max_period=float(getattr(time_proj, "max_period", 10000)),
        ),
        linear_1=linear_1,
        linear_2=linear_2,
        weight=weight,
        bias=bias,
    )


def given_modulation(d_model: int, n_rows: int, *, scale: int | None, shift: int | None) -> Modulation:
    """The modulation of a block that is given scale and shift in every call: the conditioning is ``n_rows`` rows of
    ``d_model`` of it, one after the other, of which those at ``scale`` and ``shift`` are taken."""
    chosen = [i for i in (scale, shift) if i is not None]
    weight = torch.zeros(len(chosen) * d_model, n_rows * d_model)
    for row, place in enumerate(chosen):
        weight[row * d_model : (row + 1) * d_model, place * d_model : (place + 1) * d_model] = torch.eye(d_model)
    return Modulation.copied(
        ModulationConfig(
            d_model=d_model,
            d_embedding=n_rows * d_model,
            n_frequencies=0,
            has_scale=scale is not None,
            has_shift=shift is not None,
            conditioned=True,
            activation=False,
        ),
        linear_1=None,
        linear_2=None,
        weight=weight,
        bias=torch.zeros(len(weight)),
    )


def _rows(
    weight: Tensor, all_bias: Tensor, chunks: Sequence[int], d: int, table: Tensor | None
) -> tuple[Tensor, Tensor]:
    places = [slice(i * d, (i + 1) * d) for i in chunks]
    bias = torch.cat([all_bias[place] for place in places])
    if table is not None:
        bias = bias + torch.cat([table.reshape(-1, d)[i] for i in chunks]).to(bias.device)
    return torch.cat([weight[place] for place in places]), bias
