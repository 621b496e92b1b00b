"""The notebooks of ``docs/notebooks``: what they use, what they hold, and that outputs are of the sources beside them.

They are executed by ``make notebooks``.
"""

from __future__ import annotations

import ast
import json
import re
import runpy
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.names import PACKAGES, dotted_names, resolved

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "docs/notebooks").glob("*.py"))
#: Bytes of a notebook with its outputs: the repository keeps every version.
LARGEST = 300_000
#: Parts of the package that no user imports.
INTERNAL = ("cli", "studies", "browser")

every = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


def notebook(source: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))
    return found


def code_cells(source: Path) -> list[dict[str, Any]]:
    return [cell for cell in notebook(source)["cells"] if cell["cell_type"] == "code"]


def outputs(source: Path) -> list[dict[str, Any]]:
    return [each for cell in code_cells(source) for each in cell["outputs"]]


def imported(source: Path) -> list[tuple[str, str]]:
    """Module and name of everything that is imported from the project."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    pairs = [(str(node.module), alias.name) for node in froms for alias in node.names]
    return [(module, name) for module, name in pairs if module.split(".")[0] in PACKAGES]


def is_public(module: str, name: str) -> bool:
    """Whether a package lists the name, or a module right below one of the project's packages defines it for others."""
    where = import_module(module)
    if hasattr(where, "__path__"):
        is_module = module in PACKAGES and (ROOT / module / f"{name}.py").is_file()
        return is_module or name in where.__all__
    return module.count(".") == 1 and not name.startswith("_") and hasattr(where, name)


def test_there_are_notebooks():
    assert [path.stem for path in SOURCES] == [path.stem for path in sorted((ROOT / "docs/notebooks").glob("*.ipynb"))]
    assert len(SOURCES) >= 4


@every
def test_only_public_names_are_imported(source):
    assert [pair for pair in imported(source) if not is_public(*pair)] == []
    assert not {module.split(".")[1] for module, _ in imported(source) if "." in module} & set(INTERNAL)


@pytest.mark.parametrize(
    ("module", "name"),
    [("tide.interpretation.concepts", "Found"), ("tide.editing", "remedy"), ("tide.strips", "_broken")],
)
def test_a_name_that_is_not_public_is_told(module, name):
    assert not is_public(module, name)


@every
def test_names_that_are_read_are_there(source):
    assert {name for name in dotted_names(source.read_text(encoding="utf-8")) if not resolved(name)} == set()


@every
def test_links_and_files_in_the_text_are_there(source):
    text = "\n".join(line[1:] for line in source.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    named = re.findall(r"`((?:docs|tests|tide|tide_kernels|scripts)/[\w./-]+|CONTRIBUTING\.md)`", text)
    assert [path for path in named if not (ROOT / path).exists()] == []


@every
def test_claims_are_asserted(source):
    tree = ast.parse(source.read_text(encoding="utf-8"))
    assert sum(isinstance(node, ast.Assert) for node in ast.walk(tree)) >= 6


@every
def test_it_was_executed_from_top_to_bottom(source):
    assert [cell["execution_count"] for cell in code_cells(source)] == list(range(1, len(code_cells(source)) + 1))
    for cell in code_cells(source):
        compile("".join(cell["source"]), source.stem, "exec")


@every
def test_it_has_pictures_or_text_and_no_errors(source):
    kinds = [each["output_type"] for each in outputs(source)]
    assert set(kinds) <= {"stream", "display_data", "execute_result"}
    assert kinds
    assert {each.get("name") for each in outputs(source)} <= {None, "stdout"}


@every
def test_it_is_small(source):
    assert source.with_suffix(".ipynb").stat().st_size <= LARGEST


@every
def test_it_says_nothing_of_the_machine_that_ran_it(source):
    assert notebook(source)["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert {json.dumps(cell["metadata"]) for cell in notebook(source)["cells"]} == {"{}"}
    texts = [cell["source"] for cell in notebook(source)["cells"]]
    texts += [each.get("text", "") for each in outputs(source)]
    texts += [value for each in outputs(source) for kind, value in each.get("data", {}).items() if kind != "image/png"]
    everything = "\n".join("".join(text) for text in texts)
    assert re.findall(r"/(?:root|home|tmp|Users|var|opt)/\S*|[A-Z]:\\\S*|0x[0-9a-f]{6,}", everything) == []


@every
def test_its_outputs_are_of_the_source_beside_it(source):
    pytest.importorskip("jupytext", reason="`pip install '.[notebooks]'` has what reads the sources")
    pytest.importorskip("nbclient")
    made = runpy.run_path(str(ROOT / "scripts/notebooks.py"))["opened"](source)
    expected = [(cell.cell_type, cell.source) for cell in made.cells]
    kept = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook(source)["cells"]]
    assert kept == expected, "run `make notebooks WRITE=1`"
