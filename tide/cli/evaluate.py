"""``tide evaluate``: how well a checkpoint reconstructs, beside PCA and the mean, and inside the diffusion model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tide.cli.command import Command
from tide.cli.options import Autoencoders, Data, Images, Model
from tide.cli.usage import Aspect, fast_beside, kind_of_data
from tide.cli.values import Count, Flag, Folder, Fraction, MaybeCount, Seed

if TYPE_CHECKING:
    from tide.runs import Contents


@dataclass(frozen=True, kw_only=True)
class Evaluate(Command):
    """Measure reconstruction and diffusion loss of a checkpoint, beside PCA and the mean activation.

    With a folder of several blocks' checkpoints all are measured on the same images, and averaged.
    """

    usage: ClassVar[tuple[Aspect, ...]] = (
        kind_of_data(),
        fast_beside("images", "loss_timesteps", "loss_images"),
    )

    autoencoder: Autoencoders
    model: Model = field(default_factory=Model)
    source: Images = field(default_factory=Images)
    fit: Fraction = 0.5
    """share of the images that PCA and the mean are fitted on; the others are measured"""
    token_fraction: Fraction = 1 / 16
    """share of each image's tokens to measure on"""
    loss_timesteps: MaybeCount = None
    """timesteps of the diffusion loss (default 10, 3 with --fast)"""
    loss_images: MaybeCount = None
    """images of the diffusion loss (default 64, 8 with --fast)"""
    batch_size: Count = 8
    """images per pass"""
    out: Folder
    """folder for metrics.json"""
    fast: Flag = False
    """a quick look: 32 images instead of 256, and fewer for the diffusion loss"""
    seed: Seed = 0
    """random seed"""

    def run(self) -> None:
        from tide.cli import common

        pipeline = common.pipeline_of(self.model, self.autoencoder)
        images = self.source.images or (32 if self.fast else 256)
        source = common.data_or_scenes(self.source, pipeline, "what to evaluate on", images)
        with common.output_folder(Path(self.out)):
            self._measure(pipeline, source)

    def _measure(self, pipeline: str, source: Data) -> None:
        from tide.cli import common
        from tide.evaluation import evaluate, evaluate_blocks
        from tide.fingerprint import pipeline_fingerprints

        adapter = common.adapter_of(self.model, pipeline, sae=self.autoencoder.sae)
        models = common.saes_of(self.autoencoder, adapter, pipeline)
        images = common.source_of(source, adapter, seed=self.seed, batch_size=self.batch_size, split="test")
        options: dict[str, Any] = {
            "loss_timesteps": self.loss_timesteps or (3 if self.fast else 10),
            "loss_images": self.loss_images or (8 if self.fast else 64),
            "fit": self.fit,
            "token_fraction": self.token_fraction,
            "batch_size": self.batch_size,
        }
        if len(models) == 1:
            (model,) = models.values()
            first = figures = evaluate(adapter, model, images, **options, seed=self.seed)
        else:
            figures = evaluate_blocks(adapter, models, images, **options, seed=self.seed)
            first = next(iter(figures["blocks"].values()))
        counts = first["images"]
        holds = common.about_blocks(
            "evaluation",
            adapter,
            pipeline,
            models,
            self.autoencoder,
            weights=pipeline_fingerprints(adapter.pipe),
            data={"name": images.name, "images": counts["fit"] + counts["measured"], "of": counts["of"]},
            configuration={"images": source.images, **options},
            measured=_headline(figures),
            files={"metrics.json": "figures"},
        )
        self._write(figures, holds)
        self._say(figures)

    def _say(self, figures: dict[str, Any]) -> None:
        from tide.evaluation import blocks_sentence, blocks_text, evaluation_sentence, evaluation_text

        several = "blocks" in figures
        print(blocks_text(figures) if several else evaluation_text(figures))
        sentence = blocks_sentence(figures) if several else evaluation_sentence(figures)
        print(f"\n{sentence}; see {Path(self.out) / 'metrics.json'}.")

    def _write(self, figures: dict[str, Any], holds: Contents) -> None:
        from tide.cli.common import writing
        from tide.files import write_json
        from tide.runs import write_run

        out = Path(self.out)
        with writing(out):
            write_json(out / "metrics.json", figures)
            write_run(out, holds, self.made_by())


def _headline(figures: dict[str, Any]) -> dict[str, Any]:
    """Of one block the figures, of several their averages."""
    of = figures.get("average", figures)
    tide = of["models"]["tide"]
    return {
        **{name: tide[name] for name in ("explained_variance", "cosine", "l0", "dead")},
        **{name: of["diffusion_loss"][name] for name in ("ratio", "recovered")},
    }
