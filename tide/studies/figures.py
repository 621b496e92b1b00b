"""Figures of the report: images with outlines, and charts as inline SVG.

Charts are SVG rather than pixels so that their text and colours follow the reader's light or dark page through the
CSS variables of :data:`CHART_STYLE`. Colours are Okabe and Ito's, which colour-blind readers can tell apart, and
lines differ in their dashes too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np

from tide.pictures import png_data

#: Series name -> CSS colour variable and dash pattern. Anything else is drawn in the muted text colour.
INKS: dict[str, tuple[str, str]] = {
    "tide": ("--tide", ""),
    "sae": ("--sae", "7 3"),
    "pca_k": ("--pca", "2 3"),
    "pca_k/4": ("--pca", "1 4"),
    "steer": ("--sae", "7 3"),
    "prompt": ("--prompt", ""),
    "clean": ("--text", ""),
    "neuron": ("--muted", ""),
    "recipe": ("--prompt", ""),
}

CHART_STYLE = """
:root { --tide: #0072b2; --sae: #c85200; --pca: #00805d; --prompt: #a8487e; }
@media (prefers-color-scheme: dark) {
  :root { --tide: #5cb8ef; --sae: #f0a03c; --pca: #3fc59b; --prompt: #e39bc3; }
}
svg.chart { display: block; width: 100%; max-width: 440px; height: auto; overflow: visible; }
svg.chart text { font: 11.5px system-ui, sans-serif; fill: var(--muted); font-variant-numeric: tabular-nums;
  paint-order: stroke; stroke: var(--page); stroke-width: 3px; stroke-linejoin: round; }
svg.chart .name { font-weight: 600; fill: var(--ink); }
svg.chart text.row { fill: var(--text); }
svg.chart .grid { stroke: var(--line); stroke-width: 1; }
svg.chart .axis { stroke: var(--muted); stroke-width: 1; }
svg.chart .curve { fill: none; stroke: var(--ink); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg.chart .dot { fill: var(--ink); stroke: var(--page); stroke-width: 1.5; }
svg.chart .bar { fill: var(--ink); }
"""

WIDTH, HEIGHT = 360, 224
LEFT, TOP, BOTTOM = 46, 10, 38
MAX_POINTS = 240

MINUS = "\N{MINUS SIGN}"


def pixel_image(image: np.ndarray, alt: str, outline: np.ndarray | None = None) -> str:
    """An ``<img>`` that grows without blurring, with the border of the mask ``outline`` drawn over it if it has one."""
    path = "" if outline is None else outline_path(outline)
    height, width = image.shape[:2]
    paths = f'<path class="halo" d="{path}"/><path d="{path}"/>'
    overlay = f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">{paths}</svg>' if path else ""
    return f'<span class="pixels"><img src="{png_data(image)}" alt="{escape(alt)}">{overlay}</span>'


def outline_path(mask: np.ndarray) -> str:
    """SVG path along the pixel edges between the True and the False of ``mask [H, W]``; empty for an empty mask.

    Holes of one pixel, which anti-aliased seams leave, are not outlined.
    """
    padded = np.pad(np.asarray(mask, dtype=bool), 1)
    padded[1:-1, 1:-1] |= padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    horizontal = padded[1:, 1:-1] != padded[:-1, 1:-1]  # [H + 1, W]: an edge above row y
    vertical = padded[1:-1, 1:] != padded[1:-1, :-1]  # [H, W + 1]: an edge left of column x
    steps = [f"M{x0} {y}H{x1}" for y, row in enumerate(horizontal) for x0, x1 in _runs(row)]
    steps += [f"M{x} {y0}V{y1}" for x, column in enumerate(vertical.T) for y0, y1 in _runs(column)]
    return "".join(steps)


def _runs(flags: np.ndarray) -> Iterable[tuple[int, int]]:
    """Half-open ranges in which ``flags`` is True."""
    edges = np.flatnonzero(np.diff(np.pad(flags.astype(np.int8), 1)))
    return zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


@dataclass(frozen=True)
class Series:
    """A curve: ``ink`` is a key of :data:`INKS`; ``notes``, one a point, are written beside the points."""

    name: str
    ink: str
    points: Sequence[tuple[float, float]]
    notes: Sequence[str] | None = None
    dots: bool = False


def _ink(ink: str) -> str:
    variable, _ = INKS.get(ink, ("--muted", ""))
    return f"--ink: var({variable})"


def _dashes(ink: str) -> str:
    dashes = INKS.get(ink, ("", "3 3"))[1]
    return f' stroke-dasharray="{dashes}"' if dashes else ""


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points in order of x, averaged in groups so that at most :data:`MAX_POINTS` stay."""
    ordered = sorted(points)
    group = math.ceil(len(ordered) / MAX_POINTS)
    if group < 2:
        return ordered
    return [tuple(np.mean(ordered[i : i + group], axis=0)) for i in range(0, len(ordered), group)]


def _drawable(series: Iterable[Series], log_y: bool) -> list[Series]:
    """The series without the points that cannot be drawn (NaN, or not positive on a log scale), empty ones left out."""
    out = []
    for s in series:
        keep = [i for i, xy in enumerate(s.points) if all(map(math.isfinite, xy)) and (not log_y or xy[1] > 0)]
        if keep:
            notes = None if s.notes is None else [s.notes[i] for i in keep]
            out.append(Series(s.name, s.ink, [s.points[i] for i in keep], notes, s.dots))
    return out


def linear_ticks(low: float, high: float, target: int = 5) -> list[float]:
    """Round numbers (steps of 1, 2 or 5 times a power of ten) inside ``[low, high]``, about ``target`` of them."""
    raw = (high - low) / target
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.9)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten inside ``[low, high]``, with their 2 and 5 multiples where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    decades = [10.0**p for p in powers if low <= 10.0**p <= high]
    if len(decades) > 2:
        return decades[:: math.ceil(len(decades) / 5)]
    fine = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    return fine if len(fine) > 1 else linear_ticks(low, high)


def _tick(value: float, percent: bool) -> str:
    if percent:
        return f"{100 * value:.0f} %"
    if 0 < abs(value) < 1e-3:
        exponent = math.floor(math.log10(abs(value)) + 1e-9)
        mantissa = round(value / 10.0**exponent)
        power = "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return power if mantissa == 1 else f"{mantissa}·{power}"
    return f"{value:,.6g}".replace("-", MINUS)


def _range(values: Sequence[float], pad: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = pad * (high - low) if high > low else max(abs(high), 1.0) * 0.1
    return low - margin, high + margin


def line_chart(
    series: Iterable[Series],
    *,
    title: str,
    x_label: str,
    log_y: bool = False,
    percent: bool = False,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> str:
    """An SVG line chart whose curves carry their names; empty text where nothing can be drawn.

    Names stand right of the curves' ends or, for a series with ``notes``, beside its last point. ``percent`` writes
    shares as percentages, on the y axis and, if ``x_range`` ends at 1, on the x axis.
    """
    drawn = _drawable(series, log_y)
    if not drawn:
        return ""
    scatter = any(s.notes is not None for s in drawn)
    right = WIDTH - (14 if scatter else 18 + max(6.8 * len(s.name) for s in drawn))
    floor = HEIGHT - BOTTOM
    scale = math.log10 if log_y else float
    x0, x1 = x_range or (min(x for s in drawn for x, _ in s.points), max(x for s in drawn for x, _ in s.points))
    x1 = x1 if x1 > x0 else x0 + 1
    y0, y1 = y_range or _range([scale(y) for s in drawn for _, y in s.points], 0.06)

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + (x - x0) / (x1 - x0) * (right - LEFT), floor - (scale(y) - y0) / (y1 - y0) * (floor - TOP)

    body = []
    for value in log_ticks(10**y0, 10**y1) if log_y else linear_ticks(y0, y1):
        _, y = place(x0, value)
        body.append(f'<line class="grid" x1="{LEFT}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick(value, percent)}</text>')
    body.append(f'<line class="axis" x1="{LEFT}" x2="{right:.1f}" y1="{floor}" y2="{floor}"/>')
    for value in linear_ticks(x0, x1):
        x = place(value, 10**y0 if log_y else y0)[0]
        label = _tick(value, percent and x_range is not None and x1 <= 1.5)
        body.append(f'<text x="{x:.1f}" y="{floor + 15}" text-anchor="middle">{label}</text>')
    body.append(f'<text x="{right:.1f}" y="{floor + 32}" text-anchor="end">{escape(x_label)}</text>')

    placed = [[place(x, y) for x, y in (s.points if s.notes is not None else thin(s.points))] for s in drawn]
    for s, spots in zip(drawn, placed, strict=True):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        body.append(f'<g style="{_ink(s.ink)}"><polyline class="curve"{_dashes(s.ink)} points="{path}"/>')
        if s.dots or len(spots) == 1:
            body += [f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>' for x, y in spots]
        body.append("</g>")
    body += _notes(drawn, placed, right) if scatter else _end_names(drawn, placed, right)
    names = ", ".join(s.name for s in drawn)
    label = escape(f"{title}: {names}")
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(body)}</svg>'


def _end_names(drawn: Sequence[Series], placed: Sequence[list[tuple[float, float]]], right: float) -> list[str]:
    """Names right of the curves' ends, pushed apart where they would touch."""
    gap = 14.0
    ends = sorted(((spots[-1][1], s) for s, spots in zip(drawn, placed, strict=True)), key=lambda pair: pair[0])
    heights: list[float] = []
    for y, _ in ends:
        heights.append(y if not heights else max(y, heights[-1] + gap))
    # Pushed down too far, the whole stack moves up: the last names keep their order and stay inside.
    limit = HEIGHT - BOTTOM - 4.0
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], limit)
        limit = heights[i] - gap
    return [
        f'<text class="name" style="{_ink(s.ink)}" x="{right + 8:.1f}" y="{y + 4:.1f}">{escape(s.name)}</text>'
        for y, (_, s) in zip(heights, ends, strict=True)
    ]


def _notes(drawn: Sequence[Series], placed: Sequence[list[tuple[float, float]]], right: float) -> list[str]:
    """Names and notes beside their points, each where it covers nothing, and left out where there is no such place."""
    taken = [(x - 5, y - 5, x + 5, y + 5) for spots in placed for x, y in spots]
    for spots in placed:
        for (x0, y0), (x1, y1) in pairwise(spots):
            for t in np.linspace(0, 1, 2 + int(math.hypot(x1 - x0, y1 - y0) / 4)):
                x, y = x0 + t * (x1 - x0), y0 + t * (y1 - y0)
                taken.append((x - 2, y - 2, x + 2, y + 2))
    out = []

    def write(text: str, spot: tuple[float, float], style: str) -> None:
        wide, high = 6.7 * len(text), 13.0
        x, y = spot
        corners = [
            (x + 8, y - high / 2),
            (x - 8 - wide, y - high / 2),
            (x - wide / 2, y - 9 - high),
            (x - wide / 2, y + 8),
            (x + 6, y - 6 - high),
            (x - 6 - wide, y + 5),
        ]
        for left, top in corners:
            box = (left, top, left + wide, top + high)
            inside = left > LEFT and left + wide < right + 12 and top > 0 and top + high < HEIGHT - BOTTOM
            if inside and not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                taken.append(box)
                out.append(f'<text {style} x="{left:.1f}" y="{top + 10.5:.1f}">{escape(text)}</text>')
                return

    for s, spots in zip(drawn, placed, strict=True):
        write(s.name, spots[-1], f'class="name" style="{_ink(s.ink)}"')
    for s, spots in zip(drawn, placed, strict=True):
        for note, spot in zip(s.notes or [], spots, strict=False):
            if note:
                write(note, spot, "")
    return out


def bar_chart(
    rows: Sequence[str], series: Sequence[tuple[str, str, Sequence[float]]], *, title: str, base: float, top: float
) -> str:
    """Horizontal bars from ``base``: one group a row, one bar for each ``(name, ink, values)``, named in the first."""
    thick, between, left = 11, 14, 58
    longest = max((len(name) for name, _, _ in series), default=0)
    scale = (WIDTH - left - 44 - 6.4 * longest) / (top - base)
    body, y = [], 4.0
    named: set[str] = set()
    for i, row in enumerate(rows):
        middle = y + len(series) * (thick + 2) / 2
        body.append(f'<text class="row" x="{left - 8}" y="{middle + 3:.1f}" text-anchor="end">{escape(row)}</text>')
        for name, ink, values in series:
            value = values[i]
            if math.isfinite(value):
                length = max(0.0, min(value, top) - base) * scale
                suffix = "" if name in named else f'<tspan class="name" dx="6">{escape(name)}</tspan>'
                named.add(name)
                body.append(
                    f'<g style="{_ink(ink)}"><rect class="bar" x="{left}" y="{y:.1f}" width="{length:.1f}" '
                    f'height="{thick}" rx="1.5"/>'
                    f'<text x="{left + length + 6:.1f}" y="{y + 9.5:.1f}">{value:.2f}{suffix}</text></g>'
                )
            y += thick + 2
        y += between
    bottom = y - between + 4
    body.append(f'<line class="axis" x1="{left}" x2="{left}" y1="0" y2="{bottom:.1f}"/>')
    body.append(f'<text x="{left}" y="{bottom + 14:.1f}" text-anchor="middle">{base:g}</text>')
    ends = f'<text x="{left + (top - base) * scale:.1f}" y="{bottom + 14:.1f}" text-anchor="middle">{top:g}</text>'
    height = bottom + 18
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"{''.join(body)}{ends}</svg>"
    )
