"""The tables of docs/scale-planning.md: ``python -m benchmarks.planning_tables``. Nothing is measured."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.table import markdown
from tide.activations.writer import readable_size
from tide.adapters.blocks import Block
from tide.planning import PipelineSizes, Plan, given_sizes, plan
from tide.planning.report import cells
from tide.training import TrainConfig

IMAGES, GPUS, MACHINE = 80_000, (1, 8, 64), "nvidia-h200"
#: Of PixArt-XL: sizes of images -> the pipeline.
PIPELINES = {
    "1024 px": "PixArt-alpha/PixArt-XL-2-1024-MS",
    "512 px": "PixArt-alpha/PixArt-XL-2-512x512",
}
CONFIG = TrainConfig(batch_tokens=4096)
#: Of a model that no GPU has room for: two million latents on one of Flux's 57 blocks.
WIDE = "2,097,152 latents, d = 3072"
WIDE_CONFIG = TrainConfig(n_latents=2**21, batch_tokens=16384, shard_latents=8)
_SHOWN = ("total", "GPU hours", "disk", "memory of a rank", "on the wire")


def table(
    pipeline: str | PipelineSizes,
    numbers: Sequence[int] = GPUS,
    block: Block = "all",
    config: TrainConfig = CONFIG,
) -> str:
    """Ways by numbers of GPUs: time, GPU hours, disk, memory, wire."""
    rows = []
    for gpus in numbers:
        found = plan(pipeline, images=IMAGES, blocks=[block], gpus=gpus, machine=MACHINE, config=config)
        for way in found.ways:
            shown = cells(way, gpus)
            lacking = found.lacking(way)
            memory = f"{shown['memory of a rank']}: {readable_size(lacking)} too much" if lacking else None
            values = [memory if name == "memory of a rank" and memory else shown[name] for name in _SHOWN]
            rows.append([str(gpus), way.name, *values])
    return markdown(["GPUs", "way", "time", *_SHOWN[1:]], rows)


def parts(pipeline: str, gpus: int) -> str:
    """What the time of each way is made of."""
    found: Plan = plan(pipeline, images=IMAGES, blocks=["all"], gpus=gpus, machine=MACHINE, config=CONFIG)
    columns = [cells(way, gpus) for way in found.ways]
    names = [name for name in columns[0] if name not in _SHOWN]
    return markdown(
        ["part", *(way.name for way in found.ways)], [[name, *(c[name] for c in columns)] for name in names]
    )


def tables() -> dict[str, str]:
    """Every table, by its title."""
    found = {title: table(pipeline) for title, pipeline in PIPELINES.items()}
    wide = table(given_sizes(3072, 57, 4096), (8, 64), 30, WIDE_CONFIG)
    return {**found, "1024 px, 8 GPUs": parts(PIPELINES["1024 px"], 8), WIDE: wide}


def main() -> int:
    print("\n\n".join(f"{title}\n\n{text}" for title, text in tables().items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
