"""The picture of a followed prompt: what the model predicts at every step, over the curves of its latents."""

from __future__ import annotations

from pathlib import Path

from tide import charts
from tide.adapters import Adapter
from tide.interpretation.following import Followed


def draw_trajectory(path: Path, adapter: Adapter, followed: Followed) -> None:
    """Writes a PNG: the predicted images of each run, and below them how latents and raw activations change from step
    to step, with a line at the abrupt change."""
    runs = [run for run in (followed.source, followed.target) if run is not None]
    steps, columns = followed.n_steps, followed.columns
    figure, strip, axes = charts.strip_over_panels(len(runs), steps, 1 + len(runs))
    for row, each in enumerate(runs):
        images = [(adapter.decode_latents(clean)[0].permute(1, 2, 0).cpu() + 1) / 2 for clean in each.clean]
        charts.pictures(strip, [image.numpy() for image in images], row)
        strip.text(-0.7, 0.5 - row, ("source", "target")[row], ha="right", va="center", fontsize="small")
    between = [i + 0.5 for i in range(steps - 1)]
    for axis, name in ((axes[0], "cosine with the next step"), (axes[1], "mse to the next step")):
        for i, what in enumerate(("latents", "raw")):
            axis.plot(between, columns[("raw " if i else "") + name][:-1], label=what, **charts.style(i))
        if followed.changed_at is not None:
            axis.axvline(followed.changed_at - 0.5, color="black", linewidth=0.9, linestyle="--")
        axis.set(title=name, xlabel="step")
    axes[1].set_yscale("log")
    axes[0].legend(frameon=False, fontsize="small")
    if followed.target is not None:
        axes[2].plot(range(steps), columns["cosine with the target"], **charts.style(2))
        axes[2].set(title="cosine with the target", xlabel="step")
    charts.save(figure, path)
