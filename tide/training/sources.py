"""Where a training's batches come from, if they exist: activation stores, or activations in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np

from tide.activations.batch import ActivationBatch
from tide.activations.manifest import places
from tide.activations.memory import ActivationPool
from tide.activations.shared_stream import Shares
from tide.activations.source import DIGESTS, Source
from tide.activations.store import ActivationStore
from tide.adapters.base import Adapter, Block, check_tensor
from tide.devices import device_of
from tide.errors import TideError
from tide.files.per_block import found_blocks
from tide.files.remote import Place, RemotePath, place_of
from tide.files.schema import check_schema
from tide.fingerprint import pipeline_fingerprints
from tide.images.identity import Sample, digest
from tide.images.trained import TrainedOn
from tide.provenance import first_difference
from tide.ranks import launched
from tide.sae import TIDE
from tide.sae.config import check_target
from tide.training.build import build_model
from tide.training.config import TrainConfig
from tide.training.job import Job, Jobs
from tide.training.memory import check_memory
from tide.training.prefetch import prefetched
from tide.world import current

#: Rows that are mixed at a time, of a store or of a live stream.
BUFFER_ROWS = 65536
#: Batches from memory that are prepared ahead for a GPU.
_POOL_BATCHES = 4


class StoreInfo(TypedDict):
    """The entries of a store's manifest that a training needs."""

    pipeline: str | None
    family: str
    block: int
    tensor: str
    target: NotRequired[str | None]
    weights: NotRequired[dict[str, str]]


#: Entries that every store must have; they are equal in all stores of a training.
_OF = ("pipeline", "family", "block", "tensor")


# -- stores ----------------------------------------------------------------------------------------------------------


def from_stores(
    paths: str | Place | Sequence[str | Place],
    config: TrainConfig,
    *,
    open_pipeline: Callable[[str], Adapter] | None = None,
    buffer_rows: int = BUFFER_ROWS,
) -> Job:
    """Training on activation stores of one block, mixed by their sizes. Every shard is read once and checked first, of
    several ranks that train together by one on each machine; those at a URL are checked when they are fetched.

    Args:
        paths: the stores' folders or URLs, or one.
        config: how it is trained.
        open_pipeline: gives the pipeline that the stores name (such as :func:`tide.loading.load_adapter`), whose
            transformer the modulation is copied from; a plain SAE (``modulation=False``) needs none.
        buffer_rows: rows mixed at a time.

    Raises:
        TideError: a store is damaged, the stores are not of one block, they are not of the pipeline that was opened, or
            the model does not fit the device.
    """
    return _store_job(paths, config, open_pipeline, buffer_rows, Shares(current(config.shard_latents)))


def _store_job(
    paths: str | Place | Sequence[str | Place],
    config: TrainConfig,
    open_pipeline: Callable[[str], Adapter] | None,
    buffer_rows: int,
    shares: Shares,
) -> Job:
    """As :func:`from_stores`, of ranks that divide the work as ``shares`` say."""
    if isinstance(paths, str | Place):
        paths = [paths]
    if not paths:
        raise TideError("no store is given; give at least one folder")
    part = shares.part(config.batch_tokens) if shares.count > 1 else None
    stores = [open_store(path, _verified_here(shares)) for path in paths]
    first, info = stores[0], stores[0].info
    of = _of(first)
    for store in stores[1:]:
        if found := first_difference(of, _of(store)):
            raise TideError(
                f"{store.path} is of {found.name} {found.now!r} and {first.path} of {found.before!r}; "
                "train on stores of one block"
            )
    check_memory(config, first.d_model, target=of["target"] is not None)
    model = _adapted(first, config, open_pipeline) if config.modulation else _plain(first, config)
    model.trained_on = _images_of(stores)
    about = [{"rows": len(store), "fingerprint": store.fingerprint} for store in stores]
    folders = [{"folder": str(store.path.resolve()), **each} for store, each in zip(stores, about, strict=True)]
    reading: dict[str, Any] = {"seed": config.seed, "buffer_rows": buffer_rows, "part": part}
    return Job(
        config,
        model,
        _ahead(lambda step: mixed(stores, config.batch_tokens, **reading, start=step), config, buffer_rows),
        {"stores": about, "buffer_rows": buffer_rows},
        data={"name": info.get("data"), "stores": folders},
        weights=info.get("weights", {}),
    )


