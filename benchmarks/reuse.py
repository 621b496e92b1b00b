"""What a live training loses by using each activation several times: ``python -m benchmarks.reuse``.

Autoencoders of two blocks of the bundled pipeline, trained on one live stream for as many steps, by how many times it
uses each row: the explained variance on held-out scenes. Beside them PCA with k components.
Writes ``benchmarks/results/reuse.json``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.environment import environment
from benchmarks.table import RESULTS, markdown, write
from tide.activations import ActivationBatch, CollectOptions, collect
from tide.adapters import Adapter, adapter_for
from tide.data import open_source
from tide.evaluation import PCA, evaluate_reconstruction, with_sae
from tide.scenes import load_pipeline, prompts
from tide.studies.bench import NEVER, prepared_scenes
from tide.training import TrainConfig, live_blocks, train_blocks


@dataclass(frozen=True)
class Plan:
    images: int
    held_out_images: int
    blocks: tuple[int, ...]
    uses: tuple[int, ...]
    seeds: int
    config: TrainConfig
    buffer_rows: int


PLAN = Plan(2048, 256, (2, 6), (1, 4, 8), 2, TrainConfig(steps=1000, checkpoint_every=NEVER), 65536)
TOY = Plan(8, 4, (6,), (1, 2), 1, TrainConfig(n_latents=96, k=8, steps=3, batch_tokens=64, checkpoint_every=NEVER), 128)
#: Half of an image's tokens, at two timesteps.
OPTIONS = CollectOptions(token_fraction=1 / 2)


def held_out(adapter: Adapter, plan: Plan) -> dict[int, list[ActivationBatch]]:
    """block -> activations of other scenes than those of the training."""
    data = prepared_scenes(adapter, prompts("test", plan.held_out_images, 1))
    batches = list(collect(adapter, data, plan.blocks, OPTIONS, seed=1))
    return {block: [each[block].merged() for each in batches] for block in plan.blocks}


def trained(
    adapter: Adapter, plan: Plan, reuse: int, seed: int, measured: dict[int, list[ActivationBatch]]
) -> Iterator[dict[str, float]]:
    """Figures of each block's autoencoder."""
    config = replace(plan.config, seed=seed)
    source = open_source("scenes", adapter, images=plan.images)
    sizes: dict[str, Any] = {"buffer_rows": plan.buffer_rows, "reuse": reuse, "cache": True}
    jobs = live_blocks(adapter, source, config, blocks=plan.blocks, options=OPTIONS, **sizes)
    with TemporaryDirectory() as folder:
        learners = train_blocks(jobs, Path(folder) / "models")
    for block, learner in learners.items():
        found = evaluate_reconstruction(with_sae(learner.model), measured[block], n_latents=learner.model.n_latents)
        yield {"block": block, **{name: found[name] for name in ("explained_variance", "l0", "dead")}}


def by_components(adapter: Adapter, plan: Plan, measured: dict[int, list[ActivationBatch]]) -> list[dict[str, float]]:
    """PCA with k components, fitted on activations of training scenes."""
    data = prepared_scenes(adapter, prompts("train", plan.held_out_images, 0))
    batches = list(collect(adapter, data, plan.blocks, OPTIONS, seed=0))
    _, k = plan.config.sizes(adapter.d_model)
    found = []
    for block in plan.blocks:
        reconstruct = PCA.fit(each[block] for each in batches).reconstruct(k)
        figures = evaluate_reconstruction(reconstruct, measured[block])
        found.append({"block": block, "explained_variance": figures["explained_variance"]})
    return found


def table(record: dict[str, Any]) -> str:
    """The table of docs/scale-live.md: means over seeds."""
    blocks = sorted({row["block"] for row in record["PCA"]})
    rows = []
    for name, found in record["uses"].items():
        each = [[row["explained_variance"] for row in found if row["block"] == block] for block in blocks]
        rows.append([name, *(f"{mean(of):.2%}" for of in each)])
    rows.append(["PCA, k components", *(f"{row['explained_variance']:.2%}" for row in record["PCA"])])
    return markdown(["uses of each row", *(f"block {block}" for block in blocks)], rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reuse", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "reuse.json")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes, to check that everything runs")
    options = parser.parse_args(arguments)
    plan, adapter = TOY if options.dry_run else PLAN, adapter_for(load_pipeline())
    measured = held_out(adapter, plan)
    record: dict[str, Any] = {**environment(torch.device("cpu")), "config": plan.config.to_dict(), "uses": {}}
    record["PCA"] = by_components(adapter, plan, measured)
    for seed in range(plan.seeds):
        for reuse in plan.uses:
            record["uses"].setdefault(str(reuse), []).extend(trained(adapter, plan, reuse, seed, measured))
            write(options.out, record)
    print(f"\n{table(record)}\n{options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
