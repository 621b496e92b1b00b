"""A page for each command of ``tide``, from what its ``--help`` prints."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tide.cli.app import COMMANDS, class_of
from tide.cli.parsing import parse

#: Columns of the help: on wider terminals boxes may stand side by side.
COLUMNS = "100"


@dataclass
class Group:
    """A box of the help: its title, what it says before the options, and the options as (words, text)."""

    title: str
    notes: list[str] = field(default_factory=list)
    options: list[tuple[str, str]] = field(default_factory=list)


@cache
def help_of(name: str) -> str:
    """What ``tide NAME --help`` prints on a terminal of :data:`COLUMNS` columns."""
    said = io.TextIOWrapper(io.BytesIO(), "utf-8")
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = COLUMNS
    try:
        with redirect_stdout(said), suppress(SystemExit):
            parse(class_of(name), ["--help"])
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    said.seek(0)
    return re.sub(r"\x1b\[[0-9;]*m", "", said.read())


def groups_of(text: str) -> tuple[str, list[str], list[Group]]:
    """The usage, the paragraphs, and the boxes of a help."""
    lines = text.splitlines()
    usage = lines[0].removeprefix("usage: ")
    first = next(i for i, line in enumerate(lines) if line.startswith("╭"))
    paragraphs = [line.strip() for line in lines[1:first] if line.strip()]
    boxes: list[list[str]] = []
    for line in lines[first:]:
        if line.startswith("╭"):
            boxes.append([line.strip("╭╮─ ")])
        elif line.startswith("│"):
            boxes[-1].append(line.strip("│")[1:].rstrip())
    return usage, paragraphs, [_group(box) for box in boxes]


def _group(box: list[str]) -> Group:
    title, *lines = box
    ruled = next((i for i, line in enumerate(lines) if line and not line.strip("─")), None)
    found = Group(title, [] if ruled is None else [line for line in lines[:ruled] if line])
    for line in lines if ruled is None else lines[ruled + 1 :]:
        if line.startswith(" "):
            words, text = found.options[-1]
            listed = re.match(r" +[\w-]+: ", line) is not None  # a line of a list, not a broken one
            found.options[-1] = (words, f"{text}{chr(10) if listed else ' '}{line.strip()}".strip())
        elif line:
            words, _, text = line.partition("  ")
            found.options.append((words.strip(), text.strip()))
    return found


def page_of(name: str) -> str:
    """The page of a command, as reStructuredText with an anchor for each option."""
    usage, paragraphs, groups = groups_of(help_of(name))
    title = f"tide {name}"
    parts = [title, "=" * len(title), "", *_spaced(map(_plain, paragraphs)), "::", "", f"    {usage}", ""]
    parts += [f".. program:: {title}", ""]
    for group in groups:
        heading = group.title[0].upper() + group.title[1:]
        parts += [heading, "-" * len(heading), "", *_spaced(map(_plain, group.notes))]
        for words, text in group.options:
            parts += [f".. option:: {words}", "", *_indented(text), ""]
    return "\n".join(parts)


def _spaced(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        yield from (line, "")


def _indented(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield f"   | {_plain(line)}" if "\n" in text else f"   {_plain(line)}"


def _plain(text: str) -> str:
    """Words of a help as reStructuredText: what is between backticks as code, all else as it stands."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(f"`{part}`" if part.startswith("`") else re.sub(r"([\\*_|])", r"\\\1", part) for part in parts)


def overview() -> str:
    """The page that lists the commands."""
    rows = [f"   * - :doc:`tide {name} <{name}>`\n     - {_plain(what)}" for name, what in COMMANDS.items()]
    toctree = [".. toctree::", "   :hidden:", "", *(f"   {name}" for name in COMMANDS)]
    said = (
        "Each page is what ``tide COMMAND --help`` prints. Everything that a command does is also one call in Python "
        "(:doc:`/docs/python`)."
    )
    table = [".. list-table::", "   :widths: 20 80", "", *rows]
    return "\n".join(["Commands", "========", "", said, "", *table, "", *toctree, ""])


def write_commands(folder: Path) -> None:
    """Writes the pages of all commands, and their index, into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.rst").write_text(overview(), encoding="utf-8")
    for name in COMMANDS:
        (folder / f"{name}.rst").write_text(page_of(name), encoding="utf-8")
