"""Sphinx's configuration; ``python -m website.build`` makes the pages that it reads."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

from tests.helpers.names import resolved
from website.public import split
from website.roles import Documented, linked

project = "TIDE"
author = "the authors of TIDE"
copyright = "Apache-2.0"
html_title = "TIDE"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
nb_execution_mode = "off"  # notebooks are committed with their outputs, by `make notebooks WRITE=1`

# Pages are written for a Git host: its anchors, and its tables of any width.
myst_heading_anchors = 4
myst_links_external_new_tab = False

smartquotes = False  # two dashes of an option stay two dashes
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

# Nothing is fetched when a page is shown: the fonts are the reader's own.
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#005f96", "color-brand-content": "#005f96"},
    "dark_css_variables": {"color-brand-primary": "#5cb8ef", "color-brand-content": "#5cb8ef"},
}


LOG = logging.getLogger(__name__)
DOCUMENTED = Documented()


def setup(app: Sphinx) -> None:
    app.connect("source-read", to_start_page)
    app.connect("autodoc-process-docstring", with_links)
    app.connect("autodoc-process-signature", readable)
    app.connect("missing-reference", link_of)


def to_start_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Links to the README lead to the start page, which is made of it."""
    source[0] = source[0].replace("](../README.md", "](../index.md")


def with_links(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Names of a docstring are read where their object is defined, not where it is documented."""
    module, kind = where_written(what, name, value)

    def complain(target: str) -> None:
        LOG.warning("%s: %s is no name", name, target, type="roles")

    text = linked("\n".join(lines), module, kind, DOCUMENTED, complain)
    lines[:] = SEVERAL.sub(one_field_each, text).splitlines()


#: A field of several names, ``:param n, k: ...``, of which Sphinx would take the first for a type.
SEVERAL = re.compile(r"^:(param|ivar) ([\w*\\]+(?:, [\w*\\]+)+):((?:.*)(?:\n +.*)*)", re.MULTILINE)


def one_field_each(fields: re.Match[str]) -> str:
    return "\n".join(f":{fields[1]} {name}:{fields[3]}" for name in fields[2].split(", "))


def readable(app: Sphinx, what: str, name: str, value: Any, options: Any, signature: str, returns: str) -> Any:
    """Defaults that are no Python, such as ``<factory>``, would keep Sphinx from reading the rest."""
    return signature and re.sub(r"<[^<>]*>", "...", signature), returns


def where_written(what: str, name: str, value: Any) -> tuple[str, str]:
    """The module and the class ("" outside classes) in which a docstring was written, possibly of a base class."""
    package, first = split(name)
    owner = getattr(import_module(package), first)
    member = name.rpartition(".")[2]
    if not inspect.isclass(owner):
        return getattr(value, "__module__", package), ""
    if owner is value:
        return owner.__module__, owner.__qualname__
    bases = [base for base in owner.__mro__ if getattr(vars(base).get(member), "__doc__", None)]
    kind = bases[0] if bases else owner
    return kind.__module__, kind.__qualname__


def link_of(app: Sphinx, env: Any, node: Any, content: nodes.Node) -> nodes.Node | None:
    """A name in a signature that stands under another one in the reference; others are not linked."""
    if node["refdomain"] != "py" or not resolved_here(node["reftarget"]):
        return None
    home = DOCUMENTED.home(node["reftarget"])
    return home and env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, "obj", home, node, content)


def resolved_here(name: str) -> bool:
    return name.split(".")[0] in ("tide", "tide_kernels") and resolved(name)
