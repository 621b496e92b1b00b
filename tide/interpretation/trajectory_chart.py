"""The picture of a followed prompt: what the model predicts at every step, over the curves of its latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from tide import charts
from tide.adapters import Adapter
from tide.files import replace_file
from tide.interpretation.following import Followed
from tide.interpretation.trajectory import Trajectory
from tide.pictures import image_writer, to_image
from tide.strips import GAP, Row, labelled

#: Pixels of the longer side of a picture, as :func:`tide.strips.shown` takes it.
SIDE = 128


def draw_trajectory(path: str | Path, adapter: Adapter, followed: Followed) -> None:
    """Writes a PNG: the predicted images of each run under its prompt, with step and timestep, and below them how
    latents and raw activations change from step to step, with a line at the abrupt change.

    ``followed`` is what :func:`follow` found with ``adapter``, whose VAE decodes the images; the PNG goes to ``path``.
    """
    runs = [(followed.source, followed.prompt)]
    if followed.target is not None:
        runs.append((followed.target, f"target: {followed.towards}"))
    strip = labelled([_row(adapter, run, caption) for run, caption in runs], side=SIDE)
    curves = charts.as_image(_curves(followed))
    sheet = Image.new("RGB", (max(strip.width, curves.width), strip.height + GAP + curves.height), "white")
    sheet.paste(strip, (0, 0))
    sheet.paste(curves, (0, strip.height + GAP))
    replace_file(Path(path), image_writer(sheet))


def _row(adapter: Adapter, run: Trajectory, caption: str) -> Row:
    pictures = [to_image(adapter.decode_latents(clean)[0]) for clean in run.clean]
    labels = [f"step {step}, t {t:.4g}" for step, t in enumerate(run.timesteps.tolist())]
    return Row(pictures, labels, caption)


def _curves(followed: Followed) -> Any:
    steps, columns = followed.n_steps, followed.columns
    figure, axes = charts.panels(2 if followed.target is None else 3, width=4.0, height=3.4)
    between = [i + 0.5 for i in range(steps - 1)]
    for axis, name in ((axes[0], "cosine with the next step"), (axes[1], "mse to the next step")):
        for i, what in enumerate(("latents", "raw activations")):
            axis.plot(between, columns[("raw " if i else "") + name][:-1], label=what, **charts.style(i))
        if followed.changed_at is not None:
            axis.axvline(followed.changed_at - 0.5, color="black", linewidth=0.9, linestyle="--", label="abrupt change")
        axis.set(title=name, xlabel="step")
    axes[1].set_yscale("log")
    axes[0].legend(frameon=False, fontsize="small")
    if followed.target is not None:
        axes[2].plot(range(steps), columns["cosine with the target"], **charts.style(2))
        axes[2].set(title="cosine with the target", xlabel="step")
    charts.whole_numbers(*axes)
    return figure
