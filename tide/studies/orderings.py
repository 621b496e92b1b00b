"""The paper's Table 1 as orderings, and how many seeds agree with each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations

#: Table 1 of the paper (d x 16 d, 5 %, the mean of 28 layers).
PAPER: dict[str, dict[str, float]] = {
    "SAE": {"train_mse": 3.3e-3, "train_cosine": 0.968, "val_mse": 1.23e-2, "val_cosine": 0.935},
    "SAE(sample)": {"train_mse": 2.5e-3, "train_cosine": 0.970, "val_mse": 1.26e-2, "val_cosine": 0.962},
    "TIDE": {"train_mse": 3.1e-3, "train_cosine": 0.970, "val_mse": 1.02e-2, "val_cosine": 0.944},
    "TIDE(sample)": {"train_mse": 2.5e-3, "train_cosine": 0.972, "val_mse": 1.02e-2, "val_cosine": 0.964},
}

METRICS = {
    "train_mse": "training MSE",
    "train_cosine": "training cosine",
    "val_mse": "validation MSE",
    "val_cosine": "validation cosine",
}

#: An ordering holds if at least this share of the seeds agrees: 4 of 5.
HELD = 0.8

#: model -> metric -> one figure for each seed, in the order of the seeds.
Figures = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Ordering:
    """The paper has ``better`` ahead of ``worse`` in ``metric``; ``agree`` of ``seeds`` seeds agree."""

    metric: str
    better: str
    worse: str
    agree: int
    seeds: int

    @property
    def held(self) -> bool:
        return self.agree >= HELD * self.seeds

    def __str__(self) -> str:
        sign = "<" if self.metric.endswith("mse") else ">"
        verdict = "holds" if self.held else "does not hold"
        return f"{METRICS[self.metric]}: {self.better} {sign} {self.worse} {verdict} ({self.agree} of {self.seeds})"


def ahead(metric: str, first: float, second: float) -> bool:
    """Whether ``first`` is better: a lower MSE, a higher cosine."""
    return first < second if metric.endswith("mse") else first > second


def paper_orderings(figures: Figures) -> list[Ordering]:
    """Every pair of models that the paper's table orders (ties do not count), with what ``figures`` say."""
    found = []
    for metric in METRICS:
        for better, worse in permutations(PAPER, 2):
            if ahead(metric, PAPER[better][metric], PAPER[worse][metric]):
                agree = count_ahead(metric, figures[better][metric], figures[worse][metric])
                found.append(Ordering(metric, better, worse, agree, len(figures[better][metric])))
    return found


def count_ahead(metric: str, first: Sequence[float], second: Sequence[float]) -> int:
    """The number of seeds in which ``first`` is better."""
    return sum(ahead(metric, a, b) for a, b in zip(first, second, strict=True))


def in_words(orderings: Iterable[Ordering]) -> str:
    """``9 of the paper's 21 orderings hold``, with how many of each metric."""
    each = list(orderings)
    parts = []
    for metric, name in METRICS.items():
        of_metric = [o for o in each if o.metric == metric]
        parts.append(f"{sum(o.held for o in of_metric)} of {len(of_metric)} in {name}")
    return f"{sum(o.held for o in each)} of the paper's {len(each)} orderings hold ({', '.join(parts)})"
