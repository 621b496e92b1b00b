"""``tide collect``: activations of a diffusion transformer into activation stores."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tide.cli import arguments
from tide.cli.usage import PIPELINE, Usage, kind_of_data, with_option

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tide.activations import ActivationBatch, LiveStream
    from tide.activations.collect import Data
    from tide.activations.identity import Sample
    from tide.adapters import Adapter
    from tide.cli.data import Source

#: Guidance scale of ``--sampling`` unless ``--guidance`` says otherwise.
GUIDANCE = 4.5

USAGE = Usage(
    f"{PIPELINE} data images tensor token_fraction timesteps no_pairs batch_size out block sampling prompts quota seed "
    "resume",
    (with_option("sampling", uses="guidance"), kind_of_data(without="size")),
)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("collect", help="collect activations into a store")
    arguments.add_pipeline(parser)
    arguments.add_data(parser, images="how many (default: all; 512 scenes)")
    add_sampling_options(parser)
    parser.add_argument("--out", required=True, metavar="STORE", help="folder; with several blocks, STORE/block-N each")
    parser.add_argument(
        "--block",
        type=arguments.block,
        nargs="+",
        default=["penultimate"],
        metavar="B",
        help="numbers or 'penultimate' (the default); several are collected in one pass",
    )
    parser.add_argument("--sampling", action="store_true", help="collect along the sampling process of the captions")
    parser.add_argument("--prompts", metavar="FILE", help="with --sampling: one prompt a line, instead of --data")
    parser.add_argument("--guidance", type=arguments.finite, help=f"guidance scale of --sampling (default {GUIDANCE})")
    parser.add_argument("--quota", type=arguments.n_bytes, metavar="50GB", help="most disk that each store may take")
    parser.add_argument("--seed", type=arguments.seed, default=0)
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted collection, or extend it")
    parser.set_defaults(
        run=run, interrupted="whole shards are kept: the same command with --resume goes on where it stopped"
    )


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """What of an image's activations is taken; also of a live stream."""
    group = parser.add_argument_group("activations")
    group.add_argument("--tensor", default="output", help="output (default), attention or feed_forward")
    group.add_argument(
        "--token-fraction", type=arguments.fraction, default=1 / 16, help="of each image's tokens (default 1/16)"
    )
    group.add_argument(
        "--timesteps", type=arguments.positive, default=20, help="steps of the grid or the sampling run (default 20)"
    )
    group.add_argument("--no-pairs", action="store_true", help="single timesteps instead of neighbouring pairs")
    group.add_argument("--batch-size", type=arguments.positive, default=8, help="images a pass (default 8)")


@dataclass(frozen=True)
class Prompts:
    """Captions to sample from, as a source that says what they are; ``limited`` if there may be more."""

    name: str
    texts: list[str]
    limited: bool
    options: dict[str, str] = field(default_factory=dict)

    def samples(self) -> list[Sample]:
        from tide.activations.identity import Sample, digest

        return [Sample(f"prompt {i}", "", digest(text)) for i, text in enumerate(self.texts)]

    def samples_before(self, n: int) -> list[Sample]:
        return self.samples()


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from tide.adapters.base import check_tensor
    from tide.errors import TideError
    from tide.files import new_folders

    check_tensor(args.tensor)
    if args.prompts and not args.sampling:
        raise TideError("--prompts belongs to --sampling; add it, or give --data")
    if (args.data is None) == (args.prompts is None):
        raise TideError("what to collect from is not clear; give --data, or --prompts with --sampling")
    with new_folders(Path(args.out)):
        _run(args, Path(args.out))


def _run(args: argparse.Namespace, out: Path) -> None:
    from tide.activations.writer import readable_size
    from tide.cli import common
    from tide.cli.stores import collected_bytes, write_stores

    adapter = common.load_adapter(args)
    blocks = list(dict.fromkeys(adapter.resolve_block(block) for block in args.block))
    size = common.image_size(args, adapter)
    source: Source | Prompts = _source(args, size)
    if not isinstance(source, Prompts):
        size = source.size
    n = len(source.texts) if isinstance(source, Prompts) else source.n_images
    folders = {block: out if len(blocks) == 1 else out / f"block-{block}" for block in blocks}

    def activations(start: int, stop: int) -> Iterator[dict[int, ActivationBatch]]:
        if isinstance(source, Prompts):
            return _sampled(adapter, blocks, args, source.texts, size, start, stop)
        return noised(adapter, blocks, args, source, seed=args.seed, start=start, stop=stop)

    expected = _estimate(adapter, args, n, common.n_tokens(adapter, size))
    each = " each" if len(blocks) > 1 else ""
    print(f"{n} images, {_blocks(blocks)}: about {readable_size(expected)} on disk{each}")
    rows, stored_images = write_stores(
        activations,
        folders,
        _info(args, adapter, source, size),
        n=n,
        data=source,
        expected=expected,
        quota=args.quota,
        resume=args.resume,
        run=(out, args),
    )
    stored = readable_size(collected_bytes(list(folders.values())))
    print(f"Collected {rows} activations of {stored_images} images from {_blocks(blocks)}: {stored} in {out}.")


