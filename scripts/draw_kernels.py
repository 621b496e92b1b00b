"""Draws the pictures of docs/kernels.md: ``python -m scripts.draw_kernels``. Figures are the performance model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.floors import CEILINGS
from benchmarks.model import lines
from benchmarks.shapes import Shape
from benchmarks.work import Case
from tide.charts import COLOURS, log_scale, panels, save

FOLDER = Path(__file__).parents[1] / "docs" / "kernels"
TEXT, MUTED = "#22252a", "#676c75"
#: Fills of the boxes: what is read and written, products, everything else.
DATA, PRODUCT, OTHER = "#e8eef4", "#cfe3f3", "#f6e3d2"
#: What bounds a kernel -> its colour.
KINDS = {"products": COLOURS[0], "memory": COLOURS[4], "gathers": COLOURS[2], "parts": COLOURS[0]}
N_TOKENS, D_MODEL, N_LATENTS = 16384, 1152, 18432


def floor_ms(k: int, regime: str) -> float:
    """The floor of a step of the squared error, in milliseconds."""
    case = Case(Shape(N_TOKENS, D_MODEL, N_LATENTS, k), regime, False)
    return 1e3 * sum(line.floor.seconds for line in lines(case, CEILINGS["h200"]))


def draw_regimes(path: Path) -> None:
    """Floors of a step by density, in both regimes, and of its parts at two densities."""
    figure, (by_k, parts) = panels(2, width=5.0, height=3.6)
    counts = (8, 16, 32, 64, 96, 128, 160, 256, 512, 922, 1843)
    for name, colour in (("sparse", COLOURS[1]), ("dense", COLOURS[0])):
        by_k.plot(
            [100 * k / N_LATENTS for k in counts], [floor_ms(k, name) for k in counts], "o-", color=colour, label=name
        )
    log_scale(by_k, "x", "y")
    by_k.set(xlabel="active latents, % of 18432", ylabel="floor of a step, ms", title="The two regimes")
    by_k.legend(frameon=False)
    for row, (k, regime) in enumerate(((32, "sparse"), (922, "dense"))):
        draw_parts(parts, row, k, regime)
    parts.set_yticks((0, 1), ("k = 32\nsparse", "k = 922\ndense"))
    parts.set(xlabel="floor, ms", xlim=(0, 6), ylim=(-0.6, 1.8))
    parts.set_title("Its parts: products blue, memory yellow, gathers green", fontsize=9.5)
    save(figure, path)


def draw_parts(axes: Any, row: int, k: int, regime: str) -> None:
    """The parts of a step's floor side by side; those above 0.13 ms are named."""
    case = Case(Shape(N_TOKENS, D_MODEL, N_LATENTS, k), regime, False)
    left = 0.0
    for line in lines(case, CEILINGS["h200"]):
        width = 1e3 * line.floor.seconds
        axes.barh(row, width, 0.55, left, color=KINDS[line.floor.bound], alpha=0.75, edgecolor="white")
        if width > 0.13:
            name = line.name.split(",")[0]
            axes.text(left + width / 2 - 0.03, row + 0.32, name, rotation=35, fontsize=7, color=TEXT)
        left += width


def box(axes: Any, x: float, y: float, text: str, fill: str, width: float = 1.7, height: float = 0.8) -> None:
    """A box with its text, centred at (x, y)."""
    from matplotlib.patches import FancyBboxPatch

    corner = (x - width / 2, y - height / 2)
    axes.add_patch(FancyBboxPatch(corner, width, height, "round,pad=0.03", facecolor=fill, edgecolor=MUTED))
    axes.text(x, y, text, ha="center", va="center", fontsize=8.5, color=TEXT)


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": MUTED, "linewidth": 1.2})


def blank(width: float, height: float, right: float, top: float) -> tuple[Any, Any]:
    """A figure with an axis from (0, 0) to (right, top), without its frame."""
    figure, (axes,) = panels(1, width=width, height=height)
    axes.set(xlim=(0, right), ylim=(0, top))
    axes.set_axis_off()
    return figure, axes


