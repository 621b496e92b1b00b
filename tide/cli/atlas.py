"""``tide atlas``: a page of all latents, with the images and the timesteps at which each fires."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from tide.cli.command import Command, left_behind
from tide.cli.options import Autoencoder, Data, Images, Model
from tide.cli.usage import Aspect, fast_beside, kind_of_data, with_option
from tide.cli.values import Count, Flag, Folder, MaybeCount, Seed, option

if TYPE_CHECKING:
    from torch import Tensor

    from tide.activations.source import Source
    from tide.adapters import Adapter
    from tide.index.finishing import Progress
    from tide.interpretation.atlas import Atlas as Read
    from tide.runs import FileKind
    from tide.sae import TIDE


@dataclass(frozen=True, kw_only=True)
class Atlas(Command):
    """Draw all latents as one page to look through.

    For every latent: its top images with their names and captions, where in them and at which timesteps it fires, and
    how often. Also what it stands for, where that is clear: with --data scenes (the default with --pipeline scenes) the
    concept whose masks it fits best, otherwise the word of the captions that it tells best.

    With --index the folder can be opened with `tide browse` as well.
    """

    usage: ClassVar[tuple[Aspect, ...]] = (
        kind_of_data(),
        fast_beside("images", "timesteps"),
        with_option("index", leaves_out="top_images"),
    )

    autoencoder: Autoencoder
    model: Model = field(default_factory=Model)
    source: Images = field(default_factory=Images)
    top_images: Count = 6
    """number of images to show for each latent"""
    timesteps: MaybeCount = None
    """steps of a sampling run to read at (default 10, 4 with --fast)"""
    latents: Annotated[Count, option("LIMIT")] = 4096
    """how many of the most active latents the page shows; the other files hold all"""
    batch_size: Count = 8
    """images per pass"""
    out: Folder
    """folder for atlas.html, atlas.safetensors and atlas.json"""
    index: Flag = False
    """also make the index for `tide browse`, in the same pass over the images; the page is made from it, with 8 top
    images of each latent"""
    fast: Flag = False
    """read 64 images instead of 512, at fewer timesteps"""
    seed: Seed = 0
    """random seed"""

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
        from tide.interpretation.atlas_reading import what_was_read
        from tide.runs import write_run

        out = Path(self.out)
        adapter = common.adapter_of(self.model, pipeline, sae=self.autoencoder.sae)
        model = common.sae_of(self.autoencoder, adapter, pipeline)
        n = self.timesteps or (4 if self.fast else 10)
        images = common.source_of(source, adapter, seed=self.seed, batch_size=self.batch_size, split="test")
        timesteps = adapter.sampling_timesteps(n)
        atlas = (self._from_index if self.index else self._from_images)(adapter, model, images, timesteps)
        files: dict[str, FileKind] = {"atlas.html": "page", "atlas.safetensors": "index", "atlas.json": "labels"}
        holds = common.about(
            "atlas",
            adapter,
            pipeline,
            model,
            self.autoencoder,
            weights=pipeline_fingerprints(adapter.pipe),
            data={"name": images.name, "images": atlas.n_images},
            configuration={"images": source.images, "timesteps": n, "top_images": atlas.top_images.shape[1]},
            measured=_headline(atlas),
            files=files | ({"index": "index"} if self.index else {}),
        )
        write_run(out, holds, self.made_by())
        read = what_was_read(model, images)
        further = f", or look through it with tide browse {quote(str(out))}" if self.index else ""
        print(f"{_in_a_sentence(atlas, model.config.trained_block, read)}; see {out / 'atlas.html'}{further}.")

    def _from_images(self, adapter: Adapter, model: TIDE, images: Source, timesteps: Tensor) -> Read:
        from tide.cli import common
        from tide.interpretation.atlas_reading import make_atlas

        return make_atlas(
            adapter,
            model,
            images,
            self.out,
            timesteps=timesteps,
            top_images=self.top_images,
            limit=self.latents,
            seed=self.seed,
            progress=True,
            writing=common.writing(Path(self.out)),
        )

    def _from_index(self, adapter: Adapter, model: TIDE, images: Source, timesteps: Tensor) -> Read:
        from tide.cli import common
        from tide.index import build_index, write_atlas_files

        left_behind.set(f"the index in {self.out} is unfinished, the same command resumes it")
        with _bars() as show:
            index = build_index(adapter, model, images, self.out, timesteps=timesteps, seed=self.seed, on_progress=show)
        writing = common.writing(Path(self.out))
        return write_atlas_files(index, adapter, model, images, self.out, limit=self.latents, writing=writing)


@contextmanager
def _bars() -> Iterator[Progress]:
    """Shows how far each stage is, on stderr if that is a terminal."""
    from tqdm import tqdm

    with ExitStack() as stack:
        bars: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = stack.enter_context(tqdm(total=total, desc=stage, disable=None))
            bars[stage].update(done - bars[stage].n)

        yield show


def _headline(atlas: Read) -> dict[str, float]:
    found = {"dead": float(atlas.dead.float().mean())}
    if atlas.labels is not None:
        found["labelled"] = sum(label is not None for label in atlas.labels) / atlas.n_latents
    return found


def _in_a_sentence(atlas: Read, block: int, read: str) -> str:
    from tide.interpretation.atlas import LEAST_AUROC
    from tide.interpretation.word_labels import CAPTION

    shares = _headline(atlas)
    found = [f"{_percent(shares['dead'])} never fire on {read}"]
    if "labelled" in shares:
        words = any(label is not None and label.level == CAPTION for label in atlas.labels or ())
        fits = "tell a word of the captions" if words else "fit a concept"
        found.append(f"{_percent(shares['labelled'])} {fits} with an AUROC of {LEAST_AUROC} or more")
    typical = float(atlas.activity[~atlas.dead].median())
    found.append(f"the median of those that fire does so on {_percent(typical)} of the tokens")
    return f"Of {atlas.n_latents:,} latents on block {block}, {', '.join(found)}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
