"""The demo: SAE and TIDE side by side on the bundled pipeline, measured, interpreted, used to edit, and reported."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tide.files import write_json
from tide.pictures import to_uint8
from tide.provenance import machine_in_words, versions
from tide.sae.model import TIDE
from tide.scenes.judge import Judge, Verdict, load_judge
from tide.scenes.scene import Split, prompts
from tide.studies import measurements
from tide.studies.bench import Bench, DataSizes
from tide.studies.compare import equal_preservation
from tide.studies.first_picture import first_picture, strip_of, title_of
from tide.studies.mask_concepts import MeasuredConcepts, heat_map
from tide.studies.models import check_replaceable, train
from tide.studies.options import Stages
from tide.studies.references import LayoutProbe
from tide.studies.report import EditStrip, FirstPicture, HeatMaps, write_report
from tide.studies.tasks import DRAW_BATCH, EditOutcome, EditTask, summarise
from tide.studies.trial import ASKED, PROMPT, Setting, Trial
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
class Sizes(measurements.Sizes):
    """The whole demo takes less than ten minutes on two CPU cores."""

    steps: int
    edit_prompts: int
    probe_images: int
    strengths: tuple[float, ...]
    steer_strengths: tuple[float, ...]
    towards_strengths: tuple[float, ...] = (1.0,)
    #: The one of ``strengths`` that development prompts chose.
    strength: float = 1.5
    #: Development prompts of each edit, and strengths, among which the first picture is chosen: half a minute.
    first_prompts: int = 2
    first_strengths: tuple[float, ...] = (1.0, 1.5, 2.0)
    token_fraction: float = 0.5
    batch_tokens: int = 1024

    def tried(self) -> dict[str, tuple[float, ...]]:
        """Method -> its strengths."""
        return {
            "contrast": self.strengths,
            "steer contrast": self.steer_strengths,
            "steer bounded": self.steer_strengths,
            "towards": self.towards_strengths,
            "steer towards": self.towards_strengths,
        }


DEFAULT = Sizes(2048, 256, 64, 10, 200, 10, 2500, 4, 384, (0.5, 1.0, 1.5, 2.0), (1.0, 1.5, 2.0))
FAST = Sizes(192, 64, 8, 3, 64, 2, 80, 2, 48, (1.0, 1.5), (1.5,), first_prompts=1, first_strengths=(1.0, 1.5))


def demo(
    out: Path,
    *,
    fast: bool = False,
    seed: int = 0,
    backend: str = "auto",
    resume: bool = False,
    made_by: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Runs the whole demo into the folder ``out`` and returns its metrics.

    Writes ``sae/`` and ``tide/`` (checkpoints), ``metrics.json`` and ``report.html``. ``resume`` continues the
    trainings that an interrupted run left; ``made_by`` is for their ``run.json``
    (:func:`tide.provenance.provenance`). Raises :class:`~tide.errors.TideError` if ``sae/`` or ``tide/`` holds a
    training of another command.
    """
    if not resume:
        for name in ("sae", "tide"):
            check_replaceable(out / name)
    sizes = FAST if fast else DEFAULT
    stage = Stages(say)
    started = time.perf_counter()
    with stage("load the bundled pipeline"):
        data = DataSizes(
            sizes.train_images, sizes.held_out_images, sizes.token_fraction, batch_tokens=sizes.batch_tokens
        )
        bench = Bench(data, seed, say, progress=True)
        judge = load_judge()
    with stage("collect activations"):
        _ = bench.train, bench.thinned
    models: dict[str, TIDE] = {}
    histories: dict[str, list[dict[str, float]]] = {}
    configs: dict[str, TrainConfig] = {}
    for name in ("sae", "tide"):
        with stage(f"train the {'TIDE' if name == 'tide' else 'plain SAE'}"):
            configs[name] = TrainConfig(
                modulation=name == "tide",
                steps=sizes.steps,
                batch_tokens=sizes.batch_tokens,
                seed=seed,
                backend=backend,
            )
            trainer = train(bench, configs[name], bench.train, out / name, resume=resume, made_by=made_by)
            models[name], histories[name] = trainer.model, trainer.history
    with stage("measure reconstruction"):
        metrics = measurements.reconstruction(bench, models, sizes)
        metrics["sizes"] = measurements.sizes_of(bench.adapter, models["tide"], bench.block)
    with stage("find concepts"):
        found = measurements.concepts(bench, models["tide"], sizes.concept_images, sizes.concept_timesteps)
        metrics |= {"concepts": found.concepts, "levels": found.levels}
    with stage("choose the first picture"):
        probe = LayoutProbe.fit(bench.adapter, bench.block, n_images=sizes.probe_images, seed=bench.seed)
        first = _first(bench, models["tide"], judge, probe, sizes)
        metrics["first_picture"] = first.described()
    with stage("edit images and judge them"):
        edits, strips = _edits(bench, models["tide"], judge, probe, sizes)
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
    write_report(
        out / "report.html", metrics, heat_maps=_heat_maps(found), strips=strips, histories=histories, first=first
    )
    return metrics


