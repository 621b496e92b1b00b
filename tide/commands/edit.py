"""``tide edit``: one prompt, before and after an edit of its latents, at growing strength."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tide.commands import arguments

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from tide.adapters import Adapter
    from tide.editing import Edit, Target
    from tide.sae import TIDE

#: Bytes that a recorded target may take in memory.
TARGET_BYTES = 8 * 10**9


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
    parser.add_argument(
        "--strength",
        type=float,
        nargs="+",
        default=[1.0],
        help="one image each; 1 is the edit as written, 0 none (with --towards-top: the factor)",
    )
    parser.add_argument(
        "--steps", type=float, nargs=2, metavar=("FIRST", "LAST"), help="part of the sampling run, such as 0.2 0.8"
    )
    parser.add_argument("--branch", choices=("conditional", "unconditional", "both"), default="conditional")
    parser.add_argument("--renormalise", action="store_true", help="keep each token's latent norm (eq. 19)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n-steps", type=arguments.positive, default=20, help="sampling steps (default 20)")
    parser.add_argument("--guidance", type=float, default=4.5, help="guidance scale (default 4.5)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the images and edit.json")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    import numpy as np

    from tide.commands import common
    from tide.editing import edit
    from tide.errors import TideError
    from tide.sae.checkpoint import write_json

    if args.towards is None and (args.towards_image or args.towards_top or args.towards_pooled):
        raise TideError("--towards-image, --towards-top and --towards-pooled belong to --towards; give its prompt")
    if args.contrast and (args.towards_image is None or args.towards_top or args.towards_pooled):
        raise TideError(
            "--contrast needs --towards and --towards-image, and goes without --towards-top and --towards-pooled"
        )
    common.pipeline_of_sae(args)
    adapter = common.load_adapter(args)
    model = common.load_sae(args, adapter)
    size = common.image_size(args, adapter)
    change = _target_edit(adapter, model, args, size) if args.towards is not None else _edit(args)
    strengths = [change(strength) for strength in args.strength]
    for each in strengths:
        each.check(model.n_latents)
    before, after = _draw(adapter, args, size), []
    for each in strengths:
        with edit(
            adapter.pipe,
            model,
            each,
            steps=None if args.steps is None else (args.steps[0], args.steps[1]),
            branch=args.branch,
            renormalise=args.renormalise,
        ):
            after.append(_draw(adapter, args, size))
    out = Path(args.out)
    moved = [float(np.abs(np.asarray(before, float) - np.asarray(image, float)).mean()) for image in after]
    common.save_image(before, out / "before.png")
    for strength, image in zip(args.strength, after, strict=True):
        common.save_image(image, out / f"after-{strength:g}.png")
    common.save_image(common.beside([before, *after]), out / "strip.png")
    changes = [{"strength": s, "mean_pixel_change": m} for s, m in zip(args.strength, moved, strict=True)]
    sae = {"block": model.config.block, "n_latents": model.n_latents, "k": model.config.k}
    write_json(out / "edit.json", {"edits": changes, "sae": sae, "run": common.provenance(args)})
    drawn = ", ".join(f"{m:.1f} at strength {s:g}" for s, m in zip(args.strength, moved, strict=True))
    print(f"Edited block {model.config.block}: pixels moved by {drawn} (mean, of 255); see {out / 'strip.png'}.")


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


def _target_edit(adapter: Adapter, model: TIDE, args: argparse.Namespace, size: tuple[int, int]) -> Any:
    from tide.editing import Contrast, Keep, Replace, ScaleTarget

    if args.contrast:
        pair = _record_contrast(adapter, model, args, size)
        return lambda strength: Contrast(*pair, strength) + Keep(model.config.k)
    target = _record(adapter, model, args, size)
    if args.towards_top is not None:
        return lambda strength: ScaleTarget(target, args.towards_top, strength)
    return lambda strength: Replace(target, strength)


def _record(adapter: Adapter, model: TIDE, args: argparse.Namespace, size: tuple[int, int]) -> Target:
    """The target prompt's latents at every step: along its own sampling run from the same seed, or on an image."""
    import torch

    from tide.adapters import tap
    from tide.commands import common
    from tide.editing import Target
    from tide.sae import inference

    steps = adapter.sampling_timesteps(args.n_steps)
    tokens = 1 if args.towards_pooled else common.n_tokens(adapter, size)
    _check_bytes(len(steps), tokens, model.n_latents * 4, "add --towards-pooled or lower --n-steps")
    timesteps: list[float] = []
    values: list[torch.Tensor] = []

    def record(x: torch.Tensor, call: Any) -> None:
        if not call.conditional.any():
            return  # a call for the negative prompt alone
        row = int(call.conditional.nonzero()[0])
        conditioning = None if call.conditioning is None else call.conditioning[row : row + 1]
        with inference(model):
            z = torch.cat(
                [
                    model.encode(part.float(), call.timestep[row : row + 1], conditioning).dense(model.n_latents)
                    for part in x[row].split(512)
                ]
            )
        timesteps.append(float(call.timestep[row]))
        values.append((z.mean(0) if args.towards_pooled else z).cpu())

    block = model.config.block
    assert block is not None
    with tap(adapter, {block: record}, model.config.tensor):
        if args.towards_image:
            _noised(adapter, args, size, steps)
        else:
            _latents(adapter, args.towards, args, size)
    return Target(torch.tensor(timesteps), torch.stack(values))


