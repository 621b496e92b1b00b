"""``tide concepts``: which latents carry a word of the captions, and where in the images they fire (section 5.4)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tide.cli.command import Command
from tide.cli.options import Autoencoder, Data, Model
from tide.cli.usage import Aspect, fast_beside, kind_of_data, with_option
from tide.cli.values import Count, Flag, Folder, MaybeCount, MaybeWords, Seed
from tide.errors import TideError

if TYPE_CHECKING:
    from PIL import Image

    from tide.adapters import Adapter
    from tide.runs import Contents
    from tide.sae import TIDE

#: The table for ``concepts.json``, a picture of each concept, and what they were found in.
Found = tuple[dict[str, Any], dict[str, "Image.Image"], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Concepts(Command):
    """Find latents of concepts and draw where they fire.

    With --pipeline scenes and without --data, concepts of rendered scenes are measured against their masks.
    """

    usage: ClassVar[tuple[Aspect, ...]] = (
        with_option("data", uses="images batch_size"),
        kind_of_data(),
        fast_beside("images_per_concept", "timesteps"),
    )

    autoencoder: Autoencoder
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
        from tide.cli.concept_table import concepts_sentence, concepts_text
        from tide.files import finite
        from tide.fingerprint import pipeline_fingerprints

        adapter = common.adapter_of(self.model, pipeline)
        model = common.sae_of(self.autoencoder, adapter, pipeline)
        find = self._in_scenes if self.source.data is None else self._in_captions
        found, pictures, data = find(adapter, model)
        found = finite(found)
        holds = common.about(
            "concepts",
            adapter,
            pipeline,
            model,
            self.autoencoder,
            weights=pipeline_fingerprints(adapter.pipe),
            data=data,
            configuration={"images_per_concept": self.images_searched, "timesteps": self.timesteps_read},
            measured={
                name: {concept: row[key] for concept, row in found["concepts"].items()}
                for name, key in (("latents", "latent"), ("auroc", "auroc"))
            },
        )
        self._write(found, pictures, holds)
        print(concepts_text(found))
        print(f"\n{concepts_sentence(found, model.config.block)}; their maps are in {self.out}.")

    def _write(self, found: dict[str, Any], pictures: dict[str, Image.Image], holds: Contents) -> None:
        """Writes all pictures and concepts.json or none of them, then run.json."""
        from tide.cli.common import writing
        from tide.files import json_writer, replace_files
        from tide.pictures import image_writer
        from tide.runs import FileKind, write_run

        out = Path(self.out)
        drawn = {f"{concept}.png": picture for concept, picture in pictures.items()}
        files: dict[str, FileKind] = {"concepts.json": "figures", **{name: "picture" for name in drawn}}
        with writing(out):
            written = {out / name: image_writer(picture) for name, picture in drawn.items()}
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

    def _in_scenes(self, adapter: Adapter, model: TIDE) -> Found:
        from tide.studies.scene_concepts import scene_concepts

        n = self.images_searched
        options = {"n_images": n, "top_images": self.top_images, "timesteps": self.timesteps_read, "seed": self.seed}
        found, pictures = scene_concepts(adapter, model, self.concepts, **options)
        return found, pictures, {"name": "scenes", "images": 2 * n}

    def _in_captions(self, adapter: Adapter, model: TIDE) -> Found:
        from tide.cli.common import source_of
        from tide.interpretation.captions import caption_concepts
        from tide.interpretation.timesteps import concept_timesteps

        source = source_of(self.source, adapter, seed=self.seed, batch_size=self.batch_size, split="test")
        found = caption_concepts(
            adapter,
            model,
            source,
            self.concepts or (),
            images_per_concept=self.images_searched,
            top_images=self.top_images,
            timesteps=concept_timesteps(adapter, self.timesteps_read),
            seed=self.seed,
            batch_size=self.batch_size,
        )
        images = {"used": found.n_images, "of": found.kind, "captions_read": found.n_read, "read": found.described}
        table = {
            "concepts": found.concepts,
            "images": images,
            "timesteps": found.timesteps.tolist(),
            "data": source.name,
        }
        pictures = {word: found.picture(word) for word in found.concepts}
        return table, pictures, {"name": source.name, "images": found.n_images, "of": found.kind}
