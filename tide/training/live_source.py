"""Training on a live stream: batches straight from the passes of the transformer, which run beside the steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tide.activations.batch import ActivationBatch
from tide.activations.block_batch import BlockBatch
from tide.activations.collect import Data, collect, prepare
from tide.activations.encoded import Encoded
from tide.activations.options import CollectOptions
from tide.activations.shared_stream import SharedStream
from tide.activations.source import Source, check_source
from tide.activations.stream import HELD, Ahead, LiveStream
from tide.adapters.base import Adapter, Block
from tide.adapters.gate import gate_of
from tide.adapters.sizes import caption_length, n_tokens
from tide.fingerprint import pipeline_fingerprints
from tide.images.trained import TrainedOn
from tide.training.build import build_model
from tide.training.config import TrainConfig
from tide.training.job import Job, Jobs
from tide.training.latent_pictures import Gallery
from tide.training.live_gallery import galleries
from tide.training.memory import check_memory
from tide.training.prefetch import overlaps, prefetched
from tide.training.sources import BUFFER_ROWS, shared_blocks


def live(
    adapter: Adapter,
    source: Source,
    config: TrainConfig,
    *,
    block: Block = "penultimate",
    options: CollectOptions | None = None,
    buffer_rows: int = BUFFER_ROWS,
    reuse: int = 1,
    cache: bool = False,
    overlap: bool = True,
) -> Job:
    """Training on a live stream: every epoch collects the activations of all images again (Algorithm 1).

    As :func:`live_blocks` of the one ``block``: a number, negative from the end, or "penultimate".

    Args:
        adapter: of the pipeline that is trained on.
        source: images with captions.
        config: of the training.
        block: to train on.
        options: which activations of each image to keep.
        buffer_rows, reuse, cache, overlap: as for :func:`live_blocks`.
    """
    more: dict[str, Any] = {"buffer_rows": buffer_rows, "reuse": reuse, "cache": cache, "overlap": overlap}
    jobs = live_blocks(adapter, source, config, blocks=[block], options=options, **more)
    (job,) = jobs.of.values()
    return job


def live_blocks(
    adapter: Adapter,
    source: Source,
    config: TrainConfig,
    *,
    blocks: Sequence[Block] = ("all",),
    options: CollectOptions | None = None,
    buffer_rows: int = BUFFER_ROWS,
    reuse: int = 1,
    cache: bool = False,
    overlap: bool = True,
) -> Jobs:
    """Training of several blocks on one live stream: every forward pass serves all of them (Algorithm 1). Each block
    gets the batches, to the bit, that a stream of its own would give it.

    Args:
        adapter: the pipeline's.
        source: images with captions (:func:`tide.data.open_source`).
        config: how each is trained.
        blocks: numbers, negative from the end, "penultimate", or "all".
        options: which activations of each image to keep; default :class:`CollectOptions`.
        buffer_rows: rows of each block mixed at a time; four times as many are held.
        reuse: how many times each row is trained on before the next are mixed; so many times fewer passes are run.
        cache: keep the encoded images and captions in memory, each of several ranks those of its own passes.
        overlap: run the passes of the next images in a thread beside the steps on these, where
            :func:`~tide.training.prefetch.overlaps` says that this is faster; the bits are the same.

    Raises:
        TideError: a block does not exist, an image cannot be read, or the models do not fit the device.
    """
    check_source(source)
    options = options or CollectOptions()
    indices = adapter.resolve_blocks(blocks)
    shares = shared_blocks(indices, config)
    here = list(filter(shares.trained_here, indices))
    held = {"buffer_rows": HELD * buffer_rows // shares.count, "itemsize": adapter.dtype.itemsize}
    check_memory(config, adapter.d_model, blocks=len(here), **held, target=options.target is not None)
    of: dict[str, Any] = {"tensor": options.tensor, "target": options.target}
    models = {index: build_model(adapter, index, config, **of) for index in here}
    images: Data = source
    length = caption_length(adapter)
    if cache:
        encoding: dict[str, Any] = {"batch_size": options.batch_size, "max_sequence_length": length}
        # Where they have to be read to be counted they are encoded at once.
        images = Encoded(adapter, source, **encoding) if source.exact else list(prepare(adapter, source, **encoding))

    def collected(seed: int, start: int, stop: int | None = None) -> Iterator[BlockBatch]:
        places: dict[str, Any] = {"seed": seed, "start": start, "stop": stop}
        return map(BlockBatch, collect(adapter, images, indices, options, **places, max_sequence_length=length))

    weights = pipeline_fingerprints(adapter.pipe)
    described = _described(adapter, source, options, {"buffer_rows": buffer_rows, "reuse": reuse}, weights)
    about = {name: described[name] for name in ("images", "size")} | {"fingerprint": described["data"]}
    about |= {"hold_out": source.hold_out} if source.hold_out else {}
    sizes: dict[str, Any] = {
        # Images are read once to be counted where the source does not know how many there are.
        "n_samples": source.n_images if source.exact else sum(len(batch) for batch, _ in images),
        "rows_per_sample": options.rows_per_image(n_tokens(adapter, source.size)),
        "per_pass": options.batch_size,
        "buffer_rows": buffer_rows,
        "reuse": reuse,
        "seed": config.seed,
        "ahead": _overlapping(adapter) if overlap else None,
    }
    stream = (
        SharedStream(collected, config.batch_tokens, shares=shares, **sizes)
        if shares.world.several
        else LiveStream(collected, config.batch_tokens, **sizes)
    )
    trained_on = TrainedOn.of([source.name], source.samples(), source.hold_out)
    shown = functools.cache(functools.partial(galleries, adapter, source, here, options, config.seed))
    jobs = {}
    for index, model in models.items():
        model.trained_on = trained_on
        batches = functools.partial(_of_block, stream.from_step, index)
        jobs[index] = Job(
            config,
            model,
            batches,
            {**described, "block": index},
            data={"name": source.name, **about},
            weights=weights,
            gallery=functools.partial(_gallery_of, shown, index),
        )
    return Jobs(config, jobs, stream.from_step, shares)


def _overlapping(adapter: Adapter) -> Ahead | None:
    """A thread that runs the passes of the next images while the steps on these are made."""
    if not overlaps(adapter.device):
        return None
    return functools.partial(prefetched, device=adapter.device, gate=gate_of(adapter.transformer))


def _of_block(batches: Callable[[int], Iterator[BlockBatch]], block: int, step: int) -> Iterator[ActivationBatch]:
    return (each[block] for each in batches(step))


def _gallery_of(shown: Callable[[], Mapping[int, Gallery]], block: int) -> Gallery:
    return shown()[block]


def _described(
    adapter: Adapter, source: Source, options: CollectOptions, mixed: dict[str, int], weights: dict[str, str]
) -> dict[str, Any]:
    """What the bits of a live stream depend on, besides the block."""
    return {
        "images": source.n_images,
        "size": list(source.size),
        "dtype": str(adapter.dtype).removeprefix("torch."),
        "tensor": options.tensor,
        **({} if options.target is None else {"target": options.target}),
        "timesteps": options.n_timesteps,
        "token_fraction": options.token_fraction,
        "paired": options.paired,
        "batch_size": options.batch_size,
        **mixed,
        "data": source.fingerprint(),
        "hold_out": source.hold_out,
        "pipeline": weights,
    }
