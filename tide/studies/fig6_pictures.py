"""Fig. 6's pictures: the trade-off of every method, and a gallery of images under growing strength."""

from __future__ import annotations

from typing import Any

from tide import charts
from tide.pictures import to_uint8
from tide.scenes.scene import prompts
from tide.studies.edit_study import Edits
from tide.studies.editor import MEANS, NOTHING, ONE_IMAGE, OWN_RUN, PLACELESS
from tide.studies.methods import METHODS
from tide.studies.options import Options
from tide.studies.tasks import EditTask
from tide.studies.trial import ASKED, Trial


def draw_curves(options: Options, curves: dict[str, list[dict[str, Any]]], prompt: dict[str, Any]) -> None:
    groups = {
        "one reference image": (ONE_IMAGE,),
        "the target's own run, or class means": (OWN_RUN, MEANS),
        "style transfer; nothing known": (PLACELESS, NOTHING),
    }
    figure, axes = charts.panels(6, width=4.4, height=3.5, columns=3)
    for column, (title, kinds) in enumerate(groups.items()):
        names = [name for knows in kinds for name in curves if METHODS[name].knows == knows]
        for i, name in enumerate(names):
            curve, line = curves[name], "--" if METHODS[name].raw else "-"
            style = {**charts.style(i), "linestyle": line, "linewidth": 1.4, "label": METHODS[name].label}
            axes[column].plot([p["preserved"] for p in curve], [p["success"] for p in curve], **style)
            known = [p for p in curve if p["outside"] is not None]
            axes[3 + column].plot([p["outside"] for p in known], [p["success"] for p in known], **style)
        axes[column].plot(prompt["preserved"], prompt["success"], "k*", markersize=9, label="prompt replaced")
        axes[column].set(title=title, xlabel="all else kept", xlim=(-0.02, 1.02), ylim=(-0.02, 1.04))
        axes[column].legend(frameon=False, fontsize="x-small")
        axes[3 + column].plot(prompt["outside"], prompt["success"], "k*", markersize=9)
        axes[3 + column].set(xlabel="pixels outside the region moved, of 255", ylim=(-0.02, 1.04))
    for axis in (axes[0], axes[3]):
        axis.set_ylabel("changed to the target")
    charts.save(figure, options.out / "fig6.png")


#: The gallery: method, attribute, source, target, and what the row is called.
GALLERY = (
    ("erase top", "style", "ornate", "plain", "top K erased"),
    ("contrast", "style", "ornate", "plain", "contrast, ornate to plain"),
    ("scale target", "age", "new", "old", "target's indices scaled, to old"),
    ("contrast", "age", "new", "old", "contrast, to old"),
    ("towards", "orientation", "left", "right", "global replacement, to right"),
    ("contrast", "class", "house", "cube", "contrast, house to cube"),
    ("altered", "colour", "red", "blue", "contrast in n tokens, to blue"),
    ("transfer", "style", "plain", "sketched", "style transfer from one image"),
)


def gallery_task(attribute: str, source: str, target: str, seed: int) -> EditTask:
    """A held-out prompt, of a near and new house where the edit allows, so that details are visible."""
    fitting = [(s, c) for s, c in prompts("test", 1500, seed + 60) if s[attribute] == source]
    scene, caption = max(
        fitting, key=lambda pair: (pair[0].depth == "near", pair[0].cls == "house", pair[0].age == "new")
    )
    return EditTask(scene, caption, seed + 7, attribute, target)


def draw_gallery(options: Options, edits: Edits, seed: int) -> None:
    study = edits.study
    adapter, model = study.bench.adapter, study.models.of(seed)
    columns = 1 + max(len(edits.curves[name, seed]) for name, *_ in GALLERY) + 1
    figure, axes = charts.panels(len(GALLERY), width=1.25 * columns, height=1.75, columns=2)
    for axis, (name, attribute, source, target, title) in zip(axes, GALLERY, strict=True):
        task = gallery_task(attribute, source, target, study.bench.seed)
        trial = Trial.of(adapter, model, [task], study.judge, study.probe, seed=seed)
        settings = edits.curves[name, seed]
        frames = [trial.images[0], *(trial.draw(setting)[0] for setting in (*settings, ASKED))]
        counted = all(isinstance(f, int) for f in METHODS[name].strengths)  # tokens or latents
        strengths = [f"{each.factor:g}" if counted else f"x{each.factor:g}" for each in settings]
        labels = ["unedited", *strengths, "prompt"]
        for i, (frame, label) in enumerate(zip(frames, labels, strict=True)):
            at = i if label != "prompt" else columns - 1
            axis.imshow(to_uint8(frame), extent=(at + 0.02, at + 0.98, 0, 0.96), interpolation="nearest")
            axis.text(at + 0.5, -0.04, label, ha="center", va="top", fontsize="x-small")
        axis.set(xlim=(0, columns), ylim=(-0.25, 1.0), aspect="equal")
        axis.set_title(title, fontsize="small", loc="left")
        axis.set_axis_off()
    charts.save(figure, options.out / "fig6-gallery.png")
    strength = {name: edits.chosen[name, seed].factor for name, *_ in GALLERY}
    options.say(f"Gallery of seed {seed}; development prompts chose the strengths {strength}.")
