"""A verdict on a training in words: one screen, for one block or for several."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import wrap

from tide.messages import one_line
from tide.sae.config import TIDEConfig
from tide.tables import text_table
from tide.training.config import TrainConfig
from tide.training.known import KNOWN_STEPS, LEAST_STEPS, WHERE, Range
from tide.training.measured import Measured
from tide.training.verdict import Figure, Finding, Verdict

#: Columns of a line.
WIDTH = 100

_NAMES: Mapping[Figure, str] = {
    "explained_variance": "variance explained",
    "l0": "active latents of a token",
    "dead": "dead latents",
    "fall": "error, last tenth",
}
#: The columns of a table of several blocks.
_SHORT: Mapping[Figure, str] = {"explained_variance": "variance", "l0": "active", "dead": "dead", "fall": "error"}


def as_text(
    verdicts: Sequence[Verdict],
    models: Sequence[TIDEConfig],
    config: TrainConfig,
    out: str | Path,
    data: str | None = None,
) -> str:
    """The verdicts on the blocks of one training, and the next two commands. Sentences have lines of at most 100
    columns.

    Args:
        verdicts: one a block.
        models: what the trained ones are, in the same order.
        config: of the training.
        out: the folder of the training.
        data: what the next commands may read, such as the ``--data`` of the training; default a placeholder.
    """
    paragraphs = [
        _trained(models, config, out),
        _of_one(verdicts[0]) if len(verdicts) == 1 else _of_several(verdicts),
        _measured_on(verdicts),
        _to_try(verdicts),
        _next(out, data),
    ]
    return "\n\n".join(each for each in paragraphs if each)


def _trained(models: Sequence[TIDEConfig], config: TrainConfig, out: str | Path) -> str:
    first = models[0]
    blocks = ", ".join(str(model.block) for model in models)
    block = f"block {blocks}" if len(models) == 1 else f"each of the blocks {blocks}"
    steps = f"{config.steps:,} steps of {config.batch_tokens:,} tokens"
    return _wrapped(
        f"Trained {kind_of(first)} of {first.n_latents} latents, k = {first.k}, on {block}: {steps}. It is in {out}."
    )


def kind_of(model: TIDEConfig) -> str:
    """What a model is, with its article."""
    kind = "a TIDE" if model.modulation is not None else "a plain SAE"
    return kind if model.target is None else f"{kind}, a transcoder of {model.target},"


def _of_one(verdict: Verdict) -> str:
    rows = [
        [_NAMES[each.figure], _value(each, verdict.measured), _range(each), each.judgement] for each in verdict.findings
    ]
    return text_table(["", "this run", "the defaults gave", "verdict"], rows)


def _of_several(verdicts: Sequence[Verdict]) -> str:
    rows = [
        [str(each.block), *(_value(finding, each.measured) for finding in each.findings), _in_words(each)]
        for each in verdicts
    ]
    table = text_table(["block", *_SHORT.values(), "verdict"], rows)
    if verdicts[0].source is None:
        return table
    ranges = ", ".join(f"{_SHORT[each.figure]} {_range(each)}" for each in verdicts[0].findings if each.known)
    return f"{table}\n\n{_wrapped(f'The defaults gave: {ranges}.')}"


def _in_words(verdict: Verdict) -> str:
    """All judgements on a block in a few words."""
    if verdict.too_short:
        return "too short to say"
    if verdict.fine:
        return "fine"
    odd: dict[str, list[str]] = {}
    for each in verdict.findings:
        if each.judgement != "fine":
            odd.setdefault(each.judgement, []).append(_SHORT[each.figure])
    return one_line(", ".join(f"{' and '.join(names)} {judgement}" for judgement, names in odd.items()), 46)


_WRITTEN: Mapping[Figure, Callable[[float], str]] = {
    "explained_variance": lambda value: f"{value:.1%}",
    "l0": lambda value: f"{value:.1f}",
    "dead": lambda value: f"{value:.1%}",
    "fall": lambda value: f"{-value:+.1%}",  # how the error changed
}


def _value(finding: Finding, measured: Measured) -> str:
    if finding.value is None:
        return "-"
    written = _WRITTEN[finding.figure](finding.value)
    if finding.figure == "l0" and measured.l0_low is not None and measured.l0_high is not None:
        return f"{written} ({measured.l0_low:.0f} to {measured.l0_high:.0f})"
    return written


def _range(finding: Finding) -> str:
    if finding.known is None:
        return "-"
    return _between(finding.known, _WRITTEN[finding.figure])


def _between(known: Range, written: Callable[[float], str]) -> str:
    low, high = written(known.low), written(known.high)
    return low if low == high else f"{low.removesuffix('%')} to {high}"


def _measured_on(verdicts: Sequence[Verdict]) -> str:
    """What the figures are of, so that nothing is taken for more than it is."""
    first = verdicts[0]
    if first.too_short:
        return _wrapped(
            f"Too short to say whether it went well: the figures that are known are of {KNOWN_STEPS:,} steps and more, "
            f"and fewer than {LEAST_STEPS} are not compared with them."
        )
    measured = first.measured
    last = f"the last {measured.tokens:,} training tokens" if measured.tokens else "a last batch of training tokens"
    text = f"Variance and active latents are of {last}"
    if measured.l0_low is not None:
        text += " (in brackets: what four tokens of five have)"
    if measured.dead_tokens is not None:
        text += f", dead latents were silent on the last {measured.dead_tokens:,}"
    text += ". Nothing here was measured on held-out images; `tide evaluate` does."
    if first.source is not None:
        text += f" What the defaults gave is of held-out tokens of {WHERE}"
        if first["fall"].known is not None:
            text += ", that of the error of training tokens of a single seed"
        text += "; other models differ."
    else:
        text += " What other trainings with these options gave is not known."
    return _wrapped(text)


def _to_try(verdicts: Sequence[Verdict]) -> str:
    """The remedies, each once, with the blocks that need it where not all do."""
    blocks: dict[str, list[int | None]] = {}
    for verdict in verdicts:
        for each in verdict.try_:
            blocks.setdefault(each, []).append(verdict.block)
    lines = [
        f"  {remedy}" + ("" if len(of) == len(verdicts) else f" (block {', '.join(map(str, of))})")
        for remedy, of in blocks.items()
    ]
    return "\n".join(["To try, with the same command:", *lines]) if lines else ""


def _next(out: str | Path, data: str | None) -> str:
    folder, given = shlex.quote(str(out)), "" if data is None else f" --data {shlex.quote(data)}"
    beside = Path(out) if Path(out).name not in ("", "..") else Path(out).resolve()
    figures = shlex.quote(str(beside.parent / f"{beside.name or 'tide'}-figures"))
    return f"Next:\n  tide evaluate --sae {folder}{given} --out {figures}\n  tide browse {folder}{given}"


def _wrapped(text: str) -> str:
    return "\n".join(wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False))
