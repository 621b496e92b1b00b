"""What ``tide collect`` does: activations of images, or of sampling runs, into a store for each block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tide.activations.batch import ActivationBatch
from tide.activations.collect import collect, collect_sampling
from tide.activations.manifest import MANIFEST, read_manifest
from tide.activations.options import CollectOptions
from tide.activations.source import Prompts, Source, check_source
from tide.activations.stores import write_stores
from tide.activations.writer import estimate_bytes, readable_size
from tide.adapters.base import GUIDANCE, Adapter, Block
from tide.adapters.sizes import caption_length, n_tokens, sampling_arguments
from tide.errors import TideError
from tide.files.per_block import block_folders, found_blocks
from tide.fingerprint import pipeline_fingerprints
from tide.runs import Contents, read_run, record_measured, write_run


class Collected(NamedTuple):
    """The stores (block -> folder), their rows and bytes in total, and the images in each."""

    folders: dict[int, Path]
    rows: int
    images: int
    bytes: int


def collect_to_disk(
    adapter: Adapter,
    source: Source | Prompts,
    out: str | Path,
    *,
    blocks: Sequence[Block] = ("penultimate",),
    options: CollectOptions | None = None,
    guidance_scale: float = GUIDANCE,
    seed: int = 0,
    quota: int | None = None,
    resume: bool = False,
    made_by: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> Collected:
    """Collects activations in one pass over the data and writes them to a store for each block.

    Whole shards are on disk at any moment; after an interruption the same call with ``resume=True`` gives the stores of
    an uninterrupted one, bit for bit, on the same machine with the same number of threads.

    Args:
        adapter: the pipeline's.
        source: images with captions (:func:`tide.data.open_source`), which are noised as in Algorithm 1
            (:func:`~tide.activations.collect`), or :class:`Prompts`, whose sampling runs are followed
            (:func:`~tide.activations.collect_sampling`).
        out: the folder of the store; with several blocks that of the stores ``block-N``. Each folder gets a
            ``run.json``.
        blocks: numbers, negative from the end, "penultimate", or "all".
        options: which activations of each image to keep; default :class:`CollectOptions`.
        guidance_scale: of sampling runs.
        seed: of timesteps, noise and tokens.
        quota: disk limit of each store in bytes.
        resume: resume an interrupted collection, or extend one: ``source`` begins with the same images.
        made_by: what made it, for ``run.json``; default a call from Python (:func:`tide.provenance.provenance`).
        say: called with one line of text when it is known what will be collected.

    Raises:
        TideError: a block does not exist, the disk or the quota does not suffice, ``out`` holds a store that is not to
            be resumed or is of other options or other data, or activations are not finite.
    """
    options = options or CollectOptions()
    check_source(source, prompts=True)
    folder = Path(out)
    indices = adapter.resolve_blocks(blocks)
    folders = block_folders(folder, indices)
    expected = expected_bytes(adapter, source, options)
    each = " each" if len(indices) > 1 else ""
    say(_announced(source, f"{blocks_in_words(indices)}: about {readable_size(expected)} on disk{each}"))
    info = _info(adapter, source, options, guidance_scale, seed)
    #: Folder -> the stores in it.
    described = {folder: folders, **{path: {block: path} for block, path in folders.items()}}
    for path in described:
        read_run(path)  # a damaged one is found before the work
    for path in folders.values():
        _check_hold_out(path, source.hold_out)

    def activations(data: Source | Prompts, start: int, stop: int) -> Iterator[dict[int, ActivationBatch]]:
        if isinstance(data, Prompts):
            return _sampled(adapter, data, indices, options, guidance_scale, seed=seed, start=start, stop=stop)
        length = caption_length(adapter)
        return collect(adapter, data, indices, options, seed=seed, start=start, stop=stop, max_sequence_length=length)

    def begun() -> None:
        for path, stores in described.items():
            write_run(path, _contents(info, path, stores, source.n_images), made_by)

    rows, images = write_stores(
        activations,
        folders,
        info,
        n=source.n_images,
        data=source,
        expected=expected,
        quota=quota,
        resume=resume,
        begun=begun,
    )
    sizes = {block: sum(file.stat().st_size for file in path.glob("shard-*")) for block, path in folders.items()}
    for path, stores in described.items():
        found = {"rows": sum(rows[block] for block in stores), "bytes": sum(sizes[block] for block in stores)}
        record_measured(path, {**found, "images": images})
    return Collected(folders, sum(rows.values()), images, sum(sizes.values()))


def recorded_hold_out(folder: Path) -> float | None:
    """The share of the images that the collection of a store, or of the stores in a folder, left out; None if there is
    no store yet."""
    for store in (folder, *found_blocks(folder).values()):
        if (store / MANIFEST).is_file():
            return float(read_manifest(store)["info"].get("hold_out", 0.0))
    return None


def _check_hold_out(store: Path, hold_out: float) -> None:
    """A store that is resumed keeps its share. One of an earlier version records none, and nothing was left out."""
    before = recorded_hold_out(store)
    if before is not None and before != hold_out:
        raise TideError(
            f"{store} was collected with a hold_out of {before:g}, now {hold_out:g}; use the same or another folder"
        )


def _announced(source: Source | Prompts, what: str) -> str:
    """What will be collected, and below it what is read."""
    images = source.described if isinstance(source, Source) else images_in_words(source.n_images)
    return "\n".join([f"{images}, {what}", *source.notes])


def expected_bytes(adapter: Adapter, source: Source | Prompts, options: CollectOptions) -> int:
    """What one block's store is going to take on disk, within 0.1 % and a few KB per shard."""
    config = adapter.modulation(0).config
    n, paired = source.n_images, options.paired
    if isinstance(source, Prompts):  # every step of every run; pairs hold all but the first and the last twice
        n, paired = n * (2 * (options.n_timesteps - 1) if paired else options.n_timesteps), False
    return estimate_bytes(
        n,
        n_tokens(adapter, source.size),
        adapter.d_model,
        token_fraction=options.token_fraction,
        paired=paired,
        d_conditioning=config.d_embedding if config.conditioned else 0,
        dtype=adapter.dtype,
        target=options.target is not None,
    )


