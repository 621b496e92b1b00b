"""What nesting costs and gives: ``python -m benchmarks.matryoshka``.

On the bundled pipeline, for each seed: a TIDE trained with prefixes, one trained without, and one of each prefix's size
alone, which aims at as many active latents as the nested prefix has. All are measured on the same held-out scenes, the
first two by the first m latents of their code. Writes ``benchmarks/results/matryoshka.json``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from benchmarks.environment import environment
from benchmarks.table import RESULTS, markdown, write
from tide.activations import ActivationBatch
from tide.sae import TIDE, Codes
from tide.studies.bench import NEVER, Bench, DataSizes
from tide.training import LossConfig, TrainConfig


@dataclass(frozen=True)
class Plan:
    data: DataSizes
    config: TrainConfig
    prefixes: tuple[float, ...]
    seeds: int


PLAN = Plan(
    DataSizes(train_images=1024, held_out_images=96, token_fraction=0.5),
    TrainConfig(n_latents=3072, k=64, steps=300, checkpoint_every=NEVER),
    (0.0625, 0.25),
    2,
)
TOY = Plan(
    DataSizes(train_images=16, held_out_images=4, token_fraction=0.5, batch_tokens=64),
    TrainConfig(n_latents=96, k=8, steps=3, batch_tokens=64, checkpoint_every=NEVER),
    (0.25, 0.5),
    1,
)

TRAININGS = {"plain": "trained without prefixes", "nested": "with prefixes", "alone": "of this size alone"}


def prefix_figures(bench: Bench, model: TIDE, n_latents: int) -> dict[str, float]:
    """Explained variance and L0 of the first latents of the model's code, on held-out scenes."""

    def reconstruct(batch: ActivationBatch) -> tuple[Tensor, Codes]:
        codes = model.encode(batch.x.float(), batch.position, prefix=n_latents)
        return model.decode(codes, batch.position), codes

    found = bench.measured(reconstruct, bench.held_out)
    return {name: found[name] for name in ("explained_variance", "l0")}


def seed_figures(bench: Bench, plan: Plan, seed: int) -> dict[str, Any]:
    """Of each number of latents, the figures of the three trainings, and the seconds that two of them take."""
    plain = replace(plan.config, seed=seed)
    nested = replace(plain, loss=LossConfig(prefixes=plan.prefixes))
    models, seconds = {}, {}
    for name, config in {"plain": plain, "nested": nested}.items():
        started = time.perf_counter()
        models[name], _ = bench.fit(config, bench.train)
        seconds[name] = time.perf_counter() - started
    sizes = (*models["nested"].config.prefixes, models["nested"].n_latents)
    figures: dict[str, Any] = {}
    for n_latents in sizes:
        by = {name: prefix_figures(bench, model, n_latents) for name, model in models.items()}
        if n_latents < sizes[-1]:
            k = min(n_latents, max(1, round(by["nested"]["l0"])))
            alone, _ = bench.fit(replace(plain, n_latents=n_latents, k=k), bench.train)
            by["alone"] = prefix_figures(bench, alone, n_latents)
        figures[str(n_latents)] = by
    return {"figures": figures, "seconds": seconds}


def table(seeds: Sequence[dict[str, Any]]) -> str:
    """Explained variance and L0, means over seeds."""
    rows = []
    for n_latents in seeds[0]["figures"]:
        found = [seed["figures"][n_latents] for seed in seeds]
        rows.append([n_latents, *(cell([each[by] for each in found if by in each]) for by in TRAININGS)])
    return markdown(["first latents", *TRAININGS.values()], rows)


def cell(figures: Sequence[dict[str, float]]) -> str:
    if not figures:
        return "-"
    variance, l0 = (mean(each[name] for each in figures) for name in ("explained_variance", "l0"))
    return f"{variance:.1%} (L0 {l0:.1f})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.matryoshka", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "matryoshka.json")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes, to check that everything runs")
    options = parser.parse_args(arguments)
    plan = TOY if options.dry_run else PLAN
    bench = Bench(plan.data)
    _ = bench.train  # collected before anything is timed
    record: dict[str, Any] = {**environment(torch.device("cpu")), "config": plan.config.to_dict(), "seeds": []}
    for seed in range(plan.seeds):
        record["seeds"].append(seed_figures(bench, plan, seed))
        write(options.out, record)
    seconds = {name: mean(each["seconds"][name] for each in record["seeds"]) for name in ("plain", "nested")}
    print(f"\n{table(record['seeds'])}\n")
    print(
        f"Seconds of a training: {seconds['plain']:.1f} without prefixes, {seconds['nested']:.1f} with.\n{options.out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
