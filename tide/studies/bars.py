"""The bars: every claim about the bundled pipeline and a TIDE on it, measured on held-out prompts.

Latents, signs and thresholds are chosen on training scenes, blocks, steps and strengths of edits on development
prompts, nothing on the test split, of which all figures are, with 95 % Wilson intervals where they are shares.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tide.adapters import Adapter, Block, adapter_for
from tide.errors import TideError
from tide.evaluation.statistics import wilson_interval
from tide.files import read_sealed, write_sealed
from tide.fingerprint import fingerprint
from tide.provenance import first_difference, versions
from tide.sae.model import TIDE, TIDEConfig
from tide.scenes import scene as scene_module
from tide.scenes.annotate import generate_images
from tide.scenes.judge import Judge, load_judge
from tide.scenes.pipeline import load_pipeline
from tide.scenes.scene import ATTRIBUTES, scenes
from tide.studies.concepts import study_concepts
from tide.studies.demo import Stages, concept_timesteps, loss_timesteps, machine_in_words
from tide.studies.edit_study import FAST as FAST_EDITS
from tide.studies.edit_study import EditSizes, EditStudy
from tide.studies.reconstruction import diffusion_loss_table, fit_pca, reconstruction_table, scene_pool
from tide.studies.report import write_report

#: Edits of latents, and of raw activations by the same information.
RIVALS = (
    ("contrast", "steer contrast"),
    ("contrast", "steer bounded"),
    ("towards", "steer towards"),
    ("swap", "steer"),
)


@dataclass(frozen=True)
class BarSizes:
    agreement_images: int = 500
    train_images: int = 1024
    held_out_images: int = 512
    loss_timesteps: int = 10
    concept_images: int = 420
    concept_timesteps: int = 10
    edits: EditSizes = field(default_factory=EditSizes)


FAST = BarSizes(20, 96, 64, 2, 48, 2, FAST_EDITS)


def pipeline_agreement(adapter: Adapter, judge: Judge, n: int, seed: int) -> dict[str, Any]:
    """How often the judge agrees with the held-out prompt an image was generated from, per attribute."""
    pairs = scene_module.prompts("test", n, seed)
    hits: dict[str, int] = dict.fromkeys((*ATTRIBUTES, "valid", "all"), 0)
    for start in range(0, n, 50):
        part = pairs[start : start + 50]
        seeds = range(seed + start, seed + start + len(part))
        verdicts = judge.read(generate_images(adapter, [c for _, c in part], list(seeds)))
        for verdict, (scene, _) in zip(verdicts, part, strict=True):
            agreed = [verdict.agrees(scene, attribute) for attribute in ATTRIBUTES]
            for attribute, hit in zip(ATTRIBUTES, agreed, strict=True):
                hits[attribute] += hit
            hits["valid"] += verdict.valid
            hits["all"] += all(agreed)
    return {name: {"share": count / n, "interval": wilson_interval(count, n)} for name, count in hits.items()} | {
        "images": n
    }


def evaluate(
    sae: Path,
    out: Path,
    *,
    prompts: int = 200,
    seed: int = 0,
    fast: bool = False,
    edit_prompts: int | None = None,
    backend: str = "auto",
    block: Block | None = None,
    resume: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measures a checkpoint on the bundled pipeline and writes ``metrics.json`` and ``report.html`` to ``out``. One of
    another ``block`` than the one asked for is an error.

    ``prompts`` are those of the diffusion loss, ``edit_prompts`` those on which edits are measured. ``resume`` keeps
    the stages that an interrupted run of the same configuration came through.
    """
    sizes = FAST if fast else BarSizes()
    if edit_prompts is not None:
        sizes = replace(sizes, edits=replace(sizes.edits, test_prompts=edit_prompts))
    stage, started = Stages(say), time.perf_counter()
    adapter, judge = adapter_for(load_pipeline()), load_judge()
    expected = None if block is None else adapter.resolve_block(block)
    model = TIDE.from_pretrained(sae, backend=backend, family=adapter.family, d_model=adapter.d_model, block=expected)
    config = model.config
    block = adapter.resolve_block("penultimate" if config.block is None else config.block)
    metrics: dict[str, Any] = {
        "checkpoint": str(sae),
        "sae": asdict(config),
        "weights": fingerprint([model]),
        "config": {"seed": seed, "fast": fast, "prompts": prompts, "sizes": asdict(sizes)},
        "versions": versions(),
        "machine": machine_in_words(),
    }

    if resume:
        metrics |= _earlier(out, metrics)

    def save() -> None:
        """After every stage, so that what was measured is kept if a later stage is interrupted."""
        metrics.update(
            seconds=round(time.perf_counter() - started, 1), stages={**metrics.get("stages", {}), **stage.seconds}
        )
        write_sealed(out / "metrics.json", metrics)

    if "agreement" not in metrics:
        with stage("agreement of generated images with their held-out prompts"):
            metrics["agreement"] = pipeline_agreement(adapter, judge, sizes.agreement_images, seed + 5)
        save()
    if "diffusion_loss" not in metrics:
        with stage("reconstruction"):
            pool = scene_pool(adapter, "train", sizes.train_images, block, 1024, token_fraction=0.5, seed=seed)
            held_out = scene_pool(
                adapter, "test", sizes.held_out_images, block, 1024, token_fraction=0.5, seed=seed + 1
            )
            pca = fit_pca(pool)
            metrics["models"] = reconstruction_table({"tide": model}, pca, config.k, pool, held_out)
        save()
        with stage("diffusion loss"):
            steps = loss_timesteps(adapter, sizes.loss_timesteps)
            pairs = scene_module.prompts("test", prompts, seed + 2)
            metrics["diffusion_loss"] = diffusion_loss_table(
                adapter, {"tide": model}, pca, config.k, pairs, block, steps, seed=seed
            )
        save()
    if "concepts" not in metrics:
        with stage("concepts"):
            n = sizes.concept_images
            study = study_concepts(
                adapter,
                model,
                list(scenes("train", n, seed)),  # ten combinations of development scenes are too few to part causes
                list(scenes("test", n, seed)),
                concept_timesteps(adapter, sizes.concept_timesteps),
                seed=seed,
            )
            metrics |= {"concepts": study.concepts, "levels": study.levels}
        save()
    if "trade_off" not in metrics:
        with stage("edits: an SAE of every block"):
            edits = EditStudy(adapter, judge, model, out / "saes", sizes.edits, seed=seed)
        if "edit_sweep" not in metrics:
            with stage("edits: blocks, step ranges and strengths on development prompts"):
                metrics |= edits.sweep()
            save()
        with stage("edits: the trade-off on held-out prompts"):
            metrics |= edits.measure(metrics["edit_sweep"])
        save()
    write_report(out / "report.html", metrics, heat_maps=[], strips=[], histories={})
    return metrics


