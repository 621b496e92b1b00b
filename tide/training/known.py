"""What trainings with the default options are known to give: the ranges that stand beside a run's own figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tide.sae.model import TIDE
from tide.training.config import DEFAULT_K, TrainConfig

#: Options with which the figures of :data:`KNOWN` may be compared, whatever their values.
_FREE = (
    *("activation", "modulation", "steps", "batch_tokens", "device", "backend", "seed", "precision", "shard_latents"),
    *("log_every", "checkpoint_every", "expansion", "density", "n_latents", "k"),
)


@dataclass(frozen=True)
class Range:
    """The lowest and the highest figure of several trainings."""

    low: float
    high: float


@dataclass(frozen=True)
class Known:
    """Figures of trainings of one kind, on held-out tokens but for ``fall``.

    Attributes:
        explained_variance, l0, dead: as of :class:`~tide.training.measured.Measured`.
        fall: the same, on training tokens; None where it was not measured.
        source: the committed files that hold them.
    """

    explained_variance: Range
    l0: Range
    dead: Range
    source: str
    fall: Range | None = None


_SPARSITY = "benchmarks/results/sparsity/cells.tgz"
_REUSE = "benchmarks/results/reuse.json"

#: (activation, modulation) -> figures at k = 64 and 16 latents a dimension, all else as by default, on the bundled
#: pipeline: 1200 steps of 1024 tokens of block 6, three seeds (``sparsity``: cells of that L0); of the default itself
#: also 1000 steps of blocks 2 and 6, two seeds (``reuse``). ``fall``, of training tokens, is what such a training of
#: one seed measured of itself (benchmarks/results/training-screen.json). tests/training/test_known.py reads the files.
KNOWN: dict[tuple[str, bool], Known] = {
    ("jumprelu", True): Known(
        Range(0.9606, 0.9810), Range(61.6, 63.7), Range(0.716, 0.892), f"{_REUSE}, {_SPARSITY}", Range(0.045, 0.054)
    ),
    ("jumprelu", False): Known(Range(0.9653, 0.9656), Range(62.9, 63.0), Range(0.546, 0.565), _SPARSITY),
    ("batch_topk", True): Known(Range(0.9622, 0.9626), Range(63.1, 63.4), Range(0.089, 0.112), _SPARSITY),
    ("batch_topk", False): Known(Range(0.9598, 0.9601), Range(63.2, 63.6), Range(0.005, 0.007), _SPARSITY),
    ("topk", True): Known(Range(0.9562, 0.9564), Range(64.0, 64.0), Range(0.040, 0.045), _SPARSITY),
    ("topk", False): Known(Range(0.9540, 0.9546), Range(64.0, 64.0), Range(0.000, 0.003), _SPARSITY),
}
#: What they were measured on, in words.
WHERE = "the bundled pipeline"
#: The steps of the shortest of these trainings, and how many a training needs to be compared with them.
KNOWN_STEPS, LEAST_STEPS = 1000, 500


def known_of(model: TIDE, config: TrainConfig) -> Known | None:
    """The figures that a training with this configuration may be compared with, or None: one with another k, another
    number of latents or other options is not known."""
    if model.config.target or model.config.tensor != "output":
        return None
    if config.sizes(model.d_model) != (16 * model.d_model, DEFAULT_K):
        return None
    default = TrainConfig(activation=config.activation, modulation=config.modulation)
    if _fixed(config) != _fixed(default):
        return None
    return KNOWN.get((config.activation, config.modulation))


def _fixed(config: TrainConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in _FREE}
