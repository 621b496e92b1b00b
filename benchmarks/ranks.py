"""Several ranks against one, and several blocks against their steps: ``python -m benchmarks.ranks``.

Every rank is a process of one thread, and they exchange by gloo. Three measurements, each repeated in turn with what it
is compared with, so that a change of the machine's speed meets both alike:

* data parallel: steps of one block on activations in memory, the rows of a rank constant, and with the global batch
  constant; beside them two processes that exchange nothing, the most that two ranks could reach on this machine, and
  the ways to sum gradients;
* block parallel: training of all blocks of the bundled pipeline on a live stream;
* several blocks in one process: the time of such a training over the time of the steps alone, and that of eight
  trainings over it.

Also prints how far a step of the ranks, their tokens or latents divided, is from one process's, and the bytes that
travel for PixArt-XL on 8 ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from benchmarks.environment import environment
from benchmarks.table import markdown
from tide.activations.batch import ActivationBatch
from tide.activations.options import CollectOptions
from tide.data import open_source
from tide.files import read_json, write_json
from tide.loading import load_adapter
from tide.sae import TIDE
from tide.sae.config import Activation
from tide.training import TrainConfig, live_blocks
from tide.training.learner import Learner, Origin
from tide.training.shared_state import own_rows
from tide.training.trainer import fit_blocks
from tide.world import Grid, World

#: d_model, n_latents: those of the bundled pipeline, and those that leave more to compute for each byte that travels.
SIZES = {"bundled": (192, 3072), "d = 576": (576, 9216)}
CASES: tuple[tuple[str, Activation], ...] = (("bundled", "jumprelu"), ("bundled", "topk"), ("d = 576", "jumprelu"))
#: Rows of a rank's step: gradients take as long to exchange however many there are.
ROWS, MORE_ROWS = 4096, 16384
STEPS, WARM_UP = 5, 2
#: Images of a step of the live training, and steps of a window: both the same for any number of ranks.
IMAGES, WINDOW_STEPS = 16, 4
#: Uses of each activation where forward passes are to cost less than steps.
REUSE = 8
REUSED = f"the same, each activation used {REUSE} times"
EXCHANGES = "ms to sum the gradients of two ranks"
AIMS = {
    "eight blocks, two ranks against one": "1.8 at least",
    **dict.fromkeys(
        ("eight blocks over their steps alone", REUSED, f"{REUSED}, passes beside the steps"), "1.3 at most"
    ),
}


def _started(rank: int, count: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        {"GLOO_SOCKET_IFNAME": "lo", "RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
    )
    if count > 1:
        store = dist.FileStore(f"{folder}/store", count)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=timedelta(seconds=300))
    found = function(World(rank, count), *arguments)
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    if count > 1:
        dist.barrier()
        dist.destroy_process_group()


def on_ranks(count: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """What rank 0 of so many returns."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_started, (count, folder, function, arguments), nprocs=count)
        return json.loads(Path(folder, "found.json").read_text())


# -- data parallel -----------------------------------------------------------------------------------------------


def _rows(n: int, d_model: int, seed: int) -> ActivationBatch:
    generator = torch.Generator().manual_seed(seed)
    return ActivationBatch(
        x=torch.randn(n, d_model, generator=generator),
        timestep=torch.tensor([900.0, 850.0]),
        group=torch.arange(n, dtype=torch.int32) % 2,
        conditioning=None,
        sample=torch.zeros(n, dtype=torch.int64),
        token=torch.zeros(n, dtype=torch.int32),
        paired=True,
    )


def _learner(world: World, size: str, activation: Activation, rows: int, folder: str) -> Learner:
    d_model, n_latents = SIZES[size]
    config = TrainConfig(
        activation=activation,
        n_latents=n_latents,
        k=64,
        batch_tokens=rows,
        modulation=False,
        steps=100,
        log_every=1000,
        shard_latents=world.latents.count,
    )
    model = TIDE(config.model_config(d_model, None), among=world.latents)
    model.calibrate(_rows(1024, d_model, 0).x)
    return Learner(model.train(), config, folder, world)


def data_parallel(world: World, size: str, activation: Activation, rows: int, together: bool = True) -> float:
    """Tokens of all ranks a second, in the median over steps; ``rows`` a rank. Unless ``together`` each has a model
    of its own: what the machine gives to processes side by side."""
    with tempfile.TemporaryDirectory() as folder:
        shared = world if together else World()
        learner = _learner(shared, size, activation, rows * shared.count, folder)
        batches = [_rows(rows, SIZES[size][0], 100 * world.number + i) for i in range(3)]
        seconds = []
        for step in range(WARM_UP + STEPS):
            world.said(0)
            begun = time.perf_counter()
            learner.train_step(batches[step % 3])
            learner.step += 1
            seconds.append(time.perf_counter() - begun)
    return rows * world.count / statistics.median(seconds[WARM_UP:])


