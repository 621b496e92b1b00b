"""Fig. 4: (a, b) MSE and 1 - cosine against n and k, with the fitted law; (c, d) diffusion loss against both errors.

(c, d) compare TIDE with plain autoencoders of other activation functions: TopK, BatchTopK, JumpReLU, ReLU with an L1
penalty and Gated, all with the same n, tokens and steps, and the same loss except its sparsity term. Each is trained at
several settings of its sparsity knob; the diffusion loss is then read off at equal numbers of active latents, between
the settings around it (:func:`tide.studies.compare.at_l0`), over all timesteps and at each. TIDE with
JumpReLU in place of TopK separates the effect of the modulation from that of the activation.

Every figure is of held-out scenes after equal numbers of steps; two runs of (a, b), trained twice as long, show how far
from convergence that is. The learning rate and its warm-up were chosen for TopK and TIDE, and all others use them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from tide import charts
from tide.studies.bench import FAST_DATA, NEVER, Bench, DataSizes
from tide.studies.compare import at_l0
from tide.studies.grid import Cell, Result, run_cells
from tide.studies.options import Options, write_results
from tide.studies.scaling import ScalingLaw, fit_scaling_law
from tide.tables import known, mean, spread, write_csv
from tide.training import TrainConfig
from tide.training.config import PAPER_OPTIONS


@dataclass(frozen=True)
class Sizes:
    """The grid: ``n`` and ``k`` of (a, b), the n of (c, d), and the settings of each knob there.

    ``k`` is the knob of TIDE, TopK, BatchTopK and JumpReLU; ``l1`` and ``gated`` are weights of the penalty.
    """

    data: DataSizes
    n: tuple[int, ...]
    k: tuple[int, ...]
    n_compared: int
    k_compared: tuple[int, ...]
    l1: tuple[float, ...]
    gated: tuple[float, ...]
    matched: tuple[int, ...]
    seeds: int
    steps: int


DEFAULT = Sizes(
    data=DataSizes(train_images=2048, held_out_images=128, token_fraction=0.5, loss_prompts=32, loss_timesteps=6),
    n=(768, 1536, 3072),
    k=(38, 77, 154),
    n_compared=3072,
    k_compared=(77, 154),
    l1=(0.5, 1.25),
    gated=(0.5, 1.25),
    matched=(90, 130),
    seeds=3,
    steps=1000,
)
FAST = Sizes(
    data=FAST_DATA,
    n=(96, 192, 384),
    k=(8, 32),
    n_compared=192,
    k_compared=(8, 32),
    l1=(1.0, 4.0),
    gated=(1.0, 4.0),
    matched=(24,),
    seeds=2,
    steps=30,
)

#: Name -> activation of the configuration.
MODELS = {
    "TIDE": "topk",
    "TopK": "topk",
    "BatchTopK": "batch_topk",
    "JumpReLU": "jumprelu",
    "ReLU + L1": "relu",
    "Gated": "gated",
    "TIDE + JumpReLU": "jumprelu",
}
#: The plain autoencoders that TIDE is compared with.
PLAIN = ("TopK", "BatchTopK", "JumpReLU", "ReLU + L1", "Gated")
#: Activations whose knob is the weight of the penalty.
WEIGHED = ("relu", "gated")
ERRORS = {"mse": "MSE", "1-cosine": "1 - cosine"}


def reproduce(options: Options) -> str:
    """Runs the study into ``options.out`` and returns what was found."""
    sizes = FAST if options.fast else DEFAULT
    seeds = options.each_seed(sizes.seeds)
    steps = options.steps or sizes.steps
    bench = Bench(sizes.data, options.seed, options.say, progress=options.progress)
    base = TrainConfig(
        **PAPER_OPTIONS,
        steps=steps,
        batch_tokens=sizes.data.batch_tokens,
        backend=options.backend,
        checkpoint_every=NEVER,
    )
    cells: dict[str, Cell] = {}
    for seed in seeds:
        seeded = replace(base, seed=seed)
        for model in MODELS:
            for knob in _knobs(model, sizes):
                name = _name(model, knob, seed, sizes)
                cells[name] = _cell(bench, _config(seeded, model, knob, sizes), name, True)
        for n in sizes.n:
            for k in sizes.k:
                name = _law_name(n, k, seed)
                # The runs of TIDE in (c, d) serve (a, b) as well.
                cells.setdefault(name, _cell(bench, replace(seeded, n_latents=n, k=k), name, False))
    for n, k in _longer(sizes):
        name = _longer_name(n, k, seeds[0])
        longer = replace(base, seed=seeds[0], n_latents=n, k=k, steps=2 * steps)
        cells[name] = _cell(bench, longer, name, False)
    results = run_cells(list(cells.values()), options.out, options.say)
    return _report(options, bench, base, sizes, results, seeds)


def _law_name(n: int, k: int, seed: int) -> str:
    return f"TIDE n {n} k {k} seed {seed}"


def _longer(sizes: Sizes) -> tuple[tuple[int, int], ...]:
    """n and k of the runs that are also trained twice as long."""
    return (max(sizes.n), min(sizes.k)), (max(sizes.n), max(sizes.k))


def _longer_name(n: int, k: int, seed: int) -> str:
    return f"{_law_name(n, k, seed)} twice as long"


def _name(model: str, knob: float, seed: int, sizes: Sizes) -> str:
    if model == "TIDE":
        return _law_name(sizes.n_compared, int(knob), seed)
    return f"{model} {knob:g} seed {seed}"


def _knobs(model: str, sizes: Sizes) -> tuple[float, ...]:
    return {"ReLU + L1": sizes.l1, "Gated": sizes.gated}.get(model, sizes.k_compared)


def _config(base: TrainConfig, model: str, knob: float, sizes: Sizes) -> TrainConfig:
    """The knob of ReLU and Gated is the penalty's weight; k does not affect them."""
    config = replace(
        base,
        modulation=model not in PLAIN,
        activation=MODELS[model],  # type: ignore[arg-type]
        n_latents=sizes.n_compared,
        k=int(knob) if MODELS[model] not in WEIGHED else min(sizes.k_compared),
    )
    return replace(config, loss=replace(config.loss, sparsity=knob)) if MODELS[model] in WEIGHED else config


