"""The project's pages: their fenced blocks, the marks in front of them, and what it takes to run them in a test."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from tide.cli.app import main

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/*.md"))))

#: What stands for names that cannot be had here: words of commands and of Python strings.
STAND_INS = {
    "PixArt-alpha/PixArt-XL-2-1024-MS": "scenes",
    "runs/acts/block-26": "runs/acts/block-6",
    "13": "3",
}
#: Sizes of ``run small``: options of each command; what stands in the line already is replaced.
SMALL_OPTIONS = {
    "collect": {"--images": "8", "--batch-size": "4"},
    "train": {"--steps": "2"},
    "evaluate": {"--images": "8", "--loss-timesteps": "1", "--loss-images": "2"},
    "sweep": {"--images": "16", "--timesteps": "1", "--loss-images": "2"},
    "concepts": {"--images-per-concept": "4", "--timesteps": "1"},
    "atlas": {"--images": "4", "--timesteps": "1"},
    "edit": {"--n-steps": "3"},
    "trajectory": {"--n-steps": "4"},
    "bank": {"--images-per-concept": "24", "--timesteps": "2", "--tokens": "16"},
    "effect": {"--n-steps": "3", "--top": "2", "--points": "1"},
    "guard make": {"--images": "96"},
    "guard draw": {"--n-steps": "3"},
}
#: Commands that serve until they are interrupted: their options are checked, and they are not run.
SERVING = ("browse",)
#: Further words of ``tide train``, and numbers of ``run small`` in Python.
SMALL_TRAINING = ("--set", "n_latents=96", "k=8", "batch_tokens=64")
SMALL_NUMBERS = {"images": 32, "steps": 2, "n_latents": 96, "k": 8, "batch_tokens": 64, "loss_timesteps": 1}


@dataclass(frozen=True)
class Block:
    """A fenced block: the page, the line of its fence, its language, and the mark in front of it."""

    page: str
    line: int
    language: str
    mark: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def runs(self) -> bool:
        return self.mark in ("run", "run small")

    @property
    def file(self) -> str | None:
        """The name of the file that a block is to be put into, marked ``file <name>``."""
        found = re.fullmatch(r"file (\w+\.py)", self.mark or "")
        return found and found[1]

    def lines(self, variables: dict[str, str]) -> Iterator[list[str]]:
        """The words of each command of a shell block; assignments are added to ``variables`` and filled in."""
        for line in self.text.replace("\\\n", " ").splitlines():
            words = shlex.split(Template(line).safe_substitute(variables), comments=True)
            if len(words) == 1 and (found := re.fullmatch(r"(\w+)=(.+)", words[0])):
                variables[found[1]] = STAND_INS.get(found[2], found[2])
            elif words:
                yield words


def blocks(page: str) -> list[Block]:
    """Every fenced block of a page, in order."""
    found: list[Block] = []
    opened: tuple[int, str, str | None] | None = None
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    for i, line in enumerate(lines):
        if not line.lstrip().startswith("```"):
            continue
        if opened is None:
            mark = re.fullmatch(r"<!-- test: (.+) -->", lines[i - 1].strip()) if i else None
            opened = i, line.strip("` "), mark and mark[1]
        else:
            start, language, mark_text = opened
            found.append(Block(page, start + 1, language, mark_text, "\n".join(lines[start + 1 : i]) + "\n"))
            opened = None
    assert opened is None, f"{page} ends inside a block"
    return found


def run_page(page: str, *, small: bool = True) -> dict[str, Any]:
    """Runs the blocks of a page that are marked so, in order, in the current folder; the names that its Python leaves.
    ``small`` shrinks those marked ``run small``. Those marked ``file <name>`` are written into files."""
    names: dict[str, Any] = {"__name__": "example"}
    variables: dict[str, str] = {}
    for block in blocks(page):
        if block.file is not None:
            Path(block.file).write_text(block.text)
        if not block.runs:
            continue
        shrinks = small and block.mark == "run small"
        if block.language == "python":
            run_python(block, names, small=shrinks)
        else:
            for words in block.lines(variables):
                assert words[0] == "tide", f"{block}: {words[0]} is not run; mark the block `shell`"
                argv = stood_in(words[1:], small=shrinks)
                assert argv[0] in SERVING or main(argv) == 0, f"{block}: tide {shlex.join(argv)}"
    return names


def run_python(block: Block, names: dict[str, Any], *, small: bool) -> None:
    text = block.text
    for name, stand_in in STAND_INS.items():
        text = text.replace(f'"{name}"', f'"{stand_in}"')
    if small:
        for name, number in SMALL_NUMBERS.items():
            text = re.sub(rf"\b{name}=\d+\b", f"{name}={number}", text)
    code = compile("\n" * block.line + text, ROOT / block.page, "exec", dont_inherit=True)
    exec(code, names)


def stood_in(words: list[str], *, small: bool) -> list[str]:
    """The words of a ``tide`` command with stand-ins for what is missing here and, if ``small``, small sizes."""
    words = [STAND_INS.get(word, word) for word in words]
    if not small:
        return words
    command = " ".join(words[:2]) if words[0] == "guard" else words[0]
    for option, value in SMALL_OPTIONS.get(command, {}).items():
        if option in words:
            words[words.index(option) + 1] = value
        else:
            words += [option, value]
    if words[0] == "train":
        if "--images" in words:
            words[words.index("--images") + 1] = "64"
        words = [*(word for word in words if not word.startswith("expansion=")), *SMALL_TRAINING]
    return words
