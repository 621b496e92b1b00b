"""The report of the demo and of the bars: one HTML file that holds its images, works offline, in light and in dark.

Its words are in the template ``report.html``; this module prepares the figures, tables and pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from tide import charts
from tide.charts import Series
from tide.files import replace_file
from tide.pictures import INK, heat_key, heat_overlay, outline_path, png_data, resized
from tide.scenes.judge import NO_OBJECT
from tide.studies.methods import METHODS
from tide.studies.report_tables import Column, Table, digits, figure_of, fixed, get, number, percent, settings, table
from tide.studies.trial import PROMPT

Metrics = dict[str, Any]


def tenths(value: Any) -> str:
    return percent(value, 1)


@dataclass(frozen=True)
class HeatMaps:
    """Where the latent of one concept fires, beside the ground truth.

    ``images`` uint8 ``[64, 64, 3]``; ``truth`` bool ``[64, 64]``, all False for an image that does not show the
    concept; ``maps`` float ``[64, 64]``, >= 0, not normalised: all maps of a concept are drawn on one scale.
    """

    concept: str
    level: str
    latent: int
    auroc: float
    iou: float
    images: list[np.ndarray]
    truth: list[np.ndarray]
    maps: list[np.ndarray]

    @property
    def overlays(self) -> list[np.ndarray]:
        """At twice the size, so that the line around strong places is thin."""
        top = max((float(np.nanmax(m, initial=0.0)) for m in self.maps), default=0.0)
        large = [resized(image, (2 * image.shape[1], 2 * image.shape[0])) for image in self.images]
        return [heat_overlay(image, heat, top) for image, heat in zip(large, self.maps, strict=True)]


@dataclass(frozen=True)
class EditStrip:
    """One prompt edited with growing strength; ``strengths[0] == 0`` is the unedited image.

    ``images`` uint8 and ``verdicts`` (attribute -> value, and ``"valid"``), one for each strength; ``ceiling`` is the
    image drawn from the prompt that names the target.
    """

    title: str
    prompt: str
    attribute: str
    target: str
    strengths: list[float]
    images: list[np.ndarray]
    verdicts: list[dict[str, Any]]
    ceiling: np.ndarray | None = None

    def valid(self, i: int) -> bool:
        verdict = self.verdicts[i]
        return bool(verdict.get("valid", True)) and verdict.get("class") != NO_OBJECT

    def reached(self, i: int) -> bool:
        return self.valid(i) and self.verdicts[i].get(self.attribute) == self.target

    def lost(self, i: int) -> list[str]:
        """Attributes other than the edited one that read differently from the unedited image."""
        before = self.verdicts[0]
        names = [name for name in before if name not in ("valid", self.attribute)]
        return [name for name in names if self.verdicts[i].get(name) != before[name]]

    def readings(self, i: int) -> list[dict[str, Any]]:
        """What the judge reads off image i, a line each: the attribute's name, its text, what stood there before if it
        was lost, and whether it is the target."""
        verdict, lost = self.verdicts[i], self.lost(i)
        return [
            {
                "name": name,
                "text": _in_words(name, value),
                "was": _in_words(name, self.verdicts[0][name]) if name in lost else "",
                "target": name == self.attribute and self.reached(i),
            }
            for name, value in verdict.items()
            if name != "valid"
        ]


@dataclass(frozen=True)
class FirstPicture:
    """The edit that opens the page: the clearest of those ``tried`` on development prompts.

    ``chosen`` is the place of the strength at which it was chosen, ``margin`` how clearly the judge reads the target
    and all else there (:meth:`~tide.scenes.judge.Judge.margins`).
    """

    strip: EditStrip
    chosen: int
    margin: float
    tried: int

    def described(self) -> dict[str, Any]:
        strip = self.strip
        return {
            "edit": strip.title,
            "prompt": strip.prompt,
            "strength": strip.strengths[self.chosen],
            "margin": self.margin,
            "tried": self.tried,
        }

    def readings(self, i: int) -> list[dict[str, Any]]:
        """What the judge reads of the edited attribute off image i, and of what was lost."""
        found = self.strip.readings(i)
        return [each for each in found if each["name"] == self.strip.attribute or each["was"]]


def _in_words(attribute: str, value: Any) -> str:
    return f"{value} {attribute}" if value in ("with", "without") else str(value)


def write_report(
    path: Path,
    metrics: Metrics,
    *,
    heat_maps: list[HeatMaps],
    strips: list[EditStrip],
    histories: dict[str, list[dict[str, float]]],
    first: FirstPicture | None = None,
) -> None:
    """Writes the page to ``path`` in one step; a section whose figures are missing is left out.

    ``histories[name]`` are the logged steps of the training of ``name`` ("sae", "tide"). Raises
    :class:`~tide.errors.TideError` if the file cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("tide.studies", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "percent": percent, "png": png_data, "outline": outline_path}
    strips = [strip for strip in strips if strip.images]
    page = environment.get_template("report.html").render(
        headline=str(metrics.get("headline") or "Sparse latents of a diffusion transformer"),
        first=first,
        sizes=metrics.get("sizes") or {},
        verdicts=metrics.get("verdicts") or [],
        models=models_table(metrics),
        timesteps=timestep_charts(metrics),
        loss=loss_figures(metrics),
        heat_maps=[found for found in heat_maps if found.images],
        heat_key=heat_key(),
        ink=INK,
        levels=level_charts(metrics),
        concepts=concept_table(metrics.get("concepts") or {}),
        edits=edit_table(metrics.get("edits") or {}),
        strips=strips,
        no_object=NO_OBJECT,
        trade_off=trade_off(metrics),
        training=training_charts(histories),
        made=made(metrics),
    )
    replace_file(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))


