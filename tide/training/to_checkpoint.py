"""What ``tide train`` does: trainings from any source into the folders of checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tide.activations.block_batch import BlockBatch
from tide.devices import check_backend, device_of
from tide.errors import Interrupted, TideError
from tide.files import lock_folder, new_folders
from tide.files.per_block import block_folders
from tide.runs import Contents, record_files, write_run
from tide.training.curves_chart import FILE as CHART
from tide.training.curves_chart import draw_curves
from tide.training.job import Job, Jobs
from tide.training.learner import Learner, Origin
from tide.training.state import holds_training
from tide.training.tracker_kinds import check_trackers
from tide.training.trackers import Trackers, Tracking
from tide.training.trainer import BlockBatches, fit_blocks
from tide.world import World, current


def train(
    job: Job,
    out: str | Path,
    *,
    resume: bool = False,
    made_by: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
    trackers: Sequence[str] = (),
    pictures_every: int | None = None,
) -> Learner:
    """Trains a fresh model into a folder, with checkpoints on the way.

    ::

        config = TrainConfig(steps=2000)
        train(from_stores(["runs/store"], config, open_pipeline=load_adapter), "runs/tide")

    Args:
        job: the model, its configuration and its data: :func:`from_stores`, :func:`from_pool` or :func:`live`.
        out: the folder of the checkpoint; gets what :class:`~tide.training.learner.Learner` writes.
        resume: resume the training that ``out`` holds, if it holds one.
        made_by: what made it, for ``run.json``; default a call from Python (:func:`tide.provenance.provenance`).
        say: called with one line of text when a resumed training has another number of steps.
        trackers, pictures_every: what logs the training beside TensorBoard
            (:class:`~tide.training.trackers.Tracking`). It changes no number of the training.

    Returns:
        The learner: ``model`` is the trained one, ``history`` the figures along the way, ``measured`` those that
        :func:`~tide.training.verdict.verdict` judges.

    Raises:
        TideError: ``out`` holds a training and ``resume`` is false, or it is of another configuration or of other data;
            the backend cannot serve; a tracker is not installed or does not start; what
            :func:`~tide.training.trainer.fit_blocks` raises.
        Interrupted: after Ctrl-C or SIGTERM, when the checkpoint is written.
    """
    more: dict[str, Any] = {"trackers": trackers, "pictures_every": pictures_every}
    (learner,) = train_blocks(Jobs.beside({0: job}), out, resume=resume, made_by=made_by, say=say, **more).values()
    return learner


def train_blocks(
    jobs: Jobs,
    out: str | Path,
    *,
    resume: bool = False,
    made_by: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
    trackers: Sequence[str] = (),
    pictures_every: int | None = None,
) -> dict[int, Learner]:
    """As :func:`train`, of several blocks from one stream: :func:`live_blocks` or :func:`from_block_stores`.

    Each block has a folder ``out/block-N`` of its own, with its curves and the state that it resumes from; with a
    single block that is ``out``. A block that is resumed alone (:func:`live` of that block) ends with the same bits.

    Each block has a run of its own in every tracker, and the runs of one training are a group. Of ranks that train a
    block together the first logs it.

    Args:
        jobs: what is trained, of each block.
        out: the folder.
        resume, made_by, say, trackers, pictures_every: as for :func:`train`.

    Returns:
        Block -> learner.
    """
    tracking = Tracking(tuple(trackers), pictures_every)
    check_trackers(tracking.names)
    config, world = jobs.config, jobs.shares.world
    folders = block_folders(Path(out), list(jobs.shares.owners or jobs.of))
    #: The ranks that train a block together.
    together = world if jobs.shares.owners is None else World()
    with reserved(Path(out), resume=resume, world=world):
        learners = {}
        with world.watched(lambda: "nothing was written"), world.together():
            for block, job in jobs.of.items():
                _check_new(folders[block], resume)
                check_backend(config.backend, device_of(config.device), job.model.n_latents, job.model.config.k)
                tracked = _trackers(tracking, job, folders[block], Path(out)) if tracking.names else None
                learners[block] = Learner(job.model, config, folders[block], together, tracked)
            if tracking.names and world.first:
                _say_of_pictures(tracking, jobs, say)
        origins = {block: Origin(job.described, job.data, job.weights, made_by) for block, job in jobs.of.items()}
        try:
            fit_blocks(
                learners,
                _announced(jobs, learners, folders, Path(out), made_by, resume, say),
                origins,
                title=Path(out).name,
                resume=resume,
                progress=sys.stderr.isatty(),
                world=world,
            )
        except Interrupted as stop:
            saved = any(learner.saved for learner in learners.values())
            again = "; rerun with resume to continue" if saved else ""
            raise Interrupted(f"{stop}{again}", stop.signal) from None
        for learner in learners.values():
            if learner.world.first:
                _draw(learner)
    return learners


def _trackers(tracking: Tracking, job: Job, folder: Path, out: Path) -> Trackers:
    """Those of a block, whose folder is ``out`` or one within it."""
    name = out.resolve().name
    group = None if folder == out else name
    title = name if group is None else f"{name}-{folder.name}"
    gallery = None if job.model.among.several else job.gallery
    return Trackers(tracking, folder, title, group, gallery)


def _say_of_pictures(tracking: Tracking, jobs: Jobs, say: Callable[[str], None]) -> None:
    """Says why trackers get no pictures of latents, if they get none."""
    if tracking.pictures_every == 0:
        return
    first = next(iter(jobs.of.values()))
    why = "ranks divide the latents" if first.model.among.several else "a store or a pool knows no pictures"
    if first.model.among.several or first.gallery is None:
        say(f"{', '.join(tracking.names)}: curves and no pictures of latents, since {why}.")


def _draw(learner: Learner) -> None:
    """Draws the curves of a finished training into its folder."""
    out, block = learner.out, learner.model.config.block
    whole = out.resolve()
    name = whole.parent.name if out.name == f"block-{block}" else whole.name
    title = name if block is None else f"{name}, block {block}"
    if draw_curves(learner.history, out / CHART, title):
        record_files(out, {CHART: "chart"})


@contextmanager
def reserved(out: Path, *, resume: bool, world: World | None = None) -> Iterator[None]:
    """Checks before anything is loaded that a training may be written to ``out``, and creates the folder. If the block
    raises, a new folder that is empty is removed."""
    _check_new(out, resume)
    with new_folders(out):
        if (world or current()).first:
            with lock_folder(out):
                pass  # only a check: the training locks it
        yield


def _check_new(out: Path, resume: bool) -> None:
    if holds_training(out) and not resume:
        raise TideError(f"{out} already holds a checkpoint; resume, or choose another folder")


def _announced(
    jobs: Jobs,
    learners: Mapping[int, Learner],
    folders: Mapping[int, Path],
    out: Path,
    made_by: Mapping[str, Any] | None,
    resume: bool,
    say: Callable[[str], None],
) -> BlockBatches:
    """``jobs.batches``, with what has to be done once the folders are held and it is known what is resumed."""

    def from_step(step: int) -> Iterator[BlockBatch]:
        for learner in learners.values():
            _check_new(learner.out, resume)  # another training may have come and gone meanwhile
        lengths = {tuple(each.lengths[-1].values()) for each in learners.values() if each.lengths}
        for at, before, now in lengths:
            if at == step and jobs.shares.world.first:
                follow = "learning rate and k follow the new schedules"
                say(f"Resumes from step {at} to {now} instead of {before}: {follow}.")
        for number, batch in enumerate(jobs.batches(step)):
            if len(folders) > 1 and not number and jobs.shares.world.first:
                write_run(out, _contents(jobs, list(folders)), made_by)
            yield batch

    return from_step


def _contents(jobs: Jobs, blocks: list[int]) -> Contents:
    """What the folder of several blocks holds."""
    first = next(iter(jobs.of.values()))
    return Contents(
        kind="autoencoder",
        blocks=blocks,
        family=first.model.config.family,
        pipeline=first.model.config.pipeline,
        weights=dict(first.weights),
        data={} if len({str(job.data) for job in jobs.of.values()}) > 1 else dict(first.data),
        configuration=jobs.config.to_dict(),
        files={f"block-{block}": "autoencoder" for block in blocks},
    )