def difference(world: World, size: str, activation: Activation, across: int) -> dict[str, float]:
    """How far terms and gradients of one step are from one process's, over their root mean square. ``across`` ranks at
    a time divide the latents."""
    shared = world if across == 1 else Grid(world.number, world.count, across)
    with tempfile.TemporaryDirectory() as folder:
        whole = _rows(2048, SIZES[size][0], 7)
        alone = _learner(World(), size, activation, 2048, f"{folder}/alone")
        together = _learner(shared, size, activation, 2048, f"{folder}/{world.number}")
        own = len(whole) // shared.tokens.count
        figures = (
            alone.train_step(whole),
            together.train_step(whole.take(slice(shared.tokens.number * own, None)).take(slice(own))),
        )
        worst = 0.0
        for mine, whole_of in zip(together.optimizer.gradients(), alone.optimizer.gradients(), strict=True):
            its = whole_of if len(mine) == len(whole_of) else whole_of[own_rows(len(whole_of), shared)]
            size_of = float(its.double().square().mean().sqrt())
            worst = max(worst, float((mine - its).double().square().mean().sqrt()) / max(size_of, 1e-30))
        mse = [float(each["mse"]) for each in figures]
    return {"gradients": worst, "mse": abs(mse[1] - mse[0]) / mse[0]}


