"""``tide collect``: activations of a diffusion transformer into activation stores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

from tide.cli.command import Command
from tide.cli.options import Activations, Data, Model
from tide.cli.usage import Aspect, kind_of_data, with_option
from tide.cli.values import HOLD_OUT, Blocks, Flag, MaybeBytes, MaybeFile, MaybeFraction, MaybeNumber, Seed, option

if TYPE_CHECKING:
    from tide.activations.source import Prompts, Source
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
    """folder of the store; with several blocks each has its own, STORE/block-N"""
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
    model: LoadedModel
    source: Data = field(default_factory=Data)
    activations: Activations = field(default_factory=Activations)

    def run(self) -> None:
        from pathlib import Path

        from tide.activations.to_disk import blocks_in_words, collect_to_disk, images_in_words
        from tide.activations.writer import readable_size
        from tide.adapters.base import GUIDANCE
        from tide.cli.common import adapter_of, collect_options
        from tide.files import new_folders

        options = collect_options(self.activations)
        self._check_source()
        out = Path(self.out)
        with new_folders(out):
            adapter = adapter_of(self.model)
            found = collect_to_disk(
                adapter,
                self._opened(adapter),
                out,
                blocks=self.block,
                options=options,
                guidance_scale=GUIDANCE if self.guidance is None else self.guidance,
                seed=self.seed,
                quota=self.quota,
                resume=self.resume,
                made_by=self.made_by(),
            )
        activations = f"{found.rows} {'activation' if found.rows == 1 else 'activations'}"
        images, blocks = images_in_words(found.images), blocks_in_words(list(found.folders))
        print(f"Collected {activations} of {images} from {blocks}: {readable_size(found.bytes)} in {out}.")

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
        from pathlib import Path

        from tide.activations.to_disk import recorded_hold_out

        if self.hold_out is not None:
            return self.hold_out
        before = recorded_hold_out(Path(self.out)) if self.resume else None
        return HOLD_OUT if before is None else before
