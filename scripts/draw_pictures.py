"""Draws the captions of an image folder: ``python scripts/draw_pictures.py --pipeline P --data FOLDER --out DIR``.

``DIR/drawn.png`` shows what the pipeline draws for ``--captions``, below the real pictures. ``DIR/drawn.json`` says of
as many captions of the folder as ``--count`` how near the drawings are to their real pictures: the share of the other
pictures that are farther, by the mean squared error of their pixels. Beside it stands the same for the picture of
another caption, which is what drawings reach that have nothing to do with their captions. ``--beside`` names more
folders whose pictures count as others.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from mistakes import count, told
from named_pictures import SIZE, Pictures
from torch import Tensor

from tide.adapters import Adapter
from tide.adapters.sizes import sampling_arguments
from tide.checks import GUIDANCE
from tide.errors import TideError
from tide.files import json_writer, new_folders, replace_files
from tide.loading import load_adapter
from tide.pictures import image_writer, to_image
from tide.strips import Row, labelled

STEPS = 20
BATCH = 24
#: Pictures in a row of the sheet, and pixels of the side of each.
ACROSS, SIDE = 8, 128


#: From the numbers of a batch's captions to the context in which it is drawn, such as an edit.
Around = Callable[[slice], AbstractContextManager[Any]]


@torch.no_grad()
def drawn(
    adapter: Adapter,
    captions: Sequence[str],
    guidance: float,
    seed: int,
    around: Around = lambda _: nullcontext(),
) -> Tensor:
    """``[n, 3, 64, 64]`` in [-1, 1]; all from one noise, so that the captions alone make them differ."""
    images = []
    for start in range(0, len(captions), BATCH):
        part = slice(start, min(start + BATCH, len(captions)))
        batch = list(captions[part])
        with around(part):
            latents = adapter.generate(
                batch,
                n_steps=STEPS,
                guidance_scale=guidance,
                generators=[torch.Generator().manual_seed(seed) for _ in batch],
                **sampling_arguments(adapter, (SIZE, SIZE)),
            )
        images.append(adapter.decode_latents(latents).clamp(-1, 1).float().cpu())
    return torch.cat(images)


def nearness(images: Tensor, pictures: Tensor, own: Tensor) -> Tensor:
    """The share of ``pictures [g, 3, H, W]``, uint8, beside its own that are farther from each of ``images``.

    ``images [n, 3, H, W]`` are in [-1, 1]; ``own [n]`` are the rows of their own pictures; the result is ``[n]``.
    """
    distance = torch.cdist(images.flatten(1), pictures.flatten(1).float() / 127.5 - 1)
    to_own = distance.gather(1, own[:, None])
    return (distance > to_own).sum(1) / (len(pictures) - 1)


def rows_of(pictures: Pictures, only: tuple[str, str] | None, n: int, seed: int) -> list[int]:
    """At most ``n`` rows at random, of those whose column ``only[0]`` is ``only[1]``."""
    rows = [i for i, row in enumerate(pictures.rows) if only is None or cast(Any, row).get(only[0]) == only[1]]
    if not rows:
        column, value = only or ("", "")
        raise TideError(f"no picture has {column} = {value}; name a column of metadata.jsonl and a value that it holds")
    return sorted(np.random.default_rng(seed).permutation(rows)[:n].tolist())


def named(pictures: Pictures, captions: Sequence[str]) -> list[int]:
    """The rows whose captions these are."""
    texts = [row["text"].lower() for row in pictures.rows]
    for caption in captions:
        if caption.lower() not in texts:
            raise TideError(f"no picture has the caption {caption!r}; take captions from the column text")
    return [texts.index(caption.lower()) for caption in captions]


def sheet(captions: Sequence[str], real: Tensor, images: Tensor) -> Any:
    """Real pictures uint8 ``[n, 3, H, W]``, and below each what was drawn for its caption."""
    rows = []
    for start in range(0, len(captions), ACROSS):
        part = slice(start, start + ACROSS)
        rows.append(Row([to_image(x.float() / 127.5 - 1) for x in real[part]], captions[part], "real"))
        rows.append(Row([to_image(x) for x in images[part]], (), "drawn"))
    return labelled(rows, side=SIDE)


def measured(adapter: Adapter, args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    pictures = Pictures.read(args.data)
    shown = named(pictures, args.captions)
    rows = rows_of(pictures, args.only, args.count, args.seed)
    gallery = torch.cat([pictures.images, *(Pictures.read(folder).images for folder in args.beside)])
    captions = [pictures.rows[i]["text"].lower() for i in rows]
    images, own = drawn(adapter, captions, args.guidance, args.seed), torch.tensor(rows)
    near, of_another = nearness(images, gallery, own), nearness(images, gallery, own.roll(len(own) // 2))
    figures = {
        "captions": len(rows),
        "pictures": len(gallery),
        "nearness": {"mean": near.mean().item(), "median": near.median().item()},
        "of_another": {"mean": of_another.mean().item(), "median": of_another.median().item()},
        "of": {caption: round(value, 4) for caption, value in zip(captions, near.tolist(), strict=True)},
    }
    examples = drawn(adapter, args.captions, args.guidance, args.seed)
    return sheet(args.captions, pictures.images[shown], examples), figures


def condition(text: str) -> tuple[str, str]:
    column, _, value = text.partition("=")
    if not (column and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not COLUMN=VALUE")
    return column, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True, help="folder of the pipeline")
    parser.add_argument("--data", type=Path, required=True, help="folder of pictures, with metadata.jsonl")
    parser.add_argument("--captions", nargs="+", required=True, metavar="CAPTION", help="captions to show")
    parser.add_argument("--only", type=condition, metavar="COLUMN=VALUE", help="measure these pictures alone")
    parser.add_argument("--count", type=count, default=192, help="captions to measure")
    parser.add_argument(
        "--beside", type=Path, nargs="*", default=[], metavar="FOLDER", help="folders of other pictures"
    )
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for drawn.png and drawn.json")
    args = parser.parse_args()
    with told(), new_folders(args.out):
        picture, figures = measured(load_adapter(args.pipeline), args)
        files = {args.out / "drawn.png": image_writer(picture), args.out / "drawn.json": json_writer(figures)}
        replace_files(files)
        own, other = figures["nearness"], figures["of_another"]
        print(
            f"of {figures['captions']} captions the drawing is nearer to the real picture than to {own['mean']:.1%} of "
            f"the others (median {own['median']:.1%}); to the picture of another caption, than to {other['mean']:.1%}"
        )


if __name__ == "__main__":
    main()
