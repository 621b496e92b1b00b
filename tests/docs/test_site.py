"""What the documentation site is made of; building it is `make site`, its links `make site-check`."""

from __future__ import annotations

import re

import pytest

from tests.helpers.pages import ROOT
from tide.cli.app import COMMANDS, class_of
from tide.cli.options import options_of
from website.build import LINK, PAGES, assemble, make_accessible, page_text, reached, start_page
from website.check import faults, well_formed
from website.commands import groups_of, help_of, overview, page_of
from website.reference import by_module, top_page
from website.roles import Documented, full_name, linked

NAV = re.findall(r"^(?:.*<)?([\w/-]+)>?$", (ROOT / "website/nav.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_page_of_docs_is_in_the_navigation():
    found = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("notebooks/*.ipynb")]
    pages = {str(path.relative_to(ROOT).with_suffix("")) for path in found}
    assert pages - set(NAV) == set(), "add it to website/nav.md"


def test_the_navigation_names_pages():
    made = {"self", "commands/index", "reference/index", "how-to"}
    kinds = ("md", "ipynb")
    assert [
        name for name in NAV if name not in made and not any((ROOT / f"{name}.{kind}").is_file() for kind in kinds)
    ] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_of_a_command_has_every_option(name):
    words = re.findall(r"^\.\. option:: (\S+)", page_of(name), re.MULTILINE)
    flags = {option.flag for option in options_of(class_of(name)).values()}
    positional = {group.title: group.options for group in groups_of(help_of(name))[2]}.get("positional arguments", [])
    assert {word for word in words if word.startswith("--")} <= flags
    assert len(words) == 1 + len(flags)  # beside -h, which stands before --help
    assert len([word for word in words if not word.startswith("-")]) == len(positional)


def test_every_option_of_a_help_has_a_text_without_its_frame():
    options = [option for name in COMMANDS for group in groups_of(help_of(name))[2] for option in group.options]
    assert [words for words, text in options if not text or re.search("[─│╭╰]|  ", text)] == []


def test_every_command_is_listed():
    assert all(f"<{name}>" in overview() for name in COMMANDS)


def test_the_reference_has_every_name_of_tide():
    import tide

    page = top_page()
    assert all(f"`tide.{name} <" in page for name in tide.__all__)
    assert "tide_kernels" in by_module()


def test_a_role_leads_to_where_its_target_is_documented():
    text = linked(":func:`train` of :class:`~tide.sae.model.TIDE`", "tide.training.to_checkpoint", "", Documented())
    assert text == ":py:obj:`train <tide.training.train>` of :py:obj:`TIDE <tide.sae.TIDE>`"


def test_a_name_that_is_not_public_is_code():
    assert linked(":func:`holds`", "tide.images.words", "", Documented()) == "``holds``"


def test_a_name_that_stands_there_twice_is_code_once():
    text = linked("`a` and `a`, ``x`` and `None`", "tide_kernels.dispatch", "", Documented(), [].append)
    assert text == "``a`` and ``a``, ``x`` and ``None``"


def test_a_role_that_names_nothing_is_told():
    told: list[str] = []
    linked(":func:`tide.nothing`", "tide.training.config", "", Documented(), told.append)
    assert told == ["tide.nothing"]


def test_a_function_of_the_name_of_its_module_is_meant():
    assert full_name("collect", "tide.activations") == "tide.activations.collect"
    assert Documented().home("tide.activations.collect") == "tide.activations.collect"


def test_the_start_page_is_the_readme_with_the_navigation():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    page = start_page(readme)
    assert "## Install" in page
    assert "| [docs/questions.md]" in readme
    assert "| [docs/questions.md]" not in page
    assert "```{toctree}" in page


def test_linked_files_come_along(tmp_path):
    assemble(tmp_path / "pages")
    for page in PAGES[1:]:
        for _, target, _ in LINK.findall((tmp_path / "pages" / page).read_text(encoding="utf-8")):
            assert ((tmp_path / "pages" / page).parent / target).exists(), target


def test_pages_reach_what_they_link_to(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.md").write_text("[b](b.md#top), [the folder](folder), ![c](c.png), [away](https://a.org)")
    (tmp_path / "b.md").write_text("[back](a.md)")
    (tmp_path / "c.png").write_bytes(b"")
    assert {path.name for path in reached([tmp_path / "a.md"])} == {"a.md", "b.md", "c.png"}
    assert page_text(tmp_path / "a.md", listed=True).startswith("[b](b.md#top), the folder, ![c](c.png)")
    assert page_text(tmp_path / "b.md", listed=False).startswith("---\norphan: true\n---\n")


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="nowhere.html">x</a>', "there is no such file"),
        ('<a href="other.html#nowhere">x</a>', "the page has no such anchor"),
        ('<a href="http://example.org">x</a>', "is no address on the web"),
        ('<a href="https://exam ple.org">x</a>', "is no address on the web"),
        ('<script src="https://cdn.example.org/a.js"></script>', "loads https://cdn.example.org/a.js"),
        ('<link rel="stylesheet" href="//fonts.example.org/a.css">', "loads //fonts.example.org/a.css"),
    ],
)
def test_a_fault_of_the_built_site_is_found(tmp_path, body, fault):
    (tmp_path / "other.html").write_text('<h1 id="here">y</h1>')
    good = '<a href="other.html#here">x</a><a href="#own" id="own">x</a><a href="https://example.org/a">x</a>'
    (tmp_path / "index.html").write_text(good)
    assert list(faults(tmp_path)) == []
    (tmp_path / "index.html").write_text(good + body)
    assert fault in next(iter(faults(tmp_path)))


def test_a_style_that_loads_is_found(tmp_path):
    (tmp_path / "a.css").write_text("@import url(https://fonts.example.org/a.css);")
    assert list(faults(tmp_path)) == ["a.css: loads https://fonts.example.org/a.css"]


def test_what_the_theme_lacks_is_added():
    page = '<p class="caption" role="heading">Start</p><pre>x</pre>'
    assert make_accessible(page) == (
        '<p class="caption" role="heading" aria-level="2">Start</p><pre tabindex="0">x</pre>'
    )


def test_addresses():
    assert well_formed("https://arxiv.org/abs/2503.07050")
    assert well_formed("http://localhost:8000/v1")
    assert not any(map(well_formed, ("http://arxiv.org", "https://arxiv", "https://a.org/a b", "ftp://a.org")))