def _cell(bench: Bench, config: TrainConfig, name: str, with_loss: bool) -> Cell:
    def run() -> Result:
        model, _ = bench.fit(config, bench.train)
        found: Result = {"held_out": bench.reconstruction(model, bench.held_out)}
        return found | ({"diffusion": bench.diffusion(model)} if with_loss else {})

    return Cell(
        name,
        {"data": bench.config(), "training": config.to_dict(), "diffusion": with_loss},
        run,
        lambda: bench.seconds(config, bench.train) + (bench.diffusion_seconds if with_loss else 0.0),
    )


def error_of(result: Result, error: str) -> float:
    figures = result["held_out"]
    return float(figures["mse"] if error == "mse" else 1 - figures["cosine"])


# -- (a, b) -----------------------------------------------------------------------------------------------


def fit_laws(results: dict[str, Result], sizes: Sizes, seeds: list[int]) -> dict[str, ScalingLaw]:
    """A law for each error, fitted to all cells of (a, b)."""
    points = [(n, k, results[_law_name(n, k, seed)]) for n in sizes.n for k in sizes.k for seed in seeds]
    return {
        error: fit_scaling_law([n for n, _, _ in points], [k for _, k, _ in points],
                               [error_of(r, error) for _, _, r in points])
        for error in ERRORS
    }  # fmt: skip


# -- (c, d) -----------------------------------------------------------------------------------------------


def compare(results: dict[str, Result], sizes: Sizes, seeds: list[int]) -> dict[str, Any]:
    """Model -> L0 -> figures at that L0, one for each seed; None where a model's settings do not reach that L0."""
    table: dict[str, Any] = {}
    for model in MODELS:
        table[model] = {}
        for target in sizes.matched:
            row: dict[str, list[float | None]] = {}
            for seed in seeds:
                runs = [results[_name(model, knob, seed, sizes)] for knob in _knobs(model, sizes)]
                l0 = [run["held_out"]["l0"] for run in runs]
                clean = runs[0]["diffusion"]["clean"]
                above = at_l0(l0, [r["diffusion"]["loss"] - clean for r in runs], target)
                row.setdefault("loss", []).append(None if above is None else clean + above)
                row.setdefault("recovered", []).append(_rest(l0, [r["diffusion"]["recovered"] for r in runs], target))
                for error in ERRORS:
                    row.setdefault(error, []).append(at_l0(l0, [error_of(r, error) for r in runs], target))
                for t in runs[0]["diffusion"]["timestep"]:
                    # An activation may use more latents at some timesteps: each timestep is compared at its own L0.
                    at_t = [r["diffusion"]["timestep"][t]["recovered"] for r in runs]
                    spent = [l0_at(r["held_out"]["l0 at"], float(t)) for r in runs]
                    row.setdefault(f"recovered at {t}", []).append(_rest(spent, at_t, target))
            table[model][str(target)] = row
    return table


def _rest(l0: list[float], shares: list[float], target: int) -> float | None:
    """Shares that approach one, read off at ``target`` active latents."""
    missing = at_l0(l0, [1 - share for share in shares], target)
    return None if missing is None else 1 - missing


