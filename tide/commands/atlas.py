"""``tide atlas``: a page of all latents, with the images and the timesteps at which each fires."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tide.commands import arguments
from tide.commands.usage import PIPELINE, Usage, fast_beside, kind_of_data

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from torch import Tensor

    from tide.adapters import Adapter
    from tide.commands.data import Source
    from tide.interpretation.atlas import Atlas
    from tide.sae import TIDE

#: Bytes of the latents that labels are measured on; images beyond go without. 2700 scenes at 3072 latents.
LABEL_BYTES = 2 * 2**30

USAGE = Usage(
    f"{PIPELINE} sae block backend data images top_images timesteps latents batch_size out seed",
    (kind_of_data(), fast_beside("images", "timesteps")),
)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "atlas",
        help="draw all latents as one page to look through",
        description="For every latent: its top images, where in them and at which timesteps it fires, and how often. "
        "With --data scenes (the default with --pipeline scenes) also the concept whose masks it fits best.",
    )
    arguments.add_sae(parser)
    arguments.add_pipeline(parser, required=False, default="the checkpoint's")
    arguments.add_data(parser, images="how many to read at most (default 512, 64 with --fast)")
    parser.add_argument("--top-images", type=arguments.positive, default=6, help="kept of each latent (default 6)")
    parser.add_argument(
        "--timesteps", type=arguments.positive, help="steps of a sampling run to read at (default 10, 4 with --fast)"
    )
    parser.add_argument(
        "--latents",
        type=arguments.positive,
        default=4096,
        metavar="LIMIT",
        help="most active ones that the page holds (default 4096); the numbers are written of all",
    )
    parser.add_argument("--batch-size", type=arguments.positive, default=8)
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder of atlas.html, atlas.safetensors and atlas.json"
    )
    parser.add_argument("--fast", action="store_true", help="fewer images and timesteps")
    parser.add_argument("--seed", type=arguments.seed, default=0)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from tide.commands import common
    from tide.errors import TideError

    common.pipeline_of_sae(args)
    if args.data is None and args.pipeline != common.BUNDLED:
        raise TideError("what images to read is not clear; give --data")
    args.data = args.data or common.BUNDLED
    args.images = args.images or (64 if args.fast else 512)
    args.timesteps = args.timesteps or (4 if args.fast else 10)
    with common.output_folder(Path(args.out)):
        _draw(args, Path(args.out))


def _draw(args: argparse.Namespace, out: Path) -> None:
    from dataclasses import replace

    from tqdm import tqdm

    from tide.commands import common
    from tide.commands.data import open_source
    from tide.interpretation.atlas import LEAST_AUROC, build_atlas
    from tide.interpretation.atlas_page import write_atlas

    adapter = common.load_adapter(args)
    model = common.load_sae(args, adapter)
    timesteps = adapter.sampling_timesteps(args.timesteps).unique().flip(0)
    source = open_source(args, common.image_size(args, adapter), scene_split="test")
    scale = adapter.pixels_per_latent
    grid = adapter.token_grid(source.size[0] // scale, source.size[1] // scale)
    labels = _Labels(model.n_latents, grid, source.n_images, args.seed) if source.name == common.BUNDLED else None
    thumbnails: list[np.ndarray] = []
    with tqdm(total=source.n_images, unit="image", disable=None) as bar:
        atlas = build_atlas(
            model,
            timesteps,
            _batches(adapter, model, source, timesteps, args.seed, thumbnails, bar),
            grid,
            top_images=args.top_images,
            on_latents=None if labels is None else labels.add,
        )
    note = f"Pipeline {common.pipeline_name(args.pipeline)}, images of {source.name}."
    if labels is not None:
        atlas = replace(atlas, labels=labels.measured())
        note += (
            f" A latent's concept is the one whose masks its maps fit best, where the AUROC is at least {LEAST_AUROC}. "
            f"It was chosen and measured on the same {labels.n_images:,} scenes, so the AUROC is optimistic."
        )
    block = model.config.block
    title = f"What the latents of block {block} respond to"
    with common.writing(args):
        write_atlas(out / "atlas.html", atlas, thumbnails, title=title, note=note, limit=args.latents)
        atlas.save(out, data=source.name, block=block, run=common.provenance(args))
    print(_found(atlas, block, out))


def _found(atlas: Atlas, block: int | None, out: Path) -> str:
    """The run in a sentence."""
    from tide.interpretation.atlas import LEAST_AUROC

    dead = atlas.dead
    found = [f"{_percent(float(dead.float().mean()))} never fire on {atlas.n_images} images"]
    if atlas.labels is not None:
        share = sum(label is not None for label in atlas.labels) / atlas.n_latents
        found.append(f"{_percent(share)} fit a concept with an AUROC of {LEAST_AUROC} or more")
    found.append(f"the median of the others fires on {_percent(float(atlas.activity[~dead].median()))} of the tokens")
    return f"Of {atlas.n_latents} latents on block {block} {', '.join(found)}; see {out / 'atlas.html'}."


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _batches(
    adapter: Adapter, model: TIDE, source: Source, timesteps: Tensor, seed: int, thumbnails: list[np.ndarray], bar: Any
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Activations of all images of ``source`` in order, each with its own noise; appends to ``thumbnails``."""
    import numpy as np

    from tide.activations import prepare
    from tide.activations.collect import sample_noise
    from tide.commands.common import caption_length
    from tide.interpretation.atlas_page import thumbnail
    from tide.interpretation.reading import noised_activations
    from tide.pictures import to_image

    for images, captions in source:
        (encoded,) = prepare(
            adapter, [(images, captions)], batch_size=len(images), max_sequence_length=caption_length(adapter)
        )
        noise = sample_noise(encoded.latents.shape, seed, len(thumbnails))
        thumbnails += [thumbnail(np.asarray(to_image(image))) for image in images]
        yield noised_activations(adapter, model, encoded, noise, timesteps)
        bar.update(len(images))


class _Labels:
    """The concepts' masks of rendered scenes, and the latents of their tokens, which are added as they are read."""

    def __init__(self, n_latents: int, grid: tuple[int, int], n_images: int, seed: int) -> None:
        import torch

        from tide.scenes import concept_masks, prompts

        n_tokens = grid[0] * grid[1]
        self.n_images = max(1, min(n_images, LABEL_BYTES // (4 * n_tokens * n_latents)))
        scenes = [scene for scene, _ in prompts("test", n_images, seed)][: self.n_images]
        self.masks = {concept: mask.flatten() for concept, mask in concept_masks(scenes, grid).items()}
        self.latents = torch.empty(self.n_images * n_tokens, n_latents)
        self.filled = 0

    def add(self, latents: Tensor) -> None:
        rows = latents.flatten(0, 1)[: len(self.latents) - self.filled]
        self.latents[self.filled : self.filled + len(rows)] = rows
        self.filled += len(rows)

    def measured(self) -> Any:
        """:func:`~tide.interpretation.atlas.label_latents` of what was added."""
        from tide.interpretation.atlas import label_latents
        from tide.scenes import LEVEL_OF

        return label_latents(self.latents, self.masks, LEVEL_OF)
