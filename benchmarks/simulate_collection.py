"""Collection on up to 1,024 ranks, some of them slow, some killed: ``python -m benchmarks.simulate_collection``.

Compares three ways to divide the images, with the same ranks, kills and seeds:

* own shares, as `tide collect` on several ranks: rank r collects a contiguous share alone and waits for nobody;
* parts: more parts than ranks, and a rank that is done takes the next part, like a Slurm array that runs so many jobs
  at a time;
* steps together: after each step every rank waits for the slowest, as with a collective in each step.

Time is in units of the share of a rank of usual speed: a collection without any trouble takes 1. A rank's step takes
m_r x_s of the usual time, m_r = exp(0.1 N(0, 1)), times 3 to 10 for a straggler, and x_s = exp(0.2 N(0, 1)). A killed
rank loses what it did since its last shard and begins again after a delay. Writes a table and a chart to
``benchmarks/results/simulate-collection``.
"""

from __future__ import annotations

import argparse
import heapq
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.table import RESULTS, markdown, write
from benchmarks.table import replace as replace_file
from tide.activations.stores import SHARDS
from tide.charts import log_scale, panels, save, style

OUT = RESULTS / "simulate-collection"
RANKS = (16, 64, 256, 1024)
#: Parts for each rank.
PARTS = (4, 16)


@dataclass(frozen=True)
class Trouble:
    """What happens to ranks: the share of stragglers and of killed ranks, the spreads of ranks and of steps (of
    logarithms), and what a restart takes in shares."""

    stragglers: float = 0.004
    killed: float = 0.01
    of_ranks: float = 0.1
    of_steps: float = 0.2
    delay: float = 0.05


#: The cases of the table, by name.
CASES = {
    "usual spread": Trouble(stragglers=0, killed=0),
    "4 are 3 to 10 times slower": Trouble(killed=0),
    "10 are killed": Trouble(stragglers=0),
    "both": Trouble(),
}


@dataclass(frozen=True)
class Ranks:
    """Drawn ranks: the usual time of each, in units of the usual; the times of its steps relative to that; and how far
    into its share each is killed, NaN for those that are not."""

    slowness: np.ndarray  # [ranks]
    steps: np.ndarray  # [ranks, steps]
    killed: np.ndarray  # [ranks]

    @classmethod
    def drawn(cls, n_ranks: int, n_steps: int, trouble: Trouble, seed: int) -> Ranks:
        """At least one straggler and one killed rank if their share is not 0."""
        draw = np.random.default_rng([seed, n_ranks])
        slowness = np.exp(trouble.of_ranks * draw.standard_normal(n_ranks))
        order = draw.permutation(n_ranks)
        slow = order[: _count(trouble.stragglers, n_ranks)]
        slowness[slow] *= draw.uniform(3, 10, len(slow))
        killed = np.full(n_ranks, np.nan)
        hit = order[::-1][: _count(trouble.killed, n_ranks)]
        killed[hit] = draw.uniform(0, 1, len(hit))
        return cls(slowness, np.exp(trouble.of_steps * draw.standard_normal((n_ranks, n_steps))), killed)

    @property
    def ideal(self) -> float:
        """The time if the images were divided by speed and nothing else happened: ranks over the sum of speeds."""
        return float(len(self.slowness) / (1 / (self.slowness * self.steps.mean(1))).sum())


def _count(share: float, n: int) -> int:
    return max(1, round(share * n)) if share else 0


@dataclass(frozen=True)
class Outcome:
    """``makespan``: when the last rank is done; ``busy``: the share of the ranks' time until then that is not spent
    waiting."""

    makespan: float
    busy: float


def own_shares(ranks: Ranks, delay: float) -> Outcome:
    """The slowest rank is the end: max_r of m_r mean_s(x_s), with what a kill costs that rank."""
    times = ranks.slowness * ranks.steps.mean(1)
    lost = times * (ranks.killed * SHARDS % 1) / SHARDS
    times = times + np.where(np.isnan(ranks.killed), 0.0, delay + lost)
    return Outcome(float(times.max()), float(times.mean() / times.max()))


