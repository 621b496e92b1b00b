"""What commands share: loading pipelines and checkpoints, where a result came from, images on disk."""

from __future__ import annotations

import argparse
import platform
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from tide.adapters import Adapter, adapter_for
from tide.commands.trust import check_folder, followed
from tide.errors import TideError
from tide.files import lock_folder, new_folders, read_json, write_json
from tide.messages import one_line
from tide.provenance import machine, versions
from tide.sae.model import TIDE
from tide.training.memory import device_memory
from tide_kernels.dispatch import choose

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BUNDLED = "scenes"


def device_of(name: str | None) -> torch.device:
    """The device asked for, or the GPU if there is one, or the CPU."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device: torch.device | None = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise TideError(f"device {name!r} is not supported; use cpu, cuda or cuda:<number>")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise TideError(
            f"device {name!r} is not there: PyTorch sees {torch.cuda.device_count()} GPUs; use --device cpu"
        )
    return device


def load_adapter(args: argparse.Namespace, *, denoiser_only: bool = False) -> Adapter:
    """The pipeline of ``--pipeline`` on ``--device`` behind its adapter; ``denoiser_only`` leaves text encoder and
    VAE out."""
    device = device_of(args.device)
    dtype = DTYPES[args.dtype] if args.dtype else torch.float32 if device.type == "cpu" else torch.bfloat16
    if args.offload and device.type == "cpu":
        raise TideError("--offload moves models between a GPU and the CPU, and the device is the CPU; leave it off")
    if args.trust_remote_code and args.pipeline == BUNDLED:
        raise TideError(
            "--trust-remote-code is for pipelines that bring code, and the bundled one does not; leave it off"
        )
    with quiet():
        parts = _left_out(args.pipeline) if denoiser_only else {}
        pipe = _from_pretrained(args.pipeline, dtype, parts, trust=args.trust_remote_code)
    adapter = adapter_for(pipe)
    _check_whole(args.pipeline, pipe)
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty())
    if args.offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    return adapter


def _left_out(name: str) -> dict[str, None]:
    """The components, each as None, that a denoiser does without: every text encoder and tokenizer, and the VAE."""
    from diffusers import DiffusionPipeline

    if name == BUNDLED:
        return dict.fromkeys(("text_encoder", "tokenizer", "vae"))
    try:
        components = DiffusionPipeline.load_config(name)
    except (OSError, ValueError):
        return {}  # loading the pipeline itself says what is wrong
    return {part: None for part in components if part.startswith(("text_encoder", "tokenizer", "vae"))}


def _from_pretrained(name: str, dtype: torch.dtype, parts: dict[str, None], *, trust: bool = False) -> Any:
    """Safetensors only, and no code of the pipeline's own unless ``trust``."""
    from diffusers import DiffusionPipeline

    from tide import scenes

    if name == BUNDLED:
        return scenes.load_pipeline(dtype, **parts)
    if Path(name).is_dir() and not (Path(name) / "model_index.json").is_file():
        raise TideError(f"{name} holds no model_index.json; give the folder of a diffusers pipeline")
    options = {"use_safetensors": True, "trust_remote_code": trust, **parts}
    try:
        folder = name if Path(name).is_dir() else DiffusionPipeline.download(name, **options)
        check_folder(Path(folder), trust=trust, left_out=parts)
        return DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, **options)
    except TideError:
        raise
    except (OSError, ValueError, RuntimeError, AttributeError, TypeError, ImportError) as error:
        reason = one_line(error)
        raise TideError(f"pipeline {name} could not be loaded ({reason}); check the name or give a folder") from error


def _check_whole(name: str, pipe: Any) -> None:
    """Raises for weights that the files lack: diffusers leaves them on the meta device and says nothing."""
    for part, model in pipe.components.items():
        tensors = (*model.named_parameters(), *model.named_buffers()) if isinstance(model, torch.nn.Module) else ()
        if missing := next((key for key, value in tensors if value.is_meta), None):
            raise TideError(f"pipeline {name} lacks the weight {missing} of its {part}; copy or download it anew")


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


def pipeline_name(name: str) -> str:
    """How results record a pipeline or data set: a folder by its absolute path, anything else as it is."""
    return str(Path(name).resolve()) if name != BUNDLED and Path(name).is_dir() else name


def recorded_pipeline(model: TIDE) -> str | None:
    """The pipeline that a checkpoint names. One trained outside the command line names its transformer's folder."""
    from tide.scenes.pipeline import DATA

    name = model.config.pipeline
    if name is None:
        return None
    path = Path(name).parent if Path(name).name == "transformer" else Path(name)
    return BUNDLED if path.resolve() == (DATA / "pipeline").resolve() else str(path)


