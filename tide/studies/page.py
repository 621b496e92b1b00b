"""The building blocks of a self-contained HTML page: its frame and style, numbers in words, tables, folds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from tide.studies.figures import CHART_STYLE, MINUS

MISSING = "\N{EN DASH}"


def figure_of(value: Any) -> float:
    """The number, or NaN for anything that is not a finite one."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
        return math.nan
    return float(value)


def number(value: Any, decimals: int = 3) -> str:
    value = figure_of(value)
    return MISSING if math.isnan(value) else f"{value:,.{decimals}f}".replace("-", MINUS)


def percent(value: Any, decimals: int = 0) -> str:
    value = figure_of(value)
    return MISSING if math.isnan(value) else f"{100 * value:.{decimals}f} %".replace("-", MINUS)


def get(data: Any, *keys: str) -> Any:
    """A nested value, None where a level is missing."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data


@dataclass(frozen=True)
class Column:
    """A table's column: ``better`` ("high" or "low") sets its best figure in bold; ``notes`` follow in small type."""

    head: str
    values: Sequence[Any]
    write: Callable[[Any], str] = number
    better: str = ""
    notes: Sequence[str] | None = None

    def cells(self) -> list[str]:
        figures = [figure_of(value) for value in self.values]
        texts = [self.write(value) for value in self.values]
        known = [f for f in figures if not math.isnan(f)]
        best = (max if self.better == "high" else min)(known) if self.better and len(known) > 1 else None
        # Compared as written: two figures that read the same are equally good.
        shown = None if best is None else texts[figures.index(best)]
        cells = [f"<b>{escape(text)}</b>" if text == shown else escape(text) for text in texts]
        notes = self.notes or [""] * len(cells)
        return [c + (f" <small>{escape(n)}</small>" if n else "") for c, n in zip(cells, notes, strict=True)]


def table(corner: str, labels: Sequence[str], columns: Sequence[Column], *, kinds: Sequence[str] = ()) -> str:
    """Rows of figures under their heads; columns without any figure are left out. ``kinds`` are row classes."""
    shown = [c for c in columns if any(not math.isnan(figure_of(v)) for v in c.values)]
    if not shown:
        return ""
    head = "".join(f'<th scope="col">{escape(c.head)}</th>' for c in shown)
    rows = []
    for i, cells in enumerate(zip(*(c.cells() for c in shown), strict=True)):
        kind = f' class="{kinds[i]}"' if kinds and kinds[i] else ""
        figures = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr{kind}><th scope="row">{escape(labels[i])}</th>{figures}</tr>')
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">{escape(corner)}</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def fixed(values: Sequence[Any]) -> Callable[[Any], str]:
    """Writes all values with one number of decimals, so that they line up: enough for three digits of the smallest,
    or two where three would take more than four decimals."""
    sizes = [abs(f) for f in map(figure_of, values) if f and not math.isnan(f)]
    exponent = math.floor(math.log10(min(sizes))) if sizes else 0
    decimals = max(0, min(max(4, 1 - exponent), 2 - exponent, 9))
    return lambda value: number(value, decimals)


def chart(title: str, svg: str, caption: str = "") -> str:
    note = f"<p>{caption}</p>" if caption else ""
    return f'<figure class="plot"><figcaption><b>{escape(title)}</b>{note}</figcaption>{svg}</figure>' if svg else ""


def charts(items: Sequence[str]) -> str:
    """Charts beside one another, three in a row or, if they are two, two."""
    body = "".join(items)
    kind = "charts" if sum(map(bool, items)) > 2 else "charts two"
    return f'<div class="{kind}">{body}</div>' if body else ""


def fold(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def settings(values: dict) -> str:
    """A nested dictionary as a list of dotted names and their values."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in _flat(values, ""))
    return f'<dl class="settings">{rows}</dl>'


def _flat(values: dict, prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", MISSING if value is None else str(value)


def document(*, title: str, header: str, main: str) -> str:
    """The whole page around its ``header`` and ``main`` HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Nothing may be fetched, whatever a prompt or a name in the metrics holds.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}{CHART_STYLE}</style></head>"
        f"<body><header>{header}</header><main>{main}</main></body></html>\n"
    )


