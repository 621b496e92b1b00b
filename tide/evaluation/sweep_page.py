"""The page of a layer sweep: one HTML file that asks for nothing, in light and in dark.

Its words are in the template ``sweep.html``; this module prepares the charts, heat maps and tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tide import charts
from tide.charts import Series
from tide.evaluation.sweep_figures import (
    ACTIVE,
    COSINE,
    DEAD,
    ERROR,
    FIGURES,
    NAMES,
    OF_MEAN,
    PROBES,
    RATIO,
    RECOVERED,
    VARIANCE,
    Figure,
)
from tide.evaluation.sweep_wording import Figures, known, sweep_sentences
from tide.files import replace_file

#: The page's file in the folder of a sweep.
PAGE = "sweep.html"
MISSING = "\N{EN DASH}"
#: Those whose figures set the colours of a heat map: what does far worse is as pale as the worst of them.
SCALED = ("tide", "neurons", "pca_k", "pca")
#: Groups of concepts, in the page's order; others follow.
LEVELS = ("3d", "class", "part", "colour", "ground", "style", "age", "orientation")


@dataclass(frozen=True)
class Cell:
    """A cell of a heat map: its text, how strongly it is coloured (0 to 1), and what it says when pointed at."""

    text: str
    share: float = 0.0
    says: str = ""


@dataclass(frozen=True)
class Map:
    """A heat map: a label and a cell for each of ``columns`` a row."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]


@dataclass(frozen=True)
class Panel:
    """Heat maps of one figure on one scale, from ``low`` to ``high``."""

    title: str
    says: str
    better: str
    low: str
    high: str
    maps: list[Map]


@dataclass(frozen=True)
class Column:
    """A column of the table of blocks: a figure of a variant under a head."""

    head: str
    figure: Figure
    variant: str = "tide"


