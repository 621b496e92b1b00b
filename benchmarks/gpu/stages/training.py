"""The whole of it, where diffusers is installed: training on the bundled pipeline, and collection at PixArt's size."""

from __future__ import annotations

import importlib.util
import itertools
import tempfile
import time
from collections.abc import Callable
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


def training(check: Check) -> None:
    """Training on a live stream of the bundled pipeline; live collection through a transformer of PixArt-XL's size."""
    if importlib.util.find_spec("diffusers") is None:
        check.unit("training", partial(_left_out, "diffusers is not installed"))
        return
    tests = partial(run_tests, check, ["-m", "gpu", TRAINING_TESTS], folder="tests")
    check.unit("tests of training marked gpu", tests)
    check.unit("tide train, live, the bundled pipeline", partial(_train, check))
    check.unit("live collection, PixArt-XL's size", partial(_collect, check))


def _left_out(reason: str, unit: Unit) -> None:
    unit.notes.append(f"left out: {reason}")


def _train(check: Check, unit: Unit) -> None:
    import tide

    steps, rows = (4, 64) if check.dry_run else (300, 4096)
    options: dict[str, Any] = {"backend": check.backend, "device": str(check.device), "batch_tokens": rows}
    adapter = tide.load_adapter("scenes", device=str(check.device))
    source = tide.open_source("scenes", adapter, images=8 if check.dry_run else 512)
    with tempfile.TemporaryDirectory() as folder:
        folders = (Path(folder) / str(i) for i in itertools.count())

        def train(steps: int) -> None:
            tide.train(tide.live(adapter, source, tide.TrainConfig(steps=steps, **options)), next(folders))

        train(2)
        seconds = _seconds(partial(train, steps), check.device)
        events = summary(record(partial(train, max(2, steps // 10)), check.device, 1), 1)
    _figure(unit, "train", seconds, steps * rows, events.share)


def _collect(check: Check, unit: Unit) -> None:
    from diffusers import PixArtTransformer2DModel

    from tide.activations import CollectOptions, collect
    from tide.adapters import adapter_for
    from tide.scenes.pipeline import build_pipeline

    size, images = (8, 2) if check.dry_run else (64, 64)
    options: dict[str, Any] = TOY if check.dry_run else XL
    pipe = build_pipeline()
    pipe.transformer = PixArtTransformer2DModel(
        sample_size=size, caption_channels=CAPTION_CHANNELS, use_additional_conditions=False, **options
    )
    pipe.to(check.device, check.dtype)
    adapter = adapter_for(pipe)
    text = {
        "encoder_hidden_states": torch.randn(images, CAPTION_TOKENS, CAPTION_CHANNELS).to(check.dtype),
        "encoder_attention_mask": torch.ones(images, CAPTION_TOKENS, dtype=torch.int64),
    }
    data = [(torch.randn(images, 4, size, size), text)]
    kept = CollectOptions(token_fraction=1.0, batch_size=2 if check.dry_run else 16)

    def run() -> int:
        return sum(len(batch) for found in collect(adapter, data, ["penultimate"], kept) for batch in found.values())

    rows = run()
    seconds = _seconds(run, check.device)
    events = summary(record(run, check.device, 1), 1)
    _figure(unit, "collect", seconds, rows, events.share)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    synchronise(device)
    begin = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - begin


def _figure(unit: Unit, name: str, seconds: float, rows: int, share: float) -> None:
    note = f"{rows / seconds:,.0f} tokens a second; a kernel runs in {share:.0%} of the time"
    unit.figures[name] = {"seconds": seconds, "tokens_per_second": rows / seconds, "kernel_share": share, "note": note}
