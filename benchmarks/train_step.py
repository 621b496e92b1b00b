"""A training step on a CPU and its parts: ``python -m benchmarks.train_step``.

Times, in turn: the trainer's whole step; the fused loss of the same batch, with its gradients added to kept buffers;
and PyTorch's fused AdamW on the same parameters. ``--against FOLDER`` also times the step of another checkout, in a
process of its own that waits while others run. ``--store`` times whole trainings from a store and from memory instead.
``OMP_NUM_THREADS`` sets the threads. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from tide.sae import TIDE, ModulationConfig, TIDEConfig
from tide.training import TrainConfig, Trainer

try:
    from tide.activations import ActivationBatch, ActivationPool, ActivationStore, ActivationWriter
except ImportError:  # an older checkout
    from tide.activations import ActivationBatch, ActivationPool

#: Timesteps of the activations, and rows of one call of the transformer.
TIMESTEPS, CALL_ROWS = 20, 64
BARS = {"(step - loss) / AdamW": 1.25, "step / step of the other": 1.0}


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__.splitlines()[0])
    parser.add_argument("--latents", type=int, default=16384)
    parser.add_argument("--k", type=int, default=819)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--rows", type=int, default=32768, help="of all activations")
    parser.add_argument("--repetitions", type=int, default=25)
    parser.add_argument("--steps", type=int, default=100, help="of a training with --store")
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--store", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(given)


def activations(rows: int, width: int) -> ActivationBatch:
    """Pairs of rows at neighbouring timesteps, as a collection makes them: two calls for each group of tokens."""
    generator = torch.Generator().manual_seed(0)
    calls = torch.arange(rows) // (2 * CALL_ROWS) * 2 + torch.arange(rows) % 2
    low, mix = torch.randn(rows, 48, generator=generator).relu(), torch.randn(48, width, generator=generator)
    return ActivationBatch(
        x=low @ mix + 0.1 * torch.randn(rows, width, generator=generator),
        timestep=1000.0 * (1 + torch.arange(int(calls[-1]) + 1) % TIMESTEPS) / TIMESTEPS,
        group=calls.to(torch.int32),
        conditioning=None,
        sample=calls // 2,
        token=(torch.arange(rows) // 2 % CALL_ROWS).to(torch.int32),
        paired=True,
    )


def trainer(options: argparse.Namespace, out: Path) -> Trainer:
    """With the defaults of a training but a constant k and no revival, so that all steps are alike."""
    from tide.training import ProgressiveK, RevivalConfig

    config = TrainConfig(
        n_latents=options.latents,
        k=options.k,
        steps=options.steps,
        batch_tokens=options.tokens,
        progressive_k=ProgressiveK(shape="off"),
        revival=RevivalConfig(every=0),
        checkpoint_every=10**9,
    )
    modulation = ModulationConfig(d_model=options.width, d_embedding=options.width)
    model = TIDE(TIDEConfig(options.width, options.latents, options.k, modulation=modulation), seed=0)
    return Trainer(model, config, out, progress=False)


class Steps:
    """The trainer's step on one batch after another."""

    def __init__(self, options: argparse.Namespace, out: Path) -> None:
        self.trainer = trainer(options, out)
        pool = ActivationPool([activations(options.rows, options.width)], options.tokens)
        self.batches: Iterator[ActivationBatch] = pool.from_step(0)
        self.batch = next(self.batches)
        self.trainer.model.calibrate(self.batch.x, *_place(self.batch))
        self.trainer.model.train()

    def __call__(self) -> None:
        self.trainer._train_step(self.batch)
        self.trainer.step += 1  # like a training, whose first step does more


def _place(batch: ActivationBatch) -> tuple[object, ...]:
    """Where the rows stand, as this checkout's models take it."""
    return (batch.position,) if hasattr(batch, "position") else (batch.timestep, batch.conditioning, batch.group)


def fused_loss(steps: Steps) -> Callable[[], object]:
    """``tide_loss`` as the step calls it, its gradients added to buffers that are kept."""
    from tide_kernels import tide_loss

    job, batch = steps.trainer, steps.batch
    model = job.model
    rows, modulation = model._entering(batch.x, batch.position)
    scale, shift = (each.detach() for each in modulation[:2])
    options = job.config.loss.options(job.config.k, model.n_latents, paired=batch.paired)
    weights = {name: getattr(model, name).detach() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    tensors: dict[str, Tensor] = {**weights, "scale": scale, "shift": shift}
    buffers = {name: torch.zeros_like(each) for name, each in tensors.items()}
    return lambda: tide_loss(rows, **tensors, group=modulation.group, gradients=buffers, **options._asdict())


def plain_adamw(steps: Steps) -> Callable[[], object]:
    """PyTorch's fused AdamW on copies of the parameters."""
    job = steps.trainer
    copies = [torch.nn.Parameter(each.detach().clone()) for each in job.model.parameters()]
    for each in copies:
        each.grad = torch.full_like(each, 1e-6)
    return torch.optim.AdamW(copies, lr=1e-6, fused=True).step


class Other:
    """The step of another checkout, in a process that takes turns with this one."""

    def __init__(self, folder: Path) -> None:
        arguments = [each for each in sys.argv[1:] if each != "--against" and each != str(folder)]
        folder = folder.resolve()
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", *arguments],
            env={**os.environ, "PYTHONPATH": str(folder)},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.seconds()  # once it is ready

    def seconds(self) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


def serve(steps: Steps) -> None:
    """One step for each line of standard input; its seconds go to standard output."""
    for _ in sys.stdin:
        print(seconds(steps), flush=True)


def seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def measure_step(options: argparse.Namespace, out: Path) -> dict[str, float]:
    steps = Steps(options, out)
    if options.serve:
        serve(steps)
        return {}
    runs: dict[str, Callable[[], float]] = {
        "step": lambda: seconds(steps),
        "loss": lambda run=fused_loss(steps): seconds(run),  # type: ignore[misc]
        "AdamW": lambda run=plain_adamw(steps): seconds(run),  # type: ignore[misc]
    }
    other = Other(options.against) if options.against else None
    if other is not None:
        runs["other"] = other.seconds
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(options.repetitions + 2):
        for name, run in runs.items():
            spent = run()
            if turn >= 2:
                times[name].append(spent)
    if other is not None:
        other.close()
    return {name: median(each) for name, each in times.items()}


def measure_store(options: argparse.Namespace, out: Path) -> dict[str, float]:
    """Whole trainings, in turn; a store is read once before."""
    from tide.training.sources import mixed_ahead

    rows = activations(options.rows, options.width)
    with ActivationWriter(out / "store", {}) as writer:
        writer.add(rows)
    store = ActivationStore(out / "store")
    pool = ActivationPool([rows], options.tokens)
    sources = {
        "memory": pool.from_step,
        "store": lambda step: mixed_ahead([store], options.tokens, seed=0, buffer_rows=65536, start=step),
    }
    times: dict[str, list[float]] = {name: [] for name in sources}
    for turn in range(4):
        for name, batches in sources.items():
            job = trainer(options, out / f"{name}-{turn}")
            times[name].append(seconds(lambda job=job, batches=batches: job.fit(batches)))  # type: ignore[misc]
    return {name: min(each[1:]) for name, each in times.items()}


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    with tempfile.TemporaryDirectory() as out:
        times = (measure_store if options.store else measure_step)(options, Path(out))
    if options.serve:
        return 0
    print(json.dumps({name: round(1e3 * each, 2) for name, each in times.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