def blocks_in_words(blocks: Sequence[int]) -> str:
    return f"block{'s' if len(blocks) > 1 else ''} {', '.join(map(str, blocks))}"


def images_in_words(n: int) -> str:
    return f"{n} {'image' if n == 1 else 'images'}"


def _info(
    adapter: Adapter, source: Source | Prompts, options: CollectOptions, guidance_scale: float, seed: int
) -> dict[str, Any]:
    """What a manifest records: all that must be the same when a store is resumed, and the number of threads."""
    sampling = isinstance(source, Prompts)
    return {
        "pipeline": adapter.name,
        "family": adapter.family,
        "tensor": options.tensor,
        **({} if options.target is None else {"target": options.target}),
        "mode": "sampling" if sampling else "noised",
        "data": source.name,
        **source.options,
        **({"hold_out": source.hold_out} if source.hold_out else {}),
        "size": list(source.size),
        "timesteps": options.n_timesteps,
        "token_fraction": options.token_fraction,
        "paired": options.paired,
        "dtype": str(adapter.dtype).removeprefix("torch."),
        "device": adapter.device.type,
        "seed": seed,
        "batch_size": options.batch_size,
        "threads": torch.get_num_threads(),
        **({"guidance": guidance_scale} if sampling else {}),
        "weights": pipeline_fingerprints(adapter.pipe),
    }


def _contents(info: dict[str, Any], folder: Path, stores: dict[int, Path], n_images: int) -> Contents:
    """``run.json``'s of a folder that is a store or holds several."""
    return Contents(
        kind="activations",
        blocks=list(stores),
        family=info["family"],
        pipeline=info["pipeline"],
        weights=info["weights"],
        data={
            "name": info["data"],
            "images": n_images,
            "size": info["size"],
            **({"hold_out": info["hold_out"]} if "hold_out" in info else {}),
        },
        files={"manifest.json": "index"}
        if folder in stores.values()
        else {path.name: "activations" for path in stores.values()},
    )


def _sampled(
    adapter: Adapter,
    prompts: Prompts,
    blocks: Sequence[int],
    options: CollectOptions,
    guidance_scale: float,
    **where: Any,
) -> Iterator[dict[int, ActivationBatch]]:
    taken = asdict(options)
    return collect_sampling(
        adapter,
        prompts.texts,
        blocks,
        n_steps=taken.pop("n_timesteps"),
        guidance_scale=guidance_scale,
        **taken,
        **where,
        **sampling_arguments(adapter, prompts.size),
    )
