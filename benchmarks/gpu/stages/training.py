"""The whole of it, where diffusers is installed: training on the bundled pipeline, and collection at PixArt's size."""

from __future__ import annotations

import importlib.util
import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.check import Check, Unit
from benchmarks.gpu.stages.tests import TRAINING_TESTS, run_tests
from benchmarks.gpu.timeline import record, summary
from benchmarks.measure import synchronise

# PixArt-XL at 512 x 512 with random weights, and a toy of the same kind.
XL = {"num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72, "cross_attention_dim": 1152}
TOY = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32}
CAPTION_TOKENS, CAPTION_CHANNELS = 120, 4096
LISTED = 8  # kernels of a training


def training(check: Check) -> None:
    """Training on activations of the bundled pipeline, and on those of a transformer of PixArt-XL's size."""
    if importlib.util.find_spec("diffusers") is None:
        check.unit("training", partial(_left_out, "diffusers is not installed"))
        return
    tests = partial(run_tests, check, ["-m", "gpu", TRAINING_TESTS], folder="tests")
    check.unit("tests of training marked gpu", tests)
    check.unit("tide train, the bundled pipeline", partial(_train, check))
    check.unit("collection and training, PixArt-XL's size", partial(_at_full_size, check))


def _left_out(reason: str, unit: Unit) -> None:
    unit.notes.append(f"left out: {reason}")


def _train(check: Check, unit: Unit) -> None:
    """From memory, which is the training itself, and live, where the transformer runs as well."""
    import tide

    adapter = tide.load_adapter("scenes", device=str(check.device))
    source = tide.open_source("scenes", adapter, images=8 if check.dry_run else 512)
    options = _collecting(check)
    pool = [batch for found in tide.collect(adapter, source, ["penultimate"], options) for batch in found.values()]
    config = _config(check, 64 if check.dry_run else 4096)
    steps = 4 if check.dry_run else 300
    _timed(check, unit, "from memory", lambda each: tide.from_pool(pool, adapter, each), config, steps)
    live = partial(tide.live, adapter, source, options=options, cache=True)
    _timed(check, unit, "live", live, config, steps)


def _collecting(check: Check) -> Any:
    """All tokens of many images at once: a GPU is idle where a pass is small."""
    from tide.activations import CollectOptions

    return CollectOptions(token_fraction=1.0, batch_size=2 if check.dry_run else 64)


def _config(check: Check, rows: int, **options: Any) -> Any:
    from tide import TrainConfig

    return TrainConfig(backend=check.backend, device=str(check.device), batch_tokens=rows, **options)


def _timed(check: Check, unit: Unit, name: str, job: Callable[[Any], Any], config: Any, steps: int) -> None:
    """Tokens a second of so many steps, after a training that compiles what they need."""
    import tide

    with tempfile.TemporaryDirectory() as folder:
        folders = (Path(folder) / str(i) for i in itertools.count())

        def train(steps: int) -> None:
            tide.train(job(replace(config, steps=steps)), next(folders))

        train(min(30, steps))  # as long as it takes until steps are replayed
        seconds = _seconds(partial(train, steps), check.device)
        profiled = max(2, steps // 4)
        events = summary(record(partial(train, profiled), check.device, 1), 1)
    _figure(unit, name, seconds, steps * config.batch_tokens, events.share)
    slowest = list(events.kernels.items())[:LISTED]
    unit.notes += [f"{name}: {each[:60]} {taken / profiled * 1e3:.3f} ms a step" for each, (_, taken) in slowest]


def _at_full_size(check: Check, unit: Unit) -> None:
    """Live collection and training from memory, of a transformer of PixArt-XL's size with random weights."""
    import tide

    adapter, data = _full_size(check)
    run = partial(tide.collect, adapter, data, ["penultimate"], _collecting(check))

    def collected() -> list[Any]:
        return [batch for found in run() for batch in found.values()]

    pool = collected()
    rows = sum(map(len, pool))
    seconds = _seconds(collected, check.device)
    events = summary(record(collected, check.device, 1), 1)
    _figure(unit, "collect", seconds, rows, events.share)
    tokens, steps = (64, 4) if check.dry_run else (16384, 100)
    for name, options in (("train", {}), ("train, topk at 5 %", {"activation": "topk", "density": 0.05})):
        config = _config(check, tokens, **options)
        _timed(check, unit, name, lambda each: tide.from_pool(pool, adapter, each), config, steps)


def _full_size(check: Check) -> tuple[Any, list[Any]]:
    """The adapter of such a transformer, and a batch of data for it."""
    from diffusers import PixArtTransformer2DModel

    from tide.adapters import adapter_for
    from tide.scenes.pipeline import build_pipeline

    size, images = (8, 2) if check.dry_run else (64, 64)
    options: dict[str, Any] = TOY if check.dry_run else XL
    pipe = build_pipeline()
    pipe.transformer = PixArtTransformer2DModel(
        sample_size=size, caption_channels=CAPTION_CHANNELS, use_additional_conditions=False, **options
    )
    pipe.to(check.device, check.dtype)
    text = {
        "encoder_hidden_states": torch.randn(images, CAPTION_TOKENS, CAPTION_CHANNELS).to(check.dtype),
        "encoder_attention_mask": torch.ones(images, CAPTION_TOKENS, dtype=torch.int64),
    }
    return adapter_for(pipe), [(torch.randn(images, 4, size, size), text)]


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    synchronise(device)
    begin = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - begin


def _figure(unit: Unit, name: str, seconds: float, rows: int, share: float) -> None:
    note = f"{rows / seconds:,.0f} tokens a second; a kernel runs in {share:.0%} of the time"
    unit.figures[name] = {"seconds": seconds, "tokens_per_second": rows / seconds, "kernel_share": share, "note": note}
