"""Charts as PNG files, and as SVG for light and dark pages. Matplotlib is loaded when the first one is drawn."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

from tide.files import replace_file

P = ParamSpec("P")

#: Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
#: Pixels to an inch of a chart.
DPI = 150


#: Colours of a page's charts: on light and on dark pages. Readers without full colour vision can tell them apart.
INKS = {
    "blue": ("#0072b2", "#5cb8ef"),
    "orange": ("#c85200", "#f0a03c"),
    "green": ("#00805d", "#3fc59b"),
    "purple": ("#a8487e", "#e39bc3"),
    "text": ("#22252a", "#e6e4df"),
    "muted": ("#676c75", "#9ba0a9"),
    "line": ("#e4e1da", "#30343b"),
}


def panels(n: int, *, width: float = 4.2, height: float = 3.4, columns: int | None = None) -> tuple[Any, list[Any]]:
    """A figure of ``n`` panels, ``columns`` in a row (default all), and their axes."""
    from matplotlib.figure import Figure

    columns = columns or n
    rows = -(-n // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = [figure.add_subplot(rows, columns, 1 + i) for i in range(n)]
    _plain(axes, "#dddddd")
    return figure, axes


def _plain(axes: Sequence[Any], grid: str) -> None:
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(True, color=grid, linewidth=0.6)
        each.set_axisbelow(True)


def style(i: int) -> dict[str, Any]:
    """Colour and marker of series ``i``."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "markersize": 4.5}


def log_scale(axes: Any, *which: str) -> None:
    """Logarithmic axes ("x", "y") with ticks at 1, 2 and 5 times the powers of ten, or at the powers alone where the
    axis spans more than three of them."""
    from matplotlib.ticker import LogLocator, NullFormatter

    for name in which:
        axes.set(**{f"{name}scale": "log"})
        axis = getattr(axes, f"{name}axis")
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 1000 * low else (1.0,), numticks=12))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
        axis.set_tick_params(labelsize="small")


def whole_numbers(*axes: Any) -> None:
    """Ticks of the x axis at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    for each in axes:
        each.xaxis.set_major_locator(MaxNLocator(integer=True))


def legend_beside(figure: Any, axes: Any) -> None:
    """One legend for all panels, right of them, from the first panel's series."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize="small")


def dots(axes: Any, names: Sequence[str], values: Sequence[Sequence[float]]) -> None:
    """A column for each name: a dot for each seed, and a line at their mean."""
    for i, each in enumerate(values):
        colour = COLOURS[i % len(COLOURS)]
        offsets = [i + 0.12 * (j - (len(each) - 1) / 2) for j in range(len(each))]
        axes.plot(offsets, each, "o", color=colour, markersize=4, alpha=0.8)
        axes.plot([i - 0.35, i + 0.35], [sum(each) / len(each)] * 2, color=colour, linewidth=2)
    axes.set_xticks(range(len(names)), names, rotation=25, ha="right", fontsize="small")


