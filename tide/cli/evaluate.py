"""``tide evaluate``: how well a checkpoint reconstructs, beside PCA and the mean, and inside the diffusion model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tide.cli.command import Command
from tide.cli.options import Autoencoder, Data, Model
from tide.cli.usage import PIPELINE, Usage, fast_beside, kind_of_data
from tide.cli.values import Count, Flag, Folder, Fraction, MaybeCount, Seed


@dataclass(frozen=True, kw_only=True)
class Images(Data):
    """Images with captions, default 'scenes' with the bundled pipeline."""

    images: MaybeCount = None
    """how many (default 256, 32 with --fast)"""


@dataclass(frozen=True, kw_only=True)
class Evaluate(Command):
    """Measure reconstruction and diffusion loss of a checkpoint, beside PCA and the mean activation."""

    usage: ClassVar[Usage] = Usage(
        f"{PIPELINE} sae block backend data images fit token_fraction loss_timesteps loss_images batch_size out seed",
        (kind_of_data(), fast_beside("images", "loss_timesteps", "loss_images")),
    )

    autoencoder: Autoencoder
    model: Model = field(default_factory=Model)
    source: Images = field(default_factory=Images)
    fit: Fraction = 0.5
    """first part of the images, for PCA and mean"""
    token_fraction: Fraction = 1 / 16
    """of each image's tokens"""
    loss_timesteps: MaybeCount = None
    """of the diffusion loss (default 10, 3 with --fast)"""
    loss_images: MaybeCount = None
    """of the diffusion loss (default 64, 8 with --fast)"""
    batch_size: Count = 8
    """images a pass"""
    out: Folder
    """folder of metrics.json"""
    fast: Flag = False
    """a quick look rather than a measurement"""
    seed: Seed = 0
    """of everything that is drawn"""

    def run(self) -> None:
        from tide.cli import common

        pipeline = common.pipeline_of(self.model, self.autoencoder)
        images = self.source.images or (32 if self.fast else 256)
        source = common.data_or_scenes(self.source, pipeline, "what to evaluate on", images)
        with common.output_folder(Path(self.out)):
            self._measure(pipeline, source)

    def _measure(self, pipeline: str, source: Data) -> None:
        from tide.cli import common
        from tide.evaluation import evaluate, evaluation_text
        from tide.files import write_json
        from tide.fingerprint import pipeline_fingerprints
        from tide.runs import write_run

        out = Path(self.out)
        adapter = common.adapter_of(self.model, pipeline)
        model = common.sae_of(self.autoencoder, adapter, pipeline)
        images = common.source_of(source, adapter, seed=self.seed, batch_size=self.batch_size, split="test")
        used: dict[str, Any] = {
            "loss_timesteps": self.loss_timesteps or (3 if self.fast else 10),
            "loss_images": self.loss_images or (8 if self.fast else 64),
        }
        options: dict[str, Any] = {
            "fit": self.fit,
            "token_fraction": self.token_fraction,
            "batch_size": self.batch_size,
        }
        figures = evaluate(adapter, model, images, **used, **options, seed=self.seed)
        holds = common.about(
            "evaluation",
            adapter,
            pipeline,
            model,
            self.autoencoder,
            weights=pipeline_fingerprints(adapter.pipe),
            data={"name": images.name, "images": sum(figures["images"].values())},
            measured=_headline(figures),
            files={"metrics.json": "figures"},
        )
        made_by = self.made_by(pipeline=pipeline, data=source.data, images=source.images, **used)
        with common.writing(out):
            write_json(out / "metrics.json", {**figures, "run": made_by})
            write_run(out, holds, made_by)
        print(evaluation_text(figures))
        print(f"{_in_a_sentence(figures)}; see {out / 'metrics.json'}.")


def _headline(figures: dict[str, Any]) -> dict[str, float]:
    tide = figures["models"]["tide"]
    return {
        **{name: tide[name] for name in ("explained_variance", "cosine", "l0", "dead")},
        "recovered": figures["diffusion_loss"]["recovered"],
    }


def _in_a_sentence(figures: dict[str, Any]) -> str:
    tide, pca = figures["models"]["tide"], figures["models"]["pca_k"]
    return (
        f"On {figures['images']['held_out']} held-out images the {figures['sae']['kind']} explains "
        f"{tide['explained_variance']:.1%} of the variance (PCA of rank {pca['rank']}: "
        f"{pca['explained_variance']:.1%}) and recovers {figures['diffusion_loss']['recovered']:.1%} of the diffusion "
        "loss"
    )