def exchange(world: World, size: str) -> dict[str, float]:
    """Milliseconds in which the gradients of W_enc and W_dec are summed: as a step does it, one after the other, and in
    the two halves between which ranks could divide the update of the weights."""
    d_model, n_latents = SIZES[size]
    gradients = [torch.randn(n_latents, d_model) for _ in range(2)]

    def in_halves() -> None:
        for each in gradients:
            parts = list(each.chunk(world.count))
            own = torch.empty_like(parts[world.number])
            dist.reduce_scatter(own, parts)
            dist.all_gather(parts, own)

    def in_turn() -> None:
        for each in gradients:
            world.group.sum_([each])

    ways: dict[str, Callable[[], None]] = {
        "together": lambda: world.group.sum_(gradients),
        "one after the other": in_turn,
        "scattered, then gathered": in_halves,
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(WARM_UP + STEPS):
        for way, work in ways.items():
            world.said(0)
            begun = time.perf_counter()
            work()
            seconds[way].append(time.perf_counter() - begun)
    return {way: 1000 * statistics.median(each[WARM_UP:]) for way, each in seconds.items()}


# -- several blocks ----------------------------------------------------------------------------------------------


def blocks(world: World, n_blocks: int, reuse: int = 1, overlap: bool = False) -> dict[str, float]:
    """Seconds of a step of a live training of the first blocks, and of the learners' parts of it, over two windows.
    With ``overlap`` a second thread runs the passes, on a core of its own."""
    window = WINDOW_STEPS * reuse
    adapter = load_adapter("scenes")
    options = CollectOptions(token_fraction=1 / 2)
    config = TrainConfig(steps=4 * window, batch_tokens=64 * IMAGES, log_every=1000)
    images = open_source("scenes", adapter, images=IMAGES * WINDOW_STEPS)
    jobs = live_blocks(
        adapter,
        images,
        config,
        blocks=range(n_blocks),
        options=options,
        buffer_rows=64 * IMAGES * WINDOW_STEPS,
        reuse=reuse,
        overlap=overlap,
        cache=True,
    )
    at: dict[int, float] = {}
    spent = {"steps": 0.0}
    step = Learner.train_step

    def timed(learner: Learner, batch: ActivationBatch) -> Any:
        begun = time.perf_counter()
        found = step(learner, batch)
        if window <= learner.step < 3 * window:
            spent["steps"] += time.perf_counter() - begun
        return found

    Learner.train_step = timed  # type: ignore[method-assign, assignment]
    with tempfile.TemporaryDirectory() as folder:
        learners = {b: Learner(job.model, config, f"{folder}/{world.number}/{b}") for b, job in jobs.of.items()}
        origins = {b: Origin() for b in learners}
        fit_blocks(
            learners, jobs.batches, origins, title="", progress=False, world=jobs.shares.world,
            watch=lambda n: at.update({n: time.perf_counter()}),
        )  # fmt: skip
    n = 2 * window
    return {"seconds": (at[3 * window] - at[window]) / n, "learners": spent["steps"] / n}


# -- bytes -------------------------------------------------------------------------------------------------------


def bytes_a_step(d_model: int, n_latents: int, n_blocks: int, rows: int, ranks: int) -> dict[str, float]:
    """What a rank sends for a step: of tokens in bfloat16 to the owners of all blocks, or of one block's gradients."""
    away = (ranks - 1) / ranks
    weights = 4 * (2 * n_latents * d_model + n_latents + d_model)
    return {
        "tokens of all blocks": n_blocks * rows * 2 * d_model * away / ranks,
        "gradients of one block": 2 * away * weights,
    }


def ratios(rounds: int, measure: Callable[[], tuple[float, float]]) -> dict[str, Any]:
    """The second over the first of each round."""
    return _summary([second / first for first, second in (measure() for _ in range(rounds))])


def _summary(rounds: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(rounds), "rounds": sorted(rounds)}


def _one_and_two(size: str, activation: Activation, of_one: int, of_two: int, together: bool) -> tuple[float, float]:
    """Tokens a second of one rank with so many rows, and of two with so many each."""
    one = on_ranks(1, data_parallel, size, activation, of_one)
    return one, on_ranks(2, data_parallel, size, activation, of_two, together)


def of_two(rounds: int, rows: int, rows_of_two: int | None = None, together: bool = True) -> dict[str, Any]:
    """Two ranks against one with ``rows``, by size and activation; each with as many, or with ``rows_of_two``."""
    sizes = rows, rows_of_two or rows
    return {
        f"{size}, {activation}": ratios(rounds, partial(_one_and_two, size, activation, *sizes, together))
        for size, activation in CASES
    }


def differences(rounds: int) -> dict[str, Any]:
    return {
        f"{size}, {activation}, {ranks} ranks, latents among {across}": on_ranks(
            ranks, difference, size, activation, across
        )
        for size, activation in CASES
        for ranks, across in ((2, 1), (4, 1), (2, 2), (4, 2))
    }


def exchanges(rounds: int) -> dict[str, Any]:
    """Milliseconds of two ranks, by size and way."""
    found: dict[str, Any] = {}
    for size in SIZES:
        measured = [on_ranks(2, exchange, size) for _ in range(rounds)]
        found[size] = {way: _summary([each[way] for each in measured]) for way in measured[0]}
    return found


def of_blocks(rounds: int) -> dict[str, Any]:
    """Two ranks against one on eight blocks; and what one process takes, over the steps alone and over eight trainings
    of a block each, whose forward passes are not shared."""
    pairs, reused = [], []
    for _ in range(rounds):
        pairs.append((on_ranks(1, blocks, 8), on_ranks(2, blocks, 8)))
        reused.append([on_ranks(1, blocks, 8, REUSE, overlap) for overlap in (False, True)])
    found = {
        "eight blocks, two ranks against one": [one["seconds"] / two["seconds"] for one, two in pairs],
        "eight blocks over their steps alone": [one["seconds"] / one["learners"] for one, _ in pairs],
        REUSED: [one["seconds"] / one["learners"] for one, _ in reused],
        f"{REUSED}, passes beside the steps": [two["seconds"] / one["learners"] for one, two in reused],
        "eight trainings over one of eight": [
            (8 * (one["seconds"] - one["learners"]) + one["learners"]) / one["seconds"] for one, _ in pairs
        ],
    }
    return {name: _summary(each) for name, each in found.items()}


MEASURES: dict[str, Callable[[int], dict[str, Any]]] = {
    "data parallel": partial(of_two, rows=ROWS),
    f"data parallel, {MORE_ROWS} rows a rank": partial(of_two, rows=MORE_ROWS),
    "fixed global batch": partial(of_two, rows=ROWS, rows_of_two=ROWS // 2),
    "two processes that exchange nothing": partial(of_two, rows=ROWS, together=False),
    EXCHANGES: exchanges,
    "difference from one process": differences,
    "blocks": of_blocks,
    "bytes a rank sends in a step, PixArt-XL on 8 ranks": lambda _: bytes_a_step(1152, 18432, 28, 16384, 8),
}


def page(figures: dict[str, Any]) -> str:
    """The tables of docs/scale.md."""
    columns = tuple(name for name, measure in MEASURES.items() if getattr(measure, "func", None) is of_two)
    rows = [[name, *(f"{figures[column][name]['median']:.2f}" for column in columns)] for name in figures[columns[0]]]
    worst = max(max(each.values()) for each in figures["difference from one process"].values())
    others = [
        [
            "a step of 2 or 4 ranks from one process's, tokens or latents divided, over the RMS",
            f"{worst:.0e}",
            "1e-6 at most",
        ]
    ]
    others += [[name, f"{each['median']:.2f}", AIMS.get(name, "")] for name, each in figures["blocks"].items()]
    sums = [[size, *(f"{each['median']:.0f}" for each in ways.values())] for size, ways in figures[EXCHANGES].items()]
    tables = [
        markdown(("two ranks against one", *columns), rows),
        markdown((EXCHANGES, *next(iter(figures[EXCHANGES].values()))), sums),
        markdown(("figure", "measured", "aim"), others),
    ]
    return "\n\n".join(tables)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranks", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=MEASURES, nargs="*", default=list(MEASURES), help="what to measure")
    parser.add_argument("--out", type=Path, help="JSON file for the figures; those that are not measured stay")
    arguments = parser.parse_args()
    figures = {name: MEASURES[name](arguments.rounds) for name in arguments.only}
    if arguments.out is not None:
        before = read_json(arguments.out)["figures"] if arguments.out.exists() else {}
        write_json(arguments.out, {"machine": environment(torch.device("cpu")), "figures": {**before, **figures}})
    print(json.dumps(figures, indent=2))
    if figures.keys() == MEASURES.keys():
        print(page(figures))


if __name__ == "__main__":
    main()
