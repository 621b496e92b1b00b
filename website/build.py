"""``python -m website.build``: the documentation site below build/site. Needs the extra ``site``, no network."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from website.commands import write_commands
from website.public import ROOT
from website.reference import write_reference

SOURCE = ROOT / "build" / "site-source"
OUT = ROOT / "build" / "site"
#: Where the pages begin; those that they link to follow.
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/NOTES.md", "csrc/README.md")
LINK = re.compile(r"\[([^][]*)\]\(([^)#:]+)(#[^)]*)?\)")

#: What the theme writes -> the same with a level, a name, a way to scroll it by keys, a dash.
LACKING = {
    'class="caption" role="heading">': 'class="caption" role="heading" aria-level="2">',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="All pages">',
    '<aside class="toc-drawer': '<aside aria-label="This page" class="toc-drawer',
    "<pre>": '<pre tabindex="0">',
    "</em>) -- ": "</em>) \N{EN DASH} ",
    "</strong> -- ": "</strong> \N{EN DASH} ",
}


def assemble(folder: Path) -> None:
    """Makes the folder that Sphinx reads: the pages at their places in the checkout, so that relative links hold, the
    files that they link to, and what is made here."""
    shutil.rmtree(folder, ignore_errors=True)
    documents = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "notebooks").glob("*.ipynb")])
    pages = [*PAGES, *(str(path.relative_to(ROOT)) for path in documents)]
    listed = [ROOT / page for page in pages]
    for path in reached(listed):
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            copy.write_text(page_text(path, listed=path in listed), encoding="utf-8")
        else:
            shutil.copyfile(path, copy)
    (folder / "README.md").rename(folder / "index.md")
    (folder / "index.md").write_text(start_page((folder / "index.md").read_text(encoding="utf-8")), encoding="utf-8")
    shutil.copyfile(ROOT / "website" / "how-to.md", folder / "how-to.md")
    write_commands(folder / "commands")
    write_reference(folder / "reference")


def reached(pages: list[Path]) -> list[Path]:
    """Pages, the files that they link to, and so on."""
    found: list[Path] = []
    pages = list(pages)
    while pages:
        page = pages.pop()
        if page in found or not page.is_file():
            continue
        found.append(page)
        if page.suffix == ".md":
            targets = (target for _, target, _ in LINK.findall(page.read_text(encoding="utf-8")))
            pages += [(page.parent / target).resolve() for target in targets]
    return found


def page_text(page: Path, *, listed: bool) -> str:
    """A page whose links to folders, which a site does not show, are plain words. Pages of figures, which are not
    listed, are reached by links alone."""

    def plain(link: re.Match[str]) -> str:
        return link[1] if (page.parent / link[2]).is_dir() else link[0]

    return ("" if listed else "---\norphan: true\n---\n\n") + LINK.sub(plain, page.read_text(encoding="utf-8"))


def start_page(readme: str) -> str:
    """The README with the site's navigation in place of its table of pages."""
    nav = (ROOT / "website" / "nav.md").read_text(encoding="utf-8")
    before, _, after = re.split(r"(?<=## Where next\n\n)((?:\|.*\n)+)", readme)
    return f"{before}[How to](how-to.md) lists the pages by task.\n{after}\n{nav}"


def build(source: Path, out: Path) -> int:
    """Sphinx's exit code; a warning is an error."""
    from sphinx.cmd.build import main

    doctrees = source.parent / "site-doctrees"
    shutil.rmtree(out, ignore_errors=True)
    options = ["--fail-on-warning", "--keep-going", "--quiet", "--fresh-env", "--doctree-dir", str(doctrees)]
    return main([*options, "--conf-dir", str(ROOT / "website"), "-b", "html", str(source), str(out)])


def make_accessible(text: str) -> str:
    """A page of the theme with what a screen reader and a keyboard miss in it."""
    for words, better in LACKING.items():
        text = text.replace(words, better)
    return text


def main() -> int:
    assemble(SOURCE)
    code = build(SOURCE, OUT)
    for path in OUT.rglob("*.html"):
        path.write_text(make_accessible(path.read_text(encoding="utf-8")), encoding="utf-8")
    if code == 0:
        print(f"built {OUT / 'index.html'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
