"""``tide train``: a TIDE, or a plain SAE, from activation stores or from a live stream."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from tide.cli.command import Command
from tide.cli.options import Activations, Data, Model
from tide.cli.usage import Aspect, kind_of_data, with_option
from tide.cli.values import (
    HOLD_OUT,
    Assignments,
    Blocks,
    Count,
    Flag,
    Folder,
    Fraction,
    MaybeCount,
    MaybeCountOrNone,
    MaybeFile,
    MaybeNames,
    MaybeSeed,
    MaybeText,
    MaybeTrackers,
)
from tide.messages import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tide.adapters import Adapter
    from tide.training import Jobs, Learner, TrainConfig
    from tide.world import World


def _modulation(command: Any) -> str:
    """A plain SAE that is trained on stores needs no pipeline."""
    if not command.store:
        return "of a live stream"
    return "by a TIDE of a --store" if command.configuration().modulation else "by a plain SAE of a --store"


@dataclass(frozen=True, kw_only=True)
class Train(Command):
    """Train a TIDE (or with --sae a plain SAE) from --store, or live from --pipeline and --data.

    With --store, --pipeline names the pipeline of the store; leave it out for the bundled one or with --sae.
    """

    usage: ClassVar[tuple[Aspect, ...]] = (
        with_option(
            "store",
            leaves_out="data size skip_unreadable split image_column caption_column dtype offload images tensor "
            "transcoder token_fraction timesteps no_pairs batch_size block cache reuse no_overlap hold_out "
            "tracker_images",
        ),
        with_option("tracker", uses="tracker_images"),
        with_option("transcoder", leaves_out="tensor"),
        kind_of_data(reserves=True),
        Aspect(
            _modulation,
            {
                "of a live stream": "pipeline trust_remote_code adapter component",
                "by a TIDE of a --store": "pipeline trust_remote_code adapter component",
                "by a plain SAE of a --store": "",
            },
        ),
    )

    store: MaybeNames = None
    """one or more stores (folders or URLs) of the same block, mixed in proportion to their sizes, or folders of several
    blocks' stores"""
    out: Folder
    """folder for the checkpoint"""
    config: MaybeFile = None
    """YAML file with the training configuration"""
    set: Assignments = field(default_factory=list)
    """set any field of tide.TrainConfig, such as loss.temporal=1e-3, expansion=64, k=64"""
    sae: Flag = False
    """train a plain SAE, without modulation"""
    steps: MaybeCount = None
    """number of training steps (default 1000)"""
    backend: MaybeText = None
    """kernel backend: auto, reference, triton or native (default auto)"""
    seed: MaybeSeed = None
    """random seed (default 0)"""
    shard_latents: MaybeCount = None
    """how many of torchrun's ranks at a time divide the latents of one block (default 1)"""
    resume: Flag = False
    """resume an interrupted training"""
    buffer_rows: Count = 65536
    """number of activations that are shuffled together; a live stream holds four times as many"""
    block: Blocks = ("penultimate",)
    """blocks to train on live: numbers, 'penultimate' or 'all'; several share the forward passes, and each has a folder
    of its own, OUT/block-N"""
    reuse: Count = 1
    """how many times live training uses each activation, in another order each time, before the next pass replaces it:
    so many times fewer passes"""
    cache: Flag = False
    """keep encoded images and captions in memory during live training"""
    no_overlap: Flag = False
    """run the passes of the next images after the steps on these and not beside them, which takes less memory of a
    GPU"""
    hold_out: Fraction = HOLD_OUT
    """share of the images that live training leaves out, for `tide evaluate`"""
    tracker: MaybeTrackers = None
    """one or more trackers to log to beside TensorBoard: wandb, trackio, or another one that accelerate knows"""
    tracker_images: MaybeCountOrNone = None
    """steps between pictures of the most active latents that trackers get of live training (default a tenth of the
    steps; 0: none)"""
    model: Model = field(default_factory=Model)
    source: Data = field(default_factory=Data)
    activations: Activations = field(default_factory=Activations)

    def run(self) -> None:
        from contextlib import ExitStack
        from pathlib import Path

        from tide.errors import TideError
        from tide.training import train_blocks
        from tide.training.to_checkpoint import reserved
        from tide.training.tracker_kinds import check_trackers
        from tide.world import current, leave

        if bool(self.store) == (self.source.data is not None):
            raise TideError("what to train on is not clear; give --store, or --pipeline and --data")
        check_trackers(trackers := self.tracker or ())
        out = Path(self.out)
        world = current()
        with ExitStack() as held:
            with world.watched(lambda: "nothing was written"), world.together():
                held.enter_context(reserved(out, resume=self.resume))
                config = self.configuration()
            with world.watched(lambda: "nothing was written"):
                if len(set(said := world.said(config.shard_latents))) > 1:
                    raise TideError(f"the ranks have different shard_latents, {said}; give all of them the same")
                current(config.shard_latents)  # forms the groups of ranks, which takes all of them
            with world.watched(lambda: "nothing was written"), world.together():
                jobs = self._from_stores(config) if self.store else self._live(config)
            if len(jobs.of) > 1 or jobs.shares.world.several:
                say(self._announced(jobs))
            learners = train_blocks(
                jobs,
                out,
                resume=self.resume,
                made_by=self.made_by(seed=config.seed),
                trackers=trackers,
                pictures_every=self.tracker_images,
            )
        self._say_verdicts(world, list(learners.values()))
        leave()

    def _say_verdicts(self, world: World, learners: Sequence[Learner]) -> None:
        """Whether it went well, and what to do next: one screen, which the first rank prints of the blocks of all."""
        from tide.runs import contents
        from tide.training.verdict import verdict
        from tide.training.verdict_text import as_text

        own = [
            (verdict(each.model, each.config, each.measured), each.model.config)
            for each in learners
            if each.world.first and each.measured is not None
        ]
        with world.watched(lambda: f"what was trained is in {self.out}"):
            found = [pair for of in world.said(own) for pair in of]
        if world.first:
            found.sort(key=lambda pair: pair[1].block or 0)
            verdicts, models = zip(*found, strict=True)
            holds = contents(learners[0].out)
            data = self.source.data or (None if holds is None else holds.data.get("name"))
            say(as_text(verdicts, models, learners[0].config, self.out, data))

    def _announced(self, jobs: Jobs) -> str:
        """What is trained, and the memory that it takes."""
        import torch

        from tide.activations.stream import HELD
        from tide.activations.to_disk import blocks_in_words
        from tide.training.memory import need
        from tide.training.verdict_text import kind_of

        first = next(iter(jobs.of.values()))
        model, sizes = first.model, {"blocks": len(jobs.of), "buffer_rows": self.buffer_rows}
        if not self.store:
            sizes |= {
                "buffer_rows": HELD * self.buffer_rows // jobs.shares.count,
                "itemsize": getattr(torch, first.described["dtype"]).itemsize,
            }
        needed = need(jobs.config, model.d_model, **sizes, target=model.config.target is not None)
        world = jobs.shares.world
        rank = f"rank {world.number} of {world.count}: " if world.several else ""
        here = f" ({len(model.W_enc)} of them here)" if model.among.several else ""
        each = "for each of " if len(jobs.of) > 1 else "for "
        blocks = f"{each}{blocks_in_words(list(jobs.of))}"
        return f"{rank}{kind_of(model.config)} of {model.n_latents} latents{here} {blocks}: {needed}"

    def configuration(self) -> TrainConfig:
        """The training configuration from the file, ``--set`` and the other options."""
        from tide.cli.settings import each_assignment, train_config

        options = {name: getattr(self, name) for name in ("steps", "backend", "seed", "shard_latents")}
        options["device"] = self.model.device
        return train_config(self.config, each_assignment(self.set), options, plain=self.sae)

    def _from_stores(self, config: TrainConfig) -> Jobs:
        from dataclasses import replace

        from tide.cli.common import adapter_of
        from tide.cli.trust import followed
        from tide.files.per_block import found_blocks
        from tide.files.remote import place_of
        from tide.training import Jobs, from_block_stores, from_stores

        assert self.store
        stores, model = self.store, replace(self.model, device="cpu", dtype="fp32")

        def opened(name: str) -> Adapter:
            return adapter_of(model, model.pipeline or followed(name, stores[0]), denoiser_only=True)

        if found_blocks(place_of(stores[0])):
            return from_block_stores(stores, config, open_pipeline=opened, buffer_rows=self.buffer_rows)
        job = from_stores(stores, config, open_pipeline=opened, buffer_rows=self.buffer_rows)
        return Jobs.beside({job.model.config.trained_block: job})

    def _live(self, config: TrainConfig) -> Jobs:
        from dataclasses import replace

        from tide.cli.common import adapter_of, collect_options, source_of
        from tide.errors import TideError
        from tide.images.order import check_hold_out
        from tide.training import live_blocks
        from tide.world import current

        if self.model.pipeline is None:
            raise TideError("a live stream runs a pipeline; give --pipeline")
        check_hold_out(self.hold_out)
        options = collect_options(self.activations)
        adapter = adapter_of(replace(self.model, device=config.device))
        source = source_of(
            self.source, adapter, seed=config.seed, batch_size=options.batch_size, hold_out=self.hold_out
        )
        if current().first:
            say("\n".join([f"training on {source.described}", *source.notes]))
        return live_blocks(
            adapter,
            source,
            config,
            blocks=self.block,
            options=options,
            buffer_rows=self.buffer_rows,
            reuse=self.reuse,
            cache=self.cache,
            overlap=not self.no_overlap,
        )
