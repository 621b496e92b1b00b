"""What the pages name in their text is there: links, headings, files, commands, options, Python names."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.docs.test_marks import TARGETS
from tests.helpers.names import PACKAGES, resolved
from tests.helpers.pages import PAGES, ROOT
from tide.cli.app import COMMANDS, class_of
from tide.cli.options import options_of


def text_of(page: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def spans(page: str) -> list[str]:
    """The inline code of a page."""
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`", text_of(page))]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("page", PAGES)
def test_files_are_there(page):
    folders = re.compile(r"(tide|tide_kernels|tests|docs|benchmarks|scripts|csrc)/[\w./-]*|[\w-]+\.(md|toml)")
    named = [span for span in spans(page) if folders.fullmatch(span)]
    here = (ROOT, (ROOT / page).parent)
    assert [name for name in named if not any((folder / name).exists() for folder in here)] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_options_are_known(page):
    for span in spans(page):
        program, *words = re.findall(r"[^\s`]+", span)
        if program == "make" and words:
            assert words[0] in TARGETS, span
        if program == "tide" and words:
            name = words[0]
            assert name in COMMANDS or name.startswith("-"), span
            known = {option.flag for option in options_of(class_of(name)).values()} if name in COMMANDS else {"--help"}
            assert {word for word in words if word.startswith("--")} <= known, span


@pytest.mark.parametrize("page", PAGES)
def test_options_belong_to_some_command(page):
    known = {option.flag for name in COMMANDS for option in options_of(class_of(name)).values()}
    flags = {match for span in spans(page) if span.startswith("--") for match in re.findall(r"^--[\w-]+", span)}
    assert flags - known == {"--start"} & flags  # of scripts/train_scenes.py


@pytest.mark.parametrize("page", PAGES)
def test_python_names_are_there(page):
    for span in spans(page):
        name = span.split("(")[0]
        if re.fullmatch(r"[\w.]+", name) and name.split(".")[0] in PACKAGES:
            assert resolved(name), name


def test_the_layers_are_those_of_the_contract():
    """CONTRIBUTING.md's table and the contract that ``make lint`` checks."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    table = text_of("CONTRIBUTING.md").split("| layer | what it holds |")[1].split("\n\n")[0]
    rows = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in table.splitlines()[2:]]
    assert [set(row) for row in rows] == [set(re.findall(r"\w+", layer)) for layer in layers]
