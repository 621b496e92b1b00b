"""What a training needs: of one block, or of several from one stream."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from tide.activations.batch import ActivationBatch
from tide.activations.block_batch import BlockBatch
from tide.activations.shared_stream import Shares
from tide.sae import TIDE
from tide.training.config import TrainConfig
from tide.training.latent_pictures import Gallery
from tide.world import current


@dataclass(frozen=True)
class Job:
    """All that :func:`tide.training.train` needs.

    Attributes:
        config: how it is trained.
        model: a fresh one.
        batches: ``batches(step)`` yields batches of ``config.batch_tokens`` rows from number ``step`` on, endlessly; of
            several ranks that train it together, this one's part of each.
        described: all besides the configuration and the machine that the batches' bits depend on, as JSON. It is kept
            in ``training.json``, and resuming on what is described otherwise is refused.
        data: of ``run.json`` (:class:`tide.runs.Contents`).
        weights: of the pipeline, as far as known: component -> fingerprint.
        gallery: gives images that trackers show latents on; None where the data know no pictures.
    """

    config: TrainConfig
    model: TIDE
    batches: Callable[[int], Iterator[ActivationBatch]]
    described: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    gallery: Callable[[], Gallery] | None = None


@dataclass(frozen=True)
class Jobs:
    """All that :func:`tide.training.train_blocks` needs.

    Attributes:
        config: how every block is trained.
        of: block -> what its training alone would need, such as a fresh model.
        batches: as those of a :class:`Job`, of all blocks together.
        shares: how several ranks divide the work. ``of`` has this rank's blocks.
    """

    config: TrainConfig
    of: Mapping[int, Job]
    batches: Callable[[int], Iterator[BlockBatch]]
    shares: Shares

    @classmethod
    def beside(cls, jobs: Mapping[int, Job], shares: Shares | None = None) -> Jobs:
        """Trainings whose batches come from streams of their own, which are read in turn. They share a configuration.
        By default all ranks that were started together train all of them."""

        def from_step(step: int) -> Iterator[BlockBatch]:
            with ExitStack() as opened:
                streams = {block: job.batches(step) for block, job in jobs.items()}
                for stream in streams.values():
                    if isinstance(stream, Generator):
                        opened.callback(stream.close)  # a thread may read ahead for it
                while True:
                    batches = {block: next(stream, None) for block, stream in streams.items()}
                    if None in batches.values():
                        return
                    yield BlockBatch({block: batch for block, batch in batches.items() if batch is not None})

        config = next(iter(jobs.values())).config
        return cls(config, jobs, from_step, shares or Shares(current(config.shard_latents)))
