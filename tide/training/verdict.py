"""Whether a training went well: its figures beside those that the defaults gave, and what to try if not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tide.sae.model import TIDE
from tide.training.config import LR_SHARE, TrainConfig
from tide.training.known import LEAST_STEPS, Known, Range, known_of
from tide.training.measured import Measured

Figure = Literal["explained_variance", "l0", "dead", "fall"]
Judgement = Literal["fine", "low", "high", "still falling", "rising", "too short to say", "not measured", "not known"]

#: A model is low if it misses more than so many times the variance that the worst known one misses: blocks of one
#: pipeline differ by twice (1.9 % of block 2 and 3.9 % of block 6; benchmarks/results/reuse.json).
MISSED = 1.5
#: How far L0 may be from k: "within a few per cent of it" (docs/questions.md).
OFF = 0.05
#: How much more latents may be dead than in the known trainings, and how many may be with TopK and BatchTopK in any
#: case (docs/questions.md).
MORE_DEAD, FEW_DEAD = 0.05, 0.10
#: The error still falls if it falls by more than so many times what it did in the known training, whose learning rate
#: ended as well; it rises if it does so by more than means of a few batches differ.
FALLS, RISES = 1.5 * 0.054, 0.03


@dataclass(frozen=True)
class Finding:
    """One figure of a training: its value, the range that the defaults gave (None: not known), and what it is."""

    figure: Figure
    value: float | None
    known: Range | None
    judgement: Judgement


@dataclass(frozen=True)
class Verdict:
    """What there is to say about the training of one block. ``try_`` are remedies, a sentence each; of a training that
    is too short, or fine, there is none."""

    block: int | None
    measured: Measured
    findings: tuple[Finding, ...]
    try_: tuple[str, ...]
    source: str | None

    @property
    def fine(self) -> bool:
        """Whether every figure was judged, and is fine."""
        return all(finding.judgement == "fine" for finding in self.findings)

    @property
    def too_short(self) -> bool:
        return any(finding.judgement == "too short to say" for finding in self.findings)

    def __getitem__(self, figure: Figure) -> Finding:
        return next(finding for finding in self.findings if finding.figure == figure)


def verdict(model: TIDE, config: TrainConfig, measured: Measured) -> Verdict:
    """Judges a finished training by what it measured of itself, on training tokens.

    A figure beside which there is no known range (:func:`~tide.training.known.known_of`) is "not known", unless the
    configuration says what it should be, as k does of L0. Trainings of fewer than
    :data:`~tide.training.known.LEAST_STEPS` steps are "too short to say".

    Args:
        model: the trained one.
        config: of its training.
        measured: what the training measured of itself at its end.
    """
    known = known_of(model, config)
    judged: dict[Figure, Judgement] = {
        "explained_variance": _variance(measured, known),
        "l0": _l0(measured, model),
        "dead": _dead(measured, config, known),
        "fall": _fall(measured),
    }
    if config.steps < LEAST_STEPS:
        judged = dict.fromkeys(judged, "too short to say")
    findings = tuple(
        Finding(figure, getattr(measured, figure), None if known is None else getattr(known, figure), judgement)
        for figure, judgement in judged.items()
    )
    remedies = tuple(_remedies(judged, model, config))
    return Verdict(model.config.block, measured, findings, remedies, None if known is None else known.source)


def _variance(measured: Measured, known: Known | None) -> Judgement:
    if measured.explained_variance is None:
        return "not measured"
    if known is None:
        return "not known"
    missed = 1 - measured.explained_variance
    return "low" if missed > MISSED * (1 - known.explained_variance.low) else "fine"


def _l0(measured: Measured, model: TIDE) -> Judgement:
    if measured.l0 is None:
        return "not measured"
    if model.activation is not None and not model.activation.matched:
        return "not known"  # nothing ties the L0 of ReLU and Gated to k
    off = measured.l0 / model.config.k - 1
    return "fine" if abs(off) <= OFF else "low" if off < 0 else "high"


def _dead(measured: Measured, config: TrainConfig, known: Known | None) -> Judgement:
    if measured.dead is None:
        return "not measured"
    few = FEW_DEAD if config.activation in ("topk", "batch_topk") else None
    if known is not None:
        few = max(few or 0.0, known.dead.high + MORE_DEAD)
    return "not known" if few is None else "high" if measured.dead > few else "fine"


def _fall(measured: Measured) -> Judgement:
    if measured.fall is None:
        return "not measured"
    return "still falling" if measured.fall > FALLS else "rising" if measured.fall < -RISES else "fine"


def _remedies(judged: dict[Figure, Judgement], model: TIDE, config: TrainConfig) -> list[str]:
    """What docs/questions.md and docs/results.md report to help, as options of ``tide train``."""
    lr, found = config.learning_rate(model.d_model), []
    if judged["explained_variance"] == "low" or judged["fall"] == "still falling":
        found.append(
            f"more steps: --resume --steps {2 * config.steps} (a doubling halved the error of the bundled pipeline)"
        )
    if judged["explained_variance"] == "low":
        if more := _more_active(model, config):
            found.append(f"more active latents, in a new folder: --set {more}")
        if config.activation == "jumprelu" and config.lr is None:
            found.append(f"a higher rate, in a new folder: --set lr={2 * LR_SHARE / model.d_model**0.5:.2g}")
    if judged["dead"] == "high" and config.activation in ("topk", "batch_topk"):
        if fewer := _fewer(model, config):
            found.append(f"fewer latents, in a new folder: --set {fewer}")
        found.append(f"a lower rate, in a new folder: --set lr={lr / 2:.2g}")
    if judged["dead"] == "high" and config.activation == "topk":
        found.append("an activation that leaves fewer dead, in a new folder: --set activation=batch_topk")
    if judged["dead"] == "high" and config.activation not in ("topk", "batch_topk"):
        found.append("fewer dead latents, in a new folder: --set activation=batch_topk")
    return found


def _more_active(model: TIDE, config: TrainConfig) -> str | None:
    """Twice as many active latents, by the option that decides over them: others have no effect beside it."""
    if 2 * model.config.k > model.n_latents:
        return None
    return f"density={2 * config.density:g}" if config.k is None and config.density else f"k={2 * model.config.k}"


def _fewer(model: TIDE, config: TrainConfig) -> str | None:
    """Half as many latents, as :func:`_more_active`."""
    by_width = config.n_latents is None
    half = model.d_model * (config.expansion // 2) if by_width else model.n_latents // 2
    least = 1 if config.k is None and config.density else model.config.k
    if half < least:
        return None
    return f"expansion={config.expansion // 2}" if by_width else f"n_latents={half}"
