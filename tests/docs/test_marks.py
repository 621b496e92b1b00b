"""Every fenced block of the pages says how it is tested; those that are not run are checked here."""

from __future__ import annotations

import re
import shlex
import tomllib
from importlib.util import find_spec

import pytest

from tests.helpers.names import dotted_names, resolved
from tests.helpers.pages import PAGES, ROOT, Block, blocks, stood_in
from tide.cli.app import command

MARKS = ("run", "run small", "parse", "shell")
BLOCKS = [block for page in PAGES for block in blocks(page)]

TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINNED = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
PIP_VALUES = ("--constraint", "--index-url", "--dest", "--find-links")
PIP_OPTIONS = ("--no-build-isolation", "--editable", "--no-index", *PIP_VALUES)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_says_how_it_is_tested(block):
    assert block.mark in MARKS or block.file, f"put <!-- test: {' | '.join(MARKS)} | file X.py --> before {block}"
    assert block.language in ("python", "sh"), block
    assert block.mark != "shell" or block.language == "sh", block


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "sh"], ids=str)
@pytest.mark.usefixtures("folder")
def test_the_options_of_every_command_are_known(block):
    variables = {"P": "scenes"}
    for words in block.lines(variables):
        if words[0] == "tide":
            argv = stood_in(words[1:], small=False)
            found = command(argv)
            assert found is not None
            assert found.name == argv[0]
        else:
            assert block.mark == "shell", f"{block}: {words[0]} is not run; mark the block `shell`"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=str)
def test_the_names_of_every_python_block_are_there(block):
    for name in dotted_names(block.text):
        assert resolved(name), f"{block}: {name}"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.mark == "shell"], ids=str)
def test_what_a_shell_block_starts_is_there(block):
    for words in block.lines({}):
        check_shell(words, block)


def check_shell(words: list[str], block: Block) -> None:
    """The program is of a known kind; the targets, extras, packages, modules and files that it names are there."""
    program = words[0].removeprefix(".venv/bin/")
    if program == "tide":
        return
    if program == "make":
        assert {word for word in words[1:] if "=" not in word} <= TARGETS, f"{block}: {shlex.join(words)}"
    elif program == "pip":
        check_pip(words, block)
    elif program in ("python", "python3"):
        there = find_spec(words[2]) is not None if words[1] == "-m" else (ROOT / words[1]).is_file()
        assert there, f"{block}: {shlex.join(words)}"
    elif program == "torchrun":
        assert find_spec(words[words.index("-m") + 1]) is not None, f"{block}: {shlex.join(words)}"
    elif program == "sbatch":
        assert (ROOT / words[1]).is_file(), f"{block}: {shlex.join(words)}"
    else:
        pytest.fail(f"{block}: {program} is not a known kind of command")


def check_pip(words: list[str], block: Block) -> None:
    assert words[1] in ("install", "download"), block
    rest = iter(words[2:])
    for word in rest:
        if word.startswith("-"):
            assert word in PIP_OPTIONS, f"{block}: {word}"
            value = next(rest) if word in PIP_VALUES else ""
            assert word != "--constraint" or (ROOT / value).is_file(), f"{block}: {value}"
        elif word.startswith("."):
            extras = re.findall(r"[\w-]+", word)
            assert set(extras) <= PROJECT["project"]["optional-dependencies"].keys(), f"{block}: {word}"
        else:
            assert word == PROJECT["project"]["name"] or word.split("==")[0].lower() in PINNED, f"{block}: {word}"


def test_an_unmarked_block_is_found():
    assert Block("page", 1, "sh", None, "").mark not in MARKS


def test_lines_are_joined_and_filled_in():
    text = 'P=PixArt-alpha/PixArt-XL-2-1024-MS\ntide edit --pipeline $P \\\n  --prompt "a b"  # why\n# nothing\n'
    assert list(Block("page", 1, "sh", "run", text).lines({})) == [
        ["tide", "edit", "--pipeline", "scenes", "--prompt", "a b"]
    ]