def in_order(data: dict[str, Any] | None, order: Sequence[str]) -> list[str]:
    """The keys of ``data``: those of ``order`` first and in that order, then the others."""
    data = data or {}
    return [name for name in order if name in data] + [name for name in data if name not in order]


@dataclass(frozen=True)
class Chart:
    """A chart with its title and caption; ``alt`` says what it shows."""

    title: str
    svg: str
    caption: str = ""
    alt: str = ""


def _chart(title: str, series: Sequence[Series], caption: str = "", **options: Any) -> Chart | None:
    """A chart of lines; None where nothing can be drawn."""
    svg = charts.line_svg(series, **options)
    return Chart(title, svg, caption, f"{title}: {', '.join(s.name for s in series)}") if svg else None


# -- reconstruction -------------------------------------------------------------------------------------------

MODELS = {"sae": "SAE", "tide": "TIDE", "pca_k": "PCA, k components", "pca_k/4": "PCA, k/4 components", "mean": "mean"}
#: Colour and dashes of curves.
CURVES: dict[str, tuple[str, Any]] = {
    "tide": ("blue", "-"),
    "sae": ("orange", "--"),
    "pca_k": ("green", ":"),
    "pca_k/4": ("green", (0, (1, 3))),
    "clean": ("text", "-"),
}
BY_TIMESTEP: dict[str, Any] = {"x_label": "timestep (1000: pure noise)", "x_range": (0, 1000)}


def _curve(name: str, label: str, points: Sequence[tuple[float, float]]) -> Series:
    ink, dashes = CURVES.get(name, ("muted", "-."))
    return Series(label, ink, points, dashes)


def models_table(metrics: Metrics) -> Table | None:
    models = metrics.get("models") or {}
    names = in_order(models, list(MODELS))
    error = fixed([get(models[name], key) for name in names for key in ("train_mse", "val_mse")])
    columns = [
        Column("error, training", "train_mse", error, "low"),
        Column("error, held out", "val_mse", error, "low"),
        Column("cosine, training", "train_cosine", digits(4), "high"),
        Column("cosine, held out", "val_cosine", digits(4), "high"),
        Column("variance explained", "explained_variance", tenths, "high"),
        Column("active latents", "l0", digits(0)),
        Column("dead latents", "dead", tenths, "low"),
    ]
    return table("model", [(MODELS.get(name, name), models[name]) for name in names], columns, _kinds(names))


