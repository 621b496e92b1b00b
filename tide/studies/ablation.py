"""What the paper leaves open, one choice at a time: modulation, losses, learning rates, progressive k and revival.

Every variant differs from the row "default", the paper's TopK with the library's other defaults, in one choice, and is
trained on the same tokens in the same order. Besides its final figures each has a curve: the MSE of the same held-out
tokens during training, at the final k. It tests the claim of Fig. 3 that the timestep speeds up convergence: the step
at which a variant first comes within a tenth of the final error of its seed's plain SAE, and the step from which on it
stays there, which is later where revived latents raise the error for a while.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from tide import charts
from tide.activations.memory import ActivationPool
from tide.interpretation.abrupt_change import settles_at
from tide.sae.model import TIDE, inference
from tide.studies.bench import FAST_VARIANTS, Bench, VariantSizes
from tide.studies.grid import Cell, Result, run_cells
from tide.studies.options import Options, write_results
from tide.tables import known, mean, spread, text_table, with_spread, write_csv
from tide.training import LossConfig, ProgressiveK, RevivalConfig, TrainConfig

#: Variant -> what it changes. Groups are drawn together.
GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "modulation": {
        "default": {},
        "modulation off": {"modulation": False},
        "modulation from adaLN": {"modulation_init": "adaln"},
        "adaLN, frozen": {"modulation_init": "adaln", "modulation_trainable": False},
        "modulation random": {"modulation_init": "random"},
        "pre-norm": {"pre_norm": "layernorm"},
        "undo": {"undo": True},
    },
    "losses": {
        "default": {},
        "temporal off": {"loss": {"temporal": 0.0}},
        "sparsity off": {"loss": {"sparsity": 0.0}},
        "temporal 1e-2": {"loss": {"temporal": 1e-2}},
    },
    "optimisation": {
        "default": {},
        "half the rate": {"lr": 2e-3},
        "twice the rate": {"lr": 8e-3},
        "short warm-up": {"warmup": 0.02},
        "modulation at full rate": {"modulation_lr": 1.0},
    },
    "sparsity and revival": {
        "default": {},
        "constant k": {"progressive_k": {"shape": "off"}},
        "AuxK": {"loss": {"auxk": 1 / 32}, "revival": {"every": 0}},
        "no revival": {"revival": {"every": 0}},
    },
}
VARIANTS: dict[str, dict[str, Any]] = {name: each for group in GROUPS.values() for name, each in group.items()}
BASE, PLAIN = "default", "modulation off"

#: A variant has converged once its error is within this factor of the plain SAE's last.
WITHIN = 1.1

FIGURES = ("mse", "cosine", "explained_variance", "dead", "recovered", "roughness", "reached at", "converged at")


@dataclass(frozen=True)
class Sizes(VariantSizes):
    """``curve_rows``: held-out rows, of all images, that each of a curve's ``curve_points`` is measured on."""

    curve_rows: int = 1024
    curve_points: int = 25


DEFAULT = Sizes()
FAST = Sizes(**FAST_VARIANTS, curve_rows=256, curve_points=6)


def reproduce(options: Options) -> str:
    """Runs the study into ``options.out`` and returns what was found."""
    sizes = FAST if options.fast else DEFAULT
    seeds = options.each_seed(sizes.seeds)
    bench = Bench(sizes.data, options.seed, options.say, progress=options.progress)
    configs = {(name, seed): variant_config(name, seed, sizes, options) for seed in seeds for name in VARIANTS}
    cells = [_cell(bench, config, name, seed, sizes) for (name, seed), config in configs.items()]
    results = run_cells(cells, options.out, options.say)
    return _report(options, bench, configs[BASE, seeds[0]], results, seeds)


def variant_config(name: str, seed: int, sizes: Sizes, options: Options) -> TrainConfig:
    base = replace(sizes.training(options), seed=seed)
    changes = dict(VARIANTS[name])
    groups: dict[str, LossConfig | ProgressiveK | RevivalConfig] = {
        "loss": base.loss,
        "progressive_k": base.progressive_k,
        "revival": base.revival,
    }
    changes |= {group: replace(value, **changes[group]) for group, value in groups.items() if group in changes}
    return replace(base, **changes)


