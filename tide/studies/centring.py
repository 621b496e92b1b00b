"""The effect of centring: SAE and TIDE with and without it, on the bundled pipeline's activations as they are, and with
one channel moved as far off as some channels of large diffusion transformers are."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tide import charts
from tide.activations.memory import ActivationPool
from tide.sae.model import TIDE, inference
from tide.sae.normalisation import Moments
from tide.studies.bench import FAST_VARIANTS, Bench, VariantSizes
from tide.studies.grid import Cell, Result, run_cells
from tide.studies.measurements import concepts
from tide.studies.options import Options, write_results
from tide.tables import mean, spread, text_table, with_spread, write_csv
from tide.training import TrainConfig

#: The channel that is moved, and how far, in root mean squares of the activations.
CHANNEL, MOVED_BY = 0, 300.0

DATA = ("as collected", "one channel moved")
MODELS = ("SAE", "TIDE")
CENTRED = {False: "", True: ", centred"}

#: ``others`` is the explained variance of all channels except the moved one.
FIGURES = ("mse", "explained_variance", "others", "cosine", "dead", "recovered", "auroc")
#: The chart's lower end: a model below it has diverged.
LOWEST = -0.5
#: What needs the transformer, which has no moved channel. ``auroc`` is that of the best latent, the mean over concepts.
OF_TRANSFORMER = ("recovered", "auroc")


@dataclass(frozen=True)
class Sizes(VariantSizes):
    concept_images: int = 200
    concept_timesteps: int = 4


DEFAULT = Sizes()
FAST = Sizes(**FAST_VARIANTS, concept_images=16, concept_timesteps=2)


def reproduce(options: Options) -> str:
    """Runs the study into ``options.out`` and returns what was found."""
    sizes = FAST if options.fast else DEFAULT
    seeds = options.each_seed(sizes.seeds)
    bench = Bench(sizes.data, options.seed, options.say, progress=options.progress)
    base = sizes.training(options, ("centre",))
    cells = [
        _cell(bench, replace(base, modulation=model == "TIDE", centre=centre, seed=seed), data, model, sizes)
        for seed in seeds
        for data in DATA
        for model in MODELS
        for centre in CENTRED
    ]
    return _report(options, bench, base, run_cells(cells, options.out, options.say), seeds)


def _name(data: str, model: str, centre: bool, seed: int) -> str:
    return f"{model}{CENTRED[centre]} {data} seed {seed}"


def _cell(bench: Bench, config: TrainConfig, data: str, model: str, sizes: Sizes) -> Cell:
    def run() -> Result:
        shift = torch.zeros(bench.adapter.d_model)
        if data != DATA[0]:
            shift[CHANNEL] = MOVED_BY * bench.scale
        trained, _ = bench.fit(config, moved(bench.train, shift))
        pool = moved(bench.held_out, shift)
        found = bench.reconstruction(trained, pool)
        found["others"] = explained_without(trained, pool, CHANNEL)
        if data == DATA[0]:
            found["recovered"] = bench.diffusion(trained)["recovered"]
            found["auroc"] = concept_auroc(bench, trained, sizes)
        return found

    return Cell(
        _name(data, model, config.centre, config.seed),
        {
            "data": bench.config(),
            "training": config.to_dict(),
            "moved": [data, CHANNEL, MOVED_BY],
            "concepts": [sizes.concept_images, sizes.concept_timesteps],
        },
        run,
        lambda: bench.seconds(config, bench.train) + (bench.diffusion_seconds if data == DATA[0] else 0.0),
    )


def concept_auroc(bench: Bench, model: TIDE, sizes: Sizes) -> float:
    """The held-out AUROC of each concept's best latent, averaged over concepts."""
    with inference(model):
        found = concepts(bench, model, sizes.concept_images, sizes.concept_timesteps)
    return mean([row["auroc"] for row in found.concepts.values()])


def moved(pool: ActivationPool, shift: Tensor) -> ActivationPool:
    """The same rows, in the same order, with ``shift [d_model]`` added."""
    other = copy.copy(pool)
    other.all = replace(pool.all, x=pool.all.x + shift)
    return other


def explained_without(model: TIDE, pool: ActivationPool, channel: int) -> float:
    """The explained variance of all channels except ``channel``."""
    kept = torch.arange(model.d_model) != channel
    error, moments = 0.0, Moments.of([])
    with inference(model):
        for batch in pool.once():
            x_hat = model(batch.x, batch.position)
            error += float((batch.x - x_hat)[:, kept].double().square().sum())
            moments = moments + Moments.of([batch.x[:, kept]])
    return 1 - error / moments.n / float(moments.variance.sum())


def figures_of(results: dict[str, Result], seeds: list[int]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Data -> model -> figure -> one value for each seed."""
    return {
        data: {
            f"{model}{name}": {
                figure: [results[_name(data, model, centre, seed)][figure] for seed in seeds]
                for figure in FIGURES
                if figure not in OF_TRANSFORMER or data == DATA[0]
            }
            for model in MODELS
            for centre, name in CENTRED.items()
        }
        for data in DATA
    }


def verdict_of(tables: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    """One sentence from the numbers."""
    as_is, apart = (tables[data] for data in DATA)
    errors, others = [], []
    for model in MODELS:
        plain, centred = (f"{model}{name}" for name in CENTRED.values())
        mse = {name: mean(as_is[name]["mse"]) for name in (plain, centred)}
        errors.append(f"{model}'s held-out MSE is {mse[centred]:.4f} with centring and {mse[plain]:.4f} without")
        most, least = max(apart[plain]["others"]), min(apart[centred]["others"])
        others.append(f"{model} explains at least {least:.1%} with centring and at most {most:.1%} without")
    return f"{'; '.join(errors)}; with one channel moved, of the other channels' variance {'; '.join(others)}."


def _report(options: Options, bench: Bench, base: TrainConfig, results: dict[str, Result], seeds: list[int]) -> str:
    tables = figures_of(results, seeds)
    for data, table in tables.items():
        options.say(f"\n{data}: held-out figures (mean ± standard deviation of {len(seeds)} seeds)")
        shown = [(name, *(with_spread(row[f], 4) if f in row else "" for f in FIGURES)) for name, row in table.items()]
        options.say(text_table(("", *FIGURES), shown))
    verdict = verdict_of(tables)
    found = {"seeds": seeds, "data": bench.config(), "training": base.to_dict(), "moved": [CHANNEL, MOVED_BY]}
    write_results(options, "centring", {**found, "figures": tables, "verdict": verdict})
    write_csv(
        options.out / "centring.csv",
        [
            {"data": data, "model": name, "figure": f, "mean": mean(values), "spread": spread(values)}
            for data, table in tables.items()
            for name, row in table.items()
            for f, values in row.items()
        ],
    )
    _draw(options, tables)
    return verdict


def _draw(options: Options, tables: dict[str, dict[str, dict[str, list[Any]]]]) -> None:
    figure, axes = charts.panels(2, width=4.6, height=3.2)
    for axis, (data, table) in zip(axes, tables.items(), strict=True):
        charts.dots(axis, list(table), [row["others"] for row in table.values()])
        lower = sum(value < LOWEST for row in table.values() for value in row["others"])
        below = f"; {lower} of the dots lie below {LOWEST:g}" if lower else ""
        axis.set_title(f"variance explained, {data}{below}", fontsize="small")
        axis.set_ylim(bottom=max(LOWEST, axis.get_ylim()[0]), top=1)
    charts.save(figure, options.out / "centring.png")
