"""``tide atlas``: a page of all latents, with the images and the timesteps at which each fires."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from tide.cli.command import Command
from tide.cli.options import Autoencoder, Data, Model
from tide.cli.usage import Aspect, fast_beside, kind_of_data
from tide.cli.values import Count, Flag, Folder, MaybeCount, Seed, option

if TYPE_CHECKING:
    from tide.activations.source import Source
    from tide.adapters import Adapter
    from tide.interpretation.atlas import Atlas as Read
    from tide.sae import TIDE


@dataclass(frozen=True, kw_only=True)
class Images(Data):
    """Images with captions, default 'scenes' with the bundled pipeline."""

    images: MaybeCount = None
    """how many to read at most (default 512, 64 with --fast)"""


@dataclass(frozen=True, kw_only=True)
class Atlas(Command):
    """Draw all latents as one page to look through.

    For every latent: its top images, where in them and at which timesteps it fires, and how often. With --data scenes
    (the default with --pipeline scenes) also the concept whose masks it fits best.
    """

    usage: ClassVar[tuple[Aspect, ...]] = (kind_of_data(), fast_beside("images", "timesteps"))

    autoencoder: Autoencoder
    model: Model = field(default_factory=Model)
    source: Images = field(default_factory=Images)
    top_images: Count = 6
    """kept of each latent"""
    timesteps: MaybeCount = None
    """steps of a sampling run to read at (default 10, 4 with --fast)"""
    latents: Annotated[Count, option("LIMIT")] = 4096
    """most active ones that the page holds; the numbers are written of all"""
    batch_size: Count = 8
    """images a pass"""
    out: Folder
    """folder of atlas.html, atlas.safetensors and atlas.json"""
    fast: Flag = False
    """fewer images and timesteps"""
    seed: Seed = 0
    """of everything that is drawn"""

    def run(self) -> None:
        from tide.cli import common

        pipeline = common.pipeline_of(self.model, self.autoencoder)
        images = self.source.images or (64 if self.fast else 512)
        source = common.data_or_scenes(self.source, pipeline, "what images to read", images)
        with common.output_folder(Path(self.out)):
            self._draw(pipeline, source)

    def _draw(self, pipeline: str, source: Data) -> None:
        from tide.cli import common
        from tide.fingerprint import pipeline_fingerprints
        from tide.interpretation.atlas_page import write_atlas
        from tide.interpretation.atlas_reading import read_atlas
        from tide.loading import pipeline_name
        from tide.runs import write_run

        out = Path(self.out)
        adapter = common.adapter_of(self.model, pipeline)
        model = common.sae_of(self.autoencoder, adapter, pipeline)
        n = self.timesteps or (4 if self.fast else 10)
        images = common.source_of(source, adapter, seed=self.seed, batch_size=self.batch_size, split="test")
        masks = _masks(adapter, model, images, self.seed)
        options = {"top_images": self.top_images, "seed": self.seed, "progress": True, **masks}
        atlas, thumbnails = read_atlas(adapter, model, images, adapter.sampling_timesteps(n), **options)
        block = model.config.block
        title = f"What the latents of block {block} respond to"
        note = f"Pipeline {pipeline_name(pipeline)}, images of {images.name}.{_about_labels(masks)}"
        holds = common.about(
            "atlas",
            adapter,
            pipeline,
            model,
            self.autoencoder,
            weights=pipeline_fingerprints(adapter.pipe),
            data={"name": images.name, "images": atlas.n_images},
            measured=_headline(atlas),
            files={"atlas.html": "page", "atlas.safetensors": "index", "atlas.json": "labels"},
        )
        made_by = self.made_by(pipeline=pipeline, data=source.data, images=source.images, timesteps=n)
        with common.writing(out):
            write_atlas(out / "atlas.html", atlas, thumbnails, title=title, note=note, limit=self.latents)
            atlas.save(out, data=images.name, block=block, run=made_by)
            write_run(out, holds, made_by)
        print(f"{_in_a_sentence(atlas, block)}; see {out / 'atlas.html'}.")


def _masks(adapter: Adapter, model: TIDE, source: Source, seed: int) -> dict[str, Any]:
    """The concepts' masks of rendered scenes, as many as latents fit into memory for, and their levels."""
    from tide.adapters.sizes import image_grid
    from tide.interpretation.atlas_reading import most_labelled
    from tide.loading import BUNDLED
    from tide.scenes import LEVEL_OF, concept_masks, prompts

    if source.name != BUNDLED:
        return {}
    grid = image_grid(adapter, source.size)
    n = min(source.n_images, most_labelled(model.n_latents, grid[0] * grid[1]))
    scenes = [scene for scene, _ in prompts("test", source.n_images, seed)][:n]
    return {"masks": concept_masks(scenes, grid), "level_of": LEVEL_OF}


def _about_labels(masks: dict[str, Any]) -> str:
    """How latents were labelled, for the page."""
    from tide.interpretation.atlas import LEAST_AUROC

    if not masks:
        return ""
    n = len(next(iter(masks["masks"].values())))
    return (
        f" A latent's concept is the one whose masks its maps fit best, where the AUROC is at least {LEAST_AUROC}. "
        f"It was chosen and measured on the same {n:,} scenes, so the AUROC is optimistic."
    )


def _headline(atlas: Read) -> dict[str, float]:
    found = {"dead": float(atlas.dead.float().mean())}
    if atlas.labels is not None:
        found["labelled"] = sum(label is not None for label in atlas.labels) / atlas.n_latents
    return found


def _in_a_sentence(atlas: Read, block: int | str | None) -> str:
    from tide.interpretation.atlas import LEAST_AUROC

    shares = _headline(atlas)
    found = [f"{_percent(shares['dead'])} never fire on {atlas.n_images} images"]
    if "labelled" in shares:
        found.append(f"{_percent(shares['labelled'])} fit a concept with an AUROC of {LEAST_AUROC} or more")
    typical = float(atlas.activity[~atlas.dead].median())
    found.append(f"the median of the others fires on {_percent(typical)} of the tokens")
    return f"Of {atlas.n_latents} latents on block {block} {', '.join(found)}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
