"""What ``tide train`` does: a training from any source into the folder of a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tide.activations.batch import ActivationBatch
from tide.devices import check_backend, device_of
from tide.errors import Interrupted, TideError
from tide.files import lock_folder, new_folders
from tide.training.sources import Job
from tide.training.state import holds_training
from tide.training.trainer import Batches, Trainer


def train(
    job: Job,
    out: str | Path,
    *,
    resume: bool = False,
    made_by: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> Trainer:
    """Trains a fresh model into a folder, with checkpoints on the way.

    ::

        config = TrainConfig(steps=2000)
        train(from_stores(["runs/store"], config, open_pipeline=load_adapter), "runs/tide")

    Args:
        job: the model, its configuration and its data: :func:`from_stores`, :func:`from_pool` or :func:`live`.
        out: the folder of the checkpoint; gets what :class:`Trainer` writes.
        resume: resume the training that ``out`` holds, if it holds one.
        made_by: what made it, for ``run.json``; default a call from Python (:func:`tide.provenance.provenance`).
        say: called with one line of text when a resumed training has another number of steps.

    Returns:
        The trainer: ``model`` is the trained one, ``history`` the figures along the way.

    Raises:
        TideError: ``out`` holds a training and ``resume`` is false, or it is of another configuration or of other data;
            the backend cannot serve; what :meth:`Trainer.fit` raises.
        Interrupted: after Ctrl-C or SIGTERM, when the checkpoint is written.
    """
    config, model, folder = job.config, job.model, Path(out)
    with reserved(folder, resume=resume):
        check_backend(config.backend, device_of(config.device), model.n_latents, model.config.k)
        trainer = Trainer(model, config, folder, progress=sys.stderr.isatty())
        try:
            trainer.fit(
                _announced(job, trainer, resume, say),
                resume=resume,
                source=job.described,
                data=job.data,
                weights=job.weights,
                made_by=made_by,
            )
        except Interrupted as stop:
            again = "; rerun with resume to continue" if trainer.saved else ""
            raise Interrupted(f"{stop}{again}", stop.signal) from None
    return trainer


@contextmanager
def reserved(out: Path, *, resume: bool) -> Iterator[None]:
    """Checks before anything is loaded that a training may be written to ``out``, and creates the folder. If the block
    raises, a new folder that is empty is removed."""
    _check_new(out, resume)
    with new_folders(out):
        with lock_folder(out):
            pass  # only a check: the trainer locks it
        yield


def _check_new(out: Path, resume: bool) -> None:
    if holds_training(out) and not resume:
        raise TideError(f"{out} already holds a checkpoint; resume, or choose another folder")


def _announced(job: Job, trainer: Trainer, resume: bool, say: Callable[[str], None]) -> Batches:
    """``job.batches``, with what has to be done once the trainer holds the folder and knows what it resumes."""

    def from_step(step: int) -> Iterator[ActivationBatch]:
        _check_new(trainer.out, resume)  # another training may have come and gone meanwhile
        if trainer.lengths and trainer.lengths[-1]["at"] == step:
            before, now = trainer.lengths[-1]["before"], job.config.steps
            say(f"Resumes from step {step} to {now} instead of {before}: learning rate and k follow the new schedules.")
        return job.batches(step)

    return from_step
