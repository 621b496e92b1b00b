"""A record as a page: the bars first, then one table for each stage, floors beside times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.table import bar_table, wide_table

_OF_A_CALL = ("device", "commit")  # what all calls of a record should agree in


def report(record: dict[str, Any]) -> str:
    """The page. Raises whatever a damaged record makes it raise."""
    calls, stages = record["calls"], record["stages"]
    last = calls[-1] if calls else {}
    lines = [f"# {last.get('device', 'CPU')}, {last.get('date', 'not measured')}", "", *_where(calls, stages)]
    bars = [bar for entry in stages.values() for unit in entry["units"].values() for bar in unit["bars"]]
    if bars:
        met = sum(bar["met"] for bar in bars)
        lines += ["", "## Bars", "", f"{met} of {len(bars)} are met.", "", bar_table(bars)]
    if missing := [f"- {name}: {reason}" for name, reason in _unfinished(stages)]:
        lines += ["", "## Not finished", "", *missing]
    for name, entry in stages.items():
        lines += ["", f"## {name}", "", stage_text(entry)]
    return "\n".join(lines) + "\n"


def stage_text(entry: dict[str, Any]) -> str:
    """A stage: its table, its notes, and what failed."""
    units = entry["units"]
    parts = []
    if figures := {title: unit["figures"] for title, unit in units.items() if unit["figures"]}:
        parts.append(wide_table(figures))
    notes = [_note(title, note, len(units)) for title, unit in units.items() for note in unit["notes"]]
    failed = [f"- FAILED {title}: {unit['error']}" for title, unit in units.items() if "error" in unit]
    if notes or failed:
        parts.append("\n".join(notes + failed))
    if "error" in entry:
        parts.append(f"Not finished: {entry['error']}")
    return "\n\n".join(parts)


def _note(title: str, note: str, units: int) -> str:
    return f"- {note}" if units == 1 else f"- {title}: {note}"


def _unfinished(stages: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    for name, entry in stages.items():
        failed = [title for title, unit in entry["units"].items() if "error" in unit]
        if "error" in entry:
            found.append((name, entry["error"]))
        elif failed:
            found.append((name, f"failed: {', '.join(failed)}"))
        elif not entry["finished"]:
            found.append((name, "it was interrupted"))
    return found


def _where(calls: list[dict[str, Any]], stages: dict[str, Any]) -> list[str]:
    """The machine, in a line for each entry; where the calls differ in device or commit, in words."""
    if not calls:
        return []
    agreed = {key: value for key, value in calls[-1].items() if all(call.get(key) == value for call in calls)}
    lines = [f"{name}: {_shown(value)}  " for name, value in agreed.items()]
    different = [key for key in _OF_A_CALL if key not in agreed and any(key in call for call in calls)]
    if different:
        lines += [
            "",
            f"**The figures come from calls that differ in {' and '.join(different)}.** Compare within a call:",
        ]
    if len(calls) > 1:
        lines += ["", *(_call(i, call, stages, agreed.__contains__) for i, call in enumerate(calls))]
    return lines


def _call(number: int, call: dict[str, Any], stages: dict[str, Any], agreed: Callable[[str], bool]) -> str:
    """A call: what it differs in from others, and the stages that it measured."""
    own = ", ".join(f"{key} {_shown(value)}" for key, value in call.items() if not agreed(key)) or "the same"
    measured = [
        name for name, entry in stages.items() if any(unit["call"] == number for unit in entry["units"].values())
    ]
    return f"- call {number + 1} ({own}): {', '.join(measured) or 'nothing that counts'}"


def _shown(value: Any) -> str:
    return ", ".join(f"{name} {version}" for name, version in value.items()) if isinstance(value, dict) else str(value)
