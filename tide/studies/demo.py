"""The demo: SAE and TIDE side by side on the bundled pipeline, measured, interpreted, used to edit, and reported."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tide.activations.memory import ActivationPool
from tide.adapters import Adapter, adapter_for
from tide.evaluation.comparison import compare_losses
from tide.files import write_json
from tide.interpretation.timesteps import concept_timesteps, spread_timesteps
from tide.pictures import to_uint8
from tide.provenance import machine_in_words, versions
from tide.sae.model import TIDE
from tide.scenes.judge import Judge, load_judge
from tide.scenes.pipeline import load_pipeline
from tide.scenes.scene import prompts, scenes
from tide.studies.bench import fit_pca, prepared_scenes, reconstruction_table, scene_pool, sizes_of
from tide.studies.compare import equal_preservation
from tide.studies.mask_concepts import MeasuredConcepts, heat_map, measure_concepts
from tide.studies.methods import Editor
from tide.studies.models import check_replaceable, train
from tide.studies.options import Stages
from tide.studies.references import LayoutProbe, nearest_references
from tide.studies.report import EditStrip, HeatMaps, write_report
from tide.studies.tasks import DRAW_BATCH, EditOutcome, EditTask, draw, judge_edits, summarise
from tide.training import TrainConfig

#: Edits shown in the report: (attribute, source, target).
SHOWN_EDITS = (
    ("colour", "red", "blue"),
    ("ground", "grass", "snow"),
    ("shadow", "with", "without"),
    ("class", "sphere", "house"),
    ("depth", "near", "far"),
    ("style", "ornate", "plain"),
    ("style", "plain", "sketched"),
    ("age", "new", "old"),
    ("orientation", "left", "right"),
)

#: One concept of each level, drawn as heat maps.
SHOWN_CONCEPTS = ("shadow", "house", "roof", "red", "grass", "ornate", "old", "left")


@dataclass(frozen=True)
class Sizes:
    """How much of everything a demo uses; the default takes less than ten minutes on two CPU cores."""

    train_images: int = 2048
    held_out_images: int = 256
    token_fraction: float = 0.5
    steps: int = 2500
    batch_tokens: int = 1024
    loss_prompts: int = 64
    loss_timesteps: int = 10
    concept_images: int = 200
    concept_timesteps: int = 10
    edit_prompts: int = 4
    probe_images: int = 384
    strengths: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    #: The one of them that development prompts chose.
    strength: float = 1.5
    steer_strengths: tuple[float, ...] = (1.0, 1.5, 2.0)
    towards_strengths: tuple[float, ...] = (1.0,)


FAST = Sizes(
    train_images=192,
    held_out_images=64,
    steps=80,
    loss_prompts=8,
    loss_timesteps=3,
    concept_images=64,
    concept_timesteps=2,
    edit_prompts=2,
    probe_images=48,
    strengths=(1.0, 1.5),
    steer_strengths=(1.5,),
)


def demo(
    out: Path,
    *,
    fast: bool = False,
    seed: int = 0,
    backend: str = "auto",
    resume: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Runs the whole demo into the folder ``out`` and returns its metrics.

    Writes ``sae/`` and ``tide/`` (checkpoints), ``metrics.json`` and ``report.html``. ``resume`` continues the
    trainings that an interrupted run left. Raises :class:`~tide.errors.TideError` if ``sae/`` or ``tide/`` holds a
    training of another command.
    """
    if not resume:
        for name in ("sae", "tide"):
            check_replaceable(out / name)
    sizes = FAST if fast else Sizes()
    stage = Stages(say)
    started = time.perf_counter()
    with stage("load the bundled pipeline"):
        adapter = adapter_for(load_pipeline())
        judge = load_judge()
        block = adapter.resolve_block("penultimate")
    with stage("collect activations"):
        rows = sizes.batch_tokens
        fraction = sizes.token_fraction
        pool = scene_pool(adapter, "train", sizes.train_images, block, rows, token_fraction=fraction, seed=seed)
        held_out = scene_pool(
            adapter, "test", sizes.held_out_images, block, rows, token_fraction=fraction, seed=seed + 1
        )
        say(f"    {len(pool)} training and {len(held_out)} held-out tokens of block {block}")
    models: dict[str, TIDE] = {}
    histories: dict[str, list[dict[str, float]]] = {}
    configs: dict[str, TrainConfig] = {}
    for name in ("sae", "tide"):
        with stage(f"train the {'TIDE' if name == 'tide' else 'plain SAE'}"):
            configs[name] = TrainConfig(
                modulation=name == "tide", steps=sizes.steps, batch_tokens=rows, seed=seed, backend=backend
            )
            trainer = train(adapter, block, configs[name], pool, out / name, progress=True, resume=resume)
            models[name], histories[name] = trainer.model, trainer.history
    with stage("measure reconstruction"):
        metrics = _reconstruction(adapter, models, pool, held_out, block, sizes, seed)
    with stage("find concepts"):
        found, maps = _concepts(adapter, models["tide"], sizes, seed)
        metrics |= {"concepts": found.concepts, "levels": found.levels}
    with stage("edit images and judge them"):
        edits, strips = _edits(adapter, judge, models["tide"], sizes, seed)
        metrics |= edits
    metrics |= {
        "seconds": round(time.perf_counter() - started, 1),
        "stages": stage.seconds,
        "config": {"seed": seed, "fast": fast, "sizes": asdict(sizes), "training": configs["tide"].to_dict()},
        "versions": versions(),
        "machine": machine_in_words(),
    }
    metrics["headline"] = headline(metrics)
    write_json(out / "metrics.json", metrics)
    write_report(out / "report.html", metrics, heat_maps=maps, strips=strips, histories=histories)
    return metrics