def from_block_stores(
    paths: str | Place | Sequence[str | Place],
    config: TrainConfig,
    *,
    blocks: Sequence[int] | None = None,
    open_pipeline: Callable[[str], Adapter] | None = None,
    buffer_rows: int = BUFFER_ROWS,
) -> Jobs:
    """Training of several blocks, each on its own activation stores (:func:`from_stores`).

    Args:
        paths: folders or URLs that hold a store for each block, ``block-N``, as one collection of several blocks makes
            them.
        config: how each is trained.
        blocks: numbers of those to train; default all that the first folder has.
        open_pipeline: as of :func:`from_stores`; called once.
        buffer_rows: rows of each block mixed at a time.

    Raises:
        TideError: a folder lacks a block's store, or what :func:`from_stores` raises.
    """
    folders = [place_of(each) for each in ([paths] if isinstance(paths, str | Place) else paths)]
    found = {folder: found_blocks(folder) for folder in folders}
    wanted = list(found[folders[0]]) if blocks is None else list(blocks)
    for folder, stores in found.items():
        if missing := [block for block in wanted if block not in stores]:
            its = ", ".join(map(str, stores)) or "none"
            raise TideError(f"{folder} holds no store of block {missing[0]}; its blocks are {its}")
    opened = None if open_pipeline is None else functools.cache(open_pipeline)
    first = ActivationStore(found[folders[0]][wanted[0]])
    target = first.manifest.get("target", False)
    shares = shared_blocks(wanted, config)
    here = list(filter(shares.trained_here, wanted))
    check_memory(config, first.d_model, blocks=len(here), buffer_rows=buffer_rows, target=target)
    jobs = {}
    for block in here:
        jobs[block] = _store_job([found[each][block] for each in folders], config, opened, buffer_rows, shares)
    return Jobs.beside(jobs, shares)


def _verified_here(shares: Shares) -> tuple[int, int]:
    """The shards that this process verifies, i of every n: all of them, or those that are its own among the ranks of
    this machine that train together."""
    found = launched()
    if found is None or shares.owners is not None or not shares.world.several:
        return 0, 1
    return found.local % found.here, found.here


def open_store(path: str | Place, share: tuple[int, int] = (0, 1)) -> ActivationStore:
    """A store to train on, every value of it checked, or to be checked when it is fetched; of process i of n that share
    the work, ``share=(i, n)``, its share of the shards.

    Raises :class:`~tide.errors.TideError` for one that is damaged or does not say what it is of, and for the folder of
    several stores.
    """
    if several := found_blocks(place_of(path)):
        raise TideError(f"{path} holds stores of several blocks; give one of them: {next(iter(several.values()))}")
    store = ActivationStore(path)
    if missing := [name for name in _OF if name not in store.info]:
        raise TideError(f"{path} does not say what {missing[0]} it is of; make it with `tide collect`")
    check_schema(store.info, StoreInfo, f"{path}/manifest.json (info)")
    if (target := store.info.get("target")) is None:
        check_tensor(store.info["tensor"])
    else:
        check_target(target, store.info["tensor"])
    if (target is not None) != store.manifest.get("target", False):
        raise TideError(f"{path} does not hold the targets that its info names; collect it again")
    if not isinstance(store.path, RemotePath):
        store.verify(share)  # a flipped bit is a value like any other to a training
    return store


def _of(store: ActivationStore) -> dict[str, Any]:
    """What a model of the store is of: entries of its config."""
    return {**{name: store.info[name] for name in _OF}, "target": store.info.get("target")}


def _images_of(stores: Sequence[ActivationStore]) -> TrainedOn | None:
    """The images of all stores, or None if one does not record its own.

    Stores of named data sets that earlier versions wrote have the digests of resized images, which identify nothing.
    """
    samples = [store.samples() for store in stores]
    resized = any("split" in store.info and DIGESTS not in store.info for store in stores)
    if resized or any(each is None for each in samples):
        return None
    reserved = min(float(store.info.get("hold_out", 0)) for store in stores)
    names = [str(store.info["data"]) for store in stores if "data" in store.info]
    return TrainedOn.of(names, [sample for each in samples for sample in each or ()], reserved)


def mixed(
    stores: Sequence[ActivationStore],
    batch_size: int,
    *,
    seed: int,
    buffer_rows: int,
    start: int,
    part: slice | None = None,
) -> Iterator[ActivationBatch]:
    """Endless batches from number ``start`` on, each of one store, drawn in proportion to the stores' rows; with
    ``part`` these rows of each.

    Which store serves batch number b depends on ``seed`` and b alone, so that a resumed run draws the same.
    """
    rng = np.random.default_rng([seed, len(stores)])
    shares = np.cumsum([len(store) for store in stores]) / sum(map(len, stores))
    used = np.bincount(np.searchsorted(shares, rng.random(start), side="right"), minlength=len(stores))
    readers = [
        store.batches(batch_size, seed=seed, epochs=None, buffer_rows=buffer_rows, start=int(n), part=part)
        for store, n in zip(stores, used, strict=True)
    ]
    while True:
        yield next(readers[int(np.searchsorted(shares, rng.random(), side="right"))])


