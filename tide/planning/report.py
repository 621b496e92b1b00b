"""A plan in words and numbers."""

from __future__ import annotations

from tide.activations.to_disk import blocks_in_words
from tide.messages import counted, readable_size
from tide.planning.machines import CONSTANTS
from tide.planning.model import FORMULAS, SYMBOLS, Way
from tide.planning.planner import Plan
from tide.tables import text_table

#: Parts of a way, in the order in which they follow one another.
_PARTS = ("images", "encode", "forward", "write", "training", "wire")


def plan_text(found: Plan, *, formulas: bool = False) -> str:
    """What the plan is of, a table of the ways, the constants with what is assumed, the formulas if asked for, and the
    conclusion.

    ``found`` is what :func:`plan` returned.
    """
    parts = [_head(found), _table(found), _constants(found)]
    if formulas:
        parts.append(formulas_text())
    return "\n\n".join([*parts, conclusion(found)])


def formulas_text() -> str:
    """The formulas, and what their letters stand for."""
    width = max(map(len, FORMULAS))
    letters = ", ".join(f"{letter} {meaning}" for letter, meaning in SYMBOLS.items())
    return "\n".join(["Formulas:", *(f"  {what:{width}}  {how}" for what, how in FORMULAS.items()), f"  ({letters})"])


def conclusion(found: Plan) -> str:
    """Which way is the fastest of those that fit, and by how much others do not."""
    first, *_ = found.fitting()
    lines = [f"The fastest that fits is {first.name}: {duration(first.total_seconds)}."]
    for way in found.ways:
        if lacking := found.lacking(way):
            lines.append(f"{way.name} does not fit: a rank needs {readable_size(lacking)} more memory than a GPU has.")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Three digits in seconds, minutes, hours or days."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def cells(way: Way, n_gpus: int) -> dict[str, str]:
    """A column of the table: what is shown of a way, by its name."""
    return {
        **{part: duration(way.seconds[part]) if part in way.seconds else "" for part in _PARTS},
        "total": duration(way.total_seconds),
        "GPU hours": f"{way.total_seconds * n_gpus / 3600:.3g}",
        "disk": readable_size(way.disk),
        "memory of a rank": readable_size(way.total_memory),
        "on the wire": readable_size(way.wire),
    }


def _head(found: Plan) -> str:
    work, sizes = found.work, found.work.pipeline
    blocks = f"all {sizes.n_blocks} blocks" if len(work.blocks) == sizes.n_blocks else blocks_in_words(work.blocks)
    return "\n".join(
        [
            f"{counted(work.n_images, 'image')} through {sizes.name}: {sizes.n_tokens} tokens an image, width "
            f"{sizes.d_model} (from {sizes.source})",
            f"{blocks}: {work.activation} of {work.n_latents} latents, k = {work.k}, on {work.rows} tokens a block in "
            f"{counted(work.steps, 'step')} of {work.batch_tokens}",
            f"{counted(work.n_gpus, 'rank')} of {found.machine.name}",
        ]
    )


def _table(found: Plan) -> str:
    columns = [cells(way, found.work.n_gpus) for way in found.ways]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    return text_table(["", *(way.name for way in found.ways)], rows)


def _constants(found: Plan) -> str:
    lines = []
    for name, constant in found.machine.used_for(found.work.activation).items():
        unit, what = CONSTANTS[name.rpartition(".")[2]]
        basis = "measured" if constant.measured else "ASSUMED"
        lines.append(f"  {name}: {constant.value:.3g} {unit} ({what}); {basis}: {constant.source}")
    return "\n".join(["Constants:", *lines])
