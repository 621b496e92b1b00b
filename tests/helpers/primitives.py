"""Arguments for every primitive of every backend."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.layouts import dyadic
from tide_kernels import backend_status

N, D, LATENTS, K = 8, 5, 12, 3

MODULES = {name: f"tide_kernels.{name}" for name in ("reference", "native", "triton")}


def backend_of(name: str) -> Any:
    reason = backend_status()[name]
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    return importlib.import_module(MODULES[name])


def code() -> tuple[Tensor, Tensor]:
    indices = (torch.arange(N * K).view(N, K) * 5 % LATENTS).sort(1).values
    indices[::3, -1] = -1
    return dyadic(N, K, seed=1), indices.to(torch.int32)


def masked() -> Tensor:
    z = dyadic(N, LATENTS, seed=2).relu()
    return torch.where(torch.arange(LATENTS) % 3 == 0, z, 0)


def matrix(rows: int, seed: int) -> Tensor:
    return dyadic(rows, D, seed=seed)


def group(groups: int) -> Tensor:
    return torch.arange(N) % groups


def modulation(layer_norm: bool) -> Callable[[Any], list[Any]]:
    return lambda ops: [matrix(N, 1), matrix(2, 2), matrix(2, 3), group(2), layer_norm, torch.float32]


def encoder_gradients(groups: int | None) -> Callable[[Any], list[Any]]:
    def arguments(ops: Any) -> list[Any]:
        tables = [matrix(groups or 1, seed) for seed in (3, 4)]
        sums = [matrix(LATENTS, 6), *(matrix(groups or 1, seed) for seed in (7, 8))]
        belongs = None if groups is None else group(groups)
        return [masked(), matrix(N, 1), matrix(N, 2), *tables, belongs, False, matrix(LATENTS, 5), *sums]

    return arguments


def thresholds(rows: int) -> Tensor:
    return dyadic(rows, LATENTS, seed=6).abs()


def pre_activations() -> Tensor:
    return dyadic(N, LATENTS, seed=1)


def cut() -> Tensor:
    return torch.arange(-1, N - 1, dtype=torch.int32)


def above(groups: int | None, *more: Any) -> Callable[[Any], list[Any]]:
    """Pre-activations, their thresholds, groups and cut, and further arguments."""
    return lambda ops: [
        pre_activations(),
        thresholds(groups or 1),
        None if groups is None else group(groups),
        cut(),
        *(value() if callable(value) else value for value in more),
    ]


def code_above(groups: int | None) -> Callable[[Any], list[Any]]:
    return lambda ops: [
        matrix(N, 1),
        matrix(LATENTS, 2),
        dyadic(LATENTS, seed=3),
        thresholds(groups or 1),
        None if groups is None else group(groups),
        K,
    ]


def near_gradient(groups: int | None) -> Callable[[Any], list[Any]]:
    return lambda ops: [
        matrix(N, 1),
        matrix(LATENTS, 2),
        masked(),
        0.5,
        dyadic(LATENTS, seed=3),
        torch.arange(LATENTS),
        pre_activations(),
        thresholds(groups or 1),
        None if groups is None else group(groups),
        1.5,
        dyadic(groups or 1, LATENTS, seed=4),
        torch.arange((groups or 1) * LATENTS).view(-1, LATENTS),
    ]


def near_places(groups: int | None) -> Callable[[Any], list[Any]]:
    def arguments(ops: Any) -> list[Any]:
        values, indices = code()
        sums, near = near_gradient(groups)(ops)[-2:]
        belongs = None if groups is None else group(groups)
        u, layout = dyadic(N, K, seed=5), ops.transpose(indices, LATENTS)
        return [values, u, indices, layout, thresholds(groups or 1), belongs, 1.5, sums, near]

    return arguments


def histogram(high: int | None) -> Callable[[Any], list[Any]]:
    return lambda ops: [
        pre_activations(),
        torch.arange(2**15 if high is not None else 2**16),
        0 if high is not None else 15,
        None if high is None else torch.tensor(high),
    ]


#: The arguments of each primitive; several lists for a primitive that takes several paths.
ARGUMENTS: dict[str, list[Callable[[Any], list[Any]]]] = {
    "modulate": [modulation(False), modulation(True)],
    "pre_activations": [lambda ops: [matrix(N, 1), matrix(LATENTS, 2), dyadic(LATENTS, seed=3)]],
    "reconstruction_loss": [
        lambda ops: [matrix(N, 1), matrix(N, 2), dyadic(D, seed=3), 0.5, 0.25, torch.float32, True]
    ],
    "select": [lambda ops: [dyadic(4, LATENTS, seed=1), K], lambda ops: [dyadic(4, 100, seed=1), 1]],
    "select_product": [lambda ops: [matrix(N, 1), matrix(LATENTS, 2), dyadic(LATENTS, seed=3), K]],
    "gather": [lambda ops: [*code(), matrix(LATENTS, 2)]],
    "sampled": [lambda ops: [matrix(N, 1), matrix(LATENTS, 2), code()[1]]],
    "transpose": [lambda ops: [code()[1], LATENTS]],
    # A part of the result is undefined where places are unused, and so is all where a row repeats a latent.
    "transpose_selected": [lambda ops: [code()[1][:, :1], LATENTS]],
    "scatter": [lambda ops: [code()[0], ops.transpose(code()[1], LATENTS), matrix(N, 1), matrix(LATENTS, 2)]],
    "keep_top_": [lambda ops: [dyadic(4, LATENTS, seed=1), K]],
    "keep_top_with_sums_": [lambda ops: [dyadic(4, LATENTS, seed=1), K, True, 0.5]],
    "decode_dense": [lambda ops: [masked(), matrix(LATENTS, 2)]],
    "code_sums": [lambda ops: [masked(), True, 0.5]],
    "masked_gradient": [
        lambda ops: [
            matrix(N, 1),
            matrix(LATENTS, 2),
            masked(),
            0.5,
            torch.tensor(0.25),
            0.5,
            dyadic(LATENTS, seed=3),
            torch.arange(LATENTS),
        ]
    ],
    "add_product_": [lambda ops: [matrix(LATENTS, 1), masked(), matrix(N, 2)]],
    "encode": [
        lambda ops: [
            matrix(N, 1),
            matrix(2, 2),
            matrix(2, 3),
            group(2),
            False,
            matrix(LATENTS, 4),
            dyadic(LATENTS, seed=5),
            K,
        ]
    ],
    "pair_differences": [lambda ops: [*code()]],
    "backward_latents": [
        lambda ops: [
            *code(),
            ops.transpose(code()[1], LATENTS),
            matrix(N, 2),
            matrix(N, 3),
            matrix(LATENTS, 4),
            dyadic(N, K, seed=5),
            matrix(LATENTS, 6),
            matrix(LATENTS, 7),
            dyadic(LATENTS, seed=8),
            *([matrix(LATENTS, 9), 0.5, torch.zeros((), dtype=torch.float64)] if hasattr(ops, "walks") else []),
        ]
    ],
    "soft_count": [lambda ops: [dyadic(N, K, seed=1), LATENTS, 0.5]],
    "code_slopes": [lambda ops: [dyadic(N, K, seed=1), dyadic(N, K, seed=2), 0.5, torch.tensor(0.25), 0.5, LATENTS]],
    "add_gather_": [lambda ops: [matrix(N, 1), *code(), matrix(LATENTS, 2)]],
    "misfit": [lambda ops: [matrix(N, 1), matrix(N, 2), 0.5, torch.float32]],
    "modulation_gradients": [lambda ops: [matrix(N, 1), matrix(N, 2), group(2), matrix(2, 3), matrix(2, 4)]],
    "select_above": [above(None, K), above(2, K), above(3, LATENTS)],
    "keep_above": [above(None, pre_activations), above(2, pre_activations)],
    "code_above": [code_above(None), code_above(2)],
    "key_histogram_": [histogram(None), histogram(0x3F800000 >> 15)],
    "rank_histogram_": [lambda ops: [pre_activations(), torch.arange(2**16), 15, 5]],
    "count_equal": [lambda ops: [pre_activations(), torch.tensor(0.5)]],
    "near_gradient": [near_gradient(None), near_gradient(2)],
    "add_near_places": [near_places(None), near_places(2)],
    "encoder_gradients": [encoder_gradients(None), encoder_gradients(2), encoder_gradients(3)],
}
