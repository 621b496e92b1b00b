"""The bars: every claim about the bundled pipeline and a TIDE on it, measured on held-out prompts.

Whatever has to be chosen (latents, signs, thresholds, edit strengths, step ranges) is chosen on the development split;
figures are of the test split, with 95 % Wilson intervals where they are shares.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tide.adapters import Adapter, adapter_for
from tide.evaluation.statistics import wilson_interval
from tide.sae.checkpoint import versions, write_json
from tide.sae.model import TIDE
from tide.scenes.annotate import generate_images
from tide.scenes.judge import Judge, load_judge
from tide.scenes.pipeline import load_pipeline
from tide.scenes.scene import ATTRIBUTES, prompts, scenes
from tide.study.concepts import study_concepts
from tide.study.edits import EditTask, Method, draw, edit_tasks, judge_edits, summarise
from tide.study.methods import ConceptBook, steer_method, swap_word, tide_method
from tide.study.reconstruction import diffusion_loss_table, fit_pca, reconstruction_table, scene_pool
from tide.study.run import Stages, concept_timesteps, loss_timesteps, machine

STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.5)
STEP_RANGES = ((0.0, 1.0), (0.0, 0.5), (0.0, 0.75))


@dataclass(frozen=True)
class BarSizes:
    agreement_images: int = 500
    train_images: int = 1024
    held_out_images: int = 512
    loss_timesteps: int = 10
    concept_images: int = 420
    concept_timesteps: int = 5
    sweep_prompts: int = 30


FAST = BarSizes(20, 96, 64, 2, 48, 2, 2)


def pipeline_agreement(adapter: Adapter, judge: Judge, n: int, seed: int) -> dict[str, Any]:
    """How often the judge agrees with the held-out prompt an image was generated from, per attribute."""
    pairs = prompts("test", n, seed)
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


def _tasks(split: str, n: int, seed: int) -> list[EditTask]:
    pairs = prompts(split, n, seed)  # type: ignore[arg-type]
    return [task for attribute in ATTRIBUTES for task in edit_tasks(pairs, attribute, seed)]


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
    # Tasks of all attributes share their prompts and seeds, so each unedited image is drawn once.
    plain = {(t.caption, t.seed): t for t in tasks}
    verdicts = dict(zip(plain, judge.read(draw(adapter, list(plain.values()))), strict=True))
    before = [verdicts[t.caption, t.seed] for t in tasks]
    out = {}
    for name, method in methods.items():
        swapped = None if method else [swap_word(t.caption, t.source, t.target) for t in tasks]
        outcomes = judge_edits(tasks, before, judge.read(draw(adapter, tasks, method, prompts=swapped)))
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
    config, block = model.config, adapter.resolve_block(model.config.block if model.config.block is not None else -2)
    metrics: dict[str, Any] = {"checkpoint": str(sae), "sae": asdict(config)}
    with stage("agreement of generated images with their held-out prompts"):
        metrics["agreement"] = pipeline_agreement(adapter, judge, sizes.agreement_images, seed + 5)
    with stage("reconstruction"):
        pool = scene_pool(adapter, "train", sizes.train_images, block, 1024, token_fraction=0.5, seed=seed)
        held_out = scene_pool(adapter, "test", sizes.held_out_images, block, 1024, token_fraction=0.5, seed=seed + 1)
        pca = fit_pca(pool)
        metrics["models"] = reconstruction_table({"tide": model}, pca, config.k, pool, held_out)
    with stage("diffusion loss"):
        steps = loss_timesteps(adapter, sizes.loss_timesteps)
        pairs = _pairs("test", n_prompts, seed + 2)
        metrics["diffusion_loss"] = diffusion_loss_table(
            adapter, {"tide": model}, pca, config.k, pairs, block, steps, seed=seed
        )
    with stage("concepts"):
        n = sizes.concept_images
        study = study_concepts(
            adapter,
            model,
            list(scenes("dev", n, seed)),
            list(scenes("test", n, seed)),
            concept_timesteps(adapter, sizes.concept_timesteps),
            seed=seed,
        )
        metrics |= {"concepts": study.concepts, "levels": study.levels}
    with stage("edits: choose the step range on the development split"):
        book = ConceptBook(adapter, model, seed=seed + 17)
        sweep = edit_curves(
            adapter,
            judge,
            _tasks("dev", sizes.sweep_prompts, seed + 3),
            {
                f"{name} {first:g}-{last:g} x{factor:g}": make(book, factor, (first, last))
                for name, make in (("tide", tide_method), ("steer", steer_method))
                for first, last in STEP_RANGES
                for factor in (0.5, 1.0)
            },
        )
        ranges = {name: _best_range(sweep, name) for name in ("tide", "steer")}
        metrics["edit_sweep"] = {"points": sweep, "chosen": ranges}
    with stage("edits: the trade-off on held-out prompts"):
        methods: dict[str, Method | None] = {
            f"{name} x{factor:g}": make(book, factor, ranges[name])
            for name, make in (("tide", tide_method), ("steer", steer_method))
            for factor in STRENGTHS
        }
        curves = edit_curves(adapter, judge, _tasks("test", n_prompts, seed + 4), {**methods, "prompt": None})
        metrics["trade_off"] = {
            name: [{"factor": f, **curves[f"{name} x{f:g}"]} for f in STRENGTHS] for name in ("tide", "steer")
        } | {"prompt": curves["prompt"]}
    metrics |= {
        "seconds": round(time.perf_counter() - started, 1),
        "stages": stage.seconds,
        "config": {"seed": seed, "fast": fast, "prompts": n_prompts, "sizes": asdict(sizes)},
        "versions": versions(),
        "machine": machine(),
    }
    write_json(out / "metrics.json", metrics)
    return metrics


_pairs = prompts


def _best_range(sweep: dict[str, Any], name: str) -> tuple[float, float]:
    """The step range whose best strength changes the target and keeps the rest most often."""

    def merit(steps: tuple[float, float]) -> float:
        return max(
            point["both"] for key, point in sweep.items() if key.startswith(f"{name} {steps[0]:g}-{steps[1]:g} ")
        )

    return max(STEP_RANGES, key=merit)
