"""What commands share: their pipelines and checkpoints, and the folders that they write to."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from tide.activations.options import CollectOptions
from tide.adapters import Adapter, import_adapters
from tide.adapters.registry import serves_family
from tide.cli.command import left_behind
from tide.cli.options import Activations, Autoencoder, Autoencoders, Data, Model
from tide.cli.trust import followed
from tide.data import Source, open_source
from tide.errors import TideError
from tide.files import lock_folder, new_folders
from tide.fingerprint import fingerprint, pipeline_fingerprints
from tide.loading import load_adapter, load_sae, load_saes
from tide.messages import one_line
from tide.pipeline_names import BUNDLED, pipeline_name, recorded_pipeline
from tide.runs import Contents, Kind, read_run
from tide.sae import TIDE
from tide.sae.checkpoint import load_config
from tide.sae.config import input_of
from tide.sae.sets import check_single, one_of


def adapter_of(
    model: Model, pipeline: str | None = None, *, denoiser_only: bool = False, sae: str | None = None
) -> Adapter:
    """The pipeline that the options name, or ``pipeline`` where they name none; ``denoiser_only`` leaves text encoders
    and VAE out. Of several transformers the one that the options name, or that the checkpoint ``sae`` was trained
    on."""
    name = model.pipeline or pipeline
    if name is None:
        raise TideError("no pipeline is named; give --pipeline")
    return load_adapter(
        name,
        device=model.device,
        dtype=model.dtype,
        offload=model.offload,
        trust_remote_code=model.trust_remote_code,
        denoiser_only=denoiser_only,
        adapter=model.adapter,
        component=model.component or (load_config(one_of(sae)).component if sae else "transformer"),
    )


def pipeline_of(model: Model, autoencoder: Autoencoder | Autoencoders) -> str:
    """The pipeline that the options name, or that of the checkpoint, as far as it is :func:`followed`.

    Runs the module of ``--adapter``. Raises :class:`~tide.errors.TideError` for a checkpoint of a family that no
    adapter serves.
    """
    if model.adapter is not None:
        import_adapters(model.adapter)
    if isinstance(autoencoder, Autoencoder):
        check_single(autoencoder.sae)
    check_family(autoencoder.sae)
    if model.pipeline is not None:
        return model.pipeline
    return followed(recorded_pipeline(autoencoder.sae), autoencoder.sae)


def check_family(checkpoint: str | Path) -> None:
    """Raises :class:`~tide.errors.TideError` if no adapter serves the family that the checkpoint, or a set of them, was
    trained on."""
    one = one_of(checkpoint)
    family = load_config(one).family
    if family is None or serves_family(family):
        return
    named = _adapter_of_training(one)
    trained = "" if named is None else f" (it was trained with --adapter {one_line(named, 100)})"
    raise TideError(f"{checkpoint} is of the family {family!r}, which has no adapter here; give --adapter{trained}")


def _adapter_of_training(checkpoint: Path) -> str | None:
    run: Any = read_run(checkpoint)
    named = None if run is None else run.get("arguments", {}).get("adapter")
    return named if isinstance(named, str) else None


def sae_of(autoencoder: Autoencoder, adapter: Adapter, pipeline: str) -> TIDE:
    """The checkpoint; says on stderr if it was trained on another pipeline."""
    model = load_sae(autoencoder.sae, adapter, backend=autoencoder.backend, block=autoencoder.block)
    _note_pipeline(autoencoder.sae, pipeline)
    return model


def saes_of(autoencoders: Autoencoders, adapter: Adapter, pipeline: str) -> dict[int, TIDE]:
    """The checkpoints by block; says on stderr if they were trained on another pipeline."""
    models = load_saes(autoencoders.sae, adapter, backend=autoencoders.backend, blocks=autoencoders.block)
    _note_pipeline(autoencoders.sae, pipeline)
    return models


def _note_pipeline(checkpoint: str, pipeline: str) -> None:
    trained_on = recorded_pipeline(checkpoint)
    if trained_on and trained_on != pipeline_name(pipeline):
        print(f"note: {checkpoint} was trained on {trained_on}, and the pipeline is {pipeline}", file=sys.stderr)


def about_sae(autoencoder: Autoencoder | Autoencoders, model: TIDE) -> dict[str, Any]:
    """A checkpoint's part of ``run.json`` (:class:`tide.runs.Contents`)."""
    folder = Path(autoencoder.sae)
    own = folder if one_of(folder) == folder else folder / f"block-{model.config.trained_block}"
    return {"folder": str(own.resolve()), "weights": fingerprint([model]), "config": asdict(model.config)}