def _reconstruction(
    adapter: Adapter,
    models: dict[str, TIDE],
    pool: ActivationPool,
    held_out: ActivationPool,
    block: int,
    sizes: Sizes,
    seed: int,
) -> dict[str, Any]:
    config = models["tide"].config
    pca = fit_pca(pool)
    data = prepared_scenes(adapter, prompts("test", sizes.loss_prompts, seed + 2))
    timesteps = spread_timesteps(adapter, sizes.loss_timesteps)
    losses = compare_losses(adapter, models, pca, config.k, data, block, timesteps, seed=seed)
    return {
        "sizes": sizes_of(adapter, models["tide"], block),
        "models": reconstruction_table(models, pca, config.k, pool, held_out),
        "diffusion_loss": losses | {"ratio": losses["reconstructed"] / losses["clean"]},
    }


def _concepts(adapter: Adapter, model: TIDE, sizes: Sizes, seed: int) -> tuple[MeasuredConcepts, list[HeatMaps]]:
    n = sizes.concept_images
    found = measure_concepts(
        adapter,
        model,
        list(scenes("train", n, seed)),
        list(scenes("test", n, seed)),
        concept_timesteps(adapter, sizes.concept_timesteps),
        seed=seed,
    )
    side = int(found.maps.shape[1] ** 0.5)
    maps = []
    for concept in SHOWN_CONCEPTS:
        if concept in found.concepts:
            row = found.concepts[concept]
            pictures = heat_map(found, concept, (side, side))
            maps.append(HeatMaps(concept, row["level"], row["latent"], row["auroc"], row["iou"], **pictures))
    return found, maps


def _shown_tasks(attribute: str, source: str, target: str, n: int, seed: int) -> list[EditTask]:
    fitting = [(scene, caption) for scene, caption in prompts("test", 400, seed) if scene[attribute] == source]
    return [
        EditTask(scene, caption, seed + 1000 + i, attribute, target) for i, (scene, caption) in enumerate(fitting[:n])
    ]


