"""A machine and a pipeline of round numbers, so that plans can be worked out by hand."""

from __future__ import annotations

from typing import Any

from tide.planning import Constant, Machine, PipelineSizes, Work

CONSTANTS = {
    "pixel": 1e-6,
    "encode_rate": 1e9,
    "rate": 1e9,
    "topk.dense": 1e-9,
    "topk.sparse": 1e-10,
    "topk.place": 1e-8,
    "topk.weights": 1e-7,
    "topk.match": 0.0,
    "update": 1e-6,
    "write": 1e6,
    "read": 1e12,
    "wire_inside": 1e6,
    "wire_between": 1e5,
    "node": 8,
    "memory": 1e9,
    "scratch": 4.0,
}


def machine(**changed: float) -> Machine:
    """Bytes of a number: 2. ``changed`` constants by their names, for TopK with an underscore for the dot."""
    values = {**CONSTANTS, **{name.replace("topk_", "topk."): value for name, value in changed.items()}}
    constants = {name: Constant(value, name != "rate", f"the {name}") for name, value in values.items()}
    return Machine("round", "cuda", 2, constants)


def steps_of(activation: str) -> dict[str, float]:
    """Constants of another activation function, all alike, for `machine`."""
    return {f"{activation}.{name}": 1e-8 for name in ("dense", "sparse", "place", "weights", "match")}


def sizes(**changed: Any) -> PipelineSizes:
    """4 blocks of width 8, 64 tokens an image."""
    known = {"d_model": 8, "n_blocks": 4, "n_tokens": 64, "pass_flops": 1e8, "n_weights": 10**6, "encode_flops": 1e7}
    return PipelineSizes(**{"name": "round", "source": "a test", "n_pixels": 10**4, **known, **changed})


def work(**changed: Any) -> Work:
    """100 images in pairs of 4 tokens: 800 rows a block, in 8 steps of 100."""
    options = {"n_images": 100, "blocks": (0, 1), "n_gpus": 1, "n_latents": 50, "k": 5, "batch_tokens": 100}
    return Work(**{"pipeline": sizes(), "activation": "topk", **options, **changed})