def l0_at(by_bin: dict[str, float], timestep: float) -> float:
    """The L0 of the bin, ``"<from>-<to>"``, that holds ``timestep``; NaN where none does."""
    for name, value in by_bin.items():
        first, last = map(float, name.split("-"))
        if first <= timestep < last:
            return value
    return math.nan


def ahead_of(table: dict[str, Any], target: int, other: str) -> tuple[int, int]:
    """In how many seeds TIDE recovers more than ``other`` at ``target``, and in how many both are known."""
    pairs = zip(table["TIDE"][str(target)]["recovered"], table[other][str(target)]["recovered"], strict=True)
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return sum(a > b for a, b in known), len(known)


def verdict_of(laws: dict[str, ScalingLaw], table: dict[str, Any], sizes: Sizes) -> str:
    """One sentence from the numbers."""
    law = laws["mse"]
    middle_n, middle_k = sizes.n[len(sizes.n) // 2], sizes.k[len(sizes.k) // 2]
    parts = [
        f"MSE scales as n^{law.exponent_n(middle_k):.2f} at k = {middle_k} and as k^{law.exponent_k(middle_n):.2f} at "
        f"n = {middle_n} (R2 {law.r2:.3f})"
    ]
    for target in sizes.matched:

        def recovered_at(name: str, target: int = target) -> list[float | None]:
            values: list[float | None] = table[name][str(target)]["recovered"]
            return values

        tide = known(recovered_at("TIDE"))
        counts = {other: ahead_of(table, target, other) for other in PLAIN}
        compared = {other: c for other, c in counts.items() if c[1]}
        if not tide or not compared:
            parts.append(f"nothing can be compared at L0 = {target}")
            continue
        each = ", ".join(
            f"{other} in {won} of {of}{'' if i else ' seeds'}" for i, (other, (won, of)) in enumerate(compared.items())
        )
        parts.append(f"at L0 = {target} TIDE recovers {mean(tide):.2%} of the diffusion loss, more than {each}")
        if missing := [other for other in counts if other not in compared]:
            parts.append(f"no setting of {' or '.join(missing)} reaches it")
        if modulated := [name for name in MODELS if name not in ("TIDE", *PLAIN) and known(recovered_at(name))]:
            each = ", ".join(f"{name} {mean(known(recovered_at(name))):.2%}" for name in modulated)
            parts.append(f"there {each}")
    return "; ".join(parts) + "."


# -- results ----------------------------------------------------------------------------------------------


def _report(
    options: Options, bench: Bench, base: TrainConfig, sizes: Sizes, results: dict[str, Result], seeds: list[int]
) -> str:
    laws, table = fit_laws(results, sizes, seeds), compare(results, sizes, seeds)
    for error, law in laws.items():
        options.say(f"{ERRORS[error]} = {law}")
    falls = {f"n {n} k {k}": _fall(results, n, k, seeds[0]) for n, k in _longer(sizes)}
    for name, fall in falls.items():
        options.say(f"Trained twice as long, the MSE at {name} is {fall:.0%} lower.")
    for target in sizes.matched:
        options.say(f"At {target} active latents:")
        for model in MODELS:
            values = known(table[model][str(target)]["recovered"])
            loss = known(table[model][str(target)]["loss"])
            options.say(
                f"  {model:16} recovers {mean(values):.4%} ± {spread(values):.4%}, diffusion loss {mean(loss):.5f}"
                if values
                else f"  {model:16} no setting reaches it"
            )
    verdict = verdict_of(laws, table, sizes)
    found = {
        "seeds": seeds,
        "data": bench.config(),
        "training": base.to_dict(),
        "laws": {error: {**law.to_dict(), "text": str(law)} for error, law in laws.items()},
        "lower after twice the steps": falls,
        "cells": results,
        "matched": table,
        "ahead": {other: {str(target): ahead_of(table, target, other) for target in sizes.matched} for other in PLAIN},
        "verdict": verdict,
    }
    write_results(options, "fig4", found)
    write_csv(options.out / "fig4ab.csv", _law_rows(results, sizes, seeds, laws))
    write_csv(options.out / "fig4cd.csv", _loss_rows(results, sizes, seeds))
    write_csv(options.out / "fig4cd-matched.csv", _matched_rows(table))
    _draw_laws(options, results, sizes, seeds, laws)
    _draw_losses(options, results, sizes, seeds)
    _draw_timesteps(options, table, sizes)
    return verdict


def _fall(results: dict[str, Result], n: int, k: int, seed: int) -> float:
    """The share by which twice the steps lower the MSE."""
    once, twice = (error_of(results[of(n, k, seed)], "mse") for of in (_law_name, _longer_name))
    return 1 - twice / once


def _law_rows(
    results: dict[str, Result], sizes: Sizes, seeds: list[int], laws: dict[str, ScalingLaw]
) -> list[dict[str, Any]]:
    return [
        {
            "n": n,
            "k": k,
            "seed": seed,
            **{error: error_of(results[_law_name(n, k, seed)], error) for error in ERRORS},
            **{f"{error} by the law": laws[error](n, k) for error in ERRORS},
            **{each: results[_law_name(n, k, seed)]["held_out"][each] for each in ("explained_variance", "dead")},
        }
        for n in sizes.n
        for k in sizes.k
        for seed in seeds
    ]


def _loss_rows(results: dict[str, Result], sizes: Sizes, seeds: list[int]) -> list[dict[str, Any]]:
    rows = []
    for model in MODELS:
        for knob in _knobs(model, sizes):
            for seed in seeds:
                result = results[_name(model, knob, seed, sizes)]
                errors = {error: error_of(result, error) for error in ERRORS}
                of_loss = {name: result["diffusion"][name] for name in ("loss", "clean", "recovered")}
                figures = {name: result["held_out"][name] for name in ("explained_variance", "l0", "dead")}
                rows.append({"model": model, "knob": knob, "seed": seed, **figures, **errors, **of_loss})
    return rows


def _matched_rows(table: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"model": model, "l0": target, "figure": figure, "seeds": len(known(values)),
         "mean": mean(known(values)), "spread": spread(known(values))}
        for model, by_target in table.items()
        for target, row in by_target.items()
        for figure, values in row.items()
    ]  # fmt: skip


