"""Chooses learning rate and loss weights on the development split: ``python -m tide.study.sweep [--out FILE]``.

Held-out error alone would always send the temporal and sparsity weights to zero. So each setting is judged by the
share of the diffusion loss it recovers, and, among those that recover the same within the spread, by how smooth the
latents are from one timestep to the next.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tide.activations.memory import ActivationPool
from tide.adapters import Adapter, adapter_for
from tide.evaluation.diffusion_loss import diffusion_loss, recovered, sae_intervention, zero_ablation
from tide.evaluation.reconstruction import evaluate_reconstruction, with_sae
from tide.sae.checkpoint import versions, write_json
from tide.sae.model import TIDE, inference
from tide.scenes.pipeline import load_pipeline
from tide.scenes.scene import prompts
from tide.study.reconstruction import prepared_scenes, scene_pool, train
from tide.study.run import loss_timesteps, machine
from tide.training import LossConfig, TrainConfig

DEFAULT = LossConfig()

#: One option at a time is moved away from the defaults of the library.
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "lr 1e-3": {"lr": 1e-3},
    "lr 4e-3": {"lr": 4e-3},
    "cosine 0": {"loss": replace(DEFAULT, cosine=0.0)},
    "temporal 0": {"loss": replace(DEFAULT, temporal=0.0)},
    "temporal 1e-3": {"loss": replace(DEFAULT, temporal=1e-3)},
    "temporal 1e-2": {"loss": replace(DEFAULT, temporal=1e-2)},
    "temporal 3e-2": {"loss": replace(DEFAULT, temporal=3e-2)},
    "sparsity 0": {"loss": replace(DEFAULT, sparsity=0.0)},
    "sparsity 10": {"loss": replace(DEFAULT, sparsity=10.0)},
    "clip 0.3": {"clip": 0.3},
}


def roughness(model: TIDE, pool: ActivationPool) -> float:
    """|F_t - F_t+1|^2 over |F_t|^2: how much of the latents' energy changes from one timestep to its neighbour."""
    moved, energy = 0.0, 0.0
    with inference(model):
        for batch in pool.once():
            z = model.encode(batch.x, batch.timestep, batch.conditioning, batch.group).dense(model.n_latents)
            moved += float((z[::2] - z[1::2]).square().sum())
            energy += float(z[::2].square().sum())
    return moved / energy


def judge_setting(
    adapter: Adapter, model: TIDE, dev: ActivationPool, n_prompts: int, n_timesteps: int, seed: int
) -> dict[str, float]:
    block = model.config.block
    assert block is not None
    figures = evaluate_reconstruction(
        with_sae(model), dev.once(), n_latents=model.n_latents, scale=float(model.activation_scale)
    )
    losses = diffusion_loss(
        adapter,
        prepared_scenes(adapter, prompts("dev", n_prompts, seed + 2)),
        block,
        {"sae": sae_intervention(model), "ablated": zero_ablation},
        timesteps=loss_timesteps(adapter, n_timesteps),
        seed=seed,
    )
    clean, ablated = losses["clean"]["loss"], losses["ablated"]["loss"]
    return {
        "mse": figures["mse_normalised"],
        "cosine": figures["cosine"],
        "explained_variance": figures["explained_variance"],
        "dead": figures["dead"],
        "recovered": recovered(clean, losses["sae"]["loss"], ablated),
        "ratio": losses["sae"]["loss"] / clean,
        "roughness": roughness(model, dev),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/loss-weights.json"))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    adapter = adapter_for(load_pipeline())
    block = adapter.resolve_block("penultimate")
    pool = scene_pool(adapter, "train", 768, block, 1024, token_fraction=0.5, seed=args.seed)
    dev = scene_pool(adapter, "dev", 128, block, 1024, token_fraction=0.5, seed=args.seed + 1)
    results: dict[str, Any] = {}
    for name, options in SETTINGS.items():
        config = TrainConfig(steps=args.steps, seed=args.seed, checkpoint_every=args.steps, **options)
        with TemporaryDirectory() as folder:
            model = train(adapter, block, config, pool, Path(folder), progress=False, resume=False).model
        results[name] = judge_setting(adapter, model, dev, 48, 6, args.seed)
        print(name, {key: round(value, 5) for key, value in results[name].items()}, flush=True)
        write_json(
            args.out,
            {"settings": results, "steps": args.steps, "seed": args.seed, "machine": machine(), "versions": versions()},
        )


if __name__ == "__main__":
    main()