def image_size(args: argparse.Namespace, adapter: Adapter) -> tuple[int, int]:
    """``--size`` or the pipeline's own, checked to divide into tokens."""
    scale, latents = adapter.pixels_per_latent, adapter.default_latents
    step = scale * (latents[0] // adapter.token_grid(*latents)[0])
    height, width = args.size or (latents[0] * scale, latents[1] * scale)
    if height % step or width % step:
        raise TideError(f"a size of {height} x {width} pixels does not divide into tokens; use multiples of {step}")
    _check_fits((height, width), adapter)
    return height, width


def _check_fits(size: tuple[int, int], adapter: Adapter) -> None:
    """Raises if the device cannot hold what every block computes of a single image: its tokens, and their products
    with both halves of a feed-forward layer, which is four times as wide in all of these transformers."""
    scale = adapter.pixels_per_latent
    rows, columns = adapter.token_grid(size[0] // scale, size[1] // scale)
    least = rows * columns * adapter.d_model * 5 * torch.finfo(adapter.dtype).bits // 8
    there = device_memory(adapter.device)
    if there is not None and least > there:
        raise TideError(
            f"a block of an image of {size[0]} x {size[1]} pixels takes {least / 1e9:.0f} GB of memory at least and "
            f"{adapter.device} has {there / 1e9:.0f} GB; lower --size"
        )


def n_tokens(adapter: Adapter, size: tuple[int, int]) -> int:
    scale = adapter.pixels_per_latent
    rows, columns = adapter.token_grid(size[0] // scale, size[1] // scale)
    return rows * columns


def caption_length(adapter: Adapter) -> int | None:
    """The tokenizer's own limit where it is short (the bundled pipeline's captions), else None: the pipeline's.

    CLIP's 77 is no such limit: it is that of the pooled prompt of pipelines with several text encoders.
    """
    limit = getattr(getattr(adapter.pipe, "tokenizer", None), "model_max_length", None)
    return limit if isinstance(limit, int) and limit < 77 else None


def sampling_arguments(adapter: Adapter, size: tuple[int, int]) -> dict[str, Any]:
    """Keyword arguments of ``adapter.generate`` for images of this size."""
    length = caption_length(adapter)
    return {"height": size[0], "width": size[1], **({} if length is None else {"max_sequence_length": length})}


def check_backend(name: str, device: torch.device, n_latents: int = 64, k: int = 4) -> None:
    """Raises before any work is done if a backend asked for by name is unknown or cannot serve."""
    try:
        choose(name, "auto", device=device, dtype=torch.float32, n_latents=n_latents, k=k)
    except ValueError as error:  # a name that the library's caller would have to correct
        raise TideError(one_line(error)) from None


def load_sae(args: argparse.Namespace, adapter: Adapter) -> TIDE:
    """The checkpoint of ``--sae`` beside the pipeline it is for; another width, family or block is an error."""
    check_backend(args.backend, adapter.device)
    expected = adapter.resolve_block(args.block) if args.block is not None else None
    model = TIDE.from_pretrained(
        args.sae, backend=args.backend, family=adapter.family, d_model=adapter.d_model, block=expected
    )
    if model.config.block is None:
        raise TideError(f"{args.sae} does not name its block; make it with `tide train`")
    adapter.resolve_block(model.config.block)
    check_backend(args.backend, adapter.device, model.n_latents, model.config.k)
    trained_on = recorded_pipeline(model)
    if trained_on and trained_on != pipeline_name(args.pipeline):
        print(f"note: {args.sae} was trained on {trained_on}, and the pipeline is {args.pipeline}", file=sys.stderr)
    return model.to(adapter.device)


def pipeline_of_sae(args: argparse.Namespace) -> None:
    """Fills in ``--pipeline`` from the checkpoint where it was not given, as far as that is :func:`followed`."""
    if args.pipeline is None:
        args.pipeline = followed(recorded_pipeline(TIDE.from_pretrained(args.sae)), args.sae)


# -- results ---------------------------------------------------------------------------------------------------


@contextmanager
def output_folder(folder: Path, *further: Path) -> Iterator[None]:
    """Makes ``folder`` and ``further`` ones to be written before any work is done, and holds ``folder`` for this
    process alone. If the block raises, those that were made and are empty are removed."""
    with new_folders(folder, *further), lock_folder(folder):
        yield


@contextmanager
def writing(args: argparse.Namespace) -> Iterator[None]:
    """The time in which a run writes its files: what an interruption says is true before, during and after it."""
    args.interrupted = f"some of its files are in {args.out}, the same command writes them anew"
    yield
    args.interrupted = f"its files are in {args.out}"


def check_drawn(drawn: Tensor, remedy: str) -> None:
    """Raises for latents or an image that are not finite: numbers have overflowed on the way."""
    if not torch.isfinite(drawn).all():
        raise TideError(f"what the pipeline draws is not finite; {remedy}")


def provenance(args: argparse.Namespace) -> dict[str, Any]:
    """The exact configuration of a run, to write beside its result."""
    hidden = ("run", "command", "interrupted")
    arguments = {name: value for name, value in sorted(vars(args).items()) if name not in hidden}
    return {
        "command": args.command,
        "arguments": arguments,
        "seed": getattr(args, "seed", None),
        "versions": {"python": platform.python_version(), **versions()},
        "machine": machine(),
    }


class _Run(TypedDict):
    earlier: NotRequired[list[dict[str, Any]]]


def earlier_runs(out: Path) -> list[dict[str, Any]]:
    """What the runs into this folder wrote into its ``run.json``, the oldest first. Raises
    :class:`~tide.errors.TideError` if that is damaged."""
    path = out / "run.json"
    if not path.exists():
        return []
    last: dict[str, Any] = read_json(path, _Run)
    return [*last.pop("earlier", []), last]


def record_run(out: Path, args: argparse.Namespace) -> None:
    """Writes :func:`provenance` to ``out``'s ``run.json``; what :func:`earlier_runs` wrote is kept in its entry
    ``earlier``."""
    earlier = earlier_runs(out)
    write_json(out / "run.json", {**provenance(args), **({"earlier": earlier} if earlier else {})})