def shared_blocks(blocks: Sequence[int], config: TrainConfig) -> Shares:
    """How the ranks that were started together divide these blocks: a single one is trained by all of them, of several
    each rank gets some.

    Raises :class:`~tide.errors.TideError` for more ranks than blocks, and for several blocks whose latents are to be
    divided.
    """
    if len(blocks) > 1 and config.shard_latents > 1:
        raise TideError(
            f"shard_latents = {config.shard_latents} divides the latents of one block and {len(blocks)} are trained; "
            "train one block, or leave it off: ranks divide the blocks"
        )
    world = current(config.shard_latents)
    if len(blocks) == 1 or not world.several:
        return Shares(world)
    if world.count > len(blocks):
        raise TideError(
            f"{world.count} ranks cannot share {len(blocks)} blocks; start at most {len(blocks)}, or train one block"
        )
    return Shares(world, {block: i % world.count for i, block in enumerate(blocks)})


def _parts(
    batches: Callable[[int], Iterator[ActivationBatch]], config: TrainConfig, shares: Shares
) -> Callable[[int], Iterator[ActivationBatch]]:
    """This rank's rows of each batch, with the timesteps of the whole batch."""
    if shares.count == 1:
        return batches
    part = shares.part(config.batch_tokens)
    return lambda step: (batch.merged().take(part) for batch in batches(step))


def _ahead(
    batches: Callable[[int], Iterator[ActivationBatch]], config: TrainConfig, rows: int
) -> Callable[[int], Iterator[ActivationBatch]]:
    """The same batches; for a GPU, a thread reads up to ``rows`` rows ahead, into pinned memory from a CPU's.

    On a CPU there is no thread: it would take from the step the cores that both need.
    """
    if device_of(config.device).type == "cpu":
        return batches
    return lambda step: prefetched(batches(step), max(2, rows // config.batch_tokens), pin=True)


def _plain(store: ActivationStore, config: TrainConfig) -> TIDE:
    among = current(config.shard_latents).latents
    component = store.info.get("component", "transformer")
    made = config.model_config(store.d_model, None, component=component, **_of(store))
    return TIDE(made, backend=config.backend, seed=config.seed, among=among)


def _adapted(store: ActivationStore, config: TrainConfig, open_pipeline: Callable[[str], Adapter] | None) -> TIDE:
    """A TIDE whose modulation is the transformer's; the pipeline is dropped again."""
    if open_pipeline is None:
        raise TideError(f"a TIDE copies its modulation from the pipeline of {store.path}; give open_pipeline")
    adapter = open_pipeline(store.info["pipeline"] or "")
    kept = {
        "family": (store.info["family"], adapter.family),
        "width": (store.d_model, adapter.d_model),
        "component": (store.info.get("component", "transformer"), adapter.component),
    }
    for name, (stored, own) in kept.items():
        if stored != own:
            opened = adapter.name or "the pipeline"
            raise TideError(f"{store.path} is of {name} {stored} and {opened} of {own}; use its own pipeline")
    of = _of(store)
    return build_model(adapter, of["block"], config, tensor=of["tensor"], target=of["target"])


# -- memory ----------------------------------------------------------------------------------------------------------


def from_pool(
    activations: Iterable[ActivationBatch],
    adapter: Adapter,
    config: TrainConfig,
    *,
    block: Block = "penultimate",
    tensor: str = "output",
    target: str | None = None,
    source: Source | None = None,
) -> Job:
    """Training on activations in memory, in a random order, epoch after epoch.

    Args:
        activations: of ``tensor`` of the ``block`` of the ``adapter``'s transformer
            (:func:`tide.activations.collect`).
        adapter: the pipeline's, whose transformer the modulation is copied from.
        config: how it is trained.
        block: a number, negative from the end, or "penultimate".
        tensor, target: as in :class:`~tide.activations.CollectOptions`.
        source: the images that ``activations`` are of and whose iteration gave them. The checkpoint records them, so
            that they are not taken for held-out ones.

    Raises:
        TideError: they are fewer than a batch, ``source`` was read again since and not as far, the block does not
            exist, or the model does not fit the device.
    """
    pool = ActivationPool(activations, config.batch_tokens, seed=config.seed)
    about = {"rows": len(pool), "fingerprint": digest(pool.all.x)}
    about |= {} if pool.all.target is None else {"target": digest(pool.all.target)}
    model = build_model(adapter, block, config, tensor=tensor, target=target)
    data: dict[str, Any] = dict(about)
    if source is not None:
        data = {"name": source.name, **about}
        model.trained_on = TrainedOn.of([source.name], _read_for(pool, source), source.hold_out)
    parts = _parts(pool.from_step, config, Shares(current(config.shard_latents)))
    batches = _ahead(parts, config, _POOL_BATCHES * config.batch_tokens)
    return Job(config, model, batches, about, data=data, weights=pipeline_fingerprints(adapter.pipe))


def _read_for(pool: ActivationPool, source: Source) -> list[Sample]:
    """The samples of ``source`` that the pool holds activations of."""
    numbers = places(pool.all.sample).unique().tolist()
    samples = source.samples()
    if numbers[-1] >= len(samples):
        raise TideError(
            f"the activations are of {numbers[-1] + 1} images and {source.shown or source.name} was read since, "
            f"{len(samples)} images of it; call from_pool right after collecting"
        )
    return [samples[number] for number in numbers]