def _kinds(names: Sequence[str]) -> list[str]:
    """Baselines are set apart from the autoencoders."""
    return ["" if name in ("sae", "tide") else "minor" for name in names]


def timestep_charts(metrics: Metrics) -> list[Chart]:
    models = metrics.get("models") or {}

    def curves(key: str) -> list[Series]:
        bins = {name: get(models, name, "timestep") or {} for name in in_order(models, list(MODELS)) if name != "mean"}
        return [
            _curve(name, MODELS.get(name, name), [(_middle(b), figure_of(get(v, key))) for b, v in data.items()])
            for name, data in bins.items()
        ]

    found = (
        _chart("Error by timestep", curves("mse_normalised"), "Mean squared error, log scale; lower is better.",
               log_y=True, **BY_TIMESTEP),
        _chart("Variance explained", curves("explained_variance"),
               "Share of the differences between patches; higher is better.", percent="y", **BY_TIMESTEP),
    )  # fmt: skip
    return [each for each in found if each]


def _middle(name: str) -> float:
    """The middle of a bin such as "100-200"."""
    low, _, high = name.partition("-")
    return (_number(low) + _number(high)) / 2


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


LOSS_ROWS = {
    "clean": "untouched model",
    "tide": "reconstructed by TIDE",
    "sae": "reconstructed by the SAE",
    "pca_k": "by PCA, k components",
    "pca_k/4": "by PCA, k/4 components",
    "mean": "replaced by the mean",
    "ablated": "set to zero",
}


def loss_figures(metrics: Metrics) -> dict[str, Any] | None:
    """The block, the table of losses and the chart by timestep."""
    data = metrics.get("diffusion_loss") or {}
    tide = {"loss": data.get("reconstructed"), "recovered": data.get("recovered")}
    rows = {**(data.get("variants") or {"tide": tide}), **{n: {"loss": data.get(n)} for n in ("clean", "ablated")}}
    names = [n for n in in_order(rows, list(LOSS_ROWS)) if not math.isnan(figure_of(get(rows[n], "loss")))]
    clean = figure_of(data.get("clean")) or math.nan
    shown = [(LOSS_ROWS.get(n, n), {**rows[n], "relative": figure_of(rows[n]["loss"]) / clean}) for n in names]
    columns = [
        Column("denoising loss", "loss", fixed([row["loss"] for _, row in shown])),
        Column("relative", "relative"),
        Column("recovered", "recovered", tenths, "high"),
    ]
    figures = table("the block's output is", shown, columns, _kinds(names))
    steps = get(data, "timestep") or {}
    untouched = {t: figure_of(v) or math.nan for t, v in (steps.get("clean") or {}).items()}
    curves = [
        _curve(name, label, [(_number(t), figure_of(v) / untouched.get(t, math.nan)) for t, v in each.items()])
        for name, label in {"sae": "SAE", "tide": "TIDE"}.items()
        if (each := steps.get(name))
    ]
    caption = "With the reconstruction, relative to the untouched model's: 1 is as good, lower is better."
    chart = _chart("Denoising loss by timestep", curves, caption, **BY_TIMESTEP)
    return {"table": figures, "chart": chart} if names or chart else None


# -- concepts -------------------------------------------------------------------------------------------------

LEVELS = ("3d", "class", "part", "colour", "ground")


