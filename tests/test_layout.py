"""The code's layout: short commands, one way of parsing, a test for each kernel file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Lines of a function of the command line. What is longer belongs below it.
LONGEST = 40


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and length of every function, its signature and docstring included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, 1 + (node.end_lineno or node.lineno) - node.lineno


@pytest.mark.parametrize("path", sorted((ROOT / "tide/cli").glob("*.py")), ids=lambda path: path.name)
def test_functions_of_the_command_line_are_short(path):
    assert {name: lines for name, lines in functions(path) if lines > LONGEST} == {}


def test_values_and_not_namespaces_travel_below_the_command_line():
    using = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tide").rglob("*.py"))
        if "argparse" in (text := path.read_text(encoding="utf-8")) or "Namespace" in text
    ]
    assert using == []


@pytest.mark.parametrize(
    "path",
    [path for path in sorted((ROOT / "tide_kernels").rglob("*.py")) if path.name != "__init__.py"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_a_kernel_file_has_a_test_of_its_name(path):
    folder = ROOT / "tests/kernels" / path.relative_to(ROOT / "tide_kernels").parent
    places = (folder, folder / path.stem)  # a folder of its name where it has several test files
    assert any((place / f"test_{path.name}").is_file() for place in places)
