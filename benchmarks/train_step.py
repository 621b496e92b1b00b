"""A training step on a CPU and its parts: ``python -m benchmarks.train_step``.

Times in turn, on the same batch: the trainer's whole step, within it the fused loss, and PyTorch's fused AdamW alone on
copies of the parameters. ``--against FOLDER`` also times the step of another checkout, in a process that waits while
others run. ``--store`` times whole trainings from a store and from memory instead. ``OMP_NUM_THREADS`` sets the
threads. Run it on a machine that does nothing else. ``--out FILE`` writes ``--runs`` runs as JSON.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch

from tide.activations import ActivationBatch
from tide.sae import TIDE, ModulationConfig, TIDEConfig
from tide.training import ProgressiveK, RevivalConfig, TrainConfig, Trainer

#: A step without its fused loss, in times PyTorch's fused AdamW on the same parameters: the bar. The loss includes the
#: start of the gradients (the L2 term) and, where it can, the sum of their squares.
REST, MOST = "(step - loss) / AdamW", 1.25
#: Timesteps of the activations, and tokens of one call of the transformer.
TIMESTEPS, CALL_ROWS = 20, 64
WARM_UP = 3


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__.splitlines()[0])
    parser.add_argument("--latents", type=int, default=16384)
    parser.add_argument("--k", type=int, default=819)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--plain", action="store_true", help="the SAE without modulation")
    parser.add_argument("--rows", type=int, default=65536, help="of all activations")
    parser.add_argument("--repetitions", type=int, default=25)
    parser.add_argument("--steps", type=int, default=128, help="of a training from a store")
    parser.add_argument("--runs", type=int, default=1, help="one after the other")
    parser.add_argument("--out", type=Path, help="a file for the figures")
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--store", action="store_true", help="trainings from a store and from memory")
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
    """Of TopK, with the defaults of a training, but a constant k and no revival, so that all steps are alike."""
    config = TrainConfig(
        activation="topk",
        n_latents=options.latents,
        k=options.k,
        steps=max(options.steps, 1000) if not options.store else options.steps,
        batch_tokens=options.tokens,
        progressive_k=ProgressiveK(shape="off"),
        revival=RevivalConfig(every=0),
        checkpoint_every=10**9,
        log_every=10**9,
    )
    modulation = None if options.plain else ModulationConfig(d_model=options.width, d_embedding=options.width)
    model = TIDE(TIDEConfig(options.width, options.latents, options.k, modulation=modulation), seed=0)
    return Trainer(model, config, out, progress=False)


class Step:
    """The trainer's step on a batch of this checkout, which may be an older one."""

    def __init__(self, options: argparse.Namespace, out: Path) -> None:
        self.trainer = trainer(options, out)
        rows = activations(4 * options.tokens, options.width)
        chosen = torch.randperm(len(rows) // 2, generator=torch.Generator().manual_seed(1))[: options.tokens // 2]
        batch = rows.take((2 * chosen[:, None] + torch.arange(2)).reshape(-1)).compacted()
        self.batch = batch.merged() if hasattr(batch, "merged") else batch  # as `Trainer.fit` does
        place = (batch.position,) if hasattr(batch, "position") else (batch.timestep, batch.conditioning, batch.group)
        self.trainer.model.calibrate(batch.x, *place)
        self.trainer.model.train()
        self.trainer.step = 1  # the first step of an older trainer calibrates

    def __call__(self) -> None:
        self.trainer.train_step(self.batch)


class Loss:
    """The loss that a trainer's step calls, and how long its last call took."""

    def __init__(self, job: Trainer) -> None:
        self.loss, self.seconds = job._loss, 0.0
        job._loss = self  # type: ignore[assignment]

    def __call__(self, *args: object, **options: object) -> object:
        begin = time.perf_counter()
        terms = self.loss(*args, **options)  # type: ignore[arg-type]
        self.seconds = time.perf_counter() - begin
        return terms


def plain_adamw(job: Trainer) -> Callable[[], object]:
    """PyTorch's fused AdamW on copies of the parameters."""
    copies = [torch.nn.Parameter(each.detach().clone()) for each in job.model.parameters()]
    for each in copies:
        each.grad = 1e-3 * torch.randn(each.shape, generator=torch.Generator().manual_seed(0))
    return torch.optim.AdamW(copies, lr=1e-6, fused=True).step


class Other:
    """The step of another checkout, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        given = [each for each in sys.argv[1:] if each not in ("--against", str(folder))]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--serve", *given],
            env={**os.environ, "PYTHONPATH": str(folder.resolve())},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


def serve(step: Step) -> None:
    """One step for each line of standard input; its seconds go to standard output."""
    for _ in sys.stdin:
        print(seconds(step), flush=True)


def seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def measure_step(options: argparse.Namespace, out: Path) -> dict[str, float]:
    """Medians: seconds of each part, and the ratios that the bars are for, taken turn by turn."""
    step = Step(options, out)
    loss, adamw = Loss(step.trainer), plain_adamw(step.trainer)
    other = Other(options.against) if options.against else None
    turns: list[dict[str, float]] = []
    for _ in range(options.repetitions + WARM_UP):
        turn = {"step": seconds(step), "loss in the step": loss.seconds, "AdamW": seconds(adamw)}
        turn[REST] = (turn["step"] - loss.seconds) / turn["AdamW"]
        if other is not None:
            turn["step of the other"] = other.seconds()
            turn["step / step of the other"] = turn["step"] / turn["step of the other"]
        turns.append(turn)
    if other is not None:
        other.close()
    return {name: median(turn[name] for turn in turns[WARM_UP:]) for name in turns[0]}


def measure_store(options: argparse.Namespace, out: Path) -> dict[str, float]:
    """Trainings in turn, the fastest of each kind."""
    from tide.activations.memory import ActivationPool
    from tide.activations.writer import StoreWriter
    from tide.images.identity import Sample, digest
    from tide.training import from_stores

    rows = activations(options.rows, options.width)
    info = {"pipeline": None, "family": "pixart", "block": 0, "tensor": "output"}
    with StoreWriter(out / "store", info=info, shard_bytes=2**24) as writer:
        for first in range(0, len(rows), 2**13):
            piece = rows.take(slice(first, first + 2**13)).compacted()
            names = [f"{number}" for number in range(int(piece.sample[0]), int(piece.sample[-1]) + 1)]
            writer.add(piece, [Sample(name, digest(name), digest(name)) for name in names])
    config = TrainConfig(
        activation="topk", modulation=False, n_latents=options.latents, k=options.k, batch_tokens=options.tokens
    )
    sources = {
        "memory": ActivationPool([rows], options.tokens).from_step,
        "store": from_stores(out / "store", config).batches,
    }
    times: dict[str, list[float]] = {name: [] for name in sources}
    for turn in range(4):
        for name, batches in sources.items():
            job = trainer(options, out / f"{name}-{turn}")
            begin = time.perf_counter()
            job.fit(batches)
            times[name].append((time.perf_counter() - begin) / options.steps)
    found = {f"step from {name}": min(each) for name, each in times.items()}
    return found | {"speed from the store": found["step from memory"] / found["step from store"]}


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    if options.serve:
        with tempfile.TemporaryDirectory() as folder:
            serve(Step(options, Path(folder)))
        return 0
    print(f"{torch.get_num_threads()} threads, N={options.tokens} d={options.width} n={options.latents} k={options.k}")
    runs = []
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory() as folder:
            runs.append((measure_store if options.store else measure_step)(options, Path(folder)))
        show(runs[-1])
    if options.out is not None:
        save(options, runs)
    return 0


def show(found: dict[str, float]) -> None:
    for name, value in found.items():
        ratio = "/" in name or name.startswith("speed")
        print(f"{name:26} {value:.2f}" if ratio else f"{name:26} {1e3 * value:.2f} ms", flush=True)


def save(options: argparse.Namespace, runs: Sequence[dict[str, float]]) -> None:
    """Writes the machine, the shape, each run's seconds and ratios, and its bar."""
    from benchmarks.environment import environment  # not at the top: `--serve` runs among another checkout's modules
    from benchmarks.table import Bar, write

    shape = {name: getattr(options, name) for name in ("tokens", "width", "latents", "k")}
    bars = [Bar(REST, run[REST], MOST, at_most=True).record() for run in runs if REST in run]
    write(options.out, {**environment(torch.device("cpu")), "shape": shape, "runs": list(runs), "bars": bars})


if __name__ == "__main__":
    sys.exit(main())