def level_charts(metrics: Metrics) -> list[Chart]:
    levels = metrics.get("levels") or {}
    rows = in_order(levels, LEVELS)
    kinds = ["3D" if row == "3d" else row for row in rows]

    def bars(keys: dict[str, tuple[str, str]]) -> list[tuple[str, str, list[float]]]:
        series = [(name, ink, [figure_of(get(levels[r], key)) for r in rows]) for key, (name, ink) in keys.items()]
        return [s for s in series if any(not math.isnan(v) for v in s[2])]

    latent, neuron, pooled = ("latent", "blue"), ("neuron", "muted"), ("pooled latents", "purple")
    finding = bars({"auroc": latent, "neuron_auroc": neuron, "recipe_auroc": pooled})
    covering = bars({"iou": latent, "neuron_iou": neuron})
    # A mean below chance would vanish on an axis that starts at 0.5.
    base = 0.5 if all(not v < 0.5 for _, _, values in finding for v in values) else 0.0
    found = (
        Chart("Finding the concept (AUROC)", charts.bars_svg(kinds, finding, base=base, top=1.0),
              "The chance that a patch of the concept scores above a patch outside it: 0.5 is guessing, 1 perfect.",
              "AUROC of each level of concepts"),
        Chart("Covering it exactly (IoU)", charts.bars_svg(kinds, covering, base=0.0, top=1.0),
              "Patches in both the map and the mask over patches in either: 1 is a perfect fit.",
              "IoU of each level of concepts"),
    )  # fmt: skip
    return [each for each in found if each.svg]


def concept_table(concepts: dict[str, Any]) -> Table | None:
    level = {name: str(get(row, "level") or "") for name, row in concepts.items()}
    names = [n for lv in in_order(dict.fromkeys(level.values()), LEVELS) for n in concepts if level[n] == lv]
    starts = [i > 0 and level[n] != level[names[i - 1]] for i, n in enumerate(names)]

    def index(value: Any) -> str:
        return number(value, 0).replace(",", "")

    columns = [
        Column("latent", "latent", index),
        Column("AUROC, latent", "auroc", digits(2)),
        Column("AUROC, neuron", "neuron_auroc", digits(2)),
        Column("AUROC, pooled", "recipe_auroc", digits(2)),
        Column("IoU, latent", "iou", digits(2)),
        Column("IoU, neuron", "neuron_iou", digits(2)),
        Column("neuron", "neuron", index),
    ]
    rows = [(f"{n} ({level[n]})" if level[n] else n, concepts[n]) for n in names]
    return table("concept", rows, columns, ["group" if start else "" for start in starts])


# -- edits ----------------------------------------------------------------------------------------------------

#: Colours of the methods' curves; raw activations are dashed.
METHOD_INKS = {
    "contrast": "blue",
    "steer contrast": "orange",
    "steer bounded": "green",
    "towards": "text",
    "steer towards": "muted",
    "swap": "purple",
    "steer": "purple",
}


def _label(method: str) -> str:
    return METHODS[method].label if method in METHODS else method


SHARES = [
    Column("changed to the target", "success", percent),
    Column("all else kept", "preserved", percent),
    Column("both", "both", percent, "high"),
]


def edit_table(edits: dict[str, Any]) -> Table | None:
    heads = {
        "success": "changed to the target", "preserved": "all else kept", "both": "both", "valid": "still a scene"
    }  # fmt: skip
    shares = [Column(head, key, percent, interval=("interval", key)) for key, head in heads.items()]
    return table("edit", list(edits.items()), [*shares, Column("pictures", "images", digits(0))])


