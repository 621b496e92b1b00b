"""The bars: every claim about the bundled pipeline and a TIDE on it, measured on held-out prompts.

Latents, signs and thresholds are chosen on training scenes, step ranges of edits on development prompts, nothing on the
test split, of which all figures are, with 95 % Wilson intervals where they are shares.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tide.adapters import Adapter, adapter_for
from tide.evaluation.statistics import wilson_interval
from tide.sae.checkpoint import versions, write_json
from tide.sae.model import TIDE
from tide.scenes import scene as scene_module
from tide.scenes.annotate import generate_images
from tide.scenes.judge import Judge, Verdict, load_judge
from tide.scenes.pipeline import load_pipeline
from tide.scenes.scene import ATTRIBUTES, Split, scenes
from tide.study.concepts import study_concepts
from tide.study.edits import DRAW_BATCH, EditTask, Method, draw, edit_tasks, judge_edits, summarise
from tide.study.methods import Methods, scene_profiles, target_prompt
from tide.study.reconstruction import diffusion_loss_table, fit_pca, reconstruction_table, scene_pool
from tide.study.run import Stages, concept_timesteps, loss_timesteps, machine

#: Strengths of each method, and the step ranges tried for all of them.
STRENGTHS: dict[str, tuple[float, ...]] = {
    "towards": (0.5, 0.75, 1.0),
    "steer towards": (0.5, 0.75, 1.0),
    "swap": (1.0, 2.0, 3.0),
    "steer": (0.25, 0.5, 1.0),
}
STEP_RANGES = ((0.0, 1.0), (0.3, 1.0))


@dataclass(frozen=True)
class BarSizes:
    agreement_images: int = 500
    train_images: int = 1024
    held_out_images: int = 512
    loss_timesteps: int = 10
    concept_images: int = 420
    concept_timesteps: int = 10
    sweep_prompts: int = 40


FAST = BarSizes(20, 96, 64, 2, 48, 2, 2)


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


def _tasks(split: Split, n: int, seed: int) -> list[EditTask]:
    """``n`` prompts, each edited in one attribute, the attributes taking turns."""
    pairs = scene_module.prompts(split, n, seed)
    turns = len(ATTRIBUTES)
    return [
        task
        for turn, attribute in enumerate(ATTRIBUTES)
        for task in edit_tasks(pairs[turn::turns], attribute, seed * turns + turn)
    ]


def _by_attribute(tasks: list[EditTask], outcomes: list[Any]) -> dict[str, Any]:
    return {
        attribute: summarise([o for o in outcomes if o.task.attribute == attribute])
        for attribute in ATTRIBUTES
        if any(t.attribute == attribute for t in tasks)
    }


def edit_curves(
    adapter: Adapter,
    judge: Judge,
    tasks: list[EditTask],
    methods: dict[str, Method | None],
) -> dict[str, Any]:
    """Every method on every task. A method of ``None`` is prompt replacement."""
    before = judge.read(draw(adapter, tasks))
    read: dict[str, list[Verdict]] = {name: [] for name in methods}
    for start in range(0, len(tasks), DRAW_BATCH):  # all methods on one batch: they share its recorded targets
        part = tasks[start : start + DRAW_BATCH]
        for name, method in methods.items():
            swapped = None if method else [target_prompt(t) for t in part]
            read[name] += judge.read(draw(adapter, part, method, prompts=swapped))
    out = {}
    for name, after in read.items():
        outcomes = judge_edits(tasks, before, after)
        out[name] = {**summarise(outcomes), "attributes": _by_attribute(tasks, outcomes)}
    return out


def evaluate(
    sae: Path,
    out: Path,
    *,
    prompts: int = 200,
    seed: int = 0,
    fast: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measures a checkpoint on the bundled pipeline and writes ``metrics.json`` to ``out``."""
    sizes = FAST if fast else BarSizes()
    n_prompts = 4 if fast else prompts
    stage, started = Stages(say), time.perf_counter()
    adapter, judge = adapter_for(load_pipeline()), load_judge()
    model = TIDE.from_pretrained(sae, family=adapter.family, d_model=adapter.d_model)
    config = model.config
    block = adapter.resolve_block("penultimate" if config.block is None else config.block)
    metrics: dict[str, Any] = {
        "checkpoint": str(sae),
        "sae": asdict(config),
        "config": {"seed": seed, "fast": fast, "prompts": n_prompts, "sizes": asdict(sizes)},
        "versions": versions(),
        "machine": machine(),
    }

    def save() -> None:
        """After every stage, so that what was measured is kept if a later stage is interrupted."""
        metrics.update(seconds=round(time.perf_counter() - started, 1), stages=dict(stage.seconds))
        write_json(out / "metrics.json", metrics)

    with stage("agreement of generated images with their held-out prompts"):
        metrics["agreement"] = pipeline_agreement(adapter, judge, sizes.agreement_images, seed + 5)
    save()
    with stage("reconstruction"):
        pool = scene_pool(adapter, "train", sizes.train_images, block, 1024, token_fraction=0.5, seed=seed)
        held_out = scene_pool(adapter, "test", sizes.held_out_images, block, 1024, token_fraction=0.5, seed=seed + 1)
        pca = fit_pca(pool)
        metrics["models"] = reconstruction_table({"tide": model}, pca, config.k, pool, held_out)
    save()
    with stage("diffusion loss"):
        steps = loss_timesteps(adapter, sizes.loss_timesteps)
        pairs = scene_module.prompts("test", n_prompts, seed + 2)
        metrics["diffusion_loss"] = diffusion_loss_table(
            adapter, {"tide": model}, pca, config.k, pairs, block, steps, seed=seed
        )
    save()
    with stage("concepts"):
        n = sizes.concept_images
        study = study_concepts(
            adapter,
            model,
            list(scenes("train", n, seed)),  # ten combinations of development scenes are too few to tell causes apart
            list(scenes("test", n, seed)),
            concept_timesteps(adapter, sizes.concept_timesteps),
            seed=seed,
        )
        metrics |= {"concepts": study.concepts, "levels": study.levels}
    save()
    with stage("edits: choose the step range on the development split"):
        book = Methods(adapter, model, scene_profiles(adapter, model, seed=seed))
        make = {"towards": book.towards, "steer towards": book.steer_towards, "swap": book.swap, "steer": book.steer}
        sweep = edit_curves(
            adapter,
            judge,
            _tasks("dev", sizes.sweep_prompts, seed + 3),
            {
                f"{name} {first:g}-{last:g} x{factor:g}": method(factor, (first, last))
                for name, method in make.items()
                for first, last in STEP_RANGES
                for factor in STRENGTHS[name][1:]
            },
        )
        ranges = {name: _best_range(sweep, name) for name in make}
        metrics["edit_sweep"] = {"points": sweep, "chosen": ranges}
    save()
    with stage("edits: the trade-off on held-out prompts"):
        methods: dict[str, Method | None] = {
            f"{name} x{factor:g}": method(factor, ranges[name])
            for name, method in make.items()
            for factor in STRENGTHS[name]
        }
        curves = edit_curves(adapter, judge, _tasks("test", n_prompts, seed + 4), {**methods, "prompt": None})
        metrics["trade_off"] = {
            name: [{"factor": f, **curves[f"{name} x{f:g}"]} for f in STRENGTHS[name]] for name in make
        } | {"prompt": curves["prompt"]}
    save()
    return metrics


