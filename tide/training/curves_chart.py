"""``curves.png``: the figures of a training over its steps, drawn when it ends."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tide.charts import COLOURS, log_scale, panels, save
from tide.errors import TideError

FILE = "curves.png"

_BLUE, _ORANGE = COLOURS[:2]
#: Points of a line that are drawn as dots as well, for fewer would not show as a line.
_FEW = 20


def draw_curves(history: Sequence[Mapping[str, float]], path: Path, title: str) -> bool:
    """Draws the ``history`` of a training (that of ``training.json``) as a PNG.

    Returns whether it was written: a full disk gives a warning, and the training has ended well all the same.
    """
    figure, axes = panels(6, width=3.5, height=2.3, columns=3)
    _line(axes[0], history, {"loss": "loss", "mse": "mse"}, "loss, normalised", log=True)
    _line(axes[1], history, {"explained_variance": ""}, "variance explained", percent=True)
    if any(entry.get("explained_variance", 0) < 0 for entry in history):
        axes[1].set_ylim(bottom=0)  # the first steps are worse than the mean, and would flatten all others
    _line(axes[2], history, {"l0": "L0", "k": "scheduled k"}, "active latents of a token")
    _line(axes[3], history, {"silent": ""}, "latents silent in a batch", percent=True)
    _line(axes[4], history, {"revived": ""}, "latents revived so far")
    _line(axes[5], history, {"lr": ""}, "learning rate")
    axes[4].set_ylim(bottom=0, top=None if any(entry.get("revived") for entry in history) else 1)
    axes[5].yaxis.set_major_formatter("{x:g}")
    for axis in axes[3:]:
        axis.set_xlabel("step", fontsize="small")
    figure.suptitle(title, fontsize="medium", x=0.01, ha="left")
    try:
        save(figure, path)
    except TideError as error:
        warnings.warn(f"the curves were not drawn, and training.json holds them, too: {error}", stacklevel=2)
        return False
    return True


def _line(
    axis: Any,
    history: Sequence[Mapping[str, float]],
    names: Mapping[str, str],
    title: str,
    *,
    log: bool = False,
    percent: bool = False,
) -> None:
    """The figures ``names`` over the steps, name -> label; older histories lack some."""
    from matplotlib.ticker import PercentFormatter

    for (name, label), colour in zip(names.items(), (_BLUE, _ORANGE), strict=False):
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        marker = "o" if len(points) <= _FEW else ""
        xs, ys = zip(*points, strict=True) if points else ((), ())
        axis.plot(xs, ys, color=colour, linewidth=1.4, marker=marker, markersize=3, label=label)
    axis.set_title(title, fontsize="small", loc="left")
    axis.tick_params(labelsize="x-small")
    axis.set_xlim(left=0)
    if log and any(entry.get(name, 0) > 0 for entry in history for name in names):
        log_scale(axis, "y")
        axis.tick_params(labelsize="x-small")
    if percent:
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    if any(names.values()):
        axis.legend(frameon=False, fontsize="x-small")
