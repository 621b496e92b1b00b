"""Writes the tables of model families into README.md and docs/adapters.md, from the families' own specs.

A table lies between ``<!-- table: NAME -->`` and ``<!-- end of table -->``. Without ``--write`` the script says which
pages are out of date, and exits with 1 if any is.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from families_report import RESULTS

from tide.adapters.registry import specs
from tide.adapters.spec import Blocks, Spec

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/adapters.md")
#: What the transformer receives for the scheduler's timestep t, by (a, b) of a + b t.
_RECEIVED = {
    (0.0, 1.0): "t",
    (0.0, 1 / 1000): "t / 1000",
    (1.0, -1 / 1000): "1 - t / 1000",
    (1000.0, -1.0): "1000 - t",
}
_PLACES = {
    "map": "image, as a map",
    "heads": "image, per head",
    "text + image": "one sequence: text, image",
    "image + text": "one sequence: image, text",
    "text, image": "(text, image)",
    "image, text": "(image, text)",
}
_TABLE = re.compile(r"(<!-- table: ([\w ]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _short() -> str:
    """What every kind of pipeline draws, for the README."""
    kinds = dict.fromkeys(spec.draws for spec in sorted(specs(), key=lambda each: each.draws != "images"))
    models = {kind: ", ".join(spec.models for spec in specs() if spec.draws == kind) for kind in kinds}
    return table(("draws", "models"), [(kind, models[kind]) for kind in kinds])


def _hooked() -> str:
    rows = [
        (
            f"`{spec.family}`",
            spec.models,
            spec.transformer + (f" (diffusers {spec.needs})" if spec.needs else ""),
            spec.draws,
            ", then ".join(f"`{each.path}`" for each in spec.blocks),
            ", then ".join(dict.fromkeys(_place(spec, each) for each in spec.blocks)),
        )
        for spec in specs()
    ]
    return table(("family", "models", "transformer of diffusers", "draws", "blocks", "a block's output"), rows)


def _place(spec: Spec, kind: Blocks) -> str:
    """Where the tokens of what is drawn are in a block's output."""
    drawn = {"images": "image", "videos": "video", "audio": "sound"}[spec.draws]
    return _PLACES.get(kind.output, kind.output).replace("image", drawn)


def _modulated() -> str:
    header = ("family", "modulation", "conditioning besides the timestep", "the transformer receives", "guided calls")
    rows = [
        (f"`{spec.family}`", modulation(spec), spec.conditioning or "none", _received(spec), _guided(spec))
        for spec in specs()
    ]
    return table(header, rows)


def modulation(spec: Spec) -> str:
    """Such as "scale, shift; one projection for all blocks, and a table in each"."""
    kinds = {name for kind in spec.blocks for name in _scale_and_shift(kind)}
    if not kinds:
        return "none"
    said = ", ".join(name for name in ("scale", "shift") if name in kinds)
    first = spec.blocks[0]
    shared = isinstance(first.linear, str) and first.linear.startswith("/")
    if first.table is not None:
        said += "; one projection for all blocks, and a table in each"
    elif shared:
        said += "; one projection for all blocks of a kind"
    elif first.given is not None:
        said += "; given by a call"
    return said if "mlp" in first.chunks else f"{said}; of the attention only"


def _scale_and_shift(kind: Blocks) -> set[str]:
    found = set()
    for shift, scale in kind.chunks.values():
        found |= {name for name, place in (("scale", scale), ("shift", shift)) if place is not None}
    return found


def _received(spec: Spec) -> str:
    return spec.received or _RECEIVED.get(spec.timestep_unit, "a number of its own")


def _guided(spec: Spec) -> str:
    return {"two calls": "a second call", "none": "none"}.get(spec.guidance, f"rows: {spec.guidance}")


def _supported() -> str:
    rows = [
        (name, ", ".join(f"`{each}`" for each in inputs) or "nothing")
        for spec in specs()
        for name, inputs in spec.pipelines.items()
    ]
    by_inputs: dict[str, list[str]] = {}
    for name, inputs in rows:
        by_inputs.setdefault(inputs, []).append(name)
    ordered = sorted(by_inputs, key=lambda inputs: (inputs != "nothing", inputs.count(","), inputs))
    header = ("supported", "what it draws from besides the prompt")
    return table(header, [(", ".join(sorted(by_inputs[each])), each) for each in ordered])


def _refused() -> str:
    rows = [
        (name, why, f"`{instead}.from_pipe(pipe)`" if instead else "a pipeline of the table above")
        for spec in specs()
        for name, (why, instead) in sorted(spec.refused.items())
    ]
    return table(("refused", "why", "instead"), rows)


def _notes() -> str:
    """A line for each family with something to know."""
    return "".join(f"- `{spec.family}`: {' '.join(spec.notes)}\n" for spec in specs() if spec.notes)


def _last_run() -> str:
    """The recorded outcomes of the behaviour suite, below a line that says of what."""
    if not RESULTS.is_file():
        return ""
    run = json.loads(RESULTS.read_text())
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    rows = [
        (f"`{name}`", f"{each['passed']}", f"{each['failed']}", f"{each['skipped']}", f"{each['seconds']:.0f}")
        for name, each in run["families"].items()
    ]
    said = f"Commit {run['commit']}, {run['day']}, {versions}, on two cores.\n\n"
    return said + table(("family", "passed", "failed", "skipped", "seconds"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "models": _short,
    "hooked": _hooked,
    "modulated": _modulated,
    "supported": _supported,
    "refused": _refused,
    "notes": _notes,
    "last run": _last_run,
}


def made(page: str) -> str:
    """``page`` with its tables as the specs have them."""
    return _TABLE.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], page)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="write the tables")
    write = parser.parse_args().write
    stale = [page for page in PAGES if made(text := (ROOT / page).read_text()) != text]
    for page in stale:
        if write:
            (ROOT / page).write_text(made((ROOT / page).read_text()))
        print(f"{page} {'was written' if write else 'is out of date; run scripts/families_table.py --write'}")
    return int(bool(stale) and not write)


if __name__ == "__main__":
    sys.exit(main())
