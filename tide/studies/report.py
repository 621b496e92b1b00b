"""The report of a study: one HTML file that holds its images, works offline, and follows light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from tide.files import replace_file
from tide.pictures import heat_key, heat_overlay
from tide.scenes.judge import NO_OBJECT
from tide.studies.figures import pixel_image
from tide.studies.page import Column, document, get, number, percent, table
from tide.studies.sections import (
    NAMES,
    concepts_section,
    loss_section,
    made_section,
    models_section,
    timestep_section,
    trade_off_section,
    training_section,
)


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


@dataclass(frozen=True)
class EditStrip:
    """One prompt edited with growing strength; ``strengths[0] == 0`` is the unedited image.

    ``images`` uint8 and ``verdicts`` (attribute -> value, and ``"valid"``), one a strength; ``ceiling`` is the image
    drawn from the prompt that names the target.
    """

    title: str
    prompt: str
    attribute: str
    target: str
    strengths: list[float]
    images: list[np.ndarray]
    verdicts: list[dict]
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


def write_report(
    path: Path,
    metrics: dict,
    *,
    heat_maps: list[HeatMaps],
    strips: list[EditStrip],
    histories: dict[str, list[dict]],
) -> None:
    """Writes the page to ``path`` in one step; a section whose figures are missing is left out.

    ``histories[name]`` are the logged steps of the training of ``name`` ("sae", "tide"). Raises
    :class:`~tide.errors.TideError` if the file cannot be written.
    """
    sections = [
        ("rebuild", "Reconstruction", models_section(metrics)),
        ("time", "Through the denoising", timestep_section(metrics)),
        ("loss", "Drawing with the copy", loss_section(metrics)),
        ("where", "What latents stand for", heat_section(heat_maps)),
        ("concepts", "Concepts", concepts_section(metrics)),
        ("edits", "Edits", edits_section(metrics, strips)),
        ("trade-off", "Strength against damage", trade_off_section(metrics)),
        ("training", "Training", training_section(histories)),
        ("made", "How it was made", made_section(metrics)),
    ]
    kept = [(anchor, title, body) for anchor, title, body in sections if body]
    links = "".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title, _ in kept)
    main = "".join(f'<section id="{anchor}"><h2>{escape(title)}</h2>{body}</section>' for anchor, title, body in kept)
    headline = str(metrics.get("headline") or "Sparse latents of a diffusion transformer")
    size = ' class="long"' if len(headline) > 160 else ""
    page = document(
        title=f"TIDE: {headline}",
        header=f'<p class="kicker">TIDE study</p><h1{size}>{escape(headline)}</h1>{hero(strips)}'
        f"{introduction(metrics.get('sizes') or {})}<nav>{links}</nav>",
        main=main,
    )
    replace_file(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))


# -- the top of the page ----------------------------------------------------------------------------------


def best_frame(strip: EditStrip) -> int | None:
    """The weakest edit that reached the target, those that lost nothing first; None if none did."""
    reached = [i for i in range(1, min(len(strip.images), len(strip.verdicts))) if strip.reached(i)]
    return min(reached, key=lambda i: (len(strip.lost(i)), i), default=None)


def hero(strips: Sequence[EditStrip]) -> str:
    """The strip whose edit reached its target at the least cost, as the page's picture."""
    ranked = [(best_frame(strip), strip) for strip in strips if strip.images]
    if not ranked:
        return ""
    best, strip = min(ranked, key=lambda pair: math.inf if pair[0] is None else len(pair[1].lost(pair[0])))
    frames = "".join(
        f"<figure>{pixel_image(image, f'{strip.prompt}, {strip.title}, strength {strength:g}')}"
        f'<div class="strength">{"unedited" if strength == 0 else f"strength {strength:g}"}</div></figure>'
        for image, strength in zip(strip.images, strip.strengths, strict=True)
    )
    found = ""
    if best is not None:
        kept = "everything else it reads stays as it was" if not strip.lost(best) else "not all else stays as it was"
        found = f" At strength {strip.strengths[best]:g} a judge network reads “{escape(strip.target)}”, and {kept}."
    return (
        f'<figure class="hero"><div class="frames" style="--n:{len(strip.images)}">{frames}</div><figcaption>'
        f"One prompt, one seed, <b>{escape(strip.title)}</b>: “{escape(strip.prompt)}”, the latents moved further "
        f"towards the target from left to right while the image is drawn.{found}</figcaption></figure>"
    )


def introduction(sizes: dict) -> str:
    """What the page is about, in three sentences."""

    def count(name: str, otherwise: str) -> str:
        value = sizes.get(name)
        return otherwise if value is None else f"{value:,}"

    return (
        "<p>A diffusion transformer draws a picture by taking noise away step by step, and at every step it holds, for "
        f"each patch of the picture, a list of {count('d_model', 'many')} numbers that no one can read. A sparse "
        "autoencoder (SAE) rewrites each list as a few active <em>latents</em>, "
        f"{count('k', 'a handful')} out of {count('n_latents', 'many')}, in the hope that one latent stands for one "
        "thing with a name: a roof, a shadow, the colour red. TIDE is an SAE that is also told how far the denoising "
        "has come; this page shows how well both keep what the model holds, what their latents stand for, and what "
        "happens to the picture when latents are changed.</p>"
    )