def _draw_laws(
    options: Options, results: dict[str, Result], sizes: Sizes, seeds: list[int], laws: dict[str, ScalingLaw]
) -> None:
    figure, axes = charts.panels(2)
    for axis, (error, label) in zip(axes, ERRORS.items(), strict=True):
        for i, k in enumerate(sizes.k):
            style = charts.style(i)
            points = [(n, error_of(results[_law_name(n, k, seed)], error)) for n in sizes.n for seed in seeds]
            axis.plot(*zip(*points, strict=True), linestyle="none", alpha=0.8, **style)
            axis.plot(
                sizes.n, [laws[error](n, k) for n in sizes.n], color=style["color"], linewidth=1.2, label=f"k = {k}"
            )
        charts.log_scale(axis, "x", "y")
        axis.set(xlabel="latents n", ylabel=label)
        axis.set_xticks(sizes.n, [str(n) for n in sizes.n])
    charts.legend_beside(figure, axes[0])
    charts.save(figure, options.out / "fig4ab.png")


def _draw_losses(options: Options, results: dict[str, Result], sizes: Sizes, seeds: list[int]) -> None:
    figure, axes = charts.panels(3)
    for i, model in enumerate(MODELS):
        runs = [[results[_name(model, knob, seed, sizes)] for seed in seeds] for knob in _knobs(model, sizes)]
        loss = [mean([r["diffusion"]["loss"] for r in of_knob]) for of_knob in runs]
        for axis, error in zip(axes, ERRORS, strict=False):
            axis.plot([mean([error_of(r, error) for r in of_knob]) for of_knob in runs], loss, label=model,
                      **charts.style(i))  # fmt: skip
        axes[2].plot([mean([r["held_out"]["l0"] for r in of_knob]) for of_knob in runs], loss, **charts.style(i))
    clean = results[_name("TIDE", sizes.k_compared[0], seeds[0], sizes)]["diffusion"]["clean"]
    for axis, label in zip(axes, (*ERRORS.values(), "active latents (L0)"), strict=True):
        axis.axhline(clean, color="#555555", linewidth=1, linestyle=":")
        charts.log_scale(axis, "x", "y")
        axis.set_xlabel(label)
    axes[2].set_xticks(sizes.k_compared, [str(k) for k in sizes.k_compared])
    axes[0].set_ylabel("diffusion loss (dotted: untouched model)")
    charts.legend_beside(figure, axes[0])
    charts.save(figure, options.out / "fig4cd.png")


def _draw_timesteps(options: Options, table: dict[str, Any], sizes: Sizes) -> None:
    figure, axes = charts.panels(len(sizes.matched))
    for axis, target in zip(axes, sizes.matched, strict=True):
        for i, model in enumerate(MODELS):
            row = table[model][str(target)]
            points = [
                (float(name.removeprefix("recovered at ")), 1 - mean(known(values)))
                for name, values in row.items()
                if name.startswith("recovered at ") and known(values)
            ]
            if points:
                axis.plot(*zip(*sorted(points), strict=True), label=model, **charts.style(i))
        charts.log_scale(axis, "y")
        axis.set(xlabel="timestep", title=f"L0 = {target}")
    axes[0].set_ylabel("share of the diffusion loss not recovered")
    charts.legend_beside(figure, axes[0])
    charts.save(figure, options.out / "fig4-timesteps.png")
