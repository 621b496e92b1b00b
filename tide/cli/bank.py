"""``tide bank``: records what an SAE's block holds of concepts, for ``tide edit --bank``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from tide.cli.command import Command
from tide.cli.options import Autoencoder, Data, Model
from tide.cli.usage import Aspect, fast_beside, kind_of_data, with_option
from tide.cli.values import Count, Flag, Folder, MaybeCount, MaybeReplacements, Seed, option, read_by, words
from tide.errors import TideError

if TYPE_CHECKING:
    from tide.adapters import Adapter
    from tide.interpretation import RecordedBank
    from tide.runs import Contents
    from tide.sae import TIDE

#: The file of the bank.
FILE = "bank.safetensors"


@dataclass(frozen=True, kw_only=True)
class Bank(Command):
    """Record concepts: where latents find them, and what to put there.

    With --pipeline scenes and without --data, concepts of rendered scenes are recorded under their masks; with --data,
    words of the captions, on whole images. `tide edit --bank` then takes the names: --where house --what blue.
    """

    usage: ClassVar[tuple[Aspect, ...]] = (
        with_option("data", uses="images batch_size"),
        kind_of_data(),
        fast_beside("images_per_concept", "timesteps"),
    )

    autoencoder: Autoencoder
    model: Model = field(default_factory=Model)
    source: Data = field(default_factory=Data)
    concepts: Annotated[tuple[str, ...], read_by(words, "WORD,WORD"), option()]
    """concepts to record, such as red,blue,house"""
    contrasts: MaybeReplacements = None
    """what a word instead of another changes, such as red=blue, on images of the second"""
    images_per_concept: MaybeCount = None
    """images with each concept (default 64, 16 with --fast; rendered scenes in all: 192, 64)"""
    timesteps: MaybeCount = None
    """timesteps to record at (default 10, 4 with --fast)"""
    tokens: Count = 128
    """tokens to keep of each concept and of each contrast"""
    batch_size: Count = 4
    """images per pass"""
    out: Folder
    """folder for bank.safetensors and bank.json"""
    fast: Flag = False
    """use fewer images and timesteps"""
    seed: Seed = 0
    """random seed"""

    def run(self) -> None:
        from tide.cli import common
        from tide.loading import BUNDLED

        pipeline = common.pipeline_of(self.model, self.autoencoder)
        if self.source.data is None and pipeline != BUNDLED:
            raise TideError("what to record concepts in is not clear; give --data")
        with common.output_folder(Path(self.out)):
            adapter = common.adapter_of(self.model, pipeline, sae=self.autoencoder.sae)
            model = common.sae_of(self.autoencoder, adapter, pipeline)
            recorded, data = (self._in_scenes if self.source.data is None else self._in_captions)(adapter, model)
            rows = {name: _row(recorded, name) for name in self.concepts}
            options = {"images_per_concept": self.images_searched, "timesteps": self.timesteps_read}
            measured = {"auroc": {name: row["auroc"] for name, row in rows.items()}}
            found: dict[str, Any] = {"data": data, "configuration": options, "measured": measured}
            self._write(recorded, rows, common.about("bank", adapter, pipeline, model, self.autoencoder, **found))
        for name, row in rows.items():
            print(f"{name}: {row['tokens']} tokens; told with an AUROC of {row['auroc']:.2f} on other images.")
        contrasts = "".join(f", {source} to {target}" for source, target in recorded.bank.contrasts)
        print(f"Recorded {', '.join(self.concepts)}{contrasts} at block {model.config.block}; see {self.out}/{FILE}.")

    def _write(self, recorded: RecordedBank, rows: dict[str, Any], holds: Contents) -> None:
        """Writes the bank and its figures or none of them, then run.json."""
        from tide.cli.common import writing
        from tide.editing.bank_file import bank_writer
        from tide.files import finite, json_writer, replace_files
        from tide.runs import write_run

        out = Path(self.out)
        pairs = [
            {"from": source, "to": target, "tokens": found.keys.shape[1]}
            for (source, target), found in recorded.bank.contrasts.items()
        ]
        report = {"concepts": rows, "contrasts": pairs, "timesteps": recorded.bank.timesteps.tolist()}
        with writing(out):
            replace_files({out / FILE: bank_writer(recorded.bank), out / "bank.json": json_writer(finite(report))})
            write_run(out, replace(holds, files={FILE: "table", "bank.json": "figures"}), self.made_by())

    @property
    def timesteps_read(self) -> int:
        return self.timesteps or (4 if self.fast else 10)

    @property
    def images_searched(self) -> int:
        """Images with each concept; of rendered scenes, images in all."""
        whole, fast = (192, 64) if self.source.data is None else (64, 16)
        return self.images_per_concept or (fast if self.fast else whole)

    def _in_scenes(self, adapter: Adapter, model: TIDE) -> tuple[RecordedBank, dict[str, Any]]:
        from tide.studies.scene_bank import scene_bank

        n = self.images_searched
        options = {"n_images": n, "timesteps": self.timesteps_read, "n_tokens": self.tokens, "seed": self.seed}
        found = scene_bank(adapter, model, self.concepts, self.contrasts or (), **options)
        return found, {"name": "scenes", "images": 2 * n}

    def _in_captions(self, adapter: Adapter, model: TIDE) -> tuple[RecordedBank, dict[str, Any]]:
        from tide.cli.common import source_of
        from tide.interpretation.caption_bank import caption_bank

        source = source_of(self.source, adapter, seed=self.seed, batch_size=self.batch_size)
        found = caption_bank(
            adapter,
            model,
            source,
            self.concepts,
            self.contrasts or (),
            images_per_concept=self.images_searched,
            timesteps=self.timesteps_read,
            n_tokens=self.tokens,
            seed=self.seed,
            batch_size=self.batch_size,
        )
        return found, {"name": source.name}


def _row(recorded: RecordedBank, concept: str) -> dict[str, Any]:
    """What bank.json says of a concept."""
    held, fitted = recorded.bank.concepts[concept], recorded.detectors[concept]
    nearest = {} if fitted.nearest is None else {"mistaken_for": fitted.nearest[0], "its_auroc": fitted.nearest[1]}
    figures = {"auroc": fitted.mean_auroc, "auroc_by_timestep": fitted.auroc}
    return {"tokens": held.tokens.shape[1], "latents": held.features.tolist(), **figures, **nearest}
