"""The tables of docs/scale-planning.md: ``python -m benchmarks.planning_tables``. Nothing is measured."""

from __future__ import annotations

import sys

from benchmarks.table import markdown
from tide.messages import readable_size
from tide.planning import Plan, given_sizes, plan
from tide.planning.model import Way
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
WIDE_CONFIG = TrainConfig(n_latents=2**21, batch_tokens=16384)
_SHOWN = ("total", "GPU hours", "disk", "memory of a rank", "on the wire")


def table(pipeline: str) -> str:
    """Ways by numbers of GPUs: time, GPU hours, disk, memory, wire."""
    rows = []
    for gpus in GPUS:
        found = plan(pipeline, images=IMAGES, blocks=["all"], gpus=gpus, machine=MACHINE, config=CONFIG)
        rows += [[str(gpus), way.name, *_shown(found, way)] for way in found.ways]
    return markdown(["GPUs", "way", "time", *_SHOWN[1:]], rows)


def wide_table() -> str:
    """Data parallel, which fits no GPU, and latents divided among so many GPUs at a time."""
    rows = []
    for gpus, divisions in ((8, (8,)), (64, (8, 64))):
        for across in divisions:
            config = WIDE_CONFIG.changed({"shard_latents": across})
            pipeline = given_sizes(3072, 57, 4096)
            found = plan(pipeline, images=IMAGES, blocks=[30], gpus=gpus, machine=MACHINE, config=config)
            *_, whole, divided = found.ways
            if across == divisions[0]:
                rows.append([str(gpus), whole.name, *_shown(found, whole)])
            rows.append([str(gpus), f"{divided.name} among {across}", *_shown(found, divided)])
    return markdown(["GPUs", "way", "time", *_SHOWN[1:]], rows)


def _shown(found: Plan, way: Way) -> list[str]:
    shown = cells(way, found.work.n_gpus)
    if lacking := found.lacking(way):
        shown["memory of a rank"] += f": {readable_size(lacking)} too much"
    return [shown[name] for name in _SHOWN]


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
    return {**found, "1024 px, 8 GPUs": parts(PIPELINES["1024 px"], 8), WIDE: wide_table()}


def main() -> int:
    print("\n\n".join(f"{title}\n\n{text}" for title, text in tables().items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
