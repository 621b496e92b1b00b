"""Makes an index: one pass over the images, which an interruption does not lose, then what follows from it."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from math import prod
from pathlib import Path

from torch import Tensor

from tide.activations import prepare
from tide.activations.collect import sample_noise
from tide.activations.source import Source, check_source
from tide.adapters import Adapter
from tide.adapters.sizes import caption_length, image_grid
from tide.errors import TideError
from tide.files import lock_folder
from tide.files.folders import remove_empty, sync_folder
from tide.files.lock import LOCK
from tide.fingerprint import fingerprint
from tide.images.masked import Masked
from tide.index.finishing import Progress, finish
from tide.index.gathering import IndexGathered
from tide.index.layout import FORMAT, PARTS, UNFINISHED, index_of
from tide.index.reading import Index
from tide.interpretation.atlas import shortened
from tide.interpretation.atlas_reading import most_labelled
from tide.interpretation.reading import noised_activations
from tide.pictures import shown, to_uint8
from tide.sae.model import TIDE

#: Seconds of reading after which the state is saved, and how many times as long as saving it took, at least.
SAVED_AFTER, SAVED_SHARE = 30.0, 20.0


def _silent(stage: str, done: int, total: int) -> None:
    pass


def build_index(
    adapter: Adapter,
    model: TIDE,
    source: Source,
    run: str | Path,
    *,
    timesteps: Tensor | None = None,
    seed: int = 0,
    on_progress: Progress = _silent,
) -> Index:
    """Reads all images of ``source`` once and writes the index of ``model`` into ``run/index``.

    An interrupted call is resumed by the same call. An index that is there already stays until the new one is whole.

    Args:
        adapter: of the pipeline that the model was trained on.
        model: an SAE that knows its block, on the adapter's device.
        source: images with captions; each of its batches is one pass.
        run: the folder of a checkpoint or an atlas.
        timesteps: at which every image is read, ``[T]``; default those of a sampling run of 10 steps.
        seed: every image has its own noise.
        on_progress: called with a stage ("images", "neighbours", "tables"), how much of it is done, and of how much.

    Raises:
        TideError: the source cannot be read or is empty, an activation is not finite, or another process writes there.
    """
    check_source(source)
    run = Path(run)
    timesteps = adapter.sampling_timesteps(10) if timesteps is None else timesteps
    grid = image_grid(adapter, source.size)
    folder = run / UNFINISHED
    with lock_folder(folder):
        _put_back(run)
        gathered = _gathered(adapter, model, source, folder, timesteps, grid, seed)
        try:
            _read(adapter, gathered, source, timesteps, seed, on_progress)
            gathered.close()
        except BaseException:
            gathered.abandon()
            raise
        finish(adapter, gathered, source, grid, seed, on_progress)
        _replace(run, folder)
    remove_empty([folder])  # unless another process has begun there
    return Index(run)


def _gathered(
    adapter: Adapter, model: TIDE, source: Source, folder: Path, timesteps: Tensor, grid: tuple[int, ...], seed: int
) -> IndexGathered:
    asked = {
        "format": FORMAT,
        "sae": fingerprint([model]),
        "config": asdict(model.config),
        "data": [source.name, source.n_images, sorted(source.options.items()), list(source.size)],
        "pipeline": adapter.name,
        "timesteps": timesteps.tolist(),
        "seed": seed,
    }
    tokens = prod(grid)
    masked = isinstance(source.batches, Masked)
    labelled = min(source.n_images, most_labelled(model.n_latents, tokens)) * tokens if masked else 0
    return IndexGathered(model, timesteps, grid, folder, asked, labelled, source.samples_before)


def _read(
    adapter: Adapter, gathered: IndexGathered, source: Source, timesteps: Tensor, seed: int, on_progress: Progress
) -> None:
    length = caption_length(adapter)
    saved, took = time.monotonic(), 0.0
    on_progress("images", gathered.n_images, source.n_images)
    for images, captions in source.from_sample(gathered.n_images):
        (encoded,) = prepare(adapter, [(images, captions)], batch_size=len(images), max_sequence_length=length)
        noise = sample_noise(encoded.latents.shape, seed, gathered.n_images)
        x, conditioning = noised_activations(adapter, gathered.model, encoded, noise, timesteps)
        gathered.add_images(x, conditioning, [shown(to_uint8(each)) for each in images], list(map(shortened, captions)))
        try:
            on_progress("images", gathered.n_images, source.n_images)
        except BaseException:  # an interruption between two batches loses nothing
            gathered.save(source.samples_between(0, gathered.n_images))
            raise
        now = time.monotonic()
        if now - saved > max(SAVED_AFTER, SAVED_SHARE * took):
            gathered.save(source.samples_between(0, gathered.n_images))
            saved = time.monotonic()
            took = saved - now
    if gathered.n_images == 0:
        raise TideError("there are no images to make an index of; give at least one")


def _former(run: Path) -> Path:
    """Where an older index is while the new one takes its place."""
    return run / f".{index_of(run).name}.former"


def _put_back(run: Path) -> None:
    """Puts an older index back that a process had moved away when it was killed."""
    if _former(run).exists() and not index_of(run).exists():
        _former(run).rename(index_of(run))


def _replace(run: Path, folder: Path) -> None:
    """Puts the new index in the place of an older one, and removes what else the pass over the images left."""
    final, former, whole = index_of(run), _former(run), run / f".{index_of(run).name}.whole"
    for each in (former, whole):
        shutil.rmtree(each, ignore_errors=True)
    whole.mkdir()
    for name in PARTS:
        (folder / name).rename(whole / name)
    sync_folder(whole)
    if final.exists():
        final.rename(former)
    whole.rename(final)
    sync_folder(run)
    shutil.rmtree(former, ignore_errors=True)
    for each in folder.iterdir():
        if each.name != LOCK:
            each.unlink()