STYLE = """
:root {
  --page: #fcfbf8; --text: #22252a; --muted: #676c75; --line: #e4e1da; --card: #f4f2ec; --good: #0072b2;
  --good-wash: #dcecf7; --bad: #a3431a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15171b; --text: #e6e4df; --muted: #9ba0a9; --line: #30343b; --card: #1d2025; --good: #7cc6f4;
    --good-wash: #17364a; --bad: #f0a03c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", sans-serif; -webkit-text-size-adjust: 100%;
}
header, main { max-width: 1064px; margin: 0 auto; padding: 0 clamp(16px, 4vw, 32px); }
header { padding-top: clamp(32px, 7vw, 72px); }
main { padding-bottom: 96px; }
h1, h2 { font-family: ui-serif, "Iowan Old Style", Charter, Georgia, serif; font-weight: 600; text-wrap: balance; }
h1 { font-size: clamp(1.65rem, 4.2vw, 2.6rem); line-height: 1.22; letter-spacing: -.01em; max-width: 27em; margin: 0; }
h1.long { font-size: clamp(1.3rem, 2.9vw, 1.8rem); line-height: 1.32; max-width: 36em; }
h2 { font-size: 1.55rem; line-height: 1.3; margin: 0 0 .5rem; }
h3 { font-size: 1rem; margin: 0; }
p { max-width: 68ch; margin: .5rem 0; }
section { margin-top: clamp(56px, 8vw, 88px); }
small, .plot p, figcaption, .quiet { color: var(--muted); font-size: .875rem; line-height: 1.5; }
figure { margin: 0; }
.kicker { color: var(--good); font-size: .8rem; font-weight: 650; letter-spacing: .08em; text-transform: uppercase; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.3rem; margin-top: 1.6rem; padding-top: 1rem;
  border-top: 1px solid var(--line); font-size: .9rem; }
nav a { color: var(--muted); text-decoration: none; }
nav a:hover { color: var(--good); text-decoration: underline; }

.scroll { overflow-x: auto; margin: 1.2rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .42rem 0 .42rem 1.5rem; text-align: right; white-space: nowrap; vertical-align: baseline; }
thead th { color: var(--muted); font-weight: 500; font-size: .82rem; line-height: 1.3; vertical-align: bottom;
  white-space: normal; min-width: 5.2rem; }
tr > th:first-child { text-align: left; padding-left: 0; font-weight: 500; position: sticky; left: 0;
  background: var(--page); }
tbody tr { border-top: 1px solid var(--line); }
tr.group { border-top: 2px solid var(--muted); }
tr.minor th:first-child, tr.minor td { color: var(--muted); }
td b { font-weight: 700; color: var(--good); }
td small { font-size: .78rem; margin-left: .15rem; }

.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: .6rem 2.5rem;
  margin: 1.6rem 0; }
.charts.two { grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); }
.plot { display: grid; gap: .6rem; max-width: 440px; margin-bottom: 1.6rem; }
/* Captions of one row share a height, so that the charts under them start on one line. */
.charts > .plot { grid-template-rows: subgrid; grid-row: span 2; }
.beside { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 0 3rem; }
.beside > .plot { flex: 1 1 300px; margin-top: 1.3rem; }
.plot b { color: var(--text); font-size: .95rem; }
.plot p { margin: .1rem 0 0; }

.pixels { position: relative; display: block; aspect-ratio: 1; }
.pixels img { display: block; width: 100%; height: 100%; image-rendering: pixelated; border-radius: 3px; }
.pixels svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.pixels path { fill: none; stroke: #fff; stroke-width: 1.6; vector-effect: non-scaling-stroke; stroke-linecap: square; }
.pixels path.halo { stroke: #000; stroke-width: 3.6; stroke-opacity: .55; }

.hero { margin: 2rem 0 2.2rem; }
/* 128 and 192 pixels are whole multiples of 64: every pixel of a picture stays a square of one size. */
.frames { display: grid; gap: 16px 12px; grid-template-columns: repeat(var(--n), minmax(0, 128px)); }
.hero .frames { grid-template-columns: repeat(var(--n), minmax(0, 192px)); gap: 10px; }
.hero figcaption { margin-top: .8rem; max-width: 68ch; }
.strength { margin-top: .35rem; font-size: .82rem; color: var(--muted); font-variant-numeric: tabular-nums; }
p.verdict { margin: 1.4rem 0; }
.strip { padding: 1.4rem 0; border-top: 1px solid var(--line); }
.strip > figcaption { margin-bottom: .8rem; }
.strip > figcaption b { color: var(--text); font-size: 1rem; margin-right: .5rem; }
.ceiling .pixels { outline: 2px dashed var(--muted); outline-offset: 2px; border-radius: 3px; }
ul.verdict { list-style: none; margin: .15rem 0 0; padding: 0; font-size: .84rem; line-height: 1.45; }
.verdict b { color: var(--good); background: var(--good-wash); border-radius: 3px; padding: 0 .3em; }
ul.verdict b { margin-left: -.3em; }
.verdict s { color: var(--muted); }
ul.verdict .bad { color: var(--bad); }

.concept { display: grid; grid-template-columns: 150px 1fr; gap: .8rem 1.6rem; padding: 1.4rem 0;
  border-top: 1px solid var(--line); }
.concept dl { display: grid; grid-template-columns: auto auto; justify-content: start; gap: 0 .7rem; margin: .3rem 0 0;
  font-size: .84rem; color: var(--muted); font-variant-numeric: tabular-nums; }
.concept dd { margin: 0; color: var(--text); }
.pairs { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, 128px); align-content: start; }
.pair { display: grid; gap: 4px; align-content: start; }
.pairs figcaption { font-size: .78rem; }
.key { display: flex; align-items: center; gap: .6rem; margin: 1rem 0 1.4rem; }
.key i { width: 9rem; height: .6rem; border-radius: 2px; }

details { margin: 1rem 0; border-top: 1px solid var(--line); padding-top: .7rem; }
summary { cursor: pointer; font-weight: 500; }
summary:hover { color: var(--good); }
dl.settings { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: .1rem 1.5rem; font-size: .86rem;
  font-variant-numeric: tabular-nums; }
dl.settings dt { color: var(--muted); overflow-wrap: anywhere; }
dl.settings dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 640px) {
  .hero .frames { grid-template-columns: repeat(min(var(--n), 3), 1fr); }
  .frames, .pairs { grid-template-columns: repeat(3, 1fr); gap: 14px 8px; }
  .concept { grid-template-columns: 1fr; }
  .concept dl { grid-template-columns: repeat(6, auto); }
  th, td { padding-left: 1.1rem; }
  tbody th { white-space: normal; min-width: 6.5rem; line-height: 1.35; }
}
@media print { details > * { display: block; } section { break-inside: avoid; } }
"""
