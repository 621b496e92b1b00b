"""The sections of the report that are made of figures alone: tables and charts of what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from tide.studies.figures import Series, bar_chart, line_chart
from tide.studies.page import Column, chart, charts, figure_of, fixed, fold, get, number, percent, settings, table

NAMES = {
    "tide": "TIDE",
    "sae": "SAE",
    "mean": "mean",
    "pca_k": "PCA k",
    "pca_k/4": "PCA k/4",
    "contrast": "latents, one reference",
    "steer contrast": "raw, one reference",
    "steer bounded": "raw bounded, one reference",
    "towards": "latents towards target",
    "steer towards": "raw towards target",
    "swap": "latents swapped",
    "steer": "raw steering",
    "prompt": "prompt",
    "clean": "unedited",
    "ablated": "zeroed",
}


def in_order(data: dict | None, order: Sequence[str]) -> list[str]:
    """The keys of ``data``: those of ``order`` first and in that order, then the others."""
    data = data or {}
    return [name for name in order if name in data] + [name for name in data if name not in order]


# -- reconstruction ---------------------------------------------------------------------------------------

MODELS = {"sae": "SAE", "tide": "TIDE", "pca_k": "PCA, k components", "pca_k/4": "PCA, k/4 components", "mean": "mean"}


def models_section(metrics: dict) -> str:
    models = metrics.get("models") or {}
    names = in_order(models, list(MODELS))

    def column(head: str, key: str, better: str, write: Callable[[Any], str]) -> Column:
        return Column(head, [get(models[name], key) for name in names], write, better)

    error = fixed([get(models[name], key) for name in names for key in ("train_mse", "val_mse")])
    body = table(
        "model",
        [MODELS.get(name, name) for name in names],
        [
            column("error, training", "train_mse", "low", error),
            column("error, held out", "val_mse", "low", error),
            column("cosine, training", "train_cosine", "high", lambda v: number(v, 4)),
            column("cosine, held out", "val_cosine", "high", lambda v: number(v, 4)),
            column("variance explained", "explained_variance", "high", lambda v: percent(v, 1)),
            column("active latents", "l0", "", lambda v: number(v, 0)),
            column("dead latents", "dead", "low", lambda v: percent(v, 1)),
        ],
        kinds=["" if name in ("sae", "tide") else "minor" for name in names],
    )
    return body and (
        "<p>How much of a patch's numbers comes back after the detour through the latents. The two autoencoders stand "
        "on top, simpler ways to compress below; the best figure of a column is bold.</p>"
        f'{body}<p class="quiet">Error is the mean squared difference (lower is better); cosine compares directions, '
        "1 being the same; variance explained is the share of the differences between patches that is kept. "
        "Training figures are on images the autoencoder learnt from, held-out ones on images it never saw. Active "
        "latents are counted per patch, dead ones never fired on held-out images. PCA keeps the strongest fixed "
        "directions of the data: with k of them it stores as many numbers as the latents that may fire. "
        "Mean answers every patch with the same average.</p>"
    )


def figure_of_text(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def bin_middle(name: str) -> float:
    """The middle of a bin such as "100-200"."""
    low, _, high = name.partition("-")
    return (figure_of_text(low) + figure_of_text(high)) / 2


TIMESTEPS: dict[str, Any] = {"x_label": "timestep (1,000: pure noise)", "x_range": (0, 1000)}


def timestep_section(metrics: dict) -> str:
    models = metrics.get("models") or {}

    def curves(key: str) -> list[Series]:
        bins = {name: get(models, name, "timestep") or {} for name in in_order(models, list(MODELS)) if name != "mean"}
        return [
            Series(NAMES.get(name, name), name, [(bin_middle(b), figure_of(get(v, key))) for b, v in data.items()])
            for name, data in bins.items()
        ]

    body = charts(
        [
            chart(
                "Error",
                line_chart(curves("mse_normalised"), title="Error by timestep", log_y=True, **TIMESTEPS),
                "Mean squared error, log scale; lower is better.",
            ),
            chart(
                "Variance explained",
                line_chart(curves("explained_variance"), title="Variance explained", percent=True, **TIMESTEPS),
                "Of the differences between patches; higher is better.",
            ),
        ]
    )
    return body and (
        "<p>The same copies, judged at each stretch of the denoising. Timestep 1,000 is pure noise, 0 the finished "
        "picture; what the model holds changes on the way, which is what TIDE is told and the plain SAE is not.</p>"
        + body
    )


LOSS_ROWS = {
    "clean": "untouched model",
    "tide": "copied by TIDE",
    "sae": "copied by the SAE",
    "pca_k": "copied by PCA, k components",
    "pca_k/4": "copied by PCA, k/4 components",
    "mean": "replaced by the mean",
    "ablated": "set to zero",
}


def loss_section(metrics: dict) -> str:
    data = metrics.get("diffusion_loss") or {}
    tide = {"loss": data.get("reconstructed"), "recovered": data.get("recovered")}
    variants = get(data, "variants") or {"tide": tide}
    losses = {name: get(row, "loss") for name, row in variants.items()}
    losses |= {"clean": data.get("clean"), "ablated": data.get("ablated")}
    names = [n for n in in_order(losses, list(LOSS_ROWS)) if not math.isnan(figure_of(losses[n]))]
    clean = figure_of(data.get("clean"))
    block, n_blocks = get(metrics, "sizes", "block"), get(metrics, "sizes", "n_blocks")
    known = block is not None and n_blocks is not None
    layer = f"block {block} (they count from 0 to {n_blocks - 1})" if known else "one block"
    values = [losses[name] for name in names]
    figures = table(
        "the block's output is",
        [LOSS_ROWS.get(name, name) for name in names],
        [
            Column("denoising loss", values, fixed(values)),
            Column("times the untouched", [figure_of(v) / clean if clean else math.nan for v in values], number),
            Column("recovered", [get(variants, name, "recovered") for name in names], lambda v: percent(v, 1), "high"),
        ],
        kinds=["" if name in ("tide", "sae") else "minor" for name in names],
    )
    steps = get(data, "timestep") or {}
    curves = [
        Series(NAMES[name], name, [(figure_of_text(t), figure_of(v)) for t, v in (steps.get(name) or {}).items()])
        for name in ("clean", "sae", "tide", "ablated")
    ]
    svg = line_chart(curves, title="Denoising loss", log_y=True, **TIMESTEPS)
    if not names and not svg:
        return ""
    return (
        f"<p>Can the model still draw with the copy in place of the original? The output of {layer} is swapped for its "
        "reconstruction and the model predicts the noise as before; the loss is the mean squared error of that "
        "prediction.</p>"
        f'<div class="beside">{figures}{chart("Loss by timestep, log scale", svg)}</div>'
        '<p class="quiet">Recovered is the share of the damage done by setting the block to zero that the copy avoids: '
        "100&nbsp;% would be as good as the untouched model, 0&nbsp;% no better than nothing.</p>"
    )


# -- concepts ---------------------------------------------------------------------------------------------

LEVELS = ("3d", "class", "part", "colour", "ground")
LEVEL_NAMES = {"3d": "3D"}


def concepts_section(metrics: dict) -> str:
    levels, concepts = metrics.get("levels") or {}, metrics.get("concepts") or {}
    rows = in_order(levels, LEVELS)
    kinds = [LEVEL_NAMES.get(row, row) for row in rows]

    def bars(keys: dict[str, tuple[str, str]]) -> list[tuple[str, str, list[float]]]:
        series = [(name, ink, [figure_of(get(levels[r], key)) for r in rows]) for key, (name, ink) in keys.items()]
        return [s for s in series if any(not math.isnan(v) for v in s[2])]

    latent, neuron, recipe = ("latent", "tide"), ("neuron", "neuron"), ("recipe", "recipe")
    finding = bars({"auroc": latent, "neuron_auroc": neuron, "recipe_auroc": recipe})
    covering = bars({"iou": latent, "neuron_iou": neuron})
    # A mean below chance would vanish on an axis that starts at 0.5.
    base = 0.5 if all(not v < 0.5 for _, _, values in finding for v in values) else 0.0
    pictures = charts(
        [
            chart(
                "Finding the concept (AUROC)",
                bar_chart(kinds, finding, title="AUROC by level", base=base, top=1.0) if finding else "",
                "The chance that a patch of the concept scores above a patch outside it: 0.5 is guessing, 1 perfect.",
            ),
            chart(
                "Covering it exactly (overlap)",
                bar_chart(kinds, covering, title="Overlap by level", base=0.0, top=1.0) if covering else "",
                "Patches in both the map and the truth over patches in either (IoU): 1 is a perfect fit.",
            ),
        ]
    )
    full = concept_table(concepts)
    if not pictures and not full:
        return ""
    return (
        "<p>Means over all concepts, by kind; 3D stands for near, far and shadow. <em>Latent</em> is TIDE's best "
        "single latent; <em>neuron</em> the best of the model's own numbers, without any autoencoder; <em>recipe</em> "
        "compares a patch's latents with the average over pictures that show the concept, and so need not be told "
        "where in a picture it is.</p>" + pictures + (fold(f"All {len(concepts)} concepts", full) if full else "")
    )


def concept_table(concepts: dict) -> str:
    level = {name: str(get(row, "level") or "") for name, row in concepts.items()}
    names = [n for lv in in_order(dict.fromkeys(level.values()), LEVELS) for n in concepts if level[n] == lv]
    starts = [i > 0 and level[n] != level[names[i - 1]] for i, n in enumerate(names)]

    def column(head: str, key: str, decimals: int = 2) -> Column:
        return Column(head, [get(concepts[n], key) for n in names], lambda v: number(v, decimals))

    return table(
        "concept",
        [f"{n} ({level[n]})" if level[n] else n for n in names],
        [
            Column("latent", [get(concepts[n], "latent") for n in names], lambda v: number(v, 0).replace(",", "")),
            column("AUROC, latent", "auroc"),
            column("AUROC, neuron", "neuron_auroc"),
            column("AUROC, recipe", "recipe_auroc"),
            column("overlap, latent", "iou"),
            column("overlap, neuron", "neuron_iou"),
            Column("neuron", [get(concepts[n], "neuron") for n in names], lambda v: number(v, 0).replace(",", "")),
        ],
        kinds=["group" if start else "" for start in starts],
    )


#: The edits of the trade-off, and which colours of the page they take.
EDITS = {
    "contrast": "tide",
    "steer contrast": "steer",
    "steer bounded": "pca_k",
    "towards": "clean",
    "steer towards": "neuron",
    "swap": "sae",
    "steer": "pca_k/4",
    "prompt": "prompt",
}


def trade_off_section(metrics: dict) -> str:
    data = metrics.get("trade_off") or {}
    series, labels, rows = [], [], []
    for name in in_order(data, list(EDITS)):
        points = [data[name]] if isinstance(data[name], dict) else list(data[name] or [])
        rows += points
        spots = [(figure_of(get(p, "preserved")), figure_of(get(p, "success"))) for p in points]
        notes = ["" if get(p, "factor") is None else f"{p['factor']:g}" for p in points]
        labels += [f"{NAMES.get(name, name)} {note}" for note in notes]
        series.append(Series(NAMES.get(name, name), EDITS.get(name, name), spots, notes, dots=True))
    svg = line_chart(
        series, title="Trade-off", x_label="all else kept", percent=True, x_range=(0, 1.04), y_range=(0, 1.06)
    )
    figures = table(
        "edit, strength",
        labels,
        [
            Column("changed to the target", [get(p, "success") for p in rows], percent),
            Column("all else kept", [get(p, "preserved") for p in rows], percent),
            Column("both", [get(p, "both") for p in rows], percent, "high"),
        ],
    )
    return svg and (
        "<p>A stronger edit changes more pictures and breaks more of them. Each point is one strength, written beside "
        "it; the best edits lie at the top right.</p>"
        f'<div class="beside">{chart("Changed to the target", svg)}{figures}</div>{preservation_table(metrics)}'
        '<p class="quiet">One reference: the edit knows one picture that shows the target, and the difference that the '
        "target's word makes there; latents are moved along it up to the level they have on that picture, raw "
        "activations by the same difference, without bound or, neuron by neuron, with the same bound. Towards target: "
        "the edit knows what the block holds, step by step, while the target's own prompt is drawn. Swapped and "
        "steering know the target only as an average over training scenes. Prompt draws the same seed anew from the "
        "words of the target: what the model does when it is simply asked.</p>" + sweep_table(metrics)
    )


def preservation_table(metrics: dict) -> str:
    """The most that each method changes while a given share of the pictures keeps all else."""
    levels = metrics.get("equal_preservation") or {}
    names = in_order({name: None for row in levels.values() for name in row}, list(EDITS))

    def column(name: str) -> Column:
        intervals = [get(row, name, "interval") for row in levels.values()]
        notes = [f"{100 * i[0]:.0f} to {100 * i[1]:.0f}" if i else "" for i in intervals]
        return Column(NAMES.get(name, name), [get(r, name, "success") for r in levels.values()], percent, notes=notes)

    rows = [f"all else kept in {percent(figure_of_text(level))} or more" for level in levels]
    body = table("changed to the target, where", rows, [column(name) for name in names])
    return body and f"<p>At equal preservation, each method at the strength that changes most:</p>{body}"


def sweep_table(metrics: dict) -> str:
    """Every block, step range and strength that was tried on development prompts."""
    points = get(metrics, "edit_sweep", "points") or []
    labels = [
        f"{NAMES.get(p['method'], p['method'])}, block {p['block']}, "
        f"steps {percent(p['steps'][0])} to {percent(p['steps'][1])}, {p['factor']:g}"
        for p in points
    ]
    body = table(
        "edit, strength",
        labels,
        [
            Column("changed to the target", [get(p, "success") for p in points], percent),
            Column("all else kept", [get(p, "preserved") for p in points], percent),
            Column("both", [get(p, "both") for p in points], percent, "high"),
        ],
    )
    return body and fold(f"The {len(points)} settings tried on development prompts", body)


# -- training and making ----------------------------------------------------------------------------------

CURVES = (
    ("mse", "Reconstruction error", "Mean squared error, log scale.", True),
    ("explained_variance", "Variance explained", "Of the differences between a batch's patches.", False),
    ("cosine", "Direction error", "1 less the cosine similarity, log scale.", True),
    ("temporal", "Drift over time", "How far latents move between neighbouring timesteps, log scale.", True),
    ("loss", "Total loss", "What training lowers: the weighted sum, log scale.", True),
    ("silent", "Silent latents", "Share that did not fire in a batch.", False),
    ("k", "Latents allowed to fire", "Per patch: wide at first, then narrowed to k.", False),
)

#: Curves that are written as percentages.
SHARES = ("explained_variance", "silent")


def training_section(histories: dict[str, list[dict]]) -> str:
    def curves(key: str) -> list[Series]:
        return [
            Series(
                NAMES.get(name, name),
                name,
                [(figure_of(get(e, "step")), figure_of(get(e, key))) for e in histories[name] or []],
            )
            for name in in_order(histories, ["sae", "tide"])
        ]

    body = charts(
        [
            chart(
                title,
                line_chart(
                    curves(key),
                    title=title,
                    x_label="step",
                    log_y=log_y,
                    percent=key in SHARES,
                ),
                caption,
            )
            for key, title, caption, log_y in CURVES
        ]
    )
    return body and "<p>Both autoencoders learn from the same activations in the same order.</p>" + body


def made_section(metrics: dict) -> str:
    stages = metrics.get("stages") or {}
    seconds, machine = figure_of(metrics.get("seconds")), metrics.get("machine")
    took = "" if math.isnan(seconds) else f"The whole study took {seconds:,.0f} seconds"
    where = f"on {escape(str(machine))}" if machine else ""
    sentence = f"{took} {where}.".strip() if took else f"Made {where}." if where else ""
    times = [Column("seconds", list(stages.values()), lambda v: number(v, 1))]
    folds = [
        fold("Seconds per stage", table("stage", list(stages), times)),
        fold("Configuration", settings(metrics.get("config") or {})),
        fold("Versions", settings(metrics.get("versions") or {})),
        fold("Sizes", settings(metrics.get("sizes") or {})),
    ]
    parts = [stages, metrics.get("config"), metrics.get("versions"), metrics.get("sizes")]
    shown = "".join(part for part, data in zip(folds, parts, strict=True) if data)
    return (f"<p>{sentence}</p>" if sentence else "") + shown