def _heat_maps(found: MeasuredConcepts) -> list[HeatMaps]:
    maps = []
    for concept in SHOWN_CONCEPTS:
        if concept in found.concepts:
            row = found.concepts[concept]
            pictures = heat_map(found, concept)
            maps.append(HeatMaps(concept, row["level"], row["latent"], row["auroc"], row["iou"], **pictures))
    return maps


def _shown_tasks(split: Split, n: int, seed: int) -> list[EditTask]:
    """Every shown edit on ``n`` prompts of ``split`` that it fits."""
    tasks = []
    for attribute, source, target in SHOWN_EDITS:
        fitting = [(scene, caption) for scene, caption in prompts(split, 400, seed) if scene[attribute] == source]
        tasks += [
            EditTask(scene, caption, seed + 1000 + i, attribute, target)
            for i, (scene, caption) in enumerate(fitting[:n])
        ]
    return tasks


def _first(bench: Bench, model: TIDE, judge: Judge, probe: LayoutProbe, sizes: Sizes) -> FirstPicture:
    tasks = _shown_tasks("dev", sizes.first_prompts, bench.seed)
    trial = Trial.of(bench.adapter, model, tasks, judge, probe, seed=bench.seed)
    return first_picture(trial, sizes.first_strengths)


@dataclass
class _Drawn:
    """The images and readings of every task, unedited (None) and at every setting."""

    tasks: list[EditTask]
    images: dict[Setting | None, list[Tensor]]
    verdicts: list[Verdict]
    outcomes: dict[Setting, list[EditOutcome]]


def _drawn(
    bench: Bench, model: TIDE, judge: Judge, probe: LayoutProbe, sizes: Sizes, settings: Sequence[Setting]
) -> _Drawn:
    tasks = _shown_tasks("test", sizes.edit_prompts, bench.seed)
    drawn = _Drawn(tasks, {s: [] for s in (None, *settings)}, [], {s: [] for s in settings})
    for start in range(0, len(tasks), DRAW_BATCH):
        trial = Trial.of(bench.adapter, model, tasks[start : start + DRAW_BATCH], judge, probe, seed=bench.seed)
        drawn.images[None] += trial.images
        drawn.verdicts += trial.verdicts
        for setting in settings:
            edited = trial.draw(setting)
            drawn.images[setting] += edited
            drawn.outcomes[setting] += trial.outcomes(edited)
    return drawn


def _edits(
    bench: Bench, model: TIDE, judge: Judge, probe: LayoutProbe, sizes: Sizes
) -> tuple[dict[str, Any], list[EditStrip]]:
    """Every shown edit on held-out prompts: by one reference image at every strength (the strips), beside raw
    activations moved by the same image, and both moved to what the block holds while the target's prompt is drawn."""
    settings = {name: [Setting(name, factor) for factor in factors] for name, factors in sizes.tried().items()}
    drawn = _drawn(bench, model, judge, probe, sizes, [s for each in settings.values() for s in each] + [ASKED])
    curves: dict[str, Any] = {
        name: [{"factor": s.factor, **summarise(drawn.outcomes[s])} for s in each] for name, each in settings.items()
    }
    levels = equal_preservation(curves)
    curves[PROMPT] = summarise(drawn.outcomes[ASKED])
    edits, strips = {}, []
    for edit in SHOWN_EDITS:
        chosen = [o for o in drawn.outcomes[Setting("contrast", sizes.strength)] if _edit_of(o.task) == edit]
        edits[title_of(*edit)] = {**summarise(chosen), "strength": sizes.strength}
        fitting = (i for i, task in enumerate(drawn.tasks) if _edit_of(task) == edit and drawn.verdicts[i].valid)
        if (shown := next(fitting, None)) is not None:
            images = torch.stack([drawn.images[s][shown] for s in (None, *settings["contrast"])])
            strip = strip_of(drawn.tasks[shown], sizes.strengths, images, judge)
            strips.append(replace(strip, ceiling=to_uint8(drawn.images[ASKED][shown])))
    return {"edits": edits, "trade_off": curves, "equal_preservation": levels}, strips


def _edit_of(task: EditTask) -> tuple[str, str, str]:
    return task.attribute, task.source, task.target


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
        f"scenes (error {order} the plain SAE's), makes the diffusion loss {loss['ratio']:.2f} times the clean one, "
        f"has a latent for {sum(a >= 0.85 for a in aurocs)} of {len(aurocs)} concepts at AUROC 0.85 or more, and from "
        f"one reference image moves {edited['success']:.0%} of edited images to the target, {edited['both']:.0%} with "
        "all else kept."
    )