def together(ranks: Ranks, delay: float) -> Outcome:
    """The slowest rank of each step is the step; a kill stops all."""
    n_ranks, n_steps = ranks.steps.shape
    steps = ranks.slowness[:, None] * ranks.steps / n_steps
    slowest = steps.max(0)
    hit = ranks.killed[~np.isnan(ranks.killed)]
    makespan = float(slowest.sum() + (delay + (hit * SHARDS % 1) / SHARDS * slowest.sum()).sum())
    return Outcome(makespan, float(steps.sum() / n_ranks / makespan))


def parts(ranks: Ranks, delay: float, per_rank: int) -> Outcome:
    """A rank that is done takes the next part. A kill costs its rank the delay and what it did of a part's shard."""
    n_ranks = len(ranks.slowness)
    times = ranks.slowness * ranks.steps.mean(1) / per_rank
    free = [(0.0, rank) for rank in range(n_ranks)]
    killed = ranks.killed.copy()
    busy = end = 0.0
    for _ in range(per_rank * n_ranks):
        start, rank = heapq.heappop(free)
        taken = times[rank]
        if not np.isnan(killed[rank]):  # in its first part
            taken += delay + times[rank] * (killed[rank] * SHARDS % 1) / SHARDS
            killed[rank] = np.nan
        busy, end = busy + taken, max(end, start + taken)
        heapq.heappush(free, (start + taken, rank))
    return Outcome(float(end), float(busy / n_ranks / end))


def outcomes(ranks: Ranks, delay: float) -> dict[str, Outcome]:
    """Of each way, by its name."""
    return {
        "steps together": together(ranks, delay),
        "own shares": own_shares(ranks, delay),
        **{f"{each} parts a rank": parts(ranks, delay, each) for each in PARTS},
    }


def simulated(n_ranks: int, n_steps: int, trouble: Trouble, seeds: int) -> dict[str, dict[str, float]]:
    """Medians over seeds: makespan, the same over the ideal, and the busy share."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for seed in range(seeds):
        ranks = Ranks.drawn(n_ranks, n_steps, trouble, seed)
        for name, outcome in outcomes(ranks, trouble.delay).items():
            found.setdefault(name, []).append((outcome.makespan, outcome.makespan / ranks.ideal, outcome.busy))
    names = ("makespan", "over the ideal", "busy")
    return {way: dict(zip(names, map(median, zip(*each, strict=True)), strict=True)) for way, each in found.items()}


def table(figures: dict[str, dict[str, dict[str, float]]]) -> str:
    """Cases by ways: the makespan, and the busy share in brackets."""
    ways = list(next(iter(figures.values())))
    cells = {case: [f"{f[way]['makespan']:.2f} ({f[way]['busy']:.0%})" for way in ways] for case, f in figures.items()}
    return markdown(["of 1,024 ranks", *ways], [[case, *row] for case, row in cells.items()])


def chart(figures: dict[str, dict[int, dict[str, dict[str, float]]]], path: Path) -> None:
    """The makespan over the ideal, by the number of ranks, a panel for each case."""
    figure, axes = panels(len(figures), width=4.4)
    for axis, (case, by_ranks) in zip(axes, figures.items(), strict=True):
        for i, way in enumerate(next(iter(by_ranks.values()))):
            axis.plot(
                list(by_ranks), [each[way]["over the ideal"] for each in by_ranks.values()], label=way, **style(i)
            )
        axis.set(title=case, xlabel="ranks", ylabel="time over the ideal")
        log_scale(axis, "x", "y")
        axis.set_xticks(list(by_ranks), [str(n) for n in by_ranks])
    axes[0].legend(frameon=False, fontsize="small")
    save(figure, path)


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulate_collection", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--steps", type=int, default=128, help="of a rank's share")
    parser.add_argument("--seeds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(given)
    most = RANKS[-1]
    cases = {case: simulated(most, options.steps, trouble, options.seeds) for case, trouble in CASES.items()}
    shown = {"usual spread": CASES["usual spread"], "some slow, some killed": CASES["both"]}
    curves = {
        case: {n: simulated(n, options.steps, trouble, options.seeds) for n in RANKS} for case, trouble in shown.items()
    }
    found: dict[str, Any] = {"ranks": most, "steps": options.steps, "seeds": options.seeds, "cases": cases}
    write(options.out / "figures.json", {**found, "curves": curves})
    replace_file(options.out / "table.md", table(cases) + "\n")
    chart(curves, options.out / "chart.png")
    print(table(cases))
    return 0


if __name__ == "__main__":
    sys.exit(main())
