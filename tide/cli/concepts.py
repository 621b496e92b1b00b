"""``tide concepts``: which latents carry a word of the captions, and where in the images they fire (section 5.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tide.cli.command import Command
from tide.cli.options import Autoencoders, Data, Model
from tide.cli.usage import Aspect, fast_beside, kind_of_data, with_option
from tide.cli.values import Count, Flag, Folder, MaybeCount, MaybeWords, Seed
from tide.errors import TideError

if TYPE_CHECKING:
    from PIL import Image

    from tide.adapters import Adapter
    from tide.interpretation import CaptionConcepts
    from tide.runs import Contents, FileKind
    from tide.sae import TIDE

#: Of each block the table for ``concepts.json`` and a picture of each concept; and what they were found in.
Found = tuple[dict[int, tuple[dict[str, Any], dict[str, "Image.Image"]]], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Concepts(Command):
    """Find latents of concepts and draw where they fire.

    With --pipeline scenes and without --data, concepts of rendered scenes are measured against their masks. With a
    folder of several blocks' checkpoints all are searched on the same images.
    """

    usage: ClassVar[tuple[Aspect, ...]] = (
        with_option("data", uses="images batch_size"),
        kind_of_data(),
        fast_beside("images_per_concept", "timesteps"),
    )

    autoencoder: Autoencoders
    model: Model = field(default_factory=Model)
    source: Data = field(default_factory=Data)
    concepts: MaybeWords = None
    """concepts to find, as words of the captions (default with rendered scenes: all)"""
    images_per_concept: MaybeCount = None
    """images with each concept (default 64, 16 with --fast; rendered scenes in all: 192, 64)"""
    top_images: Count = 4
    """images to draw for each concept"""
    timesteps: MaybeCount = None
    """timesteps to average latents over (default 3, 2 with --fast)"""
    batch_size: Count = 4
    """images per pass"""
    out: Folder
    """folder for concepts.json and the pictures"""
    fast: Flag = False
    """use fewer images and timesteps"""
    seed: Seed = 0
    """random seed"""

    def run(self) -> None:
        from tide.cli import common
        from tide.loading import BUNDLED

        pipeline = common.pipeline_of(self.model, self.autoencoder)
        if self.source.data is None and pipeline != BUNDLED:
            raise TideError("what to look for concepts in is not clear; give --data")
        if self.source.data is not None and self.concepts is None:
            raise TideError("no concept is named; give --concepts word,word")
        with common.output_folder(Path(self.out)):
            self._draw(pipeline)

    def _draw(self, pipeline: str) -> None:
        from tide.cli import common
        from tide.cli.concept_table import best_blocks, blocks_text, concepts_sentence, concepts_text
        from tide.files import finite
        from tide.files.per_block import block_folders
        from tide.fingerprint import pipeline_fingerprints

        adapter = common.adapter_of(self.model, pipeline, sae=self.autoencoder.sae)
        models = common.saes_of(self.autoencoder, adapter, pipeline)
        find = self._in_scenes if self.source.data is None else self._in_captions
        found, data = find(adapter, models)
        tables = {block: finite(table) for block, (table, _) in found.items()}
        out, weights = Path(self.out), pipeline_fingerprints(adapter.pipe)
        about = partial(common.about_blocks, "concepts", adapter, pipeline, autoencoders=self.autoencoder)
        held: dict[str, Any] = {"weights": weights, "data": data, "configuration": self._configuration}
        folders = block_folders(out, list(models))
        for block, folder in folders.items():
            holds = about({block: models[block]}, **held, measured=_headline(tables[block]))
            self._write(folder, tables[block], found[block][1], holds)
        if len(folders) == 1:
            (block,) = folders
            print(concepts_text(tables[block]))
            print(f"\n{concepts_sentence(tables[block], block)}; their maps are in {out}.")
            return
        best = best_blocks(tables)
        inside: dict[str, FileKind] = {folder.name: "figures" for folder in folders.values()}
        holds = about(models, **held, measured={"best": best}, files=inside)
        self._write(out, {"blocks": {str(block): table for block, table in tables.items()}, "best": best}, {}, holds)
        print(blocks_text(tables))
        print(f"\nOf each block the table and the maps are in {out}/block-N.")

    @property
    def _configuration(self) -> dict[str, int]:
        return {"images_per_concept": self.images_searched, "timesteps": self.timesteps_read}

    def _write(self, out: Path, found: dict[str, Any], pictures: dict[str, Image.Image], holds: Contents) -> None:
        """Writes all pictures and concepts.json or none of them, then run.json."""
        from tide.cli.common import writing
        from tide.clip import is_clip
        from tide.files import json_writer, new_folders, replace_files
        from tide.pictures import picture_writer
        from tide.runs import write_run

        drawn = {
            f"{concept}{'.webp' if is_clip(picture) else '.png'}": picture for concept, picture in pictures.items()
        }
        files: dict[str, FileKind] = {"concepts.json": "figures", **{name: "picture" for name in drawn}, **holds.files}
        with new_folders(out), writing(out):
            written = {out / name: picture_writer(picture) for name, picture in drawn.items()}
            replace_files({**written, out / "concepts.json": json_writer(found)})
            write_run(out, replace(holds, files=files), self.made_by())

    @property
    def timesteps_read(self) -> int:
        return self.timesteps or (2 if self.fast else 3)

    @property
    def images_searched(self) -> int:
        """Images with each concept; of rendered scenes, images in all."""
        whole, fast = (192, 64) if self.source.data is None else (64, 16)
        return self.images_per_concept or (fast if self.fast else whole)

    def _in_scenes(self, adapter: Adapter, models: Mapping[int, TIDE]) -> Found:
        from tide.studies.scene_concepts import scene_concepts

        n = self.images_searched
        options = {"n_images": n, "top_images": self.top_images, "timesteps": self.timesteps_read, "seed": self.seed}
        return scene_concepts(adapter, models, self.concepts, **options), {"name": "scenes", "images": 2 * n}

    def _in_captions(self, adapter: Adapter, models: Mapping[int, TIDE]) -> Found:
        from tide.cli.common import source_of
        from tide.interpretation.captions import caption_concepts_of_blocks
        from tide.interpretation.timesteps import concept_timesteps

        source = source_of(self.source, adapter, seed=self.seed, batch_size=self.batch_size, split="test")
        of_blocks = caption_concepts_of_blocks(
            adapter,
            models,
            source,
            self.concepts or (),
            images_per_concept=self.images_searched,
            top_images=self.top_images,
            timesteps=concept_timesteps(adapter, self.timesteps_read),
            seed=self.seed,
            batch_size=self.batch_size,
        )
        found = {block: (_table(own, source.name), _pictures(own)) for block, own in of_blocks.items()}
        one = next(iter(of_blocks.values()))
        return found, {"name": source.name, "images": one.n_images, "of": one.kind}


def _table(found: CaptionConcepts, data: str) -> dict[str, Any]:
    return {
        "concepts": found.concepts,
        "images": {"used": found.n_images, "of": found.kind, "captions_read": found.n_read, "read": found.described},
        "timesteps": found.timesteps.tolist(),
        "data": data,
    }


def _pictures(found: CaptionConcepts) -> dict[str, Image.Image]:
    return {word: found.picture(word) for word in found.concepts}


def _headline(table: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {concept: row[key] for concept, row in table["concepts"].items()}
        for name, key in (("latents", "latent"), ("auroc", "auroc"))
    }
