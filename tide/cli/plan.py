"""``tide plan``: what collecting and training will take."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from tide.cli.command import Command, left_behind
from tide.cli.usage import Aspect, with_option
from tide.cli.values import (
    Blocks,
    Count,
    Flag,
    Fraction,
    MaybeBytes,
    MaybeCount,
    MaybeFolder,
    MaybeSize,
    MaybeText,
    Text,
    option,
    read_by,
)

if TYPE_CHECKING:
    from tide.planning import PipelineSizes
    from tide.planning import Plan as Planned
    from tide.runs import Contents


@dataclass(frozen=True, kw_only=True)
class Plan(Command):
    """Say what collecting and training will take: time, disk, memory of a GPU, bytes on the wire.

    Nothing is downloaded. Each number rests on constants that are printed below it, measured or assumed.
    """

    usage: ClassVar[tuple[Aspect, ...]] = (with_option("pipeline", uses="size", leaves_out="d_model blocks tokens"),)

    pipeline: Annotated[str | None, read_by(str, "P"), option()] = None
    """a folder, 'scenes' for the bundled pipeline, or an id whose sizes are known"""
    d_model: MaybeCount = None
    """width of the transformer, without --pipeline"""
    blocks: MaybeCount = None
    """number of its blocks"""
    tokens: MaybeCount = None
    """tokens of an image"""
    images: Count
    """number of images to collect from"""
    size: MaybeSize = None
    """image size in pixels, 1024 or 768x1024; of clips 9x768x1024 (default: the pipeline's own)"""
    block: Blocks = ("penultimate",)
    """numbers of the blocks to train on, 'penultimate' or 'all'"""
    gpus: Count = 1
    """number of GPUs, one process on each"""
    machine: Text = "here"
    """what they are: here measures this machine, nvidia-h200 is known"""
    memory: MaybeBytes = None
    """memory of each (default: the machine's)"""
    n_latents: MaybeCount = None
    """latents of each autoencoder (default: 16 for each channel)"""
    k: MaybeCount = None
    """active latents of a token (default 64)"""
    activation: Text = "jumprelu"
    """activation function: jumprelu, topk, batch_topk, relu or gated"""
    batch_tokens: Count = 1024
    """tokens of a training step"""
    shard_latents: MaybeCount = None
    """plan a fourth way, too: so many GPUs at a time divide the latents of an autoencoder"""
    epochs: Count = 1
    """how often every activation is trained on"""
    reuse: Count = 1
    """how many of these times one pass serves in live training"""
    token_fraction: Fraction = 1 / 16
    """share of each image's tokens to keep"""
    transcoder: MaybeText = None
    """train transcoders of attention or feed_forward, which keep what enters it and what leaves it"""
    no_pairs: Flag = False
    """collect single timesteps instead of pairs of neighbouring ones"""
    batch_size: Count = 8
    """images per pass"""
    formulas: Flag = False
    """print the formulas, too"""
    out: MaybeFolder = None
    """folder for plan.json"""

    def run(self) -> None:
        from tide.cli.common import output_folder
        from tide.planning import plan_text

        left_behind.set(self.interrupted)  # not what a training says that is only measured
        with nullcontext() if self.out is None else output_folder(Path(self.out)):
            found = self._planned()
            if self.out is not None:
                self._write(Path(self.out), found)
        print(plan_text(found, formulas=self.formulas))

    def _planned(self) -> Planned:
        from tide.activations import CollectOptions
        from tide.planning import plan
        from tide.sae.config import input_of
        from tide.training import TrainConfig

        target = self.transcoder
        names = ("n_latents", "k", "activation", "batch_tokens", "shard_latents")
        options = {name: value for name in names if (value := getattr(self, name)) is not None}
        return plan(
            self.pipeline or self._sizes(),
            images=self.images,
            blocks=self.block,
            gpus=self.gpus,
            machine=self.machine,
            size=self.size,
            config=TrainConfig.from_dict(options),
            options=CollectOptions(
                tensor="output" if target is None else input_of(target),
                target=target,
                token_fraction=self.token_fraction,
                paired=not self.no_pairs,
                batch_size=self.batch_size,
            ),
            epochs=self.epochs,
            reuse=self.reuse,
            memory=self.memory,
        )

    def _sizes(self) -> PipelineSizes:
        from tide.errors import TideError
        from tide.planning import given_sizes

        if self.d_model is None or self.blocks is None or self.tokens is None:
            raise TideError("what is planned is not clear; give --pipeline, or --d-model, --blocks and --tokens")
        return given_sizes(self.d_model, self.blocks, self.tokens)

    def _write(self, out: Path, found: Planned) -> None:
        from tide.cli.common import writing
        from tide.files import write_json
        from tide.runs import write_run

        with writing(out):
            write_json(out / "plan.json", found.to_dict())
            write_run(out, self._contents(found), self.made_by())

    def _contents(self, found: Planned) -> Contents:
        from tide.runs import Contents

        return Contents(
            kind="plan",
            blocks=list(found.work.blocks),
            family=found.work.pipeline.family,
            pipeline=found.work.pipeline.name,
            data={"images": self.images},
            configuration={"machine": found.machine.name, "gpus": self.gpus},
            measured={way.name: way.total_seconds for way in found.ways},
            files={"plan.json": "figures"},
        )
