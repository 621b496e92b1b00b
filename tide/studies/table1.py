"""Table 1: SAE, SAE(sample), TIDE and TIDE(sample), in training and on differently distributed scenes.

"Same pairs" trains all four on the activations of the same image-prompt pairs at the same noise, for the same number
of steps of the same size. The sampled ones get 1/16 of the tokens and so see each 16 times as often. "Equal tokens"
gives the sampled ones as many different tokens as the others have, from 16 times as many images.

Training figures are measured on the tokens that a model was trained on, validation figures on the scenes of
:mod:`tide.studies.shifted`, and held-out figures on unseen combinations that are rendered as in training.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from tide import charts
from tide.activations.memory import ActivationPool
from tide.evaluation.baselines import PCA
from tide.studies.bench import NEVER, Bench, DataSizes, measured
from tide.studies.grid import Cell, Result, run_cells
from tide.studies.options import Options, write_results
from tide.studies.orderings import METRICS, PAPER, Figures, count_ahead, in_words, paper_orderings
from tide.tables import mean, spread, text_table, with_spread, write_csv
from tide.training import TrainConfig
from tide.training.config import PAPER_OPTIONS

SIZES = DataSizes(train_images=1024, wide_images=16384, held_out_images=192)
FAST = DataSizes(train_images=32, wide_images=512, held_out_images=16, train_rows=4096, batch_tokens=128)
SEEDS, STEPS, FAST_STEPS = 5, 1500, 30

TABLES = {"same pairs": "the same image-prompt pairs", "equal tokens": "equal numbers of tokens"}
BASELINES = {"mean": 0, "PCA k/4": 0.25, "PCA k": 1.0}


def reproduce(options: Options) -> str:
    """Runs the study into ``options.out`` and returns what was found."""
    seeds = options.each_seed(2 if options.fast else SEEDS)
    steps = options.steps or (FAST_STEPS if options.fast else STEPS)
    bench = Bench(FAST if options.fast else SIZES, options.seed, options.say, progress=options.progress)
    base = options.training(
        TrainConfig(
            steps=steps,
            batch_tokens=bench.sizes.batch_tokens,
            backend=options.backend,
            checkpoint_every=NEVER,
            expansion=2 if options.fast else 16,
            **PAPER_OPTIONS,
        )
    )
    cells = [
        _cell(bench, replace(base, modulation=name.startswith("TIDE"), seed=seed), name, kind, seed)
        for seed in seeds
        for kind in ("same pairs", "equal tokens")
        for name in PAPER
        if kind == "same pairs" or "sample" in name
    ]
    cells.append(_baselines(bench, base))
    results = run_cells(cells, options.out, options.say)
    tables = {kind: _figures(results, kind, seeds) for kind in TABLES}
    return _report(options, bench, base, results, tables, seeds)


def _cell_name(name: str, kind: str, seed: int) -> str:
    return f"{name} seed {seed}" + (" equal tokens" if kind == "equal tokens" else "")


def _pool(bench: Bench, name: str, kind: str, seed: int) -> ActivationPool:
    if "sample" not in name:
        return bench.train
    return bench.sampled(seed) if kind == "same pairs" else bench.wide


def _cell(bench: Bench, config: TrainConfig, name: str, kind: str, seed: int) -> Cell:
    def estimate() -> float:
        # Collects every pool that a cell needs: the estimate that is announced does not include collecting.
        _ = bench.wide if kind == "equal tokens" else bench.train
        return bench.seconds(config, bench.train)

    return Cell(
        _cell_name(name, kind, seed),
        {"data": bench.config(), "tokens": kind, "model": name, "training": config.to_dict()},
        partial(_measure, bench, config, name, kind, seed),
        estimate,
    )


def _measure(bench: Bench, config: TrainConfig, name: str, kind: str, seed: int) -> Result:
    pool = _pool(bench, name, kind, seed)
    model, _ = bench.fit(config, pool)
    return {
        "tokens": len(pool),
        "images": len(pool.all.sample.unique()),
        "train": bench.reconstruction(model, pool, bench.sizes.train_rows),
        "val": bench.reconstruction(model, bench.shifted),
        "held_out": bench.reconstruction(model, bench.held_out),
    }


def _baselines(bench: Bench, base: TrainConfig) -> Cell:
    """The mean activation and PCAs of the training tokens: at 5 % of 16 d latents, k is near d, and a high cosine
    proves little."""
    _, k = base.sizes(bench.adapter.d_model)

    def run() -> Result:
        pca = PCA.fit(bench.train.once())
        return {
            name: {
                split: measured(pca.reconstruct(int(share * k)), pool, None, bench.scale)
                for split, pool in (("val", bench.shifted), ("held_out", bench.held_out))
            }
            for name, share in BASELINES.items()
        }

    return Cell("baselines", {"data": bench.config(), "k": k}, run, lambda: 1.0)


def _result(results: dict[str, Result], name: str, kind: str, seed: int) -> Result:
    """The result of a model in one table and seed; without sampling both tables share it."""
    return results[_cell_name(name, kind if "sample" in name else "same pairs", seed)]


def _figures(results: dict[str, Result], kind: str, seeds: list[int]) -> Figures:
    """The figures of one table."""
    table: Figures = {}
    for name in PAPER:
        rows = [_result(results, name, kind, seed) for seed in seeds]
        table[name] = {
            f"{split}_{figure}": [row[split][figure] for row in rows]
            for split in ("train", "val", "held_out")
            for figure in ("mse", "cosine", "explained_variance", "l0", "dead")
        }
    return table


def _report(
    options: Options,
    bench: Bench,
    base: TrainConfig,
    results: dict[str, Result],
    tables: dict[str, Figures],
    seeds: list[int],
) -> str:
    say = options.say
    found: dict[str, Any] = {"seeds": seeds, "data": bench.config(), "training": base.to_dict(), "tables": {}}
    rows = []
    for kind, table in tables.items():
        orderings = paper_orderings(table)
        found["tables"][kind] = {
            "models": {
                name: {m: {"mean": mean(v), "spread": spread(v), "seeds": v} for m, v in figures.items()}
                for name, figures in table.items()
            },
            "orderings": [{**o.__dict__, "held": o.held} for o in orderings],
            "seen": {
                name: {what: _result(results, name, kind, seeds[0])[what] for what in ("tokens", "images")}
                for name in table
            },
        }
        rows += [
            {"table": kind, "model": name, "figure": m, "mean": mean(v), "spread": spread(v), "seeds": len(v)}
            for name, figures in table.items()
            for m, v in figures.items()
        ]
        say(f"\nTable 1 at {TABLES[kind]} (mean ± standard deviation of {len(seeds)} seeds)")
        say(_as_text(table))
        say("\n".join(f"  {each}" for each in orderings))
    for name, figures in results["baselines"].items():
        rows += [
            {"table": "baselines", "model": name, "figure": f"{split}_{m}", "mean": v, "spread": 0.0, "seeds": 1}
            for split, of_split in figures.items()
            for m, v in of_split.items()
        ]
        say(f"  {name}: validation MSE {figures['val']['mse']:.4f}, cosine {figures['val']['cosine']:.4f}")
    verdict = verdict_of(tables)
    write_results(options, "table1", {**found, "baselines": results["baselines"], "verdict": verdict})
    write_csv(options.out / "table1.csv", rows)
    _draw(options, tables, results["baselines"])
    return verdict


def _as_text(table: Figures) -> str:
    header = ("", *METRICS.values(), "held-out MSE", "held-out cosine", "variance explained")
    metrics = (*METRICS, "held_out_mse", "held_out_cosine", "held_out_explained_variance")
    return text_table(header, [(name, *(with_spread(table[name][m], 5) for m in metrics)) for name in table])


def verdict_of(tables: dict[str, Figures]) -> str:
    """One sentence from the numbers: the two orderings that matter most, then how many hold in all."""
    same, equal = tables["same pairs"], tables["equal tokens"]
    n = len(same["SAE"]["val_mse"])

    def against(table: Figures, metric: str, first: str, second: str) -> str:
        a, b = table[first][metric], table[second][metric]
        where = "below" if metric.endswith("mse") else "above"
        side = where if count_ahead(metric, [mean(a)], [mean(b)]) else f"not {where}"
        return (
            f"{first}'s {METRICS[metric]} ({mean(a):.4f}) is {side} {second}'s ({mean(b):.4f}) on average and ahead "
            f"in {count_ahead(metric, a, b)} of {n} seeds"
        )

    return (
        f"{against(same, 'val_mse', 'TIDE', 'SAE')}; "
        f"{against(same, 'val_cosine', 'SAE(sample)', 'SAE')} on the same pairs and in "
        f"{count_ahead('val_cosine', equal['SAE(sample)']['val_cosine'], equal['SAE']['val_cosine'])} of {n} at equal "
        f"tokens; {in_words(paper_orderings(same))} on the same pairs, {in_words(paper_orderings(equal))} at equal "
        "tokens."
    )


def _draw(options: Options, tables: dict[str, Figures], baselines: Result) -> None:
    figure, axes = charts.panels(8, width=3.1, height=2.7, columns=4)
    for axis, (kind, metric) in zip(axes, chain.from_iterable([(k, m) for m in METRICS] for k in tables), strict=True):
        table = tables[kind]
        charts.dots(axis, list(table), [table[name][metric] for name in table])
        axis.set_title(f"{METRICS[metric]}, {kind}", fontsize="small")
        split, name = metric.split("_")
        if split == "val":
            axis.set_xlabel(f"a PCA of rank k: {baselines['PCA k'][split][name]:.4f}", fontsize="x-small")
    charts.save(figure, options.out / "table1.png")
