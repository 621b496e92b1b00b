"""The picture of effects: what a few latents do together, which ones at which steps, and how good the estimate is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tide import charts
from tide.interpretation.effect.effects import Effects

#: Latents of the map over the steps.
ROWS = 16


def draw_effects(
    path: str | Path,
    effects: Effects,
    counts: Sequence[int],
    curves: Mapping[str, Sequence[float]],
    *,
    metric: str = "change of the metric",
) -> None:
    """Writes a PNG: ``curves`` of :func:`effect_curves` against ``counts``, the latents of the largest attribution over
    the steps, and, if any were ablated, their measured effects against the estimates. ``metric`` names what is
    measured."""
    figure, axes = charts.panels(2 if effects.ablation is None else 3, width=4.2, height=3.8)
    for i, (name, values) in enumerate(curves.items()):
        axes[0].plot(counts, values, label=f"by {name}" if name != "random" else name, **charts.style(i))
    charts.log_scale(axes[0], "x")
    axes[0].set(title="removed together", xlabel="latents", ylabel=metric)
    axes[0].legend(frameon=False, fontsize="small")
    _map(figure, axes[1], effects)
    if effects.ablation is not None and effects.ablated is not None:
        truth = effects.ablation.flatten()
        tables = {"attribution": effects.attribution, "integrated": effects.integrated}
        for i, (name, table) in enumerate(tables.items()):
            if table is not None:
                estimate = table[:, effects.ablated].flatten()
                axes[2].plot(estimate, truth, linestyle="", label=name, alpha=0.5, **charts.style(i))
        axes[2].axline((0, 0), slope=1, color="#999999", linewidth=0.9, linestyle="--")
        axes[2].set(title="each latent and step", xlabel="estimate", ylabel="measured")
        axes[2].legend(frameon=False, fontsize="small")
    charts.save(figure, Path(path))


def _map(figure: Any, axes: Any, effects: Effects) -> None:
    """The attribution of the latents of the largest one, a row each, a column a step."""
    shown = effects.largest(ROWS)
    axes.set(title="removed at one step", xlabel="step")
    axes.grid(False)
    if not shown:
        return
    values = effects.attribution[:, shown].T
    most = float(values.abs().max())
    drawn = axes.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(shown)), shown, fontsize="x-small")
    charts.whole_numbers(axes)
    figure.colorbar(drawn, ax=axes, label="attribution")