def _check_bytes(n_steps: int, n_tokens: int, each: int, remedy: str) -> None:
    from tide.errors import TideError

    if (n_bytes := n_steps * n_tokens * each) > TARGET_BYTES:
        raise TideError(
            f"the target's latents take {n_bytes / 1e9:.0f} GB at {n_steps} steps of {n_tokens} tokens; {remedy}"
        )


def _record_contrast(
    adapter: Adapter, model: TIDE, args: argparse.Namespace, size: tuple[int, int]
) -> tuple[Target, Target]:
    """The latents of ``--towards-image``, in half precision, under the prompt ``--towards`` and under ``--prompt``."""
    from tide.commands import common
    from tide.editing.record import record_contrast

    steps = adapter.sampling_timesteps(args.n_steps)
    _check_bytes(len(steps), common.n_tokens(adapter, size), model.n_latents * 4, "lower --n-steps")
    block = model.config.block
    assert block is not None
    found = record_contrast(
        adapter,
        [block],
        _reference(adapter, args, size),
        ([args.towards], [args.prompt]),
        steps,
        tensor=model.config.tensor,
        seed=args.seed,
        max_sequence_length=common.caption_length(adapter),
    )
    return found[adapter.resolve_block(block)].targets(model)[0]


def _noised(adapter: Adapter, args: argparse.Namespace, size: tuple[int, int], steps: Any) -> None:
    """Runs the model on the target image at every timestep, noised from ``--seed`` (Algorithm 1)."""
    import torch

    from tide.commands import common

    text = adapter.encode_prompts([args.towards], common.caption_length(adapter))
    latents = _reference(adapter, args, size)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(args.seed))
    for t in steps.tolist():
        with torch.no_grad():
            adapter.denoise(adapter.add_noise(latents, noise, t), t, text)


def _reference(adapter: Adapter, args: argparse.Namespace, size: tuple[int, int]) -> Tensor:
    """``--towards-image`` through the VAE, ``[1, c, h, w]``."""
    from pathlib import Path

    from PIL import Image

    from tide.activations.data import to_tensor
    from tide.errors import TideError

    try:
        with Image.open(Path(args.towards_image)) as image:
            pixels = to_tensor(image, size)[None]
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise TideError(f"{args.towards_image} is not a readable image ({error}); give another") from None
    return adapter.encode_images(pixels)


def _latents(adapter: Adapter, prompt: str, args: argparse.Namespace, size: tuple[int, int]) -> Any:
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
    import torch

    from tide.commands import common

    latents = _latents(adapter, args.prompt, args, size)
    vae = adapter.pipe.vae
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    with torch.no_grad():
        decoded = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor + shift).sample
    return common.to_image(decoded[0])
