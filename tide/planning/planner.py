"""Plans: what collecting and training take on a machine, in each of the ways to do it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tide.activations import CollectOptions
from tide.adapters.blocks import Block, block_numbers
from tide.checks import check_count
from tide.errors import TideError
from tide.messages import readable_size
from tide.planning.here import measure
from tide.planning.machines import HERE, Machine, load_machine
from tide.planning.model import Model, Way
from tide.planning.sizes import PipelineSizes, sizes_of
from tide.planning.work import Work
from tide.training.config import TrainConfig

#: What to do about memory that is mostly used for this.
_REMEDIES = {
    "pipeline": "use GPUs with more memory",
    "pass": "lower --batch-size or --size",
    "autoencoders": "lower --n-latents",
    "buffers": "use more GPUs",
    "step": "lower --batch-tokens",
}


@dataclass(frozen=True)
class Plan:
    """What is to be trained, on what, and what the ways to do it take; ``memory``: bytes that a GPU has.

    Attributes:
        work: what is to be trained.
        machine: on what.
        memory: bytes that a GPU has.
        ways: what each way to do it takes.
    """

    work: Work
    machine: Machine
    memory: float
    ways: tuple[Way, ...]

    def fitting(self) -> list[Way]:
        """The ways whose memory a GPU has, the fastest first."""
        return sorted((way for way in self.ways if not self.lacking(way)), key=lambda way: way.total_seconds)

    def lacking(self, way: Way) -> float:
        """Bytes of memory that a GPU has too few for a way."""
        return max(0.0, way.total_memory - self.memory)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the totals of each way."""
        totals = ({"total_seconds": way.total_seconds, "total_memory": way.total_memory} for way in self.ways)
        ways = [{**asdict(way), **total} for way, total in zip(self.ways, totals, strict=True)]
        return {**asdict(self), "ways": ways}


def plan(
    pipeline: str | Path | PipelineSizes,
    *,
    images: int,
    blocks: Sequence[Block] = ("penultimate",),
    gpus: int = 1,
    machine: str | Machine = HERE,
    size: tuple[int, ...] | None = None,
    config: TrainConfig | None = None,
    options: CollectOptions | None = None,
    epochs: int = 1,
    reuse: int = 1,
    memory: int | None = None,
) -> Plan:
    """What it takes to collect activations of ``images`` and to train an autoencoder on each of ``blocks``.

    ::

        found = plan("PixArt-alpha/PixArt-XL-2-1024-MS", images=80_000, blocks=["all"], gpus=8, machine="nvidia-h200")
        print(plan_text(found))

    Args:
        pipeline: "scenes", a folder, an id whose sizes are known, or its sizes
            (:func:`~tide.planning.given_sizes`). Nothing is downloaded.
        images: to collect from.
        blocks: numbers, negative from the end, "penultimate", or "all".
        gpus: each is a rank.
        machine: "here", which measures this one (:func:`~tide.planning.measure`; less than a minute for the bundled
            pipeline), one whose constants ship with the package, or one measured before.
        size: height and width of the images in pixels; default the pipeline's own.
        config: of the trainings, except for ``steps``: each trains on all activations ``epochs`` times. With
            ``shard_latents`` the plan has a fourth way, in which so many GPUs at a time divide the latents of a model.
        options: what is kept of each image.
        epochs: how often every activation is trained on.
        reuse: how many of these times one pass serves in live training (:func:`tide.live_blocks`).
        memory: bytes of a GPU; default the machine's.

    Raises:
        TideError: the pipeline's sizes or the machine's constants are not known, a block does not exist, a count is not
            valid, or a GPU has too little memory for any of the ways.
    """
    config, options = config or TrainConfig(), options or CollectOptions()
    check_count("gpus", gpus)
    known = None if isinstance(machine, Machine) or machine == HERE else load_machine(machine)
    sizes = pipeline if isinstance(pipeline, PipelineSizes) else sizes_of(pipeline, size)
    n_latents, k = config.sizes(sizes.d_model)
    work = Work(
        pipeline=sizes,
        n_images=images,
        blocks=tuple(block_numbers(blocks, sizes.n_blocks)),
        n_gpus=gpus,
        n_latents=n_latents,
        k=k,
        activation=config.activation,
        batch_tokens=config.batch_tokens,
        epochs=epochs,
        reuse=reuse,
        shard_latents=config.shard_latents,
        options=options,
    )
    part = work.with_part_of_the_latents()  # all of them may not fit this machine
    of_a_rank = config.changed({"n_latents": part.n_latents, "k": part.k, "shard_latents": 1})
    on = machine if isinstance(machine, Machine) else known or measure(pipeline, of_a_rank, options, size)
    found = Plan(work, on, on["memory"] if memory is None else memory, tuple(Model(work, on).ways()))
    _check_fits(found, config)
    return found


def _check_fits(found: Plan, config: TrainConfig) -> None:
    """Raises :class:`~tide.errors.TideError` if a GPU has too little memory for any way."""
    if found.fitting():
        return
    least = min(found.ways, key=lambda way: way.total_memory)
    most = max(least.memory, key=lambda name: least.memory[name])
    across = _least_division(found, config)
    remedy = _REMEDIES[most]
    if across is not None:
        alone = ", a block at a time" if len(found.work.blocks) > 1 else ""
        remedy = f"divide the latents among GPUs{alone} (--shard-latents {across})"
    raise TideError(
        f"no way of training fits: even {least.name} needs {readable_size(least.total_memory)} of memory a rank, "
        f"{readable_size(found.lacking(least))} more than there is, most of it for the {most}; {remedy}"
    )


def _least_division(found: Plan, config: TrainConfig) -> int | None:
    """The least number of GPUs that have the memory for a model when they divide its latents, if it is one that they
    can divide."""
    try:
        config.changed({"shard_latents": 2})
    except TideError:  # an activation function, or prefixes, that only one rank trains
        return None
    work = found.work
    common = math.gcd(work.n_gpus, work.n_latents)
    for across in (each for each in range(2, common + 1) if common % each == 0):
        if not found.lacking(Model(replace(work, shard_latents=across), found.machine).latents_divided()):
            return across
    return None
