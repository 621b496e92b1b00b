"""``tide sweep``: the autoencoders of several blocks by block and timestep, as one page."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tide.cli.command import Command, left_behind
from tide.cli.options import Autoencoders, Images, Model
from tide.cli.usage import Aspect, fast_beside, kind_of_data
from tide.cli.values import Count, Flag, Folder, Fraction, MaybeCount, MaybeFraction, MaybeWords, Seed

if TYPE_CHECKING:
    from tide.adapters import Adapter
    from tide.data import Source
    from tide.sae import TIDE

#: The folder in ``--out`` that keeps the figures of finished blocks.
KEPT = "blocks"


@dataclass(frozen=True, kw_only=True)
class Sweep(Command):
    """Measure the autoencoders of several blocks and draw them by block and timestep.

    Beside each stand raw neurons, a PCA and a random autoencoder: how well they reconstruct, what that costs the
    diffusion model, and what probes on a few of their features tell of concepts. The same command resumes an
    interrupted sweep.
    """

    usage: ClassVar[tuple[Aspect, ...]] = (kind_of_data(), fast_beside("images", "timesteps", "loss_images"))

    autoencoder: Autoencoders
    model: Model = field(default_factory=Model)
    source: Images = field(default_factory=Images)
    concepts: MaybeWords = None
    """concepts to probe for, as words of the captions (default with rendered scenes: all; otherwise: none)"""
    fit: Fraction = 0.5
    """share of the images that baselines and probes are fitted on; the others are measured"""
    token_fraction: MaybeFraction = None
    """share of each image's tokens to measure on (default 1/16, but at least 32 tokens)"""
    timesteps: MaybeCount = None
    """timesteps to measure at (default 5, 3 with --fast)"""
    loss_images: MaybeCount = None
    """images of the diffusion loss (default 32, 4 with --fast)"""
    batch_size: Count = 8
    """images per pass"""
    out: Folder
    """folder for sweep.html, sweep.json and the figures of finished blocks"""
    fast: Flag = False
    """a quick look: 48 images instead of 256, fewer timesteps and fewer images for the diffusion loss"""
    seed: Seed = 0
    """random seed"""

    def run(self) -> None:
        from tide.cli import common

        pipeline = common.pipeline_of(self.model, self.autoencoder)
        images = self.source.images or (48 if self.fast else 256)
        source = common.data_or_scenes(self.source, pipeline, "what to measure on", images)
        with common.output_folder(Path(self.out)):
            self._measure(pipeline, source)

    def _measure(self, pipeline: str, data: Images) -> None:
        from tide.cli import common
        from tide.evaluation import sweep
        from tide.fingerprint import pipeline_fingerprints

        adapter = common.adapter_of(self.model, pipeline, sae=self.autoencoder.sae)
        models = common.saes_of(self.autoencoder, adapter, pipeline)
        source, fit_source = self._sources(data, adapter)
        options: dict[str, Any] = {
            "concepts": self.concepts,
            "fit": self.fit,
            "token_fraction": self.token_fraction,
            "timesteps": self.timesteps or (3 if self.fast else 5),
            "loss_images": self.loss_images or (4 if self.fast else 32),
        }
        where: dict[str, Any] = {"out": Path(self.out) / KEPT, "progress": True, "finished": self._finished}
        found = sweep(adapter, models, source, fit_source=fit_source, **options, seed=self.seed, **where)
        counts = found["images"]
        holds = common.about_blocks(
            "sweep",
            adapter,
            pipeline,
            models,
            self.autoencoder,
            weights=pipeline_fingerprints(adapter.pipe),
            data={"name": source.name, "images": counts["fit"] + counts["measured"], "of": counts["of"]},
            configuration={"images": data.images, **options},
            measured=_headline(found),
            files={"sweep.html": "page", "sweep.json": "figures", KEPT: "figures"},
        )
        self._write(found, holds, _title(models), f"Pipeline {adapter.name}.")
        self._say(found)

    def _sources(self, data: Images, adapter: Adapter) -> tuple[Source, Source | None]:
        """The images to measure and those to fit to; None for a share of the former. Of rendered scenes the former are
        of combinations that the bundled pipeline was not trained on, and the latter of those that it was: the test's
        combinations are too few for a probe to tell what goes together in them."""
        from tide.cli.common import source_of
        from tide.errors import TideError
        from tide.loading import BUNDLED

        options: dict[str, Any] = {"seed": self.seed, "batch_size": self.batch_size}
        if data.data != BUNDLED:
            return source_of(data, adapter, **options), None
        assert data.images is not None
        n_fit = round(data.images * self.fit)
        if not 0 < n_fit < data.images:
            raise TideError(
                f"{n_fit} of {data.images} images are for fitting the baselines; give more images or another fit"
            )
        measured = source_of(replace(data, images=data.images - n_fit), adapter, **options, split="test")
        return measured, source_of(replace(data, images=n_fit), adapter, **options, split="train")

    def _finished(self, block: int) -> None:
        left_behind.set(f"finished blocks are in {Path(self.out) / KEPT}, the same command resumes")

    def _write(self, found: dict[str, Any], holds: Any, title: str, note: str) -> None:
        from tide.cli.common import writing
        from tide.evaluation.sweep_page import PAGE, write_sweep
        from tide.files import write_json
        from tide.runs import write_run

        out = Path(self.out)
        with writing(out):
            write_json(out / "sweep.json", found)
            write_sweep(out / PAGE, found, title=title, note=note)
            write_run(out, holds, self.made_by())

    def _say(self, found: dict[str, Any]) -> None:
        from tide.evaluation.sweep_page import PAGE
        from tide.evaluation.sweep_wording import sweep_sentences, sweep_text

        print(sweep_text(found))
        print("", *sweep_sentences(found), f"See {Path(self.out) / PAGE}.", sep="\n")


def _title(models: dict[int, TIDE]) -> str:
    return f"What {len(models)} blocks hold" if len(models) > 1 else f"What block {next(iter(models))} holds"


def _headline(found: dict[str, Any]) -> dict[str, Any]:
    """The averages over the blocks."""
    average = found["average"]
    tide, probes = average["fit"]["tide"], average["probes"]
    return {
        **{name: tide[name]["mean"] for name in ("explained_variance", "cosine", "l0", "dead")},
        "recovered": (average["loss"]["tide"]["recovered"] or {}).get("mean"),
        "probes": None if probes is None else {name: of["5"]["auroc"]["mean"] for name, of in probes.items()},
    }
