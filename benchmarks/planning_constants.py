"""The constants of plans, from recorded measurements: ``python -m benchmarks.planning_constants``.

Writes ``tide/planning/machines/nvidia-h200.json`` from the record of that GPU, and ``tide/planning/gloo.json`` from
what `benchmarks.wire` measured. What no record holds is assumed, with its reason; each constant says which it is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu.stages.training import CAPTION_TOKENS
from benchmarks.shapes import Shape
from benchmarks.table import RESULTS, write
from tide.planning import Constant, Machine, sizes_of
from tide.planning import here as measuring
from tide.planning.machines import FOLDER
from tide.planning.sizes import KNOWN

RECORD = RESULTS / "nvidia-h200-2026-11-27.json"
WIRE = RESULTS / "wire-gloo-2026-11-27.json"
#: The pipeline whose size the recorded collection had: 1024 tokens an image.
COLLECTED = "PixArt-alpha/PixArt-XL-2-512x512"
#: Images of that collection, and passes for each.
IMAGES, PASSES = 64, 2

DENSE, SPARSE = Shape(16384, 1152, 18432, 922), Shape(16384, 1152, 18432, 32)
SHORT = DENSE.with_tokens(4096)
#: Bytes that AdamW and the norm of the gradients move for a parameter: it, its gradient twice, two moments read; it and
#: both moments written.
UPDATE_BYTES = 4 * 8
#: Of a step, what setting the threshold takes of a token: the encoder's product of five, and the count of heights.
MATCH_SHARE = 0.4
#: To read, decode and resize an image of 1024 x 1024 pixels.
IMAGE_SECONDS = 0.02
#: Of NVLink 4 and of an InfiniBand NDR card each way, a GPU; and the share of it that collectives reach.
NVLINK, INFINIBAND, WIRE_SHARE = 450e9, 50e9, 0.8


class Record:
    """The figures of a record of `benchmarks.gpu_check`."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.all: dict[str, Any] = json.loads(path.read_text())

    def figure(self, stage: str, unit: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.all["stages"][stage]["units"][unit]["figures"][name]
        return found

    def seconds(self, stage: str, unit: object, name: str) -> float:
        return float(self.figure(stage, str(unit), name)["seconds"])


def forward_rate(record: Record) -> Constant:
    """Operations a second of the recorded collection, which ends after the last block but one."""
    sizes = sizes_of(COLLECTED)
    known = json.loads(KNOWN.read_text())[COLLECTED]
    assert known["caption_tokens"] == CAPTION_TOKENS
    flops = IMAGES * PASSES * sizes.pass_flops * (sizes.n_blocks - 1) / sizes.n_blocks
    seconds = record.seconds("training", "collection and training, PixArt-XL's size", "collect")
    source = f"collection of {IMAGES} images of {sizes.n_tokens} tokens through a transformer of PixArt-XL's size"
    return Constant(flops / seconds, True, source)


def topk_steps(record: Record) -> dict[str, float]:
    """A step of all loss terms as a CUDA graph: t = d (n weights + N min(n dense, n sparse + k place)).

    ``dense`` and ``weights`` are of the steps of 16384 and of 4096 tokens, ``place`` is the slope of the sparse
    regime's steps over k, and ``sparse`` what the step with 32 active latents leaves.
    """
    name = "tide triton, all terms, replayed"
    long, short, few = (record.seconds("peers", shape, name) for shape in (DENSE, SHORT, SPARSE))
    d, n = DENSE.d_model, DENSE.n_latents
    dense = (long - short) / (DENSE.n_tokens - SHORT.n_tokens) / (n * d)
    weights = short / (n * d) - SHORT.n_tokens * dense
    place = slope(record) / (DENSE.n_tokens * d)
    sparse = (few / d - n * weights) / (DENSE.n_tokens * n) - SPARSE.k * place / n
    return {"dense": dense, "sparse": sparse, "place": place, "weights": weights}


def slope(record: Record) -> float:
    """Seconds that each further active latent costs a step of the sparse regime, by least squares."""
    units = record.all["stages"]["dispatch"]["units"]
    points = [
        (float(name.rstrip("%")) / 100 * DENSE.n_latents, unit["figures"]["sparse"]["seconds"])
        for name, unit in units.items()
        if name.endswith("%")
    ]
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def step_constants(record: Record) -> dict[str, Constant]:
    """Of TopK as measured; of the others, TopK's times the ratio of their steps of the squared error."""
    topk, found = topk_steps(record), {}
    source = f"a step of all loss terms at {DENSE}, {SHORT} and {SPARSE}, replayed, and sparse steps over k"
    for name, value in topk.items():
        found[f"topk.{name}"] = Constant(value, True, source)
    found["topk.match"] = Constant(0.0, True, "TopK has no threshold")
    for activation in ("batch_topk", "jumprelu"):
        found[f"{activation}.match"] = Constant(MATCH_SHARE * topk["dense"], False, f"{MATCH_SHARE:g} of a dense step")
        ratios = {shape: squared_ratio(record, activation, shape) for shape in (DENSE, SPARSE)}
        for name, value in topk.items():
            ratio = ratios[DENSE if name in ("dense", "weights") else SPARSE]
            why = f"TopK's times {ratio:.3f}, the ratio of their measured steps of the squared error"
            found[f"{activation}.{name}"] = Constant(value * ratio, False, why)
    return found


def squared_ratio(record: Record, activation: str, shape: Shape) -> float:
    """The step of an activation function over TopK's, of the squared error alone."""
    both = (record.seconds("thresholds", f"steps {shape}", f"tide {each}, replayed") for each in (activation, "topk"))
    return next(both) / next(both)


def others(record: Record) -> dict[str, Constant]:
    """Images, the VAE and text encoders, memory, the update, disk and wires."""
    rate = forward_rate(record).value
    moved = 2 * 2 * DENSE.n_tokens * DENSE.n_latents  # bfloat16, read and written
    copy = moved / record.seconds("thresholds", f"primitives {DENSE}", "copy")
    scratch = record.figure("thresholds", f"steps {DENSE}", "tide jumprelu")["peak_extra_bytes"]
    wire = f"{WIRE_SHARE:g} of"
    return {
        "pixel": Constant(IMAGE_SECONDS / 2**20, False, f"{IMAGE_SECONDS * 1e3:.0f} ms for 1024 x 1024 on one core"),
        "encode_rate": Constant(rate, False, "the transformer's"),
        "update": Constant(UPDATE_BYTES / copy, False, f"{UPDATE_BYTES} bytes at the measured {copy / 1e12:.2f} TB/s"),
        "write": Constant(1e9, False, "a disk or file system that gives each rank 1 GB/s"),
        "read": Constant(2e9, False, "a disk or file system that gives each rank 2 GB/s"),
        "wire_inside": Constant(
            NVLINK * WIRE_SHARE, False, f"{wire} NVLink 4's 450 GB/s each way (NVIDIA's data sheet)"
        ),
        "wire_between": Constant(
            INFINIBAND * WIRE_SHARE, False, f"{wire} an InfiniBand NDR card's 400 Gb/s for each GPU"
        ),
        "node": Constant(8, False, "the usual node, HGX H200"),
        "memory": Constant(record.all["calls"][0]["device_memory_bytes"], True, "what the device says"),
        "scratch": Constant(
            scratch / (DENSE.n_tokens * DENSE.n_latents), True, f"the peak of a step of JumpReLU at {DENSE}"
        ),
    }


def h200(record: Record) -> Machine:
    """The machine of the record."""
    constants = {"rate": forward_rate(record), **step_constants(record), **others(record)}
    return Machine("nvidia-h200", "cuda", 2, constants)


def gloo(path: Path) -> Constant:
    """What a rank sends by gloo in an all-to-all, taken for every exchange between machines without a known wire."""
    held = json.loads(path.read_text())
    speed = held["figures"]["all_to_all"]["bytes_per_second"]
    return Constant(
        speed, False, f"gloo's all-to-all between {held['ranks']} processes of one {held['processor']} machine"
    )


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planning_constants", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--wire", type=Path, default=WIRE)
    options = parser.parse_args(given)
    write(FOLDER / "nvidia-h200.json", asdict(h200(Record(options.record))))
    write(measuring.GLOO, asdict(gloo(options.wire)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
