"""``tide concepts``: which latents carry a word of the captions, and where in the images they fire (section 5.4)."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tide.commands import arguments
from tide.commands.usage import PIPELINE, Usage, fast_beside, kind_of_data, with_option
from tide.tables import text_table

if TYPE_CHECKING:
    from pathlib import Path

#: Without --data rendered scenes with masks.
USAGE = Usage(
    f"{PIPELINE} sae block backend data concepts images_per_concept top_images timesteps out seed",
    (with_option("data", uses="images batch_size"), kind_of_data(), fast_beside("images_per_concept", "timesteps")),
)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "concepts",
        help="find latents of concepts and draw where they fire",
        description="With --pipeline scenes and no --data: rendered scenes with masks, so AUROC and IoU as well.",
    )
    arguments.add_sae(parser)
    arguments.add_pipeline(parser, required=False, default="the checkpoint's")
    arguments.add_data(parser, images="how many to look through (default: all; 512 scenes)")
    parser.add_argument("--concepts", type=arguments.words, metavar="WORD,WORD", help="words of the captions")
    parser.add_argument(
        "--images-per-concept", type=arguments.positive, help="default 64, 16 with --fast (scenes: 192, 64)"
    )
    parser.add_argument("--top-images", type=arguments.positive, default=4, help="drawn for each concept (default 4)")
    parser.add_argument("--timesteps", type=arguments.positive, help="latents are averaged over (default 3, 2 --fast)")
    parser.add_argument("--batch-size", type=arguments.positive, default=4)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of concepts.json and the pictures")
    parser.add_argument("--fast", action="store_true", help="fewer images and timesteps")
    parser.add_argument("--seed", type=arguments.seed, default=0)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from tide.commands import common
    from tide.errors import TideError

    common.pipeline_of_sae(args)
    if args.data is None and args.pipeline != common.BUNDLED:
        raise TideError("what to look for concepts in is not clear; give --data")
    if args.data is not None and args.concepts is None:
        raise TideError("no concept is named; give --concepts word,word")
    with common.output_folder(Path(args.out)):
        _draw(args, Path(args.out))


def _draw(args: argparse.Namespace, out: Path) -> None:
    from tide.commands import common
    from tide.files import json_writer, replace_files
    from tide.pictures import image_writer

    adapter = common.load_adapter(args)
    model = common.load_sae(args, adapter)
    args.timesteps = args.timesteps or (2 if args.fast else 3)
    if args.data is None:
        from tide.commands.scene_concepts import study

        found, pictures = study(adapter, model, args)
    else:
        from tide.commands.caption_concepts import study

        found, pictures = study(adapter, model, args)
    with common.writing(args):
        files = {out / f"{concept}.png": image_writer(picture) for concept, picture in pictures.items()}
        report = json_writer({**found, "run": common.provenance(args)})
        replace_files({**files, out / "concepts.json": report})
    rows = found["concepts"].items()
    header = ("concept", *(name for name in ("images", "auroc", "iou") if name in next(iter(rows))[1]), "latent")
    print(text_table(header, [(name, *(_cell(row[key]) for key in header[1:])) for name, row in rows]))
    clearest = sorted(rows, key=lambda item: -item[1].get("auroc", 0.0))[:3]
    named = ", ".join(f"{name} in latent {row['latent']}" for name, row in clearest)
    print(f"Of {len(rows)} concepts on block {model.config.block}: {named}; their maps are in {out}.")


def _cell(value: float | int) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
