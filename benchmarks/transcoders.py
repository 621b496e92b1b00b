"""How much of a module a transcoder explains, and how its decoder should start: ``python -m benchmarks.transcoders``.

On the penultimate block of the bundled pipeline, for its attention and its feed-forward: transcoders whose decoder
starts at zero, or as random unit rows, beside the best affine map of the same input and a PCA of the output. The
diffusion loss is measured with the module's output replaced. Writes ``benchmarks/results/transcoders.json``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.environment import environment
from benchmarks.table import RESULTS, markdown, write
from tide.activations import ActivationBatch, collect
from tide.activations.memory import ActivationPool
from tide.adapters import Adapter, adapter_for
from tide.evaluation import PCA, diffusion_loss, evaluate_reconstruction, recovered, sae_intervention, with_sae
from tide.evaluation.diffusion_loss import zero_ablation
from tide.interpretation.timesteps import spread_timesteps
from tide.sae import TIDE
from tide.sae.config import TARGETS, input_of
from tide.sae.model import inference
from tide.scenes import load_pipeline, prompts
from tide.scenes.scene import Split
from tide.studies.bench import NEVER, prepared_scenes
from tide.training import TrainConfig, Trainer, build_model

STARTS = ("zero", "unit rows")


@dataclass(frozen=True)
class Plan:
    train_images: int
    held_out_images: int
    loss_timesteps: int
    config: TrainConfig
    seeds: int


PLAN = Plan(512, 64, 4, TrainConfig(n_latents=3072, k=64, steps=300, checkpoint_every=NEVER), 2)
TOY = Plan(8, 4, 1, TrainConfig(n_latents=96, k=8, steps=3, batch_tokens=64, checkpoint_every=NEVER), 1)


def pairs(adapter: Adapter, split: Split, n_images: int, block: int, target: str, rows: int) -> ActivationPool:
    """Inputs and outputs of a module on rendered scenes."""
    data = prepared_scenes(adapter, prompts(split, n_images, 0))
    options: dict[str, Any] = {"tensor": input_of(target), "target": target, "token_fraction": 0.5, "batch_size": 32}
    return ActivationPool((each[block] for each in collect(adapter, data, [block], **options)), rows)


def affine_map(pool: ActivationPool) -> Tensor:
    """The least-squares map ``[d_model + 1, d_model]`` from inputs to targets."""
    assert pool.all.target is not None
    return torch.linalg.lstsq(_with_one(pool.all.x), pool.all.target.double()).solution


def _with_one(x: Tensor) -> Tensor:
    return F.pad(x.double(), (0, 1), value=1.0)


def trained(adapter: Adapter, block: int, target: str, start: str, config: TrainConfig, pool: ActivationPool) -> TIDE:
    model = build_model(adapter, block, config, tensor=input_of(target), target=target)
    if start == "unit rows":
        generator = torch.Generator().manual_seed(config.seed + 1)
        with torch.no_grad():
            model.W_dec.copy_(F.normalize(torch.randn(model.W_dec.shape, generator=generator), dim=1))
    with TemporaryDirectory() as folder:
        return Trainer(model, config, Path(folder) / "model", progress=False).fit(pool.from_step)


def share_recovered(adapter: Adapter, block: int, model: TIDE, plan: Plan) -> float:
    """Of the diffusion loss, with the transcoder in the module's place; 0 is the module's output set to zero."""
    changes = {"model": sae_intervention(model), "zero": zero_ablation}
    options: dict[str, Any] = {"tensor": model.config.target, "inputs": True}
    data = prepared_scenes(adapter, prompts("test", plan.held_out_images, 1))
    timesteps = spread_timesteps(adapter, plan.loss_timesteps)
    with inference(model):
        found = diffusion_loss(adapter, data, block, changes, timesteps=timesteps, **options)
    return recovered(*(found[name]["loss"] for name in ("clean", "model", "zero")))


def module_figures(adapter: Adapter, target: str, plan: Plan) -> dict[str, Any]:
    """Explained variance on held-out scenes of everything that is compared, and what the transcoders recover."""
    block, rows = adapter.resolve_block("penultimate"), plan.config.batch_tokens
    _, k = plan.config.sizes(adapter.d_model)
    pool = pairs(adapter, "train", plan.train_images, block, target, rows)
    held_out = pairs(adapter, "test", plan.held_out_images, block, target, rows)
    weights = affine_map(pool)

    def mapped(batch: ActivationBatch) -> tuple[Tensor, None]:
        return (_with_one(batch.x) @ weights).float(), None

    others = {"affine map": mapped, "PCA of the output": PCA.fit(pool.once()).reconstruct(k)}
    measured = partial(evaluate_reconstruction, batches=list(held_out.once()))
    figures: dict[str, Any] = {
        name: {"explained_variance": measured(each)["explained_variance"]} for name, each in others.items()
    }
    for start in STARTS:
        seeds = []
        for seed in range(plan.seeds):
            model = trained(adapter, block, target, start, replace(plan.config, seed=seed), pool)
            found = measured(with_sae(model), n_latents=model.n_latents)
            kept = {name: found[name] for name in ("explained_variance", "l0", "dead")}
            seeds.append(kept | {"recovered": share_recovered(adapter, block, model, plan)})
        figures[f"transcoder, {start}"] = {"seeds": seeds} | {
            name: mean(each[name] for each in seeds) for name in seeds[0]
        }
    return figures


def table(modules: dict[str, dict[str, Any]]) -> str:
    rows = [
        [module, name, f"{row['explained_variance']:.1%}"]
        + [
            f"{row[key]:{style}}" if key in row else ""
            for key, style in (("l0", ".1f"), ("dead", ".1%"), ("recovered", ".1%"))
        ]
        for module, figures in modules.items()
        for name, row in figures.items()
    ]
    return markdown(["module", "by", "explained variance", "L0", "dead", "loss recovered"], rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transcoders", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "transcoders.json")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes, to check that everything runs")
    options = parser.parse_args(arguments)
    plan, adapter = TOY if options.dry_run else PLAN, adapter_for(load_pipeline())
    record: dict[str, Any] = {**environment(torch.device("cpu")), "config": plan.config.to_dict(), "modules": {}}
    for target in TARGETS:
        record["modules"][target] = module_figures(adapter, target, plan)
        write(options.out, record)
    print(f"\n{table(record['modules'])}\n{options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
