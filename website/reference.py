"""The reference: a page for each package, from the docstrings of its public names."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

from website.public import PACKAGES, Name, data_comment, public_names
from website.roles import Documented, linked

DIRECTIVES = {"class": "autoclass", "exception": "autoexception", "function": "autofunction"}
DOCUMENTED = Documented()
#: Headings of a page, in order.
HEADINGS = {"class": "Classes", "function": "Functions", "exception": "Errors", "data": "Data"}


def write_reference(folder: Path) -> None:
    """Writes a page for each module that documents public names, and their index, into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = by_module()
    for module, names in pages.items():
        (folder / f"{module}.rst").write_text(page_of(module, names), encoding="utf-8")
    (folder / "tide.rst").write_text(top_page(), encoding="utf-8")
    (folder / "index.rst").write_text(overview(["tide", *pages]), encoding="utf-8")


def by_module() -> dict[str, list[Name]]:
    """The public names by the module that documents them; first the packages, in their order."""
    found: dict[str, list[Name]] = {package: [] for package in PACKAGES[1:]}
    for name in public_names():
        found.setdefault(name.module, []).append(name)
    return {module: names for module, names in found.items() if names}


def page_of(module: str, names: list[Name]) -> str:
    parts = [*_title(module), *_docstring(module)]
    for kind, heading in HEADINGS.items():
        of_kind = sorted((name for name in names if name.kind == kind), key=lambda name: name.name)
        if of_kind:
            parts += [heading, "-" * len(heading), ""]
        for name in of_kind:
            parts += _data(name) if kind == "data" else [f".. {DIRECTIVES[kind]}:: {name.full}", *_options(name), ""]
    return "\n".join(parts)


def _data(name: Name) -> list[str]:
    comment = data_comment(name)
    return [f".. py:data:: {name.full}", "", f"   {linked(comment, name.module, '', DOCUMENTED)}", ""]


def _options(name: Name) -> list[str]:
    if name.kind == "function":
        return []
    return ["   :members:", *(["   :show-inheritance:"] if name.value.__bases__ != (object,) else [])]


def _title(module: str) -> list[str]:
    return [module, "=" * len(module), ""]


def _docstring(module: str) -> list[str]:
    return [f".. py:module:: {module}", "", inspect.getdoc(import_module(module)) or "", ""]


def top_page() -> str:
    """The page of `tide` itself: its names, each with the first sentence of its docstring and a link."""
    names = {id(name.value): name for name in public_names()}
    rows = []
    for short in import_module("tide").__all__:
        value = getattr(import_module("tide"), short)
        if inspect.ismodule(value):
            rows += [f"   * - :doc:`tide.{short} <tide.{short}>`", f"     - {_first_sentence(value)}"]
        else:
            name = names[id(value)]
            role = "func" if name.kind == "function" else "class"
            rows += [f"   * - :py:{role}:`tide.{short} <{name.full}>`", f"     - {_first_sentence(value)}"]
    table = [".. list-table::", "   :widths: 30 70", "", *rows]
    return "\n".join([*_title("tide"), *_docstring("tide"), *table, ""])


def _first_sentence(value: object) -> str:
    paragraph = (inspect.getdoc(value) or "").split("\n\n")[0]
    return " ".join(paragraph.split()).split(". ")[0].rstrip(".:") + "."


def overview(modules: list[str]) -> str:
    """The page that lists the reference's pages."""
    rows = [f"   * - :doc:`{name}`\n     - {_first_sentence(import_module(name))}" for name in modules]
    table = [".. list-table::", "   :widths: 30 70", "", *rows]
    toctree = [".. toctree::", "   :hidden:", "", *(f"   {name}" for name in modules)]
    said = (
        "Every public name, from its docstring. Shapes are in brackets (``[n_tokens, d_model]``); timesteps are the "
        "scheduler's, from 0 to 1000. :doc:`/docs/python` shows how the calls fit together."
    )
    return "\n".join(["Reference", "=========", "", said, "", *table, "", *toctree, ""])