def draw_step(path: Path) -> None:
    """What a step computes, forward above and backward below."""
    figure, axes = blank(9.6, 3.0, 12, 3.4)
    forward = (
        ("x [N, d]\nscale, shift", DATA),
        ("modulate", OTHER),
        ("product\nx_mod W_encᵀ", PRODUCT),
        ("select\nexact TopK", OTHER),
        ("decode\nz W_dec", PRODUCT),
        ("loss, and its\nslope in x_hat", OTHER),
    )
    backward = (
        "grad of scale\nand shift",
        "grad of b_enc",
        "grad of W_enc\n(product)",
        "grad of z\n(product)",
        "grad of W_dec\n(product)",
    )
    for i, (text, fill) in enumerate(forward):
        box(axes, 1 + 2 * i, 2.6, text, fill)
        if i:
            arrow(axes, (2 * i - 0.1, 2.6), (2 * i + 0.1, 2.6))
    for i, text in enumerate(backward):
        box(axes, 1 + 2 * i, 0.9, text, PRODUCT if "product" in text else OTHER)
        arrow(axes, (2 * i + 2.1, 0.9), (2 * i + 1.9, 0.9))
    axes.plot((11, 11, 10.1), (2.15, 0.9, 0.9), color=MUTED, linewidth=1.2)
    axes.text(
        0.1,
        0.15,
        "few active latents: one walk over the latents computes all four gradients of the weights, biases and z",
        fontsize=8.5,
        color=MUTED,
    )
    save(figure, path)


def draw_selection(path: Path) -> None:
    """A row's values, the threshold that bisection finds, and ties at it."""
    figure, (values, search) = panels(2, width=4.8, height=3.2)
    row = (0.0, 1.5, 0.5, 2.5, 0.0, 2.0, 1.0, 2.0, 3.0, 0.0, 2.0, 0.5)
    kept = (3, 5, 8)
    for i, value in enumerate(row):
        values.bar(i, value, color=COLOURS[0] if i in kept else "#c9ced6")
    values.axhline(2.0, color=COLOURS[1], linewidth=1.3)
    values.text(-0.4, 2.06, "t: the 3rd largest", fontsize=8, color=COLOURS[1])
    values.set(
        xlabel="latent",
        ylabel="pre-activation",
        title="k = 3: all above t, then the first of the ties",
        xticks=range(len(row)),
        ylim=(0, 3.5),
    )
    probes = ((0.25, 3.0), (1.75, 3.0), (1.75, 2.375), (1.75, 2.0625))
    for i, (low, high) in enumerate(probes):
        search.plot((low, high), (i, i), color=COLOURS[0], linewidth=5, solid_capstyle="butt")
    search.axvline(2.0, color=COLOURS[1], linewidth=1.3)
    search.invert_yaxis()
    search.set(
        xlabel="where t lies, as an ordered integer",
        yticks=range(len(probes)),
        title="Each probe counts the keys that reach it",
    )
    search.set_yticklabels([f"probe {i}" if i else "start" for i in range(len(probes))])
    save(figure, path)


def draw_walk(path: Path) -> None:
    """Codes by token, and the same places by latent."""
    figure, axes = blank(9.0, 3.2, 12, 4.2)
    codes = ((0, 2), (2, 3), (0, 3), (2, 4))
    for token, latents in enumerate(codes):
        axes.text(0.1, 3.1 - 0.8 * token, f"token {token}", va="center", fontsize=8.5, color=MUTED)
        for place, latent in enumerate(latents):
            square(axes, 1.6 + 0.9 * place, 3.1 - 0.8 * token, f"{latent}", latent)
    axes.text(1.2, 3.85, "code: latents of each token", fontsize=9, color=TEXT)
    arrow(axes, (3.6, 1.9), (5.1, 1.9))
    axes.text(3.55, 2.15, "sort once", fontsize=8.5, color=MUTED)
    for row, latent in enumerate((0, 2, 3, 4)):
        tokens = [token for token, latents in enumerate(codes) if latent in latents]
        axes.text(5.3, 3.1 - 0.8 * row, f"latent {latent}", va="center", fontsize=8.5, color=MUTED)
        for place, token in enumerate(tokens):
            square(axes, 7.0 + 0.9 * place, 3.1 - 0.8 * row, f"{token}", latent)
    axes.text(6.6, 3.85, "layout: tokens of each latent", fontsize=9, color=TEXT)
    words = (
        "a program holds a row",
        "of W_dec and of both",
        "gradients; it reads the",
        "slope and x_mod of each",
        "token, in a fixed order",
    )
    axes.text(9.9, 1.9, "\n".join(words), va="center", fontsize=8.5, color=TEXT)
    save(figure, path)


def square(axes: Any, x: float, y: float, text: str, latent: int) -> None:
    from matplotlib.patches import Rectangle

    colour = COLOURS[latent]
    axes.add_patch(Rectangle((x - 0.3, y - 0.3), 0.6, 0.6, facecolor=colour, alpha=0.35, edgecolor=colour))
    axes.text(x, y, text, ha="center", va="center", fontsize=9, color=TEXT)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, draw in (
        ("step", draw_step),
        ("regimes", draw_regimes),
        ("selection", draw_selection),
        ("walk", draw_walk),
    ):
        draw(FOLDER / f"{name}.png")


if __name__ == "__main__":
    main()