# -- where latents fire ---------------------------------------------------------------------------------------------


def heat_section(heat_maps: Sequence[HeatMaps]) -> str:
    rows = "".join(concept_row(found) for found in heat_maps if found.images)
    return rows and (
        "<p>For each concept, the one latent that best tells its patches from all others, on pictures that took no "
        "part in choosing it. Above, the picture with the concept's true place outlined; below, where the latent "
        "fires. Pictures without the concept have no outline, and the latent should stay dark there.</p>"
        f'<div class="key quiet">silent <i style="background:{heat_key()}"></i> fires most '
        f"(one scale per concept)</div>{rows}"
    )


def concept_row(found: HeatMaps) -> str:
    top = max((float(np.nanmax(m, initial=0.0)) for m in found.maps), default=0.0)
    pairs = []
    for image, truth, heat in zip(found.images, found.truth, found.maps, strict=True):
        present = bool(truth.any())
        pairs.append(
            f'<figure class="pair">{pixel_image(image, "picture", truth)}'
            f"{pixel_image(heat_overlay(image, heat, top), f'where latent {found.latent} fires', truth)}"
            f"<figcaption>{'' if present else f'no {escape(found.concept)} here'}</figcaption></figure>"
        )
    return (
        f'<div class="concept"><div><h3>{escape(found.concept)}</h3><dl><dt>latent</dt><dd>{found.latent}</dd>'
        f"<dt>AUROC</dt><dd>{number(found.auroc, 2)}</dd><dt>overlap</dt><dd>{percent(found.iou)}</dd></dl></div>"
        f'<div class="pairs">{"".join(pairs)}</div></div>'
    )


# -- edits ------------------------------------------------------------------------------------------------


VERDICT_KEY = (
    '<p class="verdict">Under each picture stands what the judge reads: <b>the target</b>, where it was reached; '
    "<s>what was lost</s>, followed by what stands there instead.</p>"
)


def edits_section(metrics: dict, strips: Sequence[EditStrip]) -> str:
    edits = metrics.get("edits") or {}
    names = list(edits)

    def share(head: str, key: str) -> Column:
        intervals = [get(edits[n], "interval", key) for n in names]
        notes = [f"{100 * i[0]:.0f} to {100 * i[1]:.0f}" if i else "" for i in intervals]
        return Column(head, [get(edits[n], key) for n in names], percent, notes=notes)

    figures = table(
        "edit",
        [NAMES.get(name, name) for name in names],
        [
            share("changed to the target", "success"),
            share("all else kept", "preserved"),
            share("both", "both"),
            share("still a scene", "valid"),
            Column("pictures", [get(edits[n], "images") for n in names], lambda v: number(v, 0)),
        ],
    )
    rows = "".join(strip_figure(strip) for strip in strips if strip.images)
    if not figures and not rows:
        return ""
    counted = '<p class="quiet">In small type, the range in which the true share lies with 95&nbsp;% confidence.</p>'
    return (
        "<p>While the model draws from an unchanged prompt, its latents are moved the way that the target's word moves "
        "them on one other picture. A judge, a small network trained on scenes with known contents, then reads every "
        "attribute off the result and may also answer that no valid object is left.</p>"
        + (figures + counted if figures else "")
        + (rows and f"{VERDICT_KEY}{rows}")
    )


def strip_figure(strip: EditStrip) -> str:
    frames = []
    for i, (image, strength) in enumerate(zip(strip.images, strip.strengths, strict=True)):
        label = "unedited" if strength == 0 else f"strength {strength:g}"
        reading = verdict_list(strip, i) if i < len(strip.verdicts) else ""
        picture = pixel_image(image, f"{strip.title}, {label}")
        frames.append(f'<figure>{picture}<div class="strength">{label}</div>{reading}</figure>')
    if strip.ceiling is not None:
        frames.append(
            f'<figure class="ceiling">{pixel_image(strip.ceiling, f"drawn from a prompt that says {strip.target}")}'
            f'<div class="strength">prompt says “{escape(strip.target)}”</div></figure>'
        )
    return (
        f'<figure class="strip"><figcaption><b>{escape(strip.title)}</b> “{escape(strip.prompt)}”</figcaption>'
        f'<div class="frames" style="--n:{len(frames)}">{"".join(frames)}</div></figure>'
    )


def verdict_list(strip: EditStrip, i: int) -> str:
    if not strip.valid(i):
        return f'<ul class="verdict"><li class="bad">{NO_OBJECT}</li></ul>'
    lost, items = strip.lost(i), []
    for name, value in strip.verdicts[i].items():
        if name == "valid":
            continue
        text = escape(in_words(name, value))
        if name == strip.attribute and strip.reached(i):
            text = f"<b>{text}</b>"
        elif name in lost:
            text = f"<s>{escape(in_words(name, strip.verdicts[0][name]))}</s> {text}"
        items.append(f"<li>{text}</li>")
    return f'<ul class="verdict">{"".join(items)}</ul>'


def in_words(attribute: str, value: Any) -> str:
    return f"{value} {attribute}" if value in ("with", "without") else str(value)
