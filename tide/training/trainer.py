"""The loop of a training: one stream of batches, and a learner for each block that it holds activations of."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from tide.activations.batch import ActivationBatch
from tide.activations.block_batch import BlockBatch
from tide.errors import Interrupted, TideError
from tide.files import lock_folder, new_folders
from tide.ranks import refuse_other_launchers, refuse_ranks
from tide.sae.model import TIDE
from tide.training.config import TrainConfig
from tide.training.learner import Learner, Origin
from tide.training.matching import L0Match, following
from tide.training.prefetch import Mover
from tide.training.start import started
from tide.training.stopping import Stop, stop_signals
from tide.world import StopVote, World

#: Batches, or a function of the first step that yields them, so that a run resumes where it stopped.
Batches = Iterable[ActivationBatch] | Callable[[int], Iterable[ActivationBatch]]
#: As :data:`Batches`, of several blocks.
BlockBatches = Iterable[BlockBatch] | Callable[[int], Iterable[BlockBatch]]
#: What the progress bar shows.
_SHOWN = ("mse", "explained_variance", "cosine", "k")
#: The key of a lone learner, whose batches name no block.
_ALONE = 0


class Trainer(Learner):
    """A :class:`~tide.training.learner.Learner` with a loop of its own, for one model alone.

    Args:
        model, config, out: as for :class:`~tide.training.learner.Learner`.
        progress: shows a bar on stderr.
    """

    def __init__(self, model: TIDE, config: TrainConfig, out: str | Path, *, progress: bool = True) -> None:
        super().__init__(model, config, out)
        self.progress = progress

    def fit(
        self,
        batches: Batches,
        *,
        resume: bool = False,
        source: dict[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        weights: Mapping[str, str] | None = None,
        made_by: Mapping[str, Any] | None = None,
        watch: Callable[[TIDE, int], None] | None = None,
    ) -> TIDE:
        """Runs the remaining steps and returns the model in evaluation mode.

        With ``resume`` it resumes from the last checkpoint in ``out``, if there is one. If ``batches`` is a function of
        the first step, the result equals that of an uninterrupted run; an iterable is read from its beginning. A
        resumed run may have more steps: from then on learning rate and k follow the schedules of the new number, which
        ``training.json`` records (``lengths``). The first batches, which calibrate the model, are read ahead.

        ``watch`` is called before every step with the model and the number of steps made. ``source``, ``data``,
        ``weights`` and ``made_by`` are those of :class:`~tide.training.learner.Origin`.

        Raises what :func:`fit_blocks` raises.
        """
        refuse_ranks()
        fit_blocks(
            {_ALONE: self},
            _keyed(batches),
            {_ALONE: Origin(source, data or {}, weights or {}, made_by)},
            title=self.out.name,
            resume=resume,
            progress=self.progress,
            watch=None if watch is None else lambda step: watch(self.model, step),
        )
        return self.model


def _keyed(batches: Batches) -> BlockBatches:
    """The batches of a lone learner."""

    def keyed(given: Iterable[ActivationBatch]) -> Iterator[BlockBatch]:
        with contextlib.ExitStack() as opened:
            if isinstance(given, Generator) and callable(batches):
                opened.callback(given.close)  # a thread may read ahead for it
            for batch in given:
                yield BlockBatch({_ALONE: batch})

    return (lambda step: keyed(batches(step))) if callable(batches) else keyed(batches)


def fit_blocks(
    learners: Mapping[int, Learner],
    batches: BlockBatches,
    origins: Mapping[int, Origin],
    *,
    title: str,
    resume: bool = False,
    progress: bool = True,
    watch: Callable[[int], None] | None = None,
    world: World | None = None,
) -> None:
    """Runs the remaining steps of all learners, block -> learner, which share configuration and device.

    The ranks of ``world`` make the same steps at a time, whether they train one model together or a block each.

    Each step takes one batch of every block from one stream. A learner that is ahead of another, because a kill came
    between their checkpoints, waits for it; so all blocks end with what each would have alone. Afterwards the models
    are in evaluation mode.

    ``watch`` is called before every step with the number of steps made.

    After Ctrl-C or SIGTERM the step is finished and every block's checkpoint written; a second signal ends the training
    at once. The folders are locked meanwhile.

    Raises :class:`~tide.errors.TideError` for activations or losses that are not finite, if the batches end early, if
    another training writes to a folder, and for a state that does not fit; :class:`~tide.errors.Interrupted` after a
    signal. The last checkpoints before an error stay.
    """
    refuse_other_launchers()
    world = world or World()
    with contextlib.ExitStack() as held, stop_signals(several=world.several) as stop:
        with world.watched(lambda: f"{_kept(learners)}; resume to continue"):
            try:
                with world.together():
                    _hold([learner.out for learner in learners.values() if learner.world.first], held)
                for learner in learners.values():
                    held.callback(learner.close)
                with world.together():
                    for block, learner in learners.items():
                        learner.start(origins[block], resume=resume)
                for learner in learners.values():
                    learner.check_start()
                _Loop(learners, origins, stop, watch, world).run(batches, title, progress and world.first)
                for learner in learners.values():
                    learner.finish()
                if any(world.said(stop.asked is not None)):
                    raise Interrupted(number=stop.asked or signal.SIGTERM)
            except KeyboardInterrupt as error:
                if not stop.at_once:
                    _save_between_steps(learners, world)
                raise Interrupted(_kept(learners), getattr(error, "signal", signal.SIGINT)) from None
    for learner in learners.values():
        learner.model.eval()


def _hold(folders: Sequence[Path], held: contextlib.ExitStack) -> None:
    """Makes the folders and locks them for this process alone."""
    held.enter_context(new_folders(*folders))
    for folder in folders:
        held.enter_context(lock_folder(folder))


def _save_between_steps(learners: Mapping[int, Learner], world: World) -> None:
    """Ranks that train blocks of their own wait for one another: when the first has ended, a launcher signals the
    others once more, and a second signal ends a save."""
    apart = not any(learner.world.several for learner in learners.values())
    with world.together() if apart else contextlib.nullcontext():
        for learner in learners.values():
            learner.save_between_steps()


def _kept(learners: Mapping[int, Learner]) -> str:
    """What is on disk, in words."""
    if len(learners) == 1:
        return next(iter(learners.values())).kept()
    steps = sorted({learner.saved or 0 for learner in learners.values()})
    if not steps[-1]:
        return "no checkpoint was written"
    return f"the blocks' checkpoints of step {' or '.join(map(str, steps))} are kept"


class _Loop:
    def __init__(
        self,
        learners: Mapping[int, Learner],
        origins: Mapping[int, Origin],
        stop: Stop,
        watch: Callable[[int], None] | None,
        world: World,
    ) -> None:
        self.learners, self.origins, self.stop, self.watch, self.world = learners, origins, stop, watch, world
        first = next(iter(learners.values()))
        self.steps = first.config.steps
        self.step = world.least(min(learner.step for learner in learners.values()))
        self.vote = StopVote(world)
        self.move = Mover(first.model.W_enc.device)

    def run(self, batches: BlockBatches, title: str, progress: bool) -> None:
        if self.step == self.steps:
            return
        with (
            contextlib.ExitStack() as opened,
            tqdm(total=self.steps, initial=self.step, desc=title, disable=not progress) as bar,
        ):
            stream = self._opened(batches, opened)
            for learner in self.learners.values():
                learner.model.train()
            begun = False
            while self.step < self.steps:
                # Merged, it has tens of groups and not hundreds, for each of which the modulation is computed.
                self._check_stop()
                batch = self.move(self._next(stream).merged())
                if not begun:
                    begun = True
                    self._begin()
                if self.watch is not None:
                    self.watch(self.step)
                self._step(batch, stream)
                bar.update()
                bar.set_postfix_str(self._figures(), refresh=False)

    def _opened(self, batches: BlockBatches, opened: contextlib.ExitStack) -> Iterator[BlockBatch]:
        """The stream from the first step on, on which the fresh models are calibrated."""
        with self.stop.waiting():
            stream = iter(batches(self.step) if callable(batches) else batches)
            if isinstance(stream, Generator):
                opened.callback(stream.close)  # a thread may read ahead for it
            if self.step:
                return stream
            fresh = {block: learner.model for block, learner in self.learners.items() if not learner.step}
            first = next(iter(self.learners.values()))
            # As far on every rank, whether it has fresh models or not.
            return started(fresh, stream, self.steps, centre=first.model.config.centre, world=first.world)

    def _check_stop(self) -> None:
        """Ends all of several ranks after the same step, if one of them was asked to."""
        if self.world.several and self.vote.asked(self.stop.asked is not None):
            raise Interrupted(number=self.stop.asked or signal.SIGTERM)

    def _next(self, stream: Iterator[BlockBatch]) -> BlockBatch:
        with self.stop.waiting():
            batch = next(stream, None)
        if batch is None:
            raise TideError(
                f"the activations ended after {self.step} of {self.steps} steps; collect more or lower steps"
            )
        return batch

    def _begin(self) -> None:
        for block, learner in self.learners.items():
            if learner.step < self.steps:
                learner.begin(self.origins[block])

    def _step(self, batch: BlockBatch, stream: Iterator[BlockBatch]) -> None:
        """One step of every learner that has not made it before."""
        waiting = {block: learner for block, learner in self.learners.items() if learner.step == self.step}
        figures: dict[int, dict[str, Tensor | float]] = {}
        for block, learner in waiting.items():
            learner.in_step = True
            figures[block] = learner.train_step(batch[block])
        if self.step + 1 == self.steps:
            self._match_l0(waiting, stream, batch)
        for block, learner in waiting.items():
            learner.end_step(figures[block], batch[block])
        self.step += 1

    def _match_l0(self, learners: Mapping[int, Learner], stream: Iterator[BlockBatch], last: BlockBatch) -> None:
        """Sets thresholds that aim at k, once the weights are final."""
        first = next(iter(self.learners.values()))  # all have one configuration
        if first.model.activation is None or not first.model.activation.matched:
            return
        for learner in learners.values():
            learner.settle()
        matches = {block: L0Match(learner.model, learner.world) for block, learner in learners.items()}
        for batch in following(stream, last, self.steps, first.world.tokens.count):
            for block, match in matches.items():
                match.add(batch[block])
        for match in matches.values():
            match.finish()

    def _figures(self) -> str:
        """The last figures that were logged; of several blocks, their mean."""
        last = [learner.history[-1] for learner in self.learners.values() if learner.history]
        if not last:
            return ""
        of = {name: sum(each.get(name, 0.0) for each in last) / len(last) for name in _SHOWN}
        return (
            f"mse {of['mse']:.4f} explained {of['explained_variance']:.1%} cos {1 - of['cosine']:.4f} k {of['k']:.0f}"
        )
