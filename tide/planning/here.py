"""Measures what a plan needs to know of this machine, with the pipeline and the training that are planned."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from tide.activations import ActivationBatch, CollectOptions, StoreWriter, collect, prepare
from tide.adapters import Adapter
from tide.adapters.sizes import caption_length, image_size, n_tokens
from tide.clip import clip_writer
from tide.data import open_source
from tide.devices import device_memory
from tide.errors import TideError
from tide.files import read_json
from tide.loading import BUNDLED, load_adapter
from tide.pictures import to_image
from tide.planning.machines import HERE, Constant, Machine
from tide.planning.sizes import sizes_of_adapter
from tide.training import TrainConfig, from_pool, train

#: What :mod:`benchmarks.wire` measured between two processes of one machine.
GLOO = Path(__file__).parent / "gloo.json"

#: Seconds that each of the measurements may take, beyond its warm-up.
_BUDGET = 10.0
#: Steps of a first, short training, and the most of the one that is measured.
_FEW_STEPS, _MOST_STEPS = 5, 60
#: Tokens of a measured step at most on a CPU.
_CPU_TOKENS = 1024
_WRITTEN = 2**26
#: Bytes of a step for each token of a chunk and latent: pre-activations and their gradient in float32.
_SCRATCH = 8.0


def measure(
    pipeline: object, config: TrainConfig, options: CollectOptions, size: tuple[int, ...] | None = None
) -> Machine:
    """The constants of this machine, on its GPU if there is one: of reading images and running ``pipeline``, "scenes"
    or a folder; of steps of ``config``; of writing to the disk of the current folder.

    ``options`` say what is kept of each image, of ``size`` height and width in pixels (default the pipeline's own).

    Raises :class:`~tide.errors.TideError` for a pipeline that is not here.
    """
    if not isinstance(pipeline, str | Path) or not (str(pipeline) == BUNDLED or Path(pipeline).is_dir()):
        raise TideError(
            "measuring this machine runs the pipeline, and it is not in a folder here; give its folder, or another "
            "--machine, such as nvidia-h200"
        )
    adapter = load_adapter(pipeline)
    with tempfile.TemporaryDirectory(dir=".", prefix=".tide-plan-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # they are about activations of noise
        constants = {
            **_passes(adapter, options, size, Path(folder)),
            **_steps(adapter, config, size, Path(folder)),
            **_disk(adapter, Path(folder)),
            **_assumed(adapter.device),
        }
    return Machine(HERE, adapter.device.type, adapter.dtype.itemsize, constants)


def _passes(
    adapter: Adapter, options: CollectOptions, size: tuple[int, ...] | None, folder: Path
) -> dict[str, Constant]:
    """Reading images; operations a second of encoding them; and of passes through every block, as a collection runs
    them."""
    sizes, n = sizes_of_adapter(adapter, size, HERE), options.batch_size
    _write_pictures(folder / "pictures", adapter, size, n)
    source = open_source(folder / "pictures", adapter, size=size, batch_size=n)
    data, length = list(source), caption_length(adapter)
    encoded = list(prepare(adapter, data, batch_size=n, max_sequence_length=length))
    of_passes = n * (1 + options.paired) * sizes.pass_flops
    read, encode, run = (
        _repeated(each, adapter.device)
        for each in (
            lambda: list(source),
            lambda: list(prepare(adapter, data, batch_size=n, max_sequence_length=length)),
            lambda: list(collect(adapter, encoded, [-1], options)),
        )
    )
    return {
        "pixel": Constant(read / (n * sizes.n_pixels), True, f"{n} JPEG files of the pipeline's size"),
        "encode_rate": Constant(n * sizes.encode_flops / encode, True, f"batches of {n} images"),
        "rate": Constant(of_passes / run, True, f"collections of {n} images in a batch"),
    }


def _steps(adapter: Adapter, config: TrainConfig, size: tuple[int, ...] | None, folder: Path) -> dict[str, Constant]:
    """Seconds of a step and of matching the threshold: the mean times between the batches of a short training on
    activations in memory. The first step is left out: it calibrates the model."""
    tokens = min(config.batch_tokens, _CPU_TOKENS) if adapter.device.type == "cpu" else config.batch_tokens
    config = replace(config, device=str(adapter.device), batch_tokens=tokens)
    pool = _pool(adapter, size, tokens)

    def intervals(steps: int) -> tuple[float, float]:
        drawn: list[float] = []
        job = from_pool(pool, adapter, replace(config, steps=steps), block=-1)
        timed = replace(job, batches=lambda first: _timed(job.batches(first), drawn))
        train(timed, folder / f"{steps} steps")
        matching = drawn[steps:]  # batches after the last step are those of the threshold
        matched = (matching[-1] - matching[0]) / (len(matching) - 1) if len(matching) > 1 else 0.0
        return (drawn[steps - 1] - drawn[1]) / (steps - 2), matched

    steps = max(_FEW_STEPS, min(_MOST_STEPS, round(_BUDGET / intervals(_FEW_STEPS)[0])))
    n_latents, _ = config.sizes(adapter.d_model)
    source = f"{steps} steps of {tokens} tokens and {n_latents} latents"
    step, match = (
        Constant(each / (tokens * n_latents * adapter.d_model), True, source) for each in intervals(2 + steps)
    )
    nothing = Constant(0.0, True, "part of the step that was measured")
    of = {"dense": step, "sparse": step, "place": nothing, "weights": nothing, "match": match}
    return {**{f"{config.activation}.{name}": value for name, value in of.items()}, "update": nothing}


def _timed(batches: Iterator[ActivationBatch], drawn: list[float]) -> Iterator[ActivationBatch]:
    """The batches; ``drawn`` gets the time at which each is asked for."""
    for batch in batches:
        drawn.append(time.perf_counter())
        yield batch


def _pool(adapter: Adapter, size: tuple[int, ...] | None, tokens: int) -> list[ActivationBatch]:
    """At least two steps' activations of the last block: all tokens of some images of noise."""
    options = CollectOptions(token_fraction=1.0)
    pixels = image_size(adapter, size)
    n = math.ceil(2 * tokens / options.rows_per_image(n_tokens(adapter, pixels)))
    data = (torch.rand(n, 3, *pixels) * 2 - 1, ["a picture"] * n)
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


def _write_pictures(folder: Path, adapter: Adapter, size: tuple[int, ...] | None, n: int) -> None:
    """Smooth noise in ``n`` JPEG files, each with a caption; for a pipeline of videos in GIF files that stand still."""
    *frames, height, width = image_size(adapter, size)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 8, 8, generator=generator) * 2 - 1
    folder.mkdir()
    for number, image in enumerate(F.interpolate(coarse, (height, width), mode="bicubic").clamp(-1, 1)):
        picture = to_image(image)
        if frames:
            clip_writer([picture] * frames[0], ".gif")(folder / f"{number}.gif")
        else:
            picture.save(folder / f"{number}.jpg")
        (folder / f"{number}.txt").write_text("a picture")


def _repeated(run: Callable[[], object], device: torch.device) -> float:
    """The median seconds of a run that is repeated, after a first one, until its budget is spent, 20 times at most."""
    first = _seconds(run, device)
    return statistics.median(_seconds(run, device) for _ in range(max(1, min(20, int(_BUDGET / first)))))


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """What a caller sees who waits for the device."""
    begin = time.perf_counter()
    run()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - begin