def about_saes(autoencoders: Autoencoder | Autoencoders, models: Mapping[int, TIDE]) -> dict[str, Any]:
    """As :func:`about_sae`; of several checkpoints their folder, and under ``blocks`` what it says of each."""
    of_blocks = {str(block): about_sae(autoencoders, model) for block, model in models.items()}
    if len(of_blocks) == 1:
        return next(iter(of_blocks.values()))
    return {"folder": str(Path(autoencoders.sae).resolve()), "blocks": of_blocks}


D = TypeVar("D", bound=Data)


def data_or_scenes(source: D, pipeline: str, what: str, images: int) -> D:
    """The data that the options name, or rendered scenes with the bundled pipeline, in either case ``images`` of them.

    ``what``: the question that stays open without data, for the message.
    """
    if source.data is None and pipeline != BUNDLED:
        raise TideError(f"{what} is not clear; give --data")
    return replace(source, data=source.data or BUNDLED, images=images)


def source_of(
    source: Data, adapter: Adapter, *, seed: int, batch_size: int, split: Any = "train", hold_out: float = 0.0
) -> Source:
    """The images that the options name, but for the share ``hold_out``; rendered scenes are of combinations of
    ``split``, and none are held out."""
    assert source.data is not None
    return open_source(
        source.data,
        adapter,
        images=source.images,
        size=source.size,
        batch_size=batch_size,
        seed=seed,
        hold_out=0.0 if source.data == BUNDLED else hold_out,
        scene_split=split,
        skip_unreadable=source.skip_unreadable,
        split=source.split,
        image_column=source.image_column,
        caption_column=source.caption_column,
    )


def about(kind: Kind, adapter: Adapter, pipeline: str, model: TIDE, autoencoder: Autoencoder, **found: Any) -> Contents:
    """What a folder holds that a command made of a checkpoint's latents.

    ``found``: the rest of the :class:`~tide.runs.Contents`. ``edit``, ``effect`` and ``trajectory`` leave ``weights``
    out: reading those of a large pipeline takes longer than drawing a picture.
    """
    block = adapter.resolve_block(model.config.trained_block)
    return about_blocks(kind, adapter, pipeline, {block: model}, autoencoder, **found)


def about_blocks(
    kind: Kind,
    adapter: Adapter,
    pipeline: str,
    models: Mapping[int, TIDE],
    autoencoders: Autoencoder | Autoencoders,
    **found: Any,
) -> Contents:
    """As :func:`about`, of the checkpoints of several blocks."""
    return Contents(
        kind=kind,
        blocks=list(models),
        family=adapter.family,
        pipeline=pipeline_name(pipeline),
        autoencoder=about_saes(autoencoders, models),
        **found,
    )


def about_study(block: int | str = "penultimate", **found: Any) -> Contents:
    """What a folder holds that a study of the bundled pipeline wrote; ``found``: the rest."""
    adapter = load_adapter(BUNDLED, device="cpu")
    return Contents(
        kind="study",
        blocks=[adapter.resolve_block(block)],
        family=adapter.family,
        pipeline=BUNDLED,
        weights=pipeline_fingerprints(adapter.pipe),
        data={"name": BUNDLED},
        **found,
    )


@contextmanager
def output_folder(folder: Path, *further: Path) -> Iterator[None]:
    """Makes ``folder`` and ``further`` ones to be written before any work is done, and holds ``folder`` for this
    process alone. If the block raises, those that were made and are empty are removed."""
    with new_folders(folder, *further), lock_folder(folder):
        read_run(folder)  # a damaged one is found before the work
        yield


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Sets the interruption message while files are written and afterwards."""
    left_behind.set(f"some of its files are in {out}, the same command writes them again")
    yield
    left_behind.set(f"its files are in {out}")


def collect_options(activations: Activations) -> CollectOptions:
    target = activations.transcoder
    return CollectOptions(
        tensor=activations.tensor if target is None else input_of(target),
        target=target,
        n_timesteps=activations.timesteps,
        token_fraction=activations.token_fraction,
        paired=not activations.no_pairs,
        batch_size=activations.batch_size,
    )
