"""The picture that opens the demo's report: of the edits of development prompts, the clearest to the judge."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tide.pictures import to_uint8
from tide.scenes.judge import Judge
from tide.studies.report import EditStrip, FirstPicture
from tide.studies.tasks import EditTask
from tide.studies.trial import Setting, Trial


def title_of(attribute: str, source: str, target: str) -> str:
    """An edit in words."""
    return "shadow to no shadow" if attribute == "shadow" else f"{source} to {target}"


def strip_of(task: EditTask, factors: Sequence[float], images: torch.Tensor, judge: Judge) -> EditStrip:
    """``images [1 + len(factors), 3, 64, 64]``: unedited, then edited with each strength, with what the judge reads."""
    return EditStrip(
        title=title_of(task.attribute, task.source, task.target),
        prompt=task.caption,
        attribute=task.attribute,
        target=task.target,
        strengths=[0.0, *factors],
        images=[to_uint8(image) for image in images],
        verdicts=[{**v.attributes, "valid": v.valid} for v in judge.read(images)],
    )


def first_picture(trial: Trial, factors: Sequence[float]) -> FirstPicture:
    """The task and the strength of the largest margin (:meth:`~tide.scenes.judge.Judge.margins`): the smaller one of
    the unedited image's for its prompt and of the edited image's for the prompt with the target."""
    judge, tasks = trial.judge, trial.tasks
    wanted = [task.scene.changed(task.attribute, task.target) for task in tasks]
    before = judge.margins(trial.images, [task.scene for task in tasks])
    edited = [trial.draw(Setting("contrast", factor)) for factor in factors]
    margins = torch.stack([torch.minimum(before, judge.margins(images, wanted)) for images in edited])
    at, i = divmod(int(margins.argmax()), len(tasks))
    images = torch.stack([trial.images[i], *(each[i] for each in edited)])
    return FirstPicture(strip_of(tasks[i], factors, images, judge), at + 1, float(margins[at, i]), margins.numel())