def _name(variant: str, seed: int) -> str:
    return f"{variant} seed {seed}"


def _cell(bench: Bench, config: TrainConfig, variant: str, seed: int, sizes: Sizes) -> Cell:
    def run() -> Result:
        curve: list[tuple[int, float]] = []
        every = max(1, config.steps // sizes.curve_points)
        held_out = bench.held_out.all
        rows = held_out.take(slice(None, None, max(1, len(held_out) // sizes.curve_rows))).compacted()

        def error(model: TIDE) -> float:
            with inference(model):
                x_hat = model(rows.x, rows.position)
            return float((rows.x - x_hat).square().mean()) / bench.scale**2

        def watch(model: TIDE, step: int) -> None:
            # Before its first step a model is not calibrated yet.
            if step and step % every == 0:
                curve.append((step, error(model)))

        model, history = bench.fit(config, bench.train, watch)
        curve.append((config.steps, error(model)))
        return {
            "held_out": bench.reconstruction(model, bench.held_out),
            "diffusion": bench.diffusion(model),
            "roughness": roughness(model, bench.held_out),
            "revived": history[-1]["revived"],
            "curve": curve,
        }

    return Cell(
        _name(variant, seed),
        {
            "data": bench.config(),
            "training": config.to_dict(),
            "curve": [sizes.curve_rows, sizes.curve_points],
        },
        run,
        lambda: bench.seconds(config, bench.train) + bench.diffusion_seconds,
    )


def roughness(model: TIDE, pool: ActivationPool) -> float:
    """|F_t - F_t+1|^2 over |F_t|^2: the share of the latents' energy that changes between neighbouring timesteps."""
    moved, energy = 0.0, 0.0
    with inference(model):
        for batch in pool.once():
            z = model.encode(batch.x, batch.position).dense(model.n_latents)
            moved += float((z[::2] - z[1::2]).square().sum())
            energy += float(z[::2].square().sum())
    return moved / energy


def converged_at(curve: list[tuple[int, float]], goal: float) -> int | None:
    """The first step of the curve from which on the error stays at ``goal`` or below; None if it never does."""
    at = settles_at([error <= goal for _, error in curve])
    return None if at is None else curve[at][0]


def figures_of(results: dict[str, Result], seeds: list[int]) -> dict[str, dict[str, list[float | None]]]:
    """Variant -> figure -> one value for each seed; ``reached at`` and ``converged at`` are None if it never did."""
    table: dict[str, dict[str, list[float | None]]] = {}
    for variant in VARIANTS:
        row: dict[str, list[float | None]] = {name: [] for name in FIGURES}
        for seed in seeds:
            result = results[_name(variant, seed)]
            for name in ("mse", "cosine", "explained_variance", "dead"):
                row[name].append(result["held_out"][name])
            row["recovered"].append(result["diffusion"]["recovered"])
            row["roughness"].append(result["roughness"])
            goal = WITHIN * results[_name(PLAIN, seed)]["curve"][-1][1]
            row["reached at"].append(next((step for step, error in result["curve"] if error <= goal), None))
            row["converged at"].append(converged_at(result["curve"], goal))
        table[variant] = row
    return table


def verdict_of(table: dict[str, dict[str, list[Any]]]) -> str:
    """One sentence from the numbers: the modulation's effect and speed, then the best and the worst choices."""
    base, plain = table[BASE], table[PLAIN]
    n = len(base["mse"])
    lower = sum(a < b for a, b in zip(base["mse"], plain["mse"], strict=True))

    def sooner(figure: str) -> int:
        pairs = zip(base[figure], plain[figure], strict=True)
        return sum(a is not None and (b is None or a < b) for a, b in pairs)

    by_error = sorted((mean(row["mse"]), name) for name, row in table.items() if name != BASE)
    better = [name for _, name in by_error if differs(table[name]["mse"], base["mse"]) < 0]
    worse = [name for _, name in reversed(by_error) if differs(table[name]["mse"], base["mse"]) > 0]
    return (
        f"With the modulation the held-out MSE is {mean(base['mse']):.4f}, without {mean(plain['mse']):.4f} (lower in "
        f"{lower} of {n} seeds), and it comes within {WITHIN - 1:.0%} of the plain SAE's final error sooner in "
        f"{sooner('reached at')} of {n} and stays there sooner in {sooner('converged at')}; in every seed, and by more "
        "than the difference varies, "
        + (f"the error is lower with {', '.join(better)}" if better else "no choice lowers the error")
        + (f" and higher with {', '.join(worse)}." if worse else " and none raises it.")
    )


def differs(variant: list[float], base: list[float]) -> int:
    """1 (or -1) where the variant is above (or below) in every seed, on average by more than the difference varies from
    seed to seed, else 0. The variants of a seed share their data, so differences are taken within seeds."""
    differences = [a - b for a, b in zip(variant, base, strict=True)]
    if all(d > 0 for d in differences) and mean(differences) > spread(differences):
        return 1
    return -1 if all(d < 0 for d in differences) and -mean(differences) > spread(differences) else 0


def _report(options: Options, bench: Bench, base: TrainConfig, results: dict[str, Result], seeds: list[int]) -> str:
    table = figures_of(results, seeds)
    reached = {variant: {f: known(values) for f, values in row.items()} for variant, row in table.items()}
    shown = [
        (variant, *(with_spread(row[f], 0 if f.endswith(" at") else 4) if row[f] else "never" for f in FIGURES))
        for variant, row in reached.items()
    ]
    options.say(f"\nHeld-out figures (mean ± standard deviation of {len(seeds)} seeds)")
    options.say(text_table(("", *FIGURES), shown))
    verdict = verdict_of(table)
    write_results(
        options,
        "ablation",
        {
            "seeds": seeds,
            "data": bench.config(),
            "training": base.to_dict(),
            "variants": VARIANTS,
            "figures": table,
            "curves": {name: result["curve"] for name, result in results.items()},
            "verdict": verdict,
        },
    )
    write_csv(
        options.out / "ablation.csv",
        [
            {"variant": variant, "figure": f, "mean": mean(values), "spread": spread(values), "seeds": len(values)}
            for variant, row in reached.items()
            for f, values in row.items()
        ],
    )
    write_csv(
        options.out / "ablation-curves.csv",
        [
            {"variant": variant, "seed": seed, "step": step, "mse": error}
            for variant in VARIANTS
            for seed in seeds
            for step, error in results[_name(variant, seed)]["curve"]
        ],
    )
    _draw(options, results, table, seeds)
    return verdict


def _draw(
    options: Options, results: dict[str, Result], table: dict[str, dict[str, list[Any]]], seeds: list[int]
) -> None:
    figure, axes = charts.panels(len(GROUPS))
    for axis, (group, variants) in zip(axes, GROUPS.items(), strict=True):
        for i, variant in enumerate(variants):
            curves = [results[_name(variant, seed)]["curve"] for seed in seeds]
            steps = [step for step, _ in curves[0]]
            errors = torch.tensor([[error for _, error in curve] for curve in curves])
            colour = charts.COLOURS[i]
            axis.plot(steps, errors.mean(0).tolist(), color=colour, label=variant, linewidth=1.4)
            axis.fill_between(
                steps, errors.amin(0).tolist(), errors.amax(0).tolist(), color=colour, alpha=0.15, linewidth=0
            )
        charts.log_scale(axis, "y")
        axis.set(xlabel="step", title=group)
        axis.legend(frameon=False, fontsize="x-small")
    axes[0].set_ylabel("held-out MSE")
    charts.save(figure, options.out / "ablation-curves.png")
    figure, axes = charts.panels(3, width=4.6, height=3.8)
    for axis, name in zip(axes, ("mse", "recovered", "dead"), strict=True):
        charts.dots(axis, list(table), [row[name] for row in table.values()])
        axis.set_title({"mse": "held-out MSE", "recovered": "diffusion loss recovered", "dead": "dead latents"}[name])
    charts.save(figure, options.out / "ablation.png")
