"""What ``tide collect`` does: activations of images, or of sampling runs, into a store for each block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tide.activations.batch import ActivationBatch
from tide.activations.collect import collect, collect_sampling
from tide.activations.manifest import manifest_at, read_manifest
from tide.activations.options import CollectOptions
from tide.activations.parts import PART, Part, check_place, found_parts
from tide.activations.source import Prompts, Source, check_source
from tide.activations.stores import write_stores
from tide.activations.writer import estimate_bytes
from tide.adapters.base import Adapter, Block
from tide.adapters.sizes import caption_length, n_tokens, sampling_arguments
from tide.checks import GUIDANCE
from tide.errors import TideError
from tide.files.per_block import block_folders, found_blocks
from tide.files.remote import Place, place_of
from tide.fingerprint import pipeline_fingerprints
from tide.messages import readable_size
from tide.runs import Contents, read_run, record_measured, write_run


class Collected(NamedTuple):
    """The stores (block -> folder), their rows and bytes in total, and the images in each."""

    folders: Mapping[int, Place]
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
    part: tuple[int, int] | None = None,
    made_by: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> Collected:
    """Collects activations in one pass over the data and writes them to a store for each block.

    Whole shards are on disk at any moment; after an interruption the same call with ``resume=True`` gives the stores of
    an uninterrupted one, bit for bit, on the same machine with the same number of threads.

    With ``part=(r, w)`` it collects one of ``w`` shares of the images, whole passes of the others' order, into the
    folder ``part-r-of-w`` in each store's own. Every part can be collected, killed and resumed alone. Once all are
    there, each store's folder is read as one store with the rows of a single collection, in the same order and with
    the same bits.

    Args:
        adapter: the pipeline's.
        source: images with captions (:func:`tide.data.open_source`), which are noised as in Algorithm 1
            (:func:`~tide.activations.collect`), or :class:`Prompts`, whose sampling runs are followed
            (:func:`~tide.activations.collect_sampling`).
        out: the folder or URL of the store; with several blocks that of the stores ``block-N``. Each folder gets a
            ``run.json``.
        blocks: numbers, negative from the end, "penultimate", or "all".
        options: which activations of each image to keep; default :class:`CollectOptions`.
        guidance_scale: of sampling runs.
        seed: of timesteps, noise and tokens.
        quota: disk limit of each store in bytes; a part may take its share of it.
        resume: resume an interrupted collection, or extend one: ``source`` begins with the same images. A part is not
            extended, because the shares would be others.
        part: (r, w) with 0 <= r < w; default everything.
        made_by: what made it, for ``run.json``; default a call from Python (:func:`tide.provenance.provenance`).
        say: called with one line of text when it is known what will be collected.
        progress: show a bar at a terminal.

    Raises:
        TideError: a block or the part does not exist, the disk or the quota does not suffice, ``out`` holds a store
            that is not to be resumed or is of other options or other data, or activations are not finite.
    """
    options = options or CollectOptions()
    check_source(source, prompts=True)
    share = _Share.of(part, source, options)
    indices = adapter.resolve_blocks(blocks)
    places = block_folders(place_of(out), indices)
    expected = expected_bytes(adapter, source, options)
    say(_announced(source, indices, expected, share))
    info = _info(adapter, source, options, guidance_scale, seed, share.part)
    for block, path in places.items():
        check_place(path, share.part, {**info, "block": block})
    folders = {block: share.folder(path) for block, path in places.items()}
    described = _described(place_of(out), folders, share.part)
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
            write_run(path, _contents(info, path, stores, share.end - share.first), made_by)

    rows, images = write_stores(
        activations,
        folders,
        info,
        n=share.end,
        first=share.first,
        data=source.recording_from(share.first),
        expected=share.bytes(expected),
        quota=None if quota is None else share.bytes(quota),
        resume=resume,
        begun=begun,
        shared=share.part is not None,
        progress=progress,
    )
    shards = {block: read_manifest(path)["shards"] for block, path in folders.items()}
    sizes = {block: sum(shard["bytes"] for shard in each) for block, each in shards.items()}
    for path, stores in described.items():
        found = {"rows": sum(rows[block] for block in stores), "bytes": sum(sizes[block] for block in stores)}
        record_measured(path, {**found, "images": images})
    return Collected(folders, sum(rows.values()), images, sum(sizes.values()))


@dataclass(frozen=True)
class _Share:
    """What one call collects of ``n_images`` images: those from ``first`` to ``end - 1``."""

    part: Part | None
    n_images: int
    first: int
    end: int

    @classmethod
    def of(cls, part: tuple[int, int] | None, source: Source | Prompts, options: CollectOptions) -> _Share:
        n = source.n_images
        if part is None:
            return cls(None, n, 0, n)
        found = Part(*part)
        return cls(found, n, *found.share(n, options.batch_size))

    def folder(self, store: Place) -> Place:
        """Where it is written, of a store's folder."""
        return store if self.part is None else store / self.part.name

    def bytes(self, n_bytes: int) -> int:
        """Its share of a store's bytes."""
        return n_bytes * (self.end - self.first) // self.n_images


def _described(out: Place, folders: dict[int, Place], part: Part | None) -> dict[Place, dict[int, Place]]:
    """Every folder that gets a ``run.json`` -> the stores in it. A part describes none that it shares with others."""
    each = {path: {block: path} for block, path in folders.items()}
    return {out: folders, **each} if part is None else each


def recorded_hold_out(folder: Place) -> float | None:
    """The share of the images that the collection of a store, or of the stores in a folder, left out; None if there is
    no store yet."""
    places = (folder, *found_blocks(folder).values())
    for store in (*places, *(part for place in places for part in found_parts(place).values())):
        if (manifest := manifest_at(store)) is not None:
            return float(manifest["info"].get("hold_out", 0.0))
    return None


def _check_hold_out(store: Place, hold_out: float) -> None:
    """A store that is resumed keeps its share. One of an earlier version records none, and nothing was left out."""
    before = recorded_hold_out(store)
    if before is not None and before != hold_out:
        raise TideError(
            f"{store} was collected with a hold_out of {before:g}, now {hold_out:g}; use the same or another folder"
        )


def _announced(source: Source | Prompts, blocks: Sequence[int], expected: int, share: _Share) -> str:
    """What will be collected, and below it what is read."""
    images = source.described if isinstance(source, Source) else images_in_words(source.n_images)
    each = " each" if len(blocks) > 1 else ""
    of_it = "" if share.part is None else f"; {share.part} takes {images_in_words(share.end - share.first)}"
    what = f"{blocks_in_words(blocks)}: about {readable_size(expected)} on disk{each}{of_it}"
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
    adapter: Adapter,
    source: Source | Prompts,
    options: CollectOptions,
    guidance_scale: float,
    seed: int,
    part: Part | None,
) -> dict[str, Any]:
    """What a manifest records: all that must be the same when a store is resumed, and the number of threads."""
    sampling = isinstance(source, Prompts)
    return {
        "pipeline": adapter.name,
        "family": adapter.family,
        **({} if adapter.component == "transformer" else {"component": adapter.component}),
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
        **({} if part is None else {PART: part.info(source.n_images, source.listing())}),
        "weights": pipeline_fingerprints(adapter.pipe),
    }


def _contents(info: dict[str, Any], folder: Place, stores: dict[int, Place], n_images: int) -> Contents:
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