def _earlier(out: Path, now: dict[str, Any]) -> dict[str, Any]:
    """What an interrupted evaluation measured, if it was of the same checkpoint and configuration."""
    if not (out / "metrics.json").is_file():
        return {}
    path = out / "metrics.json"
    before = read_sealed(path, dict[str, Any], remedy="use another folder or leave --resume off")
    newer = {"sae": {"centre": TIDEConfig.centre}}  # options that some evaluations are older than
    for name, what in {"checkpoint": "checkpoint", "sae": "sae", "weights": "training", "config": "config"}.items():
        if first_difference(before.get(name), json.loads(json.dumps(now[name])), newer.get(name)):
            raise TideError(f"{out} holds an evaluation of another {what}; use another folder or leave --resume off")
    return before


def verdicts(metrics: dict[str, Any]) -> list[str]:
    """One line a bar: what was asked, what was reached."""
    loss, levels = metrics["diffusion_loss"], metrics["levels"]
    tide, smaller, full = (metrics["models"][name] for name in ("tide", "pca_k/4", "pca_k"))
    lines = []

    def bar(met: bool, text: str) -> None:
        lines.append(f"{'met   ' if met else 'MISSED'}  {text}")

    for attribute, share in {"class": 0.90, "colour": 0.90, "depth": 0.85, "shadow": 0.85}.items():
        reached = metrics["agreement"][attribute]["share"]
        bar(
            reached >= share,
            f"generated images agree with their prompt on {attribute}: {reached:.1%} (asked {share:.0%})",
        )
    bar(
        loss["recovered"] >= 0.99,
        f"diffusion loss recovered: {loss['recovered']:.4f} (asked 0.99), ratio {loss['ratio']:.4f}",
    )
    bar(
        tide["explained_variance"] > smaller["explained_variance"],
        f"explained variance {tide['explained_variance']:.4f}, PCA of rank k/4 {smaller['explained_variance']:.4f}, "
        f"of rank k {full['explained_variance']:.4f}",
    )
    for level, row in levels.items():
        bar(
            row["auroc"] >= 0.85 and row["auroc"] > row["neuron_auroc"],
            f"AUROC of the best latent, level {level}: {row['auroc']:.3f} (asked 0.85), "
            f"best neuron {row['neuron_auroc']:.3f}",
        )
    lines += edit_verdicts(metrics)
    ceiling = metrics["trade_off"]["prompt"]
    lines.append(f"ceiling  prompt replacement: changed {ceiling['success']:.1%}, kept {ceiling['preserved']:.1%}")
    return lines


def _chosen(metrics: dict[str, Any], method: str) -> dict[str, Any]:
    """The figures on test prompts at the strength chosen on development prompts."""
    factor = metrics["edit_sweep"]["chosen"][method]["factor"]
    return next(point for point in metrics["trade_off"][method] if point["factor"] == factor)


def edit_verdicts(metrics: dict[str, Any]) -> list[str]:
    """The edits beside raw activations moved by the same information, at every level of preservation."""
    lines = []
    for ours, theirs in RIVALS:
        levels, best, other = metrics["equal_preservation"], _chosen(metrics, ours), _chosen(metrics, theirs)
        ahead = [level for level, row in levels.items() if row[ours]["success"] > row[theirs]["success"]]
        behind = [level for level, row in levels.items() if row[ours]["success"] < row[theirs]["success"]]
        lines.append(
            f"{'met   ' if ahead and not behind else 'MISSED'}  {ours} above {theirs} at equal preservation: ahead at "
            f"{len(ahead)} of {len(levels)} levels, behind at {len(behind)}; at the strengths chosen "
            f"{best['success']:.1%} changed, {best['preserved']:.1%} kept, {best['both']:.1%} both, against "
            f"{other['success']:.1%}, {other['preserved']:.1%}, {other['both']:.1%}"
        )
    point = _chosen(metrics, "contrast")
    met = point["success"] >= 0.8 and point["preserved"] >= 0.8
    lines.append(
        f"{'met   ' if met else 'MISSED'}  80 % changed with 80 % kept: contrast at the strength chosen on development "
        f"prompts ({point['factor']:g}) changes {point['success']:.1%} and keeps {point['preserved']:.1%}"
    )
    return lines
