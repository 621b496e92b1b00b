"""``tide edit``: one prompt, before and after an edit of its latents, at growing strength."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tide.commands import arguments, edit_scores
from tide.commands.usage import PIPELINE, Aspect, Usage, fast_beside, with_option

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image
    from torch import Tensor

    from tide.adapters import Adapter
    from tide.editing import Edit
    from tide.sae import TIDE


#: The factor of ``--towards-top`` where none is given: the one that Fig. 6's development prompts chose.
SCALED_BY = 3.0


def _target(args: argparse.Namespace) -> str:
    if args.target is not None:
        return "with --target"
    return "without a target" if args.towards is None and args.change is None else "with --towards or --change"


#: What a guidance scale of at most 1 leaves out: the second half of each batch.
_ONE_BRANCH = Aspect(
    lambda args: "with --guidance at most 1" if args.guidance <= 1 else "with --guidance above 1",
    {"with --guidance at most 1": "", "with --guidance above 1": "branch"},
)

USAGE = Usage(
    f"{PIPELINE} size sae block backend prompt scale erase erase_top invert invert_top towards change target mask "
    "strength steps renormalise seed n_steps guidance clip lpips out",
    (
        Aspect(
            _target,
            {
                "without a target": "",
                "with --target": "towards_top towards_pooled altered",
                "with --towards or --change": "towards_image towards_top towards_pooled contrast save_target altered",
            },
        ),
        with_option("contrast", leaves_out="towards_top save_target"),
        with_option("altered", leaves_out="towards_pooled"),
        _ONE_BRANCH,
        fast_beside("n_steps"),
    ),
)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("edit", help="draw a prompt before and after an edit of its latents")
    arguments.add_sae(parser)
    arguments.add_pipeline(parser, required=False, default="the checkpoint's")
    parser.add_argument("--prompt", required=True)
    what = parser.add_argument_group("edit (one of)").add_mutually_exclusive_group(required=True)
    what.add_argument("--scale", type=arguments.scaling, metavar="12,40=3.0", help="multiply latents")
    what.add_argument("--erase", type=arguments.features, metavar="12,40", help="set latents to zero")
    what.add_argument("--erase-top", type=arguments.positive, metavar="N", help="each token's N strongest to zero")
    what.add_argument("--invert", type=arguments.features, metavar="12,40", help="flip the sign of latents")
    what.add_argument("--invert-top", type=arguments.positive, metavar="N", help="flip each token's N strongest")
    what.add_argument("--towards", metavar="PROMPT", help="towards the latents that this prompt gives at the same seed")
    what.add_argument(
        "--change", type=arguments.replacement, metavar="red=blue", help="towards this prompt with a word replaced"
    )
    what.add_argument("--target", metavar="FILE", help="towards latents that --save-target kept")
    parser.add_argument("--towards-image", metavar="FILE", help="record them on this image instead, under that prompt")
    parser.add_argument(
        "--towards-top", type=arguments.positive, metavar="K", help="scale the target's K strongest instead (C.1)"
    )
    parser.add_argument("--towards-pooled", action="store_true", help="the target averaged over the image")
    parser.add_argument(
        "--contrast",
        action="store_true",
        help="move along what --towards, in place of --prompt, changes on --towards-image (try strengths of 1 to 2)",
    )
    parser.add_argument("--save-target", metavar="FILE", help="keep the latents of --towards, for --target")
    where = parser.add_argument_group("where in the image").add_mutually_exclusive_group()
    where.add_argument("--mask", metavar="FILE", help="edit where this picture of the image's size is bright")
    where.add_argument(
        "--altered",
        type=arguments.positive,
        nargs="+",
        metavar="N",
        help="edit the N tokens at which source and target differ most; one image for each N",
    )
    parser.add_argument(
        "--strength",
        type=arguments.finite,
        nargs="+",
        help="one image each; 1 is the edit as written, 0 none (default 1; with --towards-top the factor, default 3)",
    )
    parser.add_argument(
        "--steps",
        type=arguments.finite,
        nargs=2,
        metavar=("FIRST", "LAST"),
        help="part of the sampling run, such as 0.2 0.8",
    )
    parser.add_argument("--branch", choices=("conditional", "unconditional", "both"), default="conditional")
    parser.add_argument("--renormalise", action="store_true", help="keep each token's latent norm (eq. 19)")
    parser.add_argument("--seed", type=arguments.seed, default=0)
    parser.add_argument("--n-steps", type=arguments.positive, help="sampling steps (default 20, 8 with --fast)")
    parser.add_argument("--guidance", type=arguments.finite, default=4.5, help="guidance scale (default 4.5)")
    parser.add_argument("--fast", action="store_true", help="8 sampling steps")
    edit_scores.add_options(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the images and edit.json")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from tide.commands import common, edit_target

    args.n_steps = args.n_steps or (8 if args.fast else 20)
    args.strength = args.strength or [SCALED_BY if args.towards_top else 1.0]
    edit_target.check(args)
    scorers = edit_scores.load(args)
    common.pipeline_of_sae(args)
    kept = [] if args.save_target is None else [Path(args.save_target).parent]
    with common.output_folder(Path(args.out), *kept):
        _run(args, Path(args.out), scorers)


def _run(args: argparse.Namespace, out: Path, scorers: edit_scores.Scorers) -> None:
    import numpy as np

    from tide.commands import common
    from tide.editing import edit
    from tide.errors import TideError
    from tide.pictures import beside

    adapter = common.load_adapter(args)
    adapter.check_steps(args.n_steps)
    model = common.load_sae(args, adapter)
    size = common.image_size(args, adapter)
    variants = _variants(adapter, model, args, size)
    for _, each, _ in variants:
        each.check(model.n_latents)
    before, after = _draw(adapter, args, size), []
    for _, each, tokens in variants:
        with edit(
            adapter.pipe,
            model,
            each,
            steps=None if args.steps is None else (args.steps[0], args.steps[1]),
            tokens=tokens,
            branch=args.branch,
            renormalise=args.renormalise,
        ) as met:
            after.append(_draw(adapter, args, size))
            if not met.rows:
                raise TideError(
                    f"this pipeline's calls have no {args.branch} rows at these steps; choose another --branch"
                )
    names = [name for name, _, _ in variants]
    moved = [float(np.abs(np.asarray(before, float) - np.asarray(image, float)).mean()) for image in after]
    pictures = {"before": before, **{f"after-{name}": image for name, image in zip(names, after, strict=True)}}
    pictures["strip"] = beside([before, *after])
    scores = scorers.score(before, after)
    settings: list[dict[str, float]] = [{"strength": strength} for strength in args.strength]
    if args.altered:
        settings = [{"strength": args.strength[0], "tokens": n} for n in args.altered]
    changes = [
        {**setting, "mean_pixel_change": m, **row} for setting, m, row in zip(settings, moved, scores.rows, strict=True)
    ]
    sae = {"block": model.config.block, "n_latents": model.n_latents, "k": model.config.k}
    report = {"edits": changes, **scores.report, "sae": sae, "run": common.provenance(args)}
    _write(args, out, pictures, report)
    at = [f"in {n} tokens" for n in args.altered or ()] or [f"at strength {s:g}" for s in args.strength]
    drawn = ", ".join(f"{m:.1f} {where}" for where, m in zip(at, moved, strict=True))
    moves = f"pixels moved by {drawn} (mean, of 255){scores.line}"
    print(f"Edited block {model.config.block}: {moves}; see {out / 'strip.png'}.")


def _write(args: argparse.Namespace, out: Path, pictures: dict[str, Image], report: dict[str, Any]) -> None:
    """All files or none."""
    from tide.commands import common
    from tide.files import json_writer, replace_files
    from tide.pictures import image_writer

    with common.writing(args):
        files = {out / f"{name}.png": image_writer(picture) for name, picture in pictures.items()}
        replace_files({**files, out / "edit.json": json_writer(report)})


def _variants(
    adapter: Adapter, model: TIDE, args: argparse.Namespace, size: tuple[int, int]
) -> list[tuple[str, Edit, Tensor | None]]:
    """What is drawn: a name for its file, the edit, and the tokens that it is of (None: all)."""
    from functools import partial

    from tide.commands import edit_target
    from tide.editing import most_different_tokens

    mask = None if args.mask is None else edit_target.mask_of(args.mask, adapter, size)
    if args.towards is None and args.target is None:
        change = _edit(args)
        return [(f"{strength:g}", change(strength), mask) for strength in args.strength]
    run = partial(_latents, adapter, args=args, size=size)
    found = edit_target.change_towards(adapter, model, args, size, run)
    if not args.altered:
        return [(f"{strength:g}", found.edit(strength), mask) for strength in args.strength]
    maps = found.maps()
    return [(f"{n}-tokens", found.edit(args.strength[0]), most_different_tokens(*maps, n)) for n in args.altered]


def _edit(args: argparse.Namespace) -> Any:
    """From a strength to the edit that the options name, part of the way or beyond."""
    from tide.commands.strength import Strength
    from tide.editing import Erase, Invert, Scale

    edit: Edit
    if args.scale is not None:
        edit = Scale(*args.scale)
    elif args.erase is not None:
        edit = Erase(args.erase)
    elif args.erase_top is not None:
        edit = Erase(top_k=args.erase_top)
    elif args.invert is not None:
        edit = Invert(args.invert)
    else:
        edit = Invert(top_k=args.invert_top)
    return lambda strength: Strength(edit, strength)


def _latents(adapter: Adapter, prompt: str, *, args: argparse.Namespace, size: tuple[int, int]) -> Tensor:
    import torch

    from tide.commands import common

    return adapter.generate(
        [prompt],
        n_steps=args.n_steps,
        guidance_scale=args.guidance,
        generators=[torch.Generator().manual_seed(args.seed)],
        **common.sampling_arguments(adapter, size),
    )


def _draw(adapter: Adapter, args: argparse.Namespace, size: tuple[int, int]) -> Image:
    from tide.commands import common
    from tide.pictures import to_image

    remedy = "lower the edit's factor, --strength or --guidance, or use --dtype fp32"
    latents = _latents(adapter, args.prompt, args=args, size=size)
    common.check_drawn(latents, remedy)
    image = adapter.decode_latents(latents)[0]
    common.check_drawn(image, remedy)
    return to_image(image)