def _edits(
    adapter: Adapter, judge: Judge, model: TIDE, sizes: Sizes, seed: int
) -> tuple[dict[str, Any], list[EditStrip]]:
    """Every shown edit on held-out prompts: by one reference image at every strength (the strips), beside raw
    activations moved by the same image, and both moved to what the block holds while the target's prompt is drawn."""
    block = adapter.resolve_block("penultimate" if model.config.block is None else model.config.block)
    tasks = [t for edit in SHOWN_EDITS for t in _shown_tasks(*edit, sizes.edit_prompts, seed)]
    probe = LayoutProbe.fit(adapter, block, n_images=sizes.probe_images, seed=seed)
    before_images, layouts = probe.draw(adapter, tasks)
    before = judge.read(before_images)
    editor = Editor(adapter, model, nearest_references(tasks, layouts), seed=seed)
    ceiling_images = draw(adapter, tasks, prompts=[t.target_prompt for t in tasks])
    tried = {
        "contrast": sizes.strengths,
        "steer contrast": sizes.steer_strengths,
        "steer bounded": sizes.steer_strengths,
        "towards": sizes.towards_strengths,
        "steer towards": sizes.towards_strengths,
    }
    # A recording serves one batch of tasks, whatever the method and its strength.
    drawn: dict[str, list[torch.Tensor]] = {name: [] for name in tried}
    for start in range(0, len(tasks), DRAW_BATCH):
        part = tasks[start : start + DRAW_BATCH]
        for name, strengths in tried.items():
            edited = [draw(adapter, part, editor.method(name, factor)) for factor in strengths]
            drawn[name].append(torch.stack(edited))
    images = {name: torch.cat(batches, dim=1) for name, batches in drawn.items()}  # [strengths, tasks, ...]

    def score(images: torch.Tensor) -> list[EditOutcome]:
        return judge_edits(tasks, before, judge.read(images))

    curves: dict[str, Any] = {
        name: [{"factor": f, **summarise(score(i))} for f, i in zip(strengths, images[name], strict=True)]
        for name, strengths in tried.items()
    }
    levels = equal_preservation(curves)
    curves["prompt"] = summarise(score(ceiling_images))
    chosen = score(images["contrast"][sizes.strengths.index(sizes.strength)])
    edits, strips = {}, []
    for edit in SHOWN_EDITS:
        found = [o for o in chosen if (o.task.attribute, o.task.source) == edit[:2]]
        edits[_name(*edit)] = {**summarise(found), "strength": sizes.strength}
        shown = next((i for i, t in enumerate(tasks) if (t.attribute, t.source) == edit[:2] and before[i].valid), None)
        if shown is None:
            continue
        strip = [before_images[shown], *images["contrast"][:, shown]]
        strips.append(
            EditStrip(
                title=_name(*edit),
                prompt=tasks[shown].caption,
                attribute=edit[0],
                target=edit[2],
                strengths=[0.0, *sizes.strengths],
                images=[to_uint8(image) for image in strip],
                verdicts=[{**v.attributes, "valid": v.valid} for v in judge.read(torch.stack(strip))],
                ceiling=to_uint8(ceiling_images[shown]),
            )
        )
    return {"edits": edits, "trade_off": curves, "equal_preservation": levels}, strips


def _name(attribute: str, source: str, target: str) -> str:
    return "shadow to no shadow" if attribute == "shadow" else f"{source} to {target}"


def headline(metrics: dict[str, Any]) -> str:
    """One sentence that says what was found."""
    tide, sae = metrics["models"]["tide"], metrics["models"]["sae"]
    loss = metrics["diffusion_loss"]
    aurocs = [row["auroc"] for row in metrics["concepts"].values()]
    at = metrics["config"]["sizes"]["strength"]
    edited = next(point for point in metrics["trade_off"]["contrast"] if point["factor"] == at)
    order = "below" if tide["val_mse"] < sae["val_mse"] else "not below"
    return (
        f"TIDE explains {tide['explained_variance']:.1%} of block {metrics['sizes']['block']}'s variance on unseen "
        f"scenes (error {order} the plain SAE's), recovers {loss['recovered']:.2%} of the diffusion loss, has a latent "
        f"for {sum(a >= 0.85 for a in aurocs)} of {len(aurocs)} concepts at AUROC 0.85 or more, and from one reference "
        f"image moves {edited['success']:.0%} of edited images to the target, {edited['both']:.0%} with all else kept."
    )
