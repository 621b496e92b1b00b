"""``tide collect``: activations of a diffusion transformer into activation stores."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tide.commands import arguments

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tide.activations import ActivationBatch, StoreWriter
    from tide.activations.collect import Data
    from tide.adapters import Adapter

#: Shards that a collection is cut into, so that an interruption loses a twentieth at most.
SHARDS = 20
SMALLEST_SHARD = 2**20


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
    parser.add_argument(
        "--guidance", type=arguments.finite, default=4.5, help="guidance scale of --sampling (default 4.5)"
    )
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


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from tide.adapters.base import check_tensor
    from tide.commands import common
    from tide.commands.data import open_source
    from tide.errors import TideError

    check_tensor(args.tensor)
    if args.prompts and not args.sampling:
        raise TideError("--prompts belongs to --sampling; add it, or give --data")
    if (args.data is None) == (args.prompts is None):
        raise TideError("what to collect from is not clear; give --data, or --prompts with --sampling")
    adapter = common.load_adapter(args)
    blocks = list(dict.fromkeys(adapter.resolve_block(block) for block in args.block))
    size = common.image_size(args, adapter)
    prompts: list[str] | None = None
    if args.prompts:
        prompts, name = read_prompts(Path(args.prompts))[: args.images], str(Path(args.prompts).resolve())
        n = len(prompts)
    else:
        source = open_source(args, size)
        name, size, n = source.name, source.size, source.n_images
        prompts = source.captions() if args.sampling else None
    out = Path(args.out)
    folders = {block: out if len(blocks) == 1 else out / f"block-{block}" for block in blocks}
    info = {
        "pipeline": common.pipeline_name(args.pipeline),
        "family": adapter.family,
        "tensor": args.tensor,
        "mode": "sampling" if args.sampling else "noised",
        "data": name,
        "size": list(size),
        "timesteps": args.timesteps,
        "token_fraction": args.token_fraction,
        "paired": not args.no_pairs,
        "dtype": str(adapter.dtype).removeprefix("torch."),
        "seed": args.seed,
        **({"guidance": args.guidance} if args.sampling else {}),
    }

    def activations(start: int) -> Iterator[dict[int, ActivationBatch]]:
        if prompts is None:
            return noised(adapter, blocks, args, source, seed=args.seed, start=start)
        return _sampled(adapter, blocks, args, prompts, size, start)

    expected = _estimate(adapter, args, n, common.n_tokens(adapter, size))
    print(f"{n} images, {_blocks(blocks)}: about {_readable(expected)} on disk{' each' if len(blocks) > 1 else ''}")
    rows, stored_images = write_stores(
        activations, folders, info, n=n, expected=expected, quota=args.quota, resume=args.resume, run=(out, args)
    )
    stored = sum(file.stat().st_size for folder in folders.values() for file in folder.glob("shard-*"))
    print(
        f"Collected {rows} activations of {stored_images} images from {_blocks(blocks)}: {_readable(stored)} in {out}."
    )


def noised(
    adapter: Adapter, blocks: list[int], args: argparse.Namespace, data: Data, *, seed: int, start: int = 0
) -> Iterator[dict[int, ActivationBatch]]:
    """Algorithm 1 with the options of :func:`add_sampling_options`."""
    from tide.activations import collect
    from tide.commands import common

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
        tensor=args.tensor,
        max_sequence_length=common.caption_length(adapter),
    )


def _sampled(
    adapter: Adapter, blocks: list[int], args: argparse.Namespace, prompts: list[str], size: tuple[int, int], start: int
) -> Iterator[dict[int, ActivationBatch]]:
    from tide.activations import collect_sampling
    from tide.commands import common

    return collect_sampling(
        adapter,
        prompts,
        blocks,
        n_steps=args.timesteps,
        guidance_scale=args.guidance,
        token_fraction=args.token_fraction,
        paired=not args.no_pairs,
        batch_size=args.batch_size,
        seed=args.seed,
        start=start,
        tensor=args.tensor,
        **common.sampling_arguments(adapter, size),
    )


def write_stores(
    activations: Any,
    folders: dict[int, Path],
    info: dict[str, Any],
    *,
    n: int,
    expected: int = 0,
    quota: int | None = None,
    resume: bool = False,
    run: tuple[Path, argparse.Namespace] | None = None,
) -> tuple[int, int]:
    """Writes ``activations(start)`` to one store a block; returns the rows of all and the images in each.

    A store that stands behind the others after a crash catches up. A folder that was made here and got no whole
    shard is removed again. ``run`` is where to write which arguments made it.
    """
    from contextlib import ExitStack

    from tqdm import tqdm

    from tide.activations import StoreWriter
    from tide.commands import common
    from tide.files import write_json

    made = [folder for folder in (*folders.values(), *(folder.parent for folder in folders.values()))]
    made = [folder for folder in dict.fromkeys(made) if not folder.exists()]
    shard_bytes = min(256 * 2**20, max(SMALLEST_SHARD, expected // SHARDS))
    writers: dict[int, StoreWriter] = {}
    try:
        with ExitStack() as stack:
            for block, folder in folders.items():
                about = {**info, "block": block}
                if resume:
                    _check_same(folder, about)
                writers[block] = StoreWriter(
                    folder, info=about, expected_bytes=expected, quota=quota, shard_bytes=shard_bytes, resume=resume
                )
            for writer in writers.values():
                stack.enter_context(writer)
            if run is not None:
                write_json(run[0] / "run.json", common.provenance(run[1]))
            starts = {block: writer.next_sample for block, writer in writers.items()}
            first = min(starts.values())
            bar = stack.enter_context(tqdm(total=n, initial=min(first, n), unit="image", disable=None))
            for batches in activations(first) if first < n else ():
                for block, batch in batches.items():
                    kept = batch if starts[block] == first else batch.take(batch.sample >= starts[block])
                    writers[block].add(kept)
                bar.update(int(batch.sample.max()) + 1 - bar.n)
    except BaseException:
        _discard(made, writers.values())
        raise
    return sum(writer.rows for writer in writers.values()), min(writer.next_sample for writer in writers.values())


def _discard(made: list[Path], writers: Iterable[StoreWriter]) -> None:
    """Removes the folders that this run made if no activations are in them."""
    import shutil

    if not any(writer.rows for writer in writers):
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)


def _check_same(folder: Path, about: dict[str, Any]) -> None:
    from tide.activations.store import MANIFEST
    from tide.errors import TideError
    from tide.files import read_json

    if not (folder / MANIFEST).exists():
        return
    manifest = read_json(folder / MANIFEST)
    before = manifest.get("info", {}) if isinstance(manifest, dict) else {}
    for name, value in about.items():
        if before.get(name) != value:
            raise TideError(
                f"{folder} was collected with {name} {before.get(name)!r}, not {value!r}; "
                "use the same options or another folder"
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


def _blocks(blocks: list[int]) -> str:
    return f"block{'s' if len(blocks) > 1 else ''} {', '.join(map(str, blocks))}"


def _readable(amount: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} TB"