def write_sweep(path: str | Path, found: Figures, *, title: str = "Layer sweep", note: str = "") -> None:
    """Writes the page of what :func:`tide.evaluation.sweep` returned. ``note``: where the figures come from.

    ``found`` goes into the file ``path``, under ``title``.
    """
    environment = Environment(
        loader=PackageLoader("tide.evaluation", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("sweep.html").render(
        title=title,
        note=note,
        sentences=sweep_sentences(found),
        cards=_cards(found),
        charts=_charts(found),
        panels=[panel for each in FIGURES if (panel := _timesteps(found, each))],
        concepts=[panel for each in PROBES.values() if (panel := _concepts(found, each))],
        table=_table(found),
        average=_average(found),
        images=found["images"],
        n_blocks=len(found["blocks"]),
        n_timesteps=len(found["timesteps"]),
        sae=next(iter(found["blocks"].values()))["sae"],
        known_masks=any(each["level"] in LEVELS for each in (found["concepts"] or {}).values()),
    )
    replace_file(Path(path), lambda temporary: temporary.write_text(page, encoding="utf-8"))


def _cards(found: Figures) -> list[tuple[str, str, str]]:
    """Label, average over the blocks, and the same of a baseline, of the figures that matter most."""
    cards: list[tuple[str, str, str]] = []
    for figure, beside in ((VARIANCE, "pca_k"), (RECOVERED, "pca_k"), (PROBES["5"], "neurons")):
        own, other = (figure.average(found, name) for name in ("tide", beside))
        unit = " %" if figure.per_cent else ""
        if own is not None and other is not None:
            cards.append((figure.title, figure.write(own) + unit, f"{NAMES[beside][0]}: {figure.write(other)}{unit}"))
    return cards


def _charts(found: Figures) -> list[dict[str, str]]:
    """Figures over the depth, each with its baselines; what cannot be drawn is left out."""
    drawn = []
    for figure, variants, caption in (
        (VARIANCE, ("tide", "pca_k", "neurons", "random"), "Of the activations' variance, about their mean."),
        (
            RECOVERED,
            ("tide", "pca_k", "neurons", "random", "mean"),
            "Of the loss that zeroing the block adds.",
        ),
        (PROBES["1"], ("tide", "pca", "neurons", "random"), "AUROC of the one feature that tells a concept best."),
        (PROBES["5"], ("tide", "pca", "neurons", "random"), "AUROC of a linear probe on five features."),
    ):
        series = [_series(found, figure, name) for name in variants]
        svg = charts.line_svg(series, x_label="block", percent="y" if figure.per_cent else "", whole_x=True)
        if svg:
            names = ", ".join(each.name for each in series)
            drawn.append({"title": figure.title, "caption": caption, "svg": svg, "alt": f"{figure.title}: {names}"})
    return drawn


def _series(found: Figures, figure: Figure, variant: str) -> Series:
    points, errors = [], []
    for block, figures in found["blocks"].items():
        value = figure.of(figures, variant)
        points.append((float(block), math.nan if value is None else value))
        errors.append(figure.error(figures, variant))
    name, ink = NAMES[variant]
    dashes = (0, (2, 2)) if variant in ("mean", "random") else "-"
    return Series(name, ink, points, dashes=dashes, errors=errors)


def _timesteps(found: Figures, figure: Figure) -> Panel | None:
    """Block by timestep of the latents and of their baselines."""
    timesteps = [f"{t:g}" for t in found["timesteps"]]

    def values(variant: str) -> list[tuple[str, list[float | None]]]:
        return [
            (block, [figure.of(figures, variant, "timestep", t) for t in timesteps])
            for block, figures in found["blocks"].items()
        ]

    return _panel(figure, timesteps, values, "block {row}, timestep {column}")


def _concepts(found: Figures, figure: Figure) -> Panel | None:
    """Concept by block, in groups."""
    levels = {name: str(each["level"]) for name, each in (found["concepts"] or {}).items()}
    order = [level for level in LEVELS if level in levels.values()]
    order += [level for level in dict.fromkeys(levels.values()) if level not in order]
    names = [name for level in order for name in levels if levels[name] == level]

    def values(variant: str) -> list[tuple[str, list[float | None]]]:
        blocks = found["blocks"].values()
        path = (figure.part, variant, figure.path[0], "concepts")
        return [(name, [known(figures, *path, name) for figures in blocks]) for name in names]

    return _panel(figure, list(found["blocks"]), values, "{row}, block {column}")


def _panel(
    figure: Figure,
    columns: list[str],
    values: Callable[[str], list[tuple[str, list[float | None]]]],
    says: str,
) -> Panel | None:
    """The maps of all variants that have the figure, on the scale of :data:`SCALED`; None if none has."""
    of_variants = {name: values(name) for name in NAMES}
    flat = [v for name in SCALED for _, row in of_variants[name] for v in row if v is not None]
    if not flat:
        return None
    low, high = _scale(flat)

    def cells(label: str, row: list[float | None]) -> list[Cell]:
        named = zip(row, columns, strict=True)
        return [_cell(figure, v, low, high, says.format(row=label, column=column)) for v, column in named]

    maps = [
        Map(NAMES[name][0], columns, [(label, cells(label, row)) for label, row in rows])
        for name, rows in of_variants.items()
        if any(value is not None for _, row in rows for value in row)
    ]
    return Panel(figure.title, figure.says, figure.better, figure.cell(low), figure.cell(high), maps)


def _scale(values: Sequence[float]) -> tuple[float, float]:
    """The range of the colours: from the fifth percentile, so that one bad cell does not take all of it."""
    ordered = sorted(values)
    return ordered[len(ordered) // 20], ordered[-1]


def _cell(figure: Figure, value: float | None, low: float, high: float, says: str) -> Cell:
    if value is None:
        return Cell(MISSING, 0.0, f"{says}: not known")
    share = (value - low) / (high - low) if high > low else 0.5
    return Cell(figure.cell(value), min(1.0, max(0.0, share)), f"{says}: {value:.4g}")


def _table(found: Figures) -> dict[str, Any]:
    """A row a block to sort by any figure, and the average; columns without figures are left out."""
    columns = [
        Column("variance explained, %", VARIANCE),
        Column("PCA k", VARIANCE, "pca_k"),
        Column("cosine", COSINE),
        Column("normalised error", ERROR),
        Column("active latents", ACTIVE),
        Column("dead, %", DEAD),
        Column("loss ratio", RATIO),
        Column("recovered, %", RECOVERED),
        Column("of mean, %", OF_MEAN),
        *(Column(f"5-sparse, {NAMES[name][0]}", PROBES["5"], name) for name in ("tide", "neurons", "random")),
    ]
    shown = [c for c in columns if any(c.figure.of(f, c.variant) is not None for f in found["blocks"].values())]
    rows = [(block, [_entry(c, figures) for c in shown]) for block, figures in found["blocks"].items()]
    means = [_mean_entry(c, c.figure.average(found, c.variant)) for c in shown]
    return {"heads": [c.head for c in shown], "rows": rows, "means": means}


def _entry(column: Column, figures: Any) -> dict[str, Any]:
    value, error = column.figure.of(figures, column.variant), column.figure.error(figures, column.variant)
    if value is None:
        return {"text": MISSING, "value": "", "error": ""}
    shown = column.figure.write(error) if math.isfinite(error) and error > 0 else ""
    return {"text": column.figure.write(value), "value": f"{value:.9g}", "error": shown}


def _mean_entry(column: Column, value: float | None) -> str:
    return MISSING if value is None else column.figure.write(value)


def _average(found: Figures) -> dict[str, Any]:
    """A row for the latents and each baseline: every figure's mean and standard deviation over the blocks."""
    figures = [each for each in FIGURES if any(_mean_of(found, each, name) for name in NAMES)]
    rows = []
    for name, (label, _) in NAMES.items():
        if name == "pca":  # its probes stand in the row of PCA k
            continue
        variants = ["pca" if (name, each.part) == ("pca_k", "probes") else name for each in figures]
        cells = [_mean_of(found, each, variant) for each, variant in zip(figures, variants, strict=True)]
        if any(cells):
            rows.append((label, [cell or (MISSING, "") for cell in cells]))
    return {"heads": [(each.title, each.says) for each in figures], "rows": rows}


def _mean_of(found: Figures, figure: Figure, variant: str) -> tuple[str, str] | None:
    mean, spread = (figure.average(found, variant, which) for which in ("mean", "spread"))
    if mean is None or spread is None:
        return None
    return figure.write(mean), figure.write(spread) if len(found["blocks"]) > 1 else ""
