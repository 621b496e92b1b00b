"""``python -m website.check``: every link of the built site leads somewhere, and nothing is loaded from elsewhere."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from website.build import OUT

#: Attributes whose address a browser fetches by itself.
FETCHED = {("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src"), ("link", "href")}
#: Kinds of ``link`` that are not fetched.
UNFETCHED = {"canonical", "index", "search", "next", "prev", "author", "copyright"}


class Page(HTMLParser):
    """The anchors of a page, its links, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        for name in ("href", "src"):
            if name not in given:
                continue
            self.links.append(given[name])
            if (tag, name) in FETCHED and given.get("rel") not in UNFETCHED:
                self.loads.append(given[name])


def faults(site: Path) -> Iterator[str]:
    """What is wrong with the built site, a line for each."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        where = path.relative_to(site)
        yield from (f"{where}: loads {address}" for address in page.loads if urlsplit(address).netloc)
        for link in dict.fromkeys(page.links):
            if (fault := _fault(link, path, pages)) is not None:
                yield f"{where}: {link}: {fault}"
    for path in sorted(site.rglob("*.css")):
        for address in re.findall(
            r"(?:url\(|@import )[\"']?((?:https?:)?//[^\"')]+)", path.read_text(encoding="utf-8")
        ):
            yield f"{path.relative_to(site)}: loads {address}"


def _fault(link: str, path: Path, pages: dict[Path, Page]) -> str | None:
    address = urlsplit(link)
    if address.scheme in ("mailto", "data"):
        return None
    if address.scheme or address.netloc:
        return None if well_formed(link) else "is no address on the web"
    target = (path.parent / unquote(address.path)).resolve() if address.path else path
    if not target.is_file():
        return "there is no such file"
    if address.fragment and target in pages and unquote(address.fragment) not in pages[target].anchors:
        return "the page has no such anchor"
    return None


def well_formed(link: str) -> bool:
    """Whether a link is an https address, or one of this machine, without blanks."""
    address = urlsplit(link)
    local = address.hostname in ("localhost", "127.0.0.1")
    named = "." in (address.hostname or "").strip(".")
    return not re.search(r"\s", link) and (local or (address.scheme == "https" and named))


def main() -> int:
    if not (OUT / "index.html").is_file():
        print(f"{OUT} holds no site; run make site", file=sys.stderr)
        return 2
    found = list(faults(OUT))
    print("\n".join(found) or f"{sum(1 for _ in OUT.rglob('*.html'))} pages: every link leads somewhere")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
