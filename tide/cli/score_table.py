"""What ``tide score`` prints: a table of all measures, which names the option of each one left out, and a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tide.messages import counted
from tide.tables import text_table

#: Stands for what is not measured.
NONE = "-"


def score_text(found: Mapping[str, Any], *, prompts: bool) -> str:
    """The table of what :func:`tide.evaluation.scorers.score_folders` found; ``prompts``: whether they were given."""
    rows = [
        *_distances(found, prompts=prompts),
        *_attributes(found),
    ]
    return text_table(("", "before", "after", "between them"), rows)


def _distances(found: Mapping[str, Any], *, prompts: bool) -> list[tuple[str, ...]]:
    used, text = found["scorers"], found["clip_text"] or {}
    rows = [
        ("FID, Inception", NONE, NONE, _number(found["fid"].get("inception"), "--inception FILE")),
        *((("FID, judge", NONE, NONE, f"{found['fid']['judge']:.3f}"),) if "judge" in used else ()),
    ]
    for name, shown in (("clip", "CLIP"), ("judge", "judge")):
        if name in found["cmmd"]:
            cmmd = found["cmmd"][name]
            rows.append((f"CMMD, {shown}", NONE, NONE, f"{cmmd['biased']:.3f}"))
            rows.append((f"CMMD, {shown}, unbiased", NONE, NONE, f"{cmmd['unbiased']:.3f}"))
        elif name == "clip":
            rows.append(("CMMD, CLIP", NONE, NONE, "needs 2 images" if "clip" in used else _needs("--clip DIR")))
    lacking = _needs("--prompts FILE") if "clip" in used else _needs("--clip DIR")
    sides = [_mean(text.get(side), NONE) for side in ("before", "after")]
    rows.append(("CLIP, image and prompt", *sides, NONE if prompts and "clip" in used else lacking))
    alone = "needs common names"
    pair = _mean(found["clip_image"], alone if "clip" in used else _needs("--clip DIR"))
    rows.append(("CLIP, image and image", NONE, NONE, pair))
    rows.append(("LPIPS", NONE, NONE, _mean(found["lpips"], _needs("--lpips FILE"))))
    return rows


def _attributes(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    of = found["attributes"]
    if of is None:
        return [("attributes as before", NONE, NONE, _needs("--judge"))]
    agree = "needs common names" if of["agree"] is None else f"{of['agree']:.1%}"
    invalid = [f"{of['invalid'][side]:.1%}" for side in ("before", "after")]
    return [("attributes as before", NONE, NONE, agree), ("no valid object", *invalid, NONE)]


def _needs(option: str) -> str:
    return f"needs {option}"


def _number(value: float | None, option: str) -> str:
    return _needs(option) if value is None else f"{value:.3f}"


def _mean(values: Mapping[str, Any] | None, otherwise: str) -> str:
    return otherwise if values is None else f"{values['mean']:.4f}"


def score_sentence(found: Mapping[str, Any]) -> str:
    """Such as "Scored 10 pictures before and 10 after (10 pairs): FID 12.3 by Inception, LPIPS 0.104"."""
    n, shown = found["images"], {"inception": "Inception", "clip": "CLIP", "judge": "the judge"}
    parts = [f"FID {value:.3g} by {shown[name]}" for name, value in found["fid"].items()]
    parts += [f"CMMD {value['biased']:.3g} by {shown[name]}" for name, value in found["cmmd"].items()]
    if found["clip_text"] is not None:
        before, after = (found["clip_text"][side]["mean"] for side in ("before", "after"))
        parts.append(f"CLIP with the prompts {before:.3f} -> {after:.3f}")
    if found["lpips"] is not None:
        parts.append(f"LPIPS {found['lpips']['mean']:.3f}")
    if found["attributes"] is not None and found["attributes"]["agree"] is not None:
        parts.append(f"{found['attributes']['agree']:.1%} of the attributes as before")
    counts = f"{counted(n['before'], 'picture')} before and {n['after']} after ({counted(n['pairs'], 'pair')})"
    return f"Scored {counts}: {', '.join(parts)}" if parts else f"Scored {counts}"
