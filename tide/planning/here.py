"""Measures what a plan needs to know of this machine, with the pipeline and the training that are planned."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tide.activations import ActivationBatch, CollectOptions, StoreWriter, collect
from tide.adapters import Adapter
from tide.adapters.sizes import caption_length, image_size
from tide.devices import device_memory
from tide.errors import TideError
from tide.files import read_json
from tide.loading import BUNDLED, load_adapter
from tide.planning.machines import HERE, Constant, Machine
from tide.planning.sizes import sizes_of_adapter
from tide.training import TrainConfig, from_pool, train

#: What :mod:`benchmarks.wire` measured between two processes of one machine.
GLOO = Path(__file__).parent / "gloo.json"

#: Seconds that each of the measurements may take, beyond its warm-up.
_BUDGET = 10.0
#: Steps of the shorter of two trainings, and the most by which the other is longer.
_FEW_STEPS, _MORE_STEPS = 4, 60
#: Tokens of a measured step at most on a CPU.
_CPU_TOKENS = 1024
_WRITTEN = 2**26
#: Bytes of a step for each token of a chunk and latent: pre-activations and their gradient in float32.
_SCRATCH = 8.0


def measure(
    pipeline: object, config: TrainConfig, options: CollectOptions, size: tuple[int, int] | None = None
) -> Machine:
    """The constants of this machine, on its GPU if there is one: of passes of ``pipeline``, "scenes" or a folder, with
    its VAE and text encoders; of steps of ``config``; of writing to the disk of the current folder.

    Raises :class:`~tide.errors.TideError` for a pipeline that is not here.
    """
    if not isinstance(pipeline, str | Path) or not (str(pipeline) == BUNDLED or Path(pipeline).is_dir()):
        raise TideError(
            "measuring this machine runs the pipeline, and it is not in a folder here; give its folder, or another "
            "--machine, such as nvidia-h200"
        )
    adapter = load_adapter(pipeline)
    with tempfile.TemporaryDirectory(dir=".", prefix=".tide-plan-") as folder:
        constants = {
            "rate": _rate(adapter, options, size),
            **_steps(adapter, config, size, Path(folder)),
            **_disk(adapter, Path(folder)),
            **_assumed(adapter.device),
        }
    return Machine(HERE, adapter.device.type, adapter.dtype.itemsize, constants)


def _rate(adapter: Adapter, options: CollectOptions, size: tuple[int, int] | None) -> Constant:
    """Operations a second of whole passes through every block, as a collection runs them."""
    sizes = sizes_of_adapter(adapter, size, HERE)
    data = list(_random(adapter, size, options.batch_size, options.batch_size))

    def run() -> None:
        for _ in collect(adapter, data, [-1], options, max_sequence_length=caption_length(adapter)):
            pass

    run()
    seconds, times = _repeated(run, adapter.device)
    flops = options.batch_size * (sizes.encode_flops + (1 + options.paired) * sizes.pass_flops)
    source = f"{times} collections of {options.batch_size} images of noise"
    return Constant(flops / seconds, True, source)


def _steps(
    adapter: Adapter, config: TrainConfig, size: tuple[int, int] | None, folder: Path
) -> dict[str, Constant]:
    """A step's seconds, from two trainings of different lengths on activations in memory."""
    tokens = min(config.batch_tokens, _CPU_TOKENS) if adapter.device.type == "cpu" else config.batch_tokens
    config = replace(config, device=str(adapter.device), batch_tokens=tokens)
    pool = _pool(adapter, size, tokens)

    def seconds(steps: int) -> float:
        job = from_pool(pool, adapter, replace(config, steps=steps), block=-1)
        return _seconds(lambda: train(job, folder / f"{steps}-{time.monotonic_ns()}"), adapter.device)

    seconds(_FEW_STEPS)
    few = seconds(_FEW_STEPS)
    more = max(_FEW_STEPS, min(_MORE_STEPS, round(_BUDGET * _FEW_STEPS / few)))
    step = max(seconds(_FEW_STEPS + more) - few, 0.0) / more
    n_latents, _ = config.sizes(adapter.d_model)
    source = f"{more} steps of {tokens} tokens and {n_latents} latents, updates included"
    each = Constant(step / (tokens * n_latents * adapter.d_model), True, source)
    nothing = Constant(0.0, True, "part of the step that was measured")
    of = {"dense": each, "sparse": each, "place": nothing, "weights": nothing}
    return {**{f"{config.activation}.{name}": value for name, value in of.items()}, "update": nothing}


def _pool(adapter: Adapter, size: tuple[int, int] | None, tokens: int) -> list[ActivationBatch]:
    """At least two steps' activations of the last block: all tokens of a few images of noise."""
    options = CollectOptions(token_fraction=1.0)
    sizes = sizes_of_adapter(adapter, size, HERE)
    images = math.ceil(2 * tokens / options.rows_per_image(sizes.n_tokens))
    data = _random(adapter, size, images, options.batch_size)
    found = collect(adapter, data, [-1], options, max_sequence_length=caption_length(adapter))
    return [batch for passed in found for batch in passed.values()]


def _disk(adapter: Adapter, folder: Path) -> dict[str, Constant]:
    """Bytes a second of a store that is written and on the disk; reading is taken to be as fast."""
    d_model, dtype = adapter.d_model, adapter.dtype
    rows = _WRITTEN // (d_model * dtype.itemsize)
    numbers = torch.arange(rows, dtype=torch.int32)
    batch = ActivationBatch(
        x=torch.randn(rows, d_model).to(dtype),
        timestep=torch.zeros(rows),
        group=numbers,
        conditioning=None,
        sample=numbers.long(),
        token=torch.zeros_like(numbers),
    )

    def write() -> None:
        with StoreWriter(folder / "store") as writer:
            writer.add(batch)

    seconds = _seconds(write, torch.device("cpu"))
    value = batch.x.nbytes / seconds
    return {
        "write": Constant(value, True, f"a store of {batch.x.nbytes / 1e6:.0f} MB in the current folder"),
        "read": Constant(value, False, "as fast as writing"),
    }


def _assumed(device: torch.device) -> dict[str, Constant]:
    gloo = Constant(**read_json(GLOO, Constant))
    return {
        "wire_inside": gloo,
        "wire_between": gloo,
        "node": Constant(1, False, "every rank is a machine like this one"),
        "memory": Constant(device_memory(device) or math.inf, True, "what the system says"),
        "scratch": Constant(_SCRATCH, False, "pre-activations and their gradient in float32"),
    }


def _random(
    adapter: Adapter, size: tuple[int, int] | None, n: int, batch_size: int
) -> Iterator[tuple[Tensor, list[str]]]:
    """Batches of ``n`` images of noise in all, each with a caption."""
    height, width = image_size(adapter, size)
    generator = torch.Generator().manual_seed(0)
    for start in range(0, n, batch_size):
        count = min(batch_size, n - start)
        yield torch.rand(count, 3, height, width, generator=generator) * 2 - 1, ["a picture"] * count


def _repeated(run: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """The mean seconds of a run that is repeated until its budget is spent, 20 times at most; and how often it ran."""
    taken: list[float] = []
    while not taken or (sum(taken) < _BUDGET and len(taken) < 20):
        taken.append(_seconds(run, device))
    return sum(taken) / len(taken), len(taken)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """What a caller sees who waits for the device."""
    begin = time.perf_counter()
    run()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - begin
