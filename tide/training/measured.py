"""What a training measures of its model when it ends, on training tokens: nothing here is held out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tide.activations.batch import ActivationBatch
from tide.devices import in_double
from tide.runs import contents
from tide.sae.model import TIDE, inference

#: A latent that was silent for so many of the last tokens counts as dead. The figures of
#: :data:`~tide.training.known.KNOWN` are of 8,192 and 16,384 held-out tokens.
DEAD_TOKENS = 16_384
#: The shares of the tokens that have fewer active latents than the low end of the spread, and than its high end.
SPREAD = (0.1, 0.9)
#: The fewest logged steps that each half of the last fifth needs.
LEAST_LOGGED = 3


@dataclass(frozen=True)
class Measured:
    """Figures of a trained model; None is what was not measured.

    Attributes:
        tokens: of the last batch, that variance and L0 are of, with the final weights and thresholds; older versions
            did not record it.
        explained_variance: ``1 - sum |x - x_hat|^2 / sum |x - mean x|^2``.
        l0: active latents a token, the mean; ``l0_low`` and ``l0_high``: its quantiles by :data:`SPREAD`.
        dead: the share of latents that were silent for the last ``dead_tokens`` tokens of the training.
        fall: by what share the mean error of the logged steps in the last tenth is below that of the tenth before.
    """

    tokens: int | None = None
    explained_variance: float | None = None
    l0: float | None = None
    l0_low: float | None = None
    l0_high: float | None = None
    dead: float | None = None
    dead_tokens: int | None = None
    fall: float | None = None

    def known(self) -> dict[str, float]:
        """The figures that were measured, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def measure(
    model: TIDE,
    batch: ActivationBatch,
    silent_for: Tensor,
    history: Sequence[Mapping[str, float]],
    steps: int,
    n_rows: int,
) -> Measured:
    """The figures of a model after its last step, on ``batch``, this rank's part of the last one of ``n_rows`` rows;
    ``silent_for [n_latents]`` are the tokens since each latent fired.

    Of latents that ranks divide, which none can encode alone, variance and L0 are those that the last step logged.
    """
    figures: dict[str, Any] = (
        {"tokens": n_rows, **{name: history[-1].get(name) for name in ("explained_variance", "l0")}}
        if model.among.several
        else {"tokens": len(batch), **on_tokens(model, batch)}
    )
    if steps * n_rows >= DEAD_TOKENS:
        dead = model.among.summed((silent_for >= DEAD_TOKENS).sum())
        figures |= {"dead": float(dead) / model.n_latents, "dead_tokens": DEAD_TOKENS}
    return Measured(**figures, fall=fall_at_the_end(history, steps))


def measured_before(out: Path) -> Measured:
    """What ``run.json`` holds of a training that was finished before; older versions measured less."""
    holds = contents(out)
    known = {} if holds is None else holds.measured
    return Measured(**{each.name: known[each.name] for each in fields(Measured) if each.name in known})


def on_tokens(model: TIDE, batch: ActivationBatch) -> dict[str, float | None]:
    """Explained variance and L0 of ``model`` on a batch, as fields of :class:`Measured`."""
    x, wanted = batch.x.to(torch.promote_types(model.W_enc.dtype, torch.float32)), in_double(batch.wanted)
    with inference(model):
        codes = model.encode(x, batch.position)
        error = (in_double(model.decode(codes, batch.position)) - wanted).square().sum()
    variance = float((wanted - wanted.mean(0)).square().sum())
    active = (codes.values != 0).sum(1).float()
    low, high = torch.quantile(active, active.new_tensor(SPREAD)).tolist()
    return {
        "explained_variance": 1 - float(error) / variance if variance > 0 else None,
        "l0": float(active.mean()),
        "l0_low": low,
        "l0_high": high,
    }


def fall_at_the_end(history: Sequence[Mapping[str, float]], steps: int) -> float | None:
    """``1 - mean mse of the last tenth / mean mse of the tenth before``, of the logged steps; None where either holds
    too few of them."""
    before, last = (
        [entry["mse"] for entry in history if low * steps < entry["step"] <= high * steps]
        for low, high in ((0.8, 0.9), (0.9, 1.0))
    )
    if min(len(before), len(last)) < LEAST_LOGGED or not sum(before) > 0:
        return None
    fall = 1 - (sum(last) / len(last)) / (sum(before) / len(before))
    return fall if math.isfinite(fall) else None