def trade_off(metrics: Metrics) -> dict[str, Any] | None:
    """Change against preservation: the chart, its table, the table at equal preservation, and what was tried."""
    data = metrics.get("trade_off") or {}
    series, rows = [], []
    for name in in_order(data, list(METHODS)):
        points = [data[name]] if isinstance(data[name], dict) else list(data[name] or [])
        notes = ["" if name == PROMPT or get(p, "factor") is None else f"{p['factor']:g}" for p in points]
        rows += [(f"{_label(name)} {note}".strip(), row) for note, row in zip(notes, points, strict=True)]
        spots = [(figure_of(get(p, "preserved")), figure_of(get(p, "success"))) for p in points]
        dashes, marker = ("--", "s") if name in METHODS and METHODS[name].raw else ("-", "o")
        ink = METHOD_INKS.get(name, "purple")
        series.append(Series(_label(name), ink, spots, dashes, "*" if name == PROMPT else marker, notes))
    xs = [x for each in series for x, _ in each.points if not math.isnan(x)]
    least = max(-0.03, min(xs, default=0.0) - 0.1)
    chart = _chart("Changed to the target against all else kept", series, "Upwards: changed to the target.",
                   x_label="all else kept", percent="xy", x_range=(least, 1.06), y_range=(-0.03, 1.08))  # fmt: skip
    tried = metrics.get("tried") or []
    if chart is None:
        return None
    return {
        "chart": chart,
        "table": table("edit, strength", rows, SHARES),
        "levels": preservation_table(metrics.get("equal_preservation") or {}),
        "tried": table("edit, part of the run, strength", [(_setting(row), row) for row in tried], SHARES),
        "n_tried": len(tried),
    }


def _setting(row: dict[str, Any]) -> str:
    first, last = (percent(step) for step in row["steps"])
    return f"{_label(row['method'])}, {first} to {last}, {row['factor']:g}"


def preservation_table(levels: dict[str, Any]) -> Table | None:
    """The most that each method changes while a given share of the pictures keeps all else."""
    rows = [(f"all else kept in {percent(_number(level))} or more", row) for level, row in levels.items()]
    names = in_order({name: None for row in levels.values() for name in row}, list(METHODS))
    columns = [Column(_label(n), (n, "success"), percent, interval=(n, "interval")) for n in names]
    return table("changed to the target, where", rows, columns)


# -- training and making --------------------------------------------------------------------------------------

TRAINING = (
    ("mse", "Reconstruction error", "Mean squared error, log scale.", True),
    (
        "explained_variance",
        "Variance explained",
        "Of a batch's patches, from 50 % on; the first steps lie below.",
        False,
    ),
    ("cosine", "Direction error", "1 minus the cosine similarity, log scale.", True),
    ("temporal", "Drift over time", "How far latents move between neighbouring timesteps, log scale.", True),
    ("loss", "Total loss", "The weighted sum that training minimises, log scale.", True),
    ("silent", "Silent latents", "Share that did not fire in a batch.", False),
    ("k", "Latents allowed to fire", "For each patch: many at first, then fewer, down to k.", False),
)


def training_charts(histories: dict[str, list[dict[str, float]]]) -> list[Chart]:
    def curves(key: str) -> list[Series]:
        return [
            _curve(name, MODELS.get(name, name), [(figure_of(get(e, "step")), figure_of(get(e, key))) for e in steps])
            for name in in_order(histories, ["sae", "tide"])
            if (steps := histories[name])
        ]

    found = [
        _chart(title, curves(key), caption, x_label="step", log_y=log_y,
               percent="y" if key in ("explained_variance", "silent") else "",
               y_range=(0.5, 1.01) if key == "explained_variance" else None)
        for key, title, caption, log_y in TRAINING
    ]  # fmt: skip
    return [each for each in found if each]


def made(metrics: Metrics) -> dict[str, Any] | None:
    """How long the run took, on what, and with which settings."""
    stages = metrics.get("stages") or {}
    keys = {"Configuration": "config", "Versions": "versions", "Sizes": "sizes"}
    named = {name: list(settings(metrics.get(key))) for name, key in keys.items()}
    found = {
        "seconds": "" if math.isnan(figure_of(metrics.get("seconds"))) else number(metrics["seconds"], 0),
        "machine": metrics.get("machine") or "",
        "stages": table("stage", list(stages.items()), [Column("seconds", (), digits(1))]),
        "settings": {name: values for name, values in named.items() if values},
    }
    return found if any(found.values()) else None
