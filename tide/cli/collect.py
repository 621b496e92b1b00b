"""``tide collect``: activations of a diffusion transformer into activation stores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

from tide.cli.command import Command
from tide.cli.options import Activations, Data, Model
from tide.cli.usage import Aspect, kind_of_data, with_option
from tide.cli.values import (
    HOLD_OUT,
    Blocks,
    Flag,
    MaybeBytes,
    MaybeFile,
    MaybeFraction,
    MaybeNumber,
    MaybePart,
    Seed,
    option,
)
from tide.messages import say

if TYPE_CHECKING:
    from tide.activations.parts import Part
    from tide.activations.source import Prompts, Source
    from tide.activations.to_disk import Collected
    from tide.adapters import Adapter


@dataclass(frozen=True, kw_only=True)
class LoadedModel(Model):
    """The pipeline whose activations are collected, and where it runs."""

    pipeline: Annotated[str, option("P")] = field()
    """a diffusers id or folder, or 'scenes' for the bundled one"""


@dataclass(frozen=True, kw_only=True)
class Collect(Command):
    """Collect activations into a store."""

    usage: ClassVar[tuple[Aspect, ...]] = (
        with_option("sampling", uses="guidance"),
        with_option("transcoder", leaves_out="tensor"),
        kind_of_data(without="size", reserves=True),
    )
    interrupted: ClassVar[str] = "whole shards are kept; rerun with --resume to continue"

    out: Annotated[str, option("STORE")]
    """folder or URL (s3://, gs://, hf:// ...) of the store; with several blocks each has its own, STORE/block-N"""
    block: Blocks = ("penultimate",)
    """numbers of blocks, 'penultimate' or 'all'; several are collected in one pass"""
    sampling: Flag = False
    """collect along sampling runs of the captions instead of from noised images"""
    prompts: MaybeFile = None
    """text file with one prompt per line, for --sampling instead of --data"""
    guidance: MaybeNumber = None
    """guidance scale for --sampling (default 4.5)"""
    hold_out: MaybeFraction = None
    """share of the images to leave out, for `tide evaluate` (default 0.1; with --resume that of the store)"""
    quota: MaybeBytes = None
    """disk limit of each store"""
    seed: Seed = 0
    """random seed"""
    resume: Flag = False
    """resume an interrupted collection, or extend it"""
    part: MaybePart = None
    """collect part R of W, counted from 0, into a folder of its own (default: as torchrun or a Slurm array says)"""
    model: LoadedModel
    source: Data = field(default_factory=Data)
    activations: Activations = field(default_factory=Activations)

    def run(self) -> None:
        from tide.activations.parts import named

        part = self._part()
        with named(part):
            found = self._collected(part)
        self._report(found, part)

    def _part(self) -> Part | None:
        """The part that the options name, or the launcher."""
        from tide.activations.parts import Part, part_of_environment
        from tide.ranks import refuse_ranks

        if self.part is not None:
            return Part(*self.part)
        if (found := part_of_environment()) is None:
            refuse_ranks()
        return found

    def _collected(self, part: Part | None) -> Collected:
        from tide.activations.to_disk import collect_to_disk
        from tide.checks import GUIDANCE
        from tide.cli.common import adapter_of, collect_options
        from tide.devices import use_own_gpu
        from tide.files.remote import writable

        options = collect_options(self.activations)
        self._check_source()
        # Of processes that were started together one speaks for all.
        speaks = part is None or part.index == 0 or self.part is not None
        with writable(self.out):
            use_own_gpu()
            adapter = adapter_of(self.model)
            return collect_to_disk(
                adapter,
                self._opened(adapter),
                self.out,
                blocks=self.block,
                options=options,
                guidance_scale=GUIDANCE if self.guidance is None else self.guidance,
                seed=self.seed,
                quota=self.quota,
                resume=self.resume,
                part=None if part is None else (part.index, part.of),
                made_by=self.made_by(),
                say=print if speaks else lambda text: None,
                progress=speaks,
            )

    def _report(self, found: Collected, part: Part | None) -> None:
        from tide.activations.to_disk import blocks_in_words, images_in_words
        from tide.messages import readable_size

        if part is not None and not found.images:
            say(f"{self.out}, {part}: there are fewer passes than parts, and nothing to do.")
            return
        activations = f"{found.rows} {'activation' if found.rows == 1 else 'activations'}"
        images, blocks = images_in_words(found.images), blocks_in_words(list(found.folders))
        where = self.out if part is None else f"{self.out}, {part}"
        say(f"Collected {activations} of {images} from {blocks}: {readable_size(found.bytes)} in {where}.")

    def _check_source(self) -> None:
        from tide.errors import TideError
        from tide.images.order import check_hold_out

        check_hold_out(self.hold_out or 0.0)
        if self.prompts is not None and not self.sampling:
            raise TideError("--prompts belongs to --sampling; add it, or give --data")
        if (self.source.data is None) == (self.prompts is None):
            raise TideError("what to collect from is not clear; give --data, or --prompts with --sampling")

    def _opened(self, adapter: Adapter) -> Source | Prompts:
        """What to collect from: images with captions, or for the sampling process captions alone."""
        from pathlib import Path

        from tide.activations.source import Prompts, read_prompts
        from tide.adapters.sizes import image_size
        from tide.cli.common import source_of

        if self.prompts is not None:
            size, texts = image_size(adapter, self.source.size), read_prompts(Path(self.prompts))
            kept = tuple(texts[: self.source.images])
            return Prompts(str(Path(self.prompts).resolve()), size, kept, limited=len(kept) < len(texts))
        source = source_of(
            self.source,
            adapter,
            seed=self.seed,
            batch_size=self.activations.batch_size,
            hold_out=self._reserved(),
        )
        return source.prompts(image_size(adapter, self.source.size)) if self.sampling else source

    def _reserved(self) -> float:
        """The share of the images to leave out. A store that is resumed keeps its own."""
        from tide.activations.to_disk import recorded_hold_out
        from tide.files.remote import place_of

        if self.hold_out is not None:
            return self.hold_out
        before = recorded_hold_out(place_of(self.out)) if self.resume else None
        return HOLD_OUT if before is None else before
