"""Charts as PNG. Matplotlib is loaded when the first one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tide.errors import TideError
from tide.files import replace_file

#: Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def check_matplotlib() -> None:
    """Raises before any work is done where no chart could be drawn after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise TideError("charts need matplotlib; install it with `pip install matplotlib`") from None


def panels(n: int, *, width: float = 4.2, height: float = 3.4, columns: int | None = None) -> tuple[Any, list[Any]]:
    """A figure of ``n`` panels, ``columns`` in a row (default all), and their axes."""
    from matplotlib.figure import Figure

    columns = columns or n
    rows = -(-n // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = [figure.add_subplot(rows, columns, 1 + i) for i in range(n)]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(True, color="#dddddd", linewidth=0.6)
        each.set_axisbelow(True)
    return figure, axes


def style(i: int) -> dict[str, Any]:
    """Colour and marker of series ``i``."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "markersize": 4.5}


def log_scale(axes: Any, *which: str) -> None:
    """Logarithmic axes ("x", "y") with ticks at 1, 2 and 5 times the powers of ten, written out."""
    from matplotlib.ticker import LogLocator, NullFormatter

    for name in which:
        axes.set(**{f"{name}scale": "log"})
        axis = getattr(axes, f"{name}axis")
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
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
    """One column a name: a dot for each seed, a line at their mean."""
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
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(True, color="#dddddd", linewidth=0.6)
        each.set_axisbelow(True)
    return figure, strip, axes


def pictures(axes: Any, images: Any, row: int) -> None:
    """Images ``[n, H, W, 3]`` in [0, 1] side by side in a row of :func:`strip_over_panels`, a unit each."""
    for i, image in enumerate(images):
        axes.imshow(image, extent=(i - 0.48, i + 0.48, 0.02 - row, 0.98 - row), interpolation="nearest", aspect="equal")


def band(axes: Any, x: Any, values: Any, colour: str, label: str) -> None:
    """The mean of ``values [points, samples]`` with one standard deviation to either side."""
    centre, wide = values.mean(1), values.std(1)
    axes.plot(x, centre, color=colour, linewidth=1.6, label=label)
    axes.fill_between(x, centre - wide, centre + wide, color=colour, alpha=0.18, linewidth=0)


def save(figure: Any, path: Path) -> None:
    replace_file(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))