def strip_over_panels(rows: int, columns: int, n: int) -> tuple[Any, Any, list[Any]]:
    """A figure with an axis for ``rows`` of ``columns`` square pictures, and ``n`` panels below it."""
    from matplotlib.figure import Figure

    width = 4.0 * n
    figure = Figure(figsize=(width, rows * width / (columns + 2) + 3.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, squeeze=True, height_ratios=[rows * width / (columns + 2), 3.6])  # type: ignore[misc]
    strip = top.add_subplot()
    strip.set(xlim=(-1.5, columns), ylim=(-rows + 1, 1), aspect="equal")
    strip.set_axis_off()
    axes = [bottom.add_subplot(1, n, 1 + i) for i in range(n)]
    _plain(axes, "#dddddd")
    return figure, strip, axes


def pictures(axes: Any, images: Any, row: int) -> None:
    """Images ``[n, H, W, 3]`` in [0, 1] side by side in a row of :func:`strip_over_panels`, each one unit wide."""
    for i, image in enumerate(images):
        axes.imshow(image, extent=(i - 0.48, i + 0.48, 0.02 - row, 0.98 - row), interpolation="nearest", aspect="equal")


def band(axes: Any, x: Any, values: Any, colour: str, label: str) -> None:
    """The mean of ``values [points, samples]`` with one standard deviation to either side."""
    centre, wide = values.mean(1), values.std(1)
    axes.plot(x, centre, color=colour, linewidth=1.6, label=label)
    axes.fill_between(x, centre - wide, centre + wide, color=colour, alpha=0.18, linewidth=0)


def save(figure: Any, path: Path) -> None:
    replace_file(path, lambda temporary: figure.savefig(temporary, format="png", dpi=DPI))


def as_image(figure: Any) -> Any:
    """The figure as a picture of Pillow, as :func:`save` writes it."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return Image.open(buffer).convert("RGB")


# -- charts of a page ---------------------------------------------------------------------------------------


def _theme() -> Any:
    muted = ("text.color", "xtick.color", "ytick.color", "axes.labelcolor", "axes.edgecolor")
    clear = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    theme = {**dict.fromkeys(muted, INKS["muted"][0]), **dict.fromkeys(clear, "none")}
    return {**theme, "font.size": 8.5, "svg.fonttype": "none", "svg.hashsalt": "tide", "text.parse_math": False}


def _themed(draw: Callable[P, str]) -> Callable[P, str]:
    """What ``draw`` draws is transparent and in a page's colours; nothing in it is read as a formula."""

    @wraps(draw)
    def drawn(*args: P.args, **options: P.kwargs) -> str:
        import matplotlib

        with matplotlib.rc_context(_theme()):
            return draw(*args, **options)

    return drawn


@dataclass(frozen=True)
class Series:
    """A curve in a colour of :data:`INKS`; ``notes``, one for each point, stand beside the points. ``errors``, one for
    each point, are drawn as a band of one error to either side."""

    name: str
    ink: str
    points: Sequence[tuple[float, float]]
    dashes: Any = "-"
    marker: str = ""
    notes: Sequence[str] = ()
    errors: Sequence[float] = ()


@_themed
def line_svg(
    series: Iterable[Series],
    *,
    x_label: str,
    log_y: bool = False,
    percent: str = "",
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    whole_x: bool = False,
) -> str:
    """A line chart as the ``data:`` address of an SVG image; empty text where nothing can be drawn.

    Points that are not finite, or not positive on a log scale, are left out. The axes named in ``percent`` ("y", "xy")
    are written as percentages; ``whole_x`` puts ticks at whole numbers alone.
    """
    drawn = [(each, kept) for each in series if (kept := _drawable(each.points, log_y))]
    if not drawn:
        return ""
    figure, axis = _panel(2.75 + 0.19 * math.ceil(len(drawn) / 2))
    for each, kept in drawn:
        marker = each.marker or ("o" if len(kept) == 1 else "")
        xs, ys = zip(*(each.points[i] for i in kept), strict=True)
        axis.plot(xs, ys, color=INKS[each.ink][0], linestyle=each.dashes, linewidth=1.8, marker=marker, markersize=5,
                  label=each.name)  # fmt: skip
        if each.errors:
            wide = [each.errors[i] if math.isfinite(each.errors[i]) else 0.0 for i in kept]
            low, high = ([y + sign * half for y, half in zip(ys, wide, strict=True)] for sign in (-1, 1))
            axis.fill_between(xs, low, high, color=INKS[each.ink][0], alpha=0.18, linewidth=0)
        for i in kept if each.notes else []:
            axis.annotate(each.notes[i], each.points[i], (4, 3), textcoords="offset points", fontsize=7)
    if log_y:
        log_scale(axis, "y")
    _percent(axis, percent)
    if whole_x:
        whole_numbers(axis)
    axis.set(xlabel=x_label, **{f"{name}lim": limits for name, limits in (("x", x_range), ("y", y_range)) if limits})
    _legend(figure, 2)
    return _svg_data(figure)


def _drawable(points: Sequence[tuple[float, float]], log_y: bool) -> list[int]:
    return [i for i, xy in enumerate(points) if all(map(math.isfinite, xy)) and (not log_y or xy[1] > 0)]


@_themed
def bars_svg(
    rows: Sequence[str], series: Sequence[tuple[str, str, Sequence[float]]], *, base: float, top: float
) -> str:
    """Horizontal bars from ``base`` to ``top``, in the form of :func:`line_svg`: a group for each row, and in it a bar
    for each ``(name, ink, values)``; empty text without any."""
    if not rows or not series:
        return ""
    figure, axis = _panel(0.75 + 0.16 * len(rows) * (len(series) + 1))
    for i, (name, ink, values) in enumerate(series):
        places = [row + (i - (len(series) - 1) / 2) / (len(series) + 1) for row in range(len(rows))]
        known = [(at, value) for at, value in zip(places, values, strict=True) if math.isfinite(value)]
        lengths = [max(0.0, min(value, top) - base) for _, value in known]
        bars = axis.barh([at for at, _ in known], lengths, 0.85 / (len(series) + 1), left=base,
                         color=INKS[ink][0], label=name)  # fmt: skip
        axis.bar_label(bars, [f"{value:.2f}" for _, value in known], padding=3, fontsize=7.5)
    axis.set_yticks(range(len(rows)), rows)
    axis.set(xlim=(base, base + 1.1 * (top - base)), ylim=(len(rows) - 0.45, -0.55))
    axis.grid(False, axis="y")
    _legend(figure, 3)
    return _svg_data(figure)


def _panel(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, height), layout="constrained")
    axis = figure.add_subplot()
    _plain([axis], INKS["line"][0])
    return figure, axis


def _legend(figure: Any, columns: int) -> None:
    figure.legend(loc="outside lower left", frameon=False, ncols=columns)


def _percent(axis: Any, which: str) -> None:
    from matplotlib.ticker import PercentFormatter

    for name in which:
        getattr(axis, f"{name}axis").set_major_formatter(PercentFormatter(1, 0, symbol=" %"))


def _svg_data(figure: Any) -> str:
    """The figure as the ``data:`` address of an SVG image, transparent, in the colours of a light or a dark page as
    its reader prefers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for name, (light, _) in INKS.items():
        svg = svg.replace(light, f"var(--{name})")
    on_light, on_dark = (
        ":root {" + "".join(f"--{name}: {colours[i]};" for name, colours in INKS.items()) + "}" for i in range(2)
    )
    head, _, body = svg.partition(">")
    text = (
        f"{head}><style>text {{ font-family: system-ui, sans-serif !important }} {on_light} "
        f"@media (prefers-color-scheme: dark) {{ {on_dark} }}</style>{body}"
    )
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()
