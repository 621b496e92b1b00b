"""Pipelines by name or folder, behind their adapters, and checkpoints beside them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tide import scenes
from tide.adapters import Adapter, Block, adapter_for, import_adapters, import_code
from tide.adapters.folders import check_served, load_folder
from tide.adapters.own import check_serves
from tide.adapters.trust import check_folder
from tide.devices import DTYPES, check_backend, default_dtype, device_of
from tide.errors import TideError
from tide.messages import one_line
from tide.pipeline_names import BUNDLED, pipeline_name
from tide.sae import TIDE
from tide.sae.checkpoint import load_config
from tide.sae.sets import check_single, members


def load_adapter(
    name: str | Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    offload: bool = False,
    trust_remote_code: bool = False,
    denoiser_only: bool = False,
    adapter: str | Path | None = None,
    component: str = "transformer",
) -> Adapter:
    """A pipeline behind its adapter.

    Args:
        name: a diffusers id or folder, or "scenes" for the bundled pipeline.
        device: "cpu", "cuda", "cuda:<number>", "mps", "xpu" and what else this torch can use; default the CUDA GPU if
            there is one, else the CPU.
        dtype: "bf16", "fp16" or "fp32"; default bf16 on a CUDA or XPU device and fp32 elsewhere.
        offload: keep on the GPU only the model that runs (diffusers' model offload).
        trust_remote_code: run code that comes with the pipeline.
        denoiser_only: leave text encoders and VAE out.
        adapter: a module or a Python file that registers an adapter for the pipeline, run first
            (:func:`~tide.adapters.import_adapters`); not needed for a module that is imported already.
        component: the name of the pipeline's transformer, where it has several (:func:`~tide.adapters.adapter_for`).

    Raises:
        TideError: the pipeline cannot be loaded, lacks weights, brings code or pickled weights, has no adapter, or the
            device is not there.
    """
    name, on = str(name), device_of(device)
    kind = _kind(name, on, dtype, offload=offload, trust=trust_remote_code)
    if adapter is not None:
        import_adapters(adapter)
    with quiet():
        parts = _left_out(name) if denoiser_only else {}
        pipe = _from_pretrained(name, kind, parts, trust=trust_remote_code)
    found = adapter_for(pipe, component)
    found.name = pipeline_name(name)
    if adapter is not None:
        check_serves(adapter, found)
    _place(name, pipe, on, offload=offload)
    return found


def load_pipeline(
    name: str | Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    offload: bool = False,
    trust_remote_code: bool = False,
    code: str | Path | None = None,
) -> Any:
    """A pipeline whose transformer need not have an adapter, for :func:`tide.probing.probe`.

    The arguments are those of :func:`load_adapter`, but for ``code``: a module or a Python file that defines classes of
    the pipeline, run first (:func:`~tide.adapters.import_code`).
    """
    name, on = str(name), device_of(device)
    kind = _kind(name, on, dtype, offload=offload, trust=trust_remote_code)
    if code is not None:
        import_code(code)
    with quiet():
        pipe = _from_pretrained(name, kind, {}, trust=trust_remote_code, unknown=True)
    _place(name, pipe, on, offload=offload)
    return pipe


def _kind(name: str, on: torch.device, dtype: str | None, *, offload: bool, trust: bool) -> torch.dtype:
    """The dtype to load in; raises for options that do not go together."""
    if dtype is not None and dtype not in DTYPES:
        raise TideError(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)}")
    if offload and on.type == "cpu":
        raise TideError("offload moves models between a GPU and the CPU, and the device is the CPU; leave it off")
    if trust and name == BUNDLED:
        raise TideError("trust_remote_code is for pipelines that bring code, not the bundled one; leave it off")
    return DTYPES[dtype] if dtype else default_dtype(on)


def _place(name: str, pipe: Any, on: torch.device, *, offload: bool) -> None:
    _check_whole(name, pipe)
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty())
    if offload:
        pipe.enable_model_cpu_offload(device=on)
    else:
        pipe.to(on)


def _left_out(name: str) -> dict[str, None]:
    """The components, each as None, that a denoiser does without: every text encoder and tokenizer, and the VAE."""
    if name == BUNDLED:
        return dict.fromkeys(("text_encoder", "tokenizer", "vae"))
    return {part: None for part in _index(name) if part.startswith(("text_encoder", "tokenizer", "vae"))}


def _from_pretrained(
    name: str, dtype: torch.dtype, parts: dict[str, None], *, trust: bool = False, unknown: bool = False
) -> Any:
    """Safetensors only, and no code of the pipeline's own unless ``trust``; ``unknown``: its transformer need not have
    an adapter."""
    from diffusers import DiffusionPipeline

    if name == BUNDLED:
        return scenes.load_pipeline(dtype, **parts)
    if Path(name).is_dir() and not (Path(name) / "model_index.json").is_file():
        raise TideError(f"{name} holds no model_index.json; give the folder of a diffusers pipeline")
    options = {"use_safetensors": True, "trust_remote_code": trust, **parts}
    check_served(name, _index(name), unknown=unknown)
    with _loading(name):
        folder = name if Path(name).is_dir() else DiffusionPipeline.download(name, **options)
    check_folder(Path(folder), trust=trust, left_out=parts)
    with _loading(name):
        return load_folder(folder, _index(folder), dtype=dtype, left_out=parts, **options)


def _index(name: str | Path) -> dict[str, Any]:
    """What model_index.json of a name or folder says; empty where it cannot be read: loading says what is wrong."""
    from diffusers import DiffusionPipeline

    try:
        index = DiffusionPipeline.load_config(name)
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
    return dict(index) if isinstance(index, Mapping) else {}


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """diffusers raises errors of all these kinds for a wrong name and for damaged files."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, AttributeError, TypeError, ImportError) as error:
        reason = one_line(error)
        raise TideError(f"pipeline {name} could not be loaded ({reason}); check the name or give a folder") from error


def _check_whole(name: str, pipe: Any) -> None:
    """Raises for weights that the files lack: diffusers leaves them on the meta device and says nothing."""
    for part, model in pipe.components.items():
        tensors = (*model.named_parameters(), *model.named_buffers()) if isinstance(model, torch.nn.Module) else ()
        if missing := next((key for key, value in tensors if value.is_meta), None):
            raise TideError(f"pipeline {name} lacks the weight {missing} of its {part}; copy or download it again")


@contextmanager
def quiet() -> Iterator[None]:
    """Loading without the libraries' progress bars and notes: stderr is for errors and our own progress."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch_dtype= is what all supported diffusers take
        for log in (diffusers_logging, transformers_logging):
            log.set_verbosity_error()
            log.disable_progress_bar()
        yield


def load_sae(folder: str | Path, adapter: Adapter, *, backend: str = "auto", block: Block | None = None) -> TIDE:
    """A checkpoint beside the pipeline it is for, on the pipeline's device.

    ``folder`` is the checkpoint, ``adapter`` the pipeline's, and ``backend`` that of the kernels (docs/python.md).

    Raises :class:`~tide.errors.TideError` for one of another width or family, of another ``block`` than the one asked
    for, or of none, and for the folder of a set (:func:`load_saes`).
    """
    check_single(folder)
    check_backend(backend, adapter.device)
    expected = None if block is None else adapter.resolve_block(block)
    model = TIDE.from_pretrained(  # a Path: nothing is fetched for a mistyped folder
        Path(folder), backend=backend, family=adapter.family, d_model=adapter.d_model, block=expected
    )
    if model.config.component != adapter.component:
        trained = model.config.component
        raise TideError(
            f"{folder} was trained on the pipeline's {trained}, and {adapter.component} is given; give component "
            f"{trained}"
        )
    adapter.resolve_block(model.config.trained_block)
    check_backend(backend, adapter.device, model.n_latents, model.config.k)
    return model.to(adapter.device)


def load_saes(
    folder: str | Path, adapter: Adapter, *, backend: str = "auto", blocks: Sequence[Block] | None = None
) -> dict[int, TIDE]:
    """The checkpoints of a set (:mod:`tide.sae.sets`) by block, ascending, beside the pipeline that they are for; of a
    folder that is one checkpoint, that one. ``blocks``: those to load, default all.

    ``folder``, ``adapter`` and ``backend`` are as for :func:`load_sae`.

    Raises :class:`~tide.errors.TideError` for what :func:`load_sae` and :func:`~tide.sae.sets.members` refuse.
    """
    wanted = [adapter.resolve_block(block) for block in blocks or ()]
    paths = members(folder, wanted)
    if not paths:
        for block in wanted[1:]:
            load_config(Path(folder), block=block)
        model = load_sae(folder, adapter, backend=backend, block=wanted[0] if wanted else None)
        return {adapter.resolve_block(model.config.trained_block): model}
    for block, path in paths.items():
        if block >= adapter.n_blocks:
            last = adapter.n_blocks - 1
            raise TideError(f"{path} is of a block that does not exist; this transformer has blocks 0..{last}")
    return {block: load_sae(path, adapter, backend=backend, block=block) for block, path in paths.items()}
