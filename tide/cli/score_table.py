"""What ``tide score`` prints: a table of all measures, which names the option of each one left out, and a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tide.messages import counted
from tide.tables import text_table

#: Stands where there is nothing to measure.
NONE = "-"
#: Which option brings what a scorer measures.
BRINGS = {"inception": "--inception FILE", "clip": "--clip DIR", "lpips": "--lpips FILE", "judge": "--judge"}
SHOWN = {"inception": "Inception", "clip": "CLIP", "judge": "the judge"}
UNPAIRED = "needs common names"

_Row = tuple[str, str, str, str]


def score_text(found: Mapping[str, Any]) -> str:
    """The table of what :func:`tide.evaluation.scorers.score_folders` found."""
    rows = [*_of_sets(found), *_of_clip(found), *_of_pairs(found), *_of_attributes(found)]
    return f"{text_table(('', 'before', 'after', 'between'), rows)}\n±: 95 % interval of a mean over the pictures"


def _of_sets(found: Mapping[str, Any]) -> list[_Row]:
    fid = {name: f"{value:.3f}" for name, value in found["fid"].items()}
    rows: list[_Row] = [("FID, Inception", NONE, NONE, fid.get("inception", _needs("inception")))]
    if "judge" in fid:
        rows.append(("FID, the judge", NONE, NONE, fid["judge"]))
    for name in ("clip", "judge"):
        title, values = f"CMMD, {SHOWN[name]}", found["cmmd"].get(name)
        if values is not None:
            rows.append((title, NONE, NONE, f"{values['biased']:.3f}"))
            rows.append((f"{title}, unbiased", NONE, NONE, f"{values['unbiased']:.3f}"))
        elif name == "clip":
            rows.append((title, NONE, NONE, _otherwise(found, "clip", "needs 2 pictures")))
    return rows


def _of_clip(found: Mapping[str, Any]) -> list[_Row]:
    text, title = found["clip_text"], "CLIP, picture and prompt"
    if text is None:
        return [(title, NONE, NONE, _otherwise(found, "clip", "needs --prompts FILE"))]
    before, after, change = (_mean(text[side], NONE) for side in ("before", "after", "change"))
    return [(title, before, after, change)]


def _of_pairs(found: Mapping[str, Any]) -> list[_Row]:
    return [
        ("CLIP, picture and picture", NONE, NONE, _mean(found["clip_image"], _otherwise(found, "clip", UNPAIRED))),
        ("LPIPS", NONE, NONE, _mean(found["lpips"], _needs("lpips"))),
    ]


def _of_attributes(found: Mapping[str, Any]) -> list[_Row]:
    of = found["attributes"]
    if of is None:
        return [("attributes as before", NONE, NONE, _needs("judge"))]
    lacking = "none valid before" if found["images"]["pairs"] else UNPAIRED
    invalid = [f"{of['invalid'][side]:.4f}" for side in ("before", "after")]
    return [
        ("attributes as before", NONE, NONE, _mean(of["agree"], lacking)),
        ("no valid object", invalid[0], invalid[1], NONE),
    ]


def _needs(scorer: str) -> str:
    return f"needs {BRINGS[scorer]}"


def _otherwise(found: Mapping[str, Any], scorer: str, lacking: str) -> str:
    """Why a measure of ``scorer`` is missing: the scorer is, or else what is ``lacking``."""
    return lacking if scorer in found["scorers"] else _needs(scorer)


def _mean(values: Mapping[str, Any] | None, otherwise: str) -> str:
    if values is None:
        return otherwise
    interval = values["interval"]
    return f"{values['mean']:.4f}" + ("" if interval is None else f" ±{(interval[1] - interval[0]) / 2:.4f}")


def score_sentence(found: Mapping[str, Any]) -> str:
    """Such as "Scored 10 pictures before and 10 after (10 pairs): FID 12.3 by Inception, LPIPS 0.104"."""
    n = found["images"]
    parts = [f"FID {value:.3f} by {SHOWN[name]}" for name, value in found["fid"].items()]
    parts += [f"CMMD {value['biased']:.3f} by {SHOWN[name]}" for name, value in found["cmmd"].items()]
    if found["clip_text"] is not None:
        before, after = (found["clip_text"][side]["mean"] for side in ("before", "after"))
        parts.append(f"CLIP with the prompts {before:.3f} -> {after:.3f}")
    if found["lpips"] is not None:
        parts.append(f"LPIPS {found['lpips']['mean']:.3f}")
    if found["attributes"] is not None and found["attributes"]["agree"] is not None:
        parts.append(f"{found['attributes']['agree']['mean']:.0%} of the attributes as before")
    counts = f"{counted(n['before'], 'picture')} before and {n['after']} after ({counted(n['pairs'], 'pair')})"
    return f"Scored {counts}{': ' if parts else ''}{', '.join(parts)}"
