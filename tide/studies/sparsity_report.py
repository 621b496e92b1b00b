"""Tables, charts and the sentence of the study of sparsity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tide import charts
from tide.files import finite, replace_file
from tide.pictures import TILE, heat_overlay, image_writer, resized, to_uint8
from tide.scenes.annotate import images_of
from tide.scenes.scene import Scene
from tide.strips import tiled
from tide.studies.options import Options, write_results
from tide.studies.sparsity_figures import LEAST, PROBE, Found, of_concepts
from tide.studies.sparsity_settings import LABELS, MODELS, TRAINED, Model
from tide.tables import known, mean, spread, text_table, write_csv

Table = dict[str, dict[str, dict[str, list[float | None]]]]
#: L0 up to which the modulated activations are compared with all others.
SPARSE = 64


def write_report(options: Options, found: Found, described: dict[str, Any], pictured: Sequence[Scene]) -> str:
    """Writes tables and charts into the folder of the study and returns its sentence. ``described`` says what the cells
    depend on; ``pictured`` are the test scenes, of which the first are drawn."""
    table, chosen, margins = found.table(), found.chosen(), found.margins()
    _say_table(options, table)
    verdict = verdict_of(found, table, chosen, margins)
    everything = {
        "seeds": found.seeds,
        **described,
        "settings": found.settings(),
        "matched": table,
        "chosen": chosen,
        "ahead without timestep": {str(t): beaten(table, str(t), found.seeds) for t in found.sizes.l0 if t <= SPARSE},
        "margins": margins,
        "edits": {name: edits for name in ("raw", *MODELS) if (edits := _edits(found, name))},
        "stability": found.stability(),
        "longer": longer_of(found, described["longest"]),
        "missing": found.missing,
        "verdict": verdict,
    }
    write_results(options, "sparsity", finite(everything))
    write_csv(options.out / "sparsity.csv", _matched_rows(table))
    write_csv(options.out / "sparsity-margins.csv", _margin_rows(margins))
    _draw_curves(options, found, table)
    _draw_timesteps(options, found)
    _draw_places(options, found, pictured)
    return verdict


# -- what was found -------------------------------------------------------------------------------------------


def verdict_of(found: Found, table: Table, chosen: dict[str, Any] | None, margins: Sequence[dict[str, Any]]) -> str:
    """One sentence from the numbers."""
    parts = [_recovered_at(table, target) for target in found.sizes.l0[1:3]]
    if chosen is None:
        parts.append(f"no setting recovers {LEAST:.0%} on development scenes, so the default stays")
    else:
        parts.append(
            f"by the rule the default is {chosen['model']} at k = {chosen['k']}: on development scenes it recovers "
            f"{chosen['recovered dev']:.1%}, and its probes on {PROBE} latents score {chosen[f'probe {PROBE} dev']:.3f}"
        )
        parts += [_margin_in_words(row) for row in margins if (row["model"], row["k"]) == (
            chosen["model"], chosen["k"]) and row["figure"] == f"probe {PROBE}"]  # fmt: skip
    if found.missing:
        parts.append(f"{len(found.missing)} cells are missing")
    return "; ".join(part for part in parts if part) + "."


def _recovered_at(table: Table, target: int) -> str:
    """The best of all models at a target."""
    means = {
        model.name: mean(values) for model in TRAINED if (values := known(table[model.name][str(target)]["recovered"]))
    }
    if not means:
        return f"nothing reaches L0 = {target}"
    name = max(means, key=lambda each: means[each])
    topk = means.get("TIDE + TopK")
    beside = "" if topk is None else f" (TIDE + TopK {topk:.1%})"
    return f"at L0 = {target} {name} recovers {means[name]:.1%} of the diffusion loss{beside}"


def _margin_in_words(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return (
        f"that is {row['margin']:+.3f} ({low:+.3f} to {high:+.3f}) over {row['baseline']}, ahead on {row['ahead']} of "
        f"{row['of']} concepts"
    )


def beaten(table: Table, target: str, seeds: Sequence[int]) -> dict[str, Any]:
    """In how many seeds the best modulated model recovers more than every model without the timestep at ``target``,
    of how many in which both are known."""
    modulated = [m.name for m in TRAINED if m.modulation]
    name = max(modulated, key=lambda each: mean(known(table[each][target]["recovered"]) or [-1.0]))
    counts = []
    for i in range(len(seeds)):
        ours = table[name][target]["recovered"][i]
        others = known([table[m.name][target]["recovered"][i] for m in TRAINED if not m.modulation])
        if ours is not None and others:
            counts.append(ours > max(others))
    return {"model": name, "ahead": sum(counts), "of": len(counts)}


def _edits(found: Found, name: str) -> dict[str, Any]:
    values = list(found.edited(name).values())
    return {"both": mean(values), "images": len(values)} if values else {}


def longer_of(found: Found, longest: Sequence[str]) -> dict[str, Any]:
    """Setting -> its figures as trained, and after :data:`LONGER` times the steps."""
    return {
        f"{name} {found.sizes.l0[i]}": {"once": once, "longer": longer}
        for name in longest
        for i in found.sizes.first
        if (once := found.setting(MODELS[name], found.sizes.l0[i]))
        and (longer := found.setting(MODELS[name], found.sizes.l0[i], longer=True))
    }


# -- tables -----------------------------------------------------------------------------------------------


def _say_table(options: Options, table: Table) -> None:
    shown = ("recovered", "mse", "dead", "auroc", f"probe {PROBE}")
    targets = list(next(iter(table.values())))
    for target in targets:
        options.say(f"\nAt {target} active latents (mean ± standard deviation over seeds)")
        rows = [(name, *(_cell(by_target[target][f]) for f in shown)) for name, by_target in table.items()]
        options.say(text_table(("", *shown), rows))


def _cell(values: Sequence[float | None]) -> str:
    there = known(values)
    return f"{mean(there):.4f} ± {spread(there):.4f}" if there else "-"


def _matched_rows(table: Table) -> list[dict[str, Any]]:
    return [
        {"model": model, "l0": target, "figure": figure, "seeds": len(known(values)),
         "mean": mean(known(values)), "spread": spread(known(values))}
        for model, by_target in table.items()
        for target, row in by_target.items()
        for figure, values in row.items()
    ]  # fmt: skip


def _margin_rows(margins: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**{key: value for key, value in row.items() if key != "interval"},
         "low": row["interval"][0], "high": row["interval"][1]}
        for row in margins
    ]  # fmt: skip


# -- charts -----------------------------------------------------------------------------------------------


def _drawn_style(model: Model) -> dict[str, Any]:
    """A colour for each activation, and one for thresholds that know the timestep; dashed without the timestep."""
    style = charts.style(len(LABELS) if model.timed else list(LABELS).index(model.activation))
    return {**style, "linestyle": "-" if model.modulation else "--"}


def _draw_curves(options: Options, found: Found, table: Table) -> None:
    panels = {
        "recovered": "share not recovered",
        f"probe {PROBE}": f"AUROC of probes on {PROBE}",
        "auroc": "AUROC, best single",
    }
    figure, axes = charts.panels(len(panels))
    for axis, (name, label) in zip(axes, panels.items(), strict=True):
        for model in TRAINED:
            points = [(t, mean(v)) for t in found.sizes.l0 if (v := known(table[model.name][str(t)][name]))]
            drawn = [(t, 1 - value if name == "recovered" else value) for t, value in points]
            if drawn:
                axis.plot(*zip(*drawn, strict=True), label=model.name, **_drawn_style(model))
        for i, (other, level) in enumerate(_levels(found, name).items()):
            axis.axhline(level, color="#555555", linewidth=1, linestyle=(":", "-.")[i % 2], label=other)
        charts.log_scale(axis, *("xy" if name == "recovered" else "x"))
        axis.set_xticks(found.sizes.l0, [str(t) for t in found.sizes.l0])
        axis.set(xlabel="active latents (L0)", ylabel=label)
    charts.legend_beside(figure, axes[1])
    charts.save(figure, options.out / "sparsity.png")


def _levels(found: Found, name: str) -> dict[str, float]:
    """What raw neurons and components reach, which have no L0."""
    if name == "recovered":
        return {}
    raw = {other: found.results[other] for other in ("neurons", "PCA") if other in found.results}
    return {f"{other}, any": mean(of_concepts([result], name)) for other, result in raw.items()}


def _draw_timesteps(options: Options, found: Found) -> None:
    figure, axes = charts.panels(2)
    for axis, modulated in zip(axes, (False, True), strict=True):
        for model in (m for m in TRAINED if m.modulation == modulated):
            runs = list(found.runs(model, found.sizes.l0[found.sizes.first[-1]]).values())
            if runs:
                bins = runs[0]["held_out"]["l0 at"]
                points = [(float(b.split("-")[0]) + 50, mean([r["held_out"]["l0 at"][b] for r in runs])) for b in bins]
                axis.plot(*zip(*sorted(points), strict=True), label=model.name, **_drawn_style(model))
        axis.set(xlabel="timestep", ylabel="active latents (L0)", title="TIDE" if modulated else "without the timestep")
        axis.legend(frameon=False, fontsize="x-small")
    charts.save(figure, options.out / "sparsity-timesteps.png")


def _draw_places(options: Options, found: Found, pictured: Sequence[Scene]) -> None:
    """Where latents are spent: test scenes beside the number of active latents of each of their tokens."""
    drawn: dict[str, tuple[str, list[list[float]]]] = {}
    for model in TRAINED:
        runs = found.runs(model, found.sizes.l0[found.sizes.first[-1]])
        if model.modulation and runs:
            places = next(iter(runs.values()))["places"]
            regions = ", ".join(f"{name} {value:.0f}" for name, value in places["region"].items())
            drawn[model.name] = f"{model.name}: {regions}", places["images"]
    if not drawn:
        return
    n = min(len(maps) for _, maps in drawn.values())
    # A few tokens with far more than all others would leave these without colour.
    top = float(np.quantile([maps[:n] for _, maps in drawn.values()], 0.97))
    images = [to_uint8(image) for image in images_of(pictured[:n])]
    rows = [[image, *(_overlay(image, maps[i], top) for _, maps in drawn.values())] for i, image in enumerate(images)]
    picture = tiled(("image", *(label for label, _ in drawn.values())), rows, title="Active latents by place")
    replace_file(options.out / "sparsity-places.png", image_writer(picture))


def _overlay(image: np.ndarray, counts: list[float], top: float) -> np.ndarray:
    side = round(len(counts) ** 0.5)
    return heat_overlay(resized(image, (TILE, TILE)), np.array(counts).reshape(side, side), top)