def _source(args: argparse.Namespace, size: tuple[int, int]) -> Source | Prompts:
    """What to collect from: images with captions, or for the sampling process captions alone."""
    from pathlib import Path

    from tide.cli.data import open_source

    if args.prompts:
        texts = read_prompts(Path(args.prompts))
        kept = texts[: args.images]
        return Prompts(str(Path(args.prompts).resolve()), kept, limited=len(kept) < len(texts))
    source = open_source(args, size)
    return Prompts(source.name, source.captions(), source.limited, source.options) if args.sampling else source


def _info(
    args: argparse.Namespace, adapter: Adapter, source: Source | Prompts, size: tuple[int, int]
) -> dict[str, Any]:
    """What the activations are of: all that must be the same when a store is resumed, and the number of threads."""
    import torch

    from tide.cli import common
    from tide.fingerprint import pipeline_fingerprints

    return {
        "pipeline": common.pipeline_name(args.pipeline),
        "family": adapter.family,
        "tensor": args.tensor,
        "mode": "sampling" if args.sampling else "noised",
        "data": source.name,
        **source.options,
        "size": list(size),
        "timesteps": args.timesteps,
        "token_fraction": args.token_fraction,
        "paired": not args.no_pairs,
        "dtype": str(adapter.dtype).removeprefix("torch."),
        "device": adapter.device.type,
        "seed": args.seed,
        "batch_size": args.batch_size,
        "threads": torch.get_num_threads(),
        **({"guidance": _guidance(args)} if args.sampling else {}),
        "weights": pipeline_fingerprints(adapter.pipe),
    }


def noised(
    adapter: Adapter,
    blocks: list[int],
    args: argparse.Namespace,
    data: Data,
    *,
    seed: int,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[dict[int, ActivationBatch]]:
    """Algorithm 1 with the options of :func:`add_sampling_options`."""
    from tide.activations import collect
    from tide.cli import common

    return collect(
        adapter,
        data,
        blocks,
        n_timesteps=args.timesteps,
        token_fraction=args.token_fraction,
        paired=not args.no_pairs,
        batch_size=args.batch_size,
        seed=seed,
        start=start,
        stop=stop,
        tensor=args.tensor,
        max_sequence_length=common.caption_length(adapter),
    )


def live_stream(
    adapter: Adapter, block: int, args: argparse.Namespace, source: Source, data: Data, *, rows: int, seed: int
) -> LiveStream:
    """Endless batches of ``rows`` rows of one block, collected with the options of :func:`add_sampling_options` and
    mixed ``--buffer-rows`` at a time. ``data`` are ``source``'s images, encoded or not; they are read once to be
    counted where ``source`` does not know how many there are."""
    from tide.activations import LiveStream
    from tide.cli import common

    tokens = max(1, round(common.n_tokens(adapter, source.size) * args.token_fraction))

    def collected(epoch_seed: int, start: int) -> Iterator[ActivationBatch]:
        return (each[block] for each in noised(adapter, [block], args, data, seed=epoch_seed, start=start))

    return LiveStream(
        collected,
        rows,
        n_samples=source.n_images if source.exact else sum(len(images) for images, _ in data),
        rows_per_sample=tokens * (1 if args.no_pairs else 2),
        per_pass=args.batch_size,
        buffer_rows=args.buffer_rows,
        seed=seed,
    )


def _sampled(
    adapter: Adapter,
    blocks: list[int],
    args: argparse.Namespace,
    prompts: list[str],
    size: tuple[int, int],
    start: int,
    stop: int,
) -> Iterator[dict[int, ActivationBatch]]:
    from tide.activations import collect_sampling
    from tide.cli import common

    return collect_sampling(
        adapter,
        prompts,
        blocks,
        n_steps=args.timesteps,
        guidance_scale=_guidance(args),
        token_fraction=args.token_fraction,
        paired=not args.no_pairs,
        batch_size=args.batch_size,
        seed=args.seed,
        start=start,
        stop=stop,
        tensor=args.tensor,
        **common.sampling_arguments(adapter, size),
    )


def _estimate(adapter: Adapter, args: argparse.Namespace, n: int, n_tokens: int) -> int:
    from tide.activations import estimate_bytes

    config = adapter.modulation(0).config
    paired = not args.no_pairs
    if args.sampling:  # every step of every run; pairs hold all but the first and the last twice
        n, paired = n * (2 * (args.timesteps - 1) if paired else args.timesteps), False
    return estimate_bytes(
        n,
        n_tokens,
        adapter.d_model,
        token_fraction=args.token_fraction,
        paired=paired,
        d_conditioning=config.d_embedding if config.conditioned else 0,
        dtype=adapter.dtype,
    )


def read_prompts(path: Path) -> list[str]:
    from tide.errors import TideError
    from tide.files import read_text

    lines = [line.strip() for line in read_text(path).splitlines()]
    if not any(lines):
        raise TideError(f"{path} holds no prompts; write one a line")
    return [line for line in lines if line]


def _guidance(args: argparse.Namespace) -> float:
    return GUIDANCE if args.guidance is None else float(args.guidance)


def _blocks(blocks: list[int]) -> str:
    return f"block{'s' if len(blocks) > 1 else ''} {', '.join(map(str, blocks))}"