def _best_range(sweep: dict[str, Any], name: str) -> tuple[float, float]:
    """The step range whose best strength changes the target and keeps the rest most often."""

    def merit(steps: tuple[float, float]) -> float:
        return max(
            point["both"] for key, point in sweep.items() if key.startswith(f"{name} {steps[0]:g}-{steps[1]:g} ")
        )

    return max(STEP_RANGES, key=merit)


def verdicts(metrics: dict[str, Any]) -> list[str]:
    """One line a bar: what was asked, what was reached."""
    loss, levels, trade_off = metrics["diffusion_loss"], metrics["levels"], metrics["trade_off"]
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
    for ours, theirs, what in (("swap", "steer", "concept"), ("towards", "steer towards", "target")):
        best = max(trade_off[ours], key=lambda point: point["both"])
        other = max(trade_off[theirs], key=lambda point: point["both"])
        bar(
            best["both"] > other["both"],
            f"edits by {what}: changed {best['success']:.1%}, kept {best['preserved']:.1%}, both {best['both']:.1%}; "
            f"raw activations: changed {other['success']:.1%}, kept {other['preserved']:.1%}, both {other['both']:.1%}",
        )
    ceiling = trade_off["prompt"]
    lines.append(f"ceiling  prompt replacement: changed {ceiling['success']:.1%}, kept {ceiling['preserved']:.1%}")
    return lines
