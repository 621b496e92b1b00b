"""What a plan needs to know of a pipeline: its sizes, from its configurations alone. No weight is read or fetched."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import diffusers
import torch
import transformers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tide.adapters import Adapter, adapter_for
from tide.adapters.sizes import caption_length, image_size, n_tokens
from tide.checks import check_count
from tide.errors import TideError
from tide.files import read_json
from tide.loading import BUNDLED, load_adapter
from tide.messages import one_line

KNOWN = Path(__file__).parent / "pipelines.json"

#: Weights of a block in units of d^2, where nothing but d is known: self-attention and a feed-forward of width 4 d.
BLOCK_WEIGHTS = 12


#: Layers of a block that see the caption alone, as diffusers names them in every transformer.
_OF_CAPTIONS = re.compile(r"ff_context|add_[qkv]_proj|to_add_out|attn2\.to_[kv]$")


class Configs(TypedDict):
    """The configurations of a pipeline's models; each names its class under ``_class_name``."""

    pipeline: str
    transformer: dict[str, Any]
    vae: dict[str, Any] | None
    text_encoders: list[dict[str, Any]]
    caption_tokens: NotRequired[int]
    source: str


@dataclass(frozen=True, kw_only=True)
class PipelineSizes:
    """The sizes of a pipeline.

    Attributes:
        name: of the pipeline.
        source: where the sizes come from, in words.
        family: of the transformer, as its adapter names it; None if only sizes are known.
        d_model, n_blocks: of the transformer.
        n_tokens: of an image.
        n_pixels: of an image; 0 if it is not known.
        pass_flops: operations of the transformer's blocks on one image, once: twice their weights for each token of
            the image or of the caption, whichever they see, and 4 d (tokens + tokens of the caption) for each token of
            the image and block. Linear attention takes less.
        encode_flops: operations of the VAE on one image and of the text encoders on its caption.
        n_weights: of all models together.
        d_conditioning: width of what the model adds to its timestep embedding, 0 without it.
    """

    name: str
    source: str
    d_model: int
    n_blocks: int
    n_tokens: int
    pass_flops: float
    n_weights: int
    encode_flops: float = 0.0
    d_conditioning: int = 0
    n_pixels: int = 0
    family: str | None = None


def sizes_of(name: str | Path, size: tuple[int, ...] | None = None) -> PipelineSizes:
    """The sizes of a pipeline: the bundled one, a folder, or one whose configurations :data:`KNOWN` holds.

    ``size``: height and width of images in pixels (default the pipeline's own). Raises
    :class:`~tide.errors.TideError` for a pipeline whose configurations are not there or not of a supported family.

    ``name`` is a diffusers id or folder, or "scenes".
    """
    if str(name) == BUNDLED:
        return sizes_of_adapter(load_adapter(BUNDLED, device="cpu"), size, "the bundled pipeline")
    known: dict[str, Configs] = read_json(KNOWN, dict[str, Configs])
    if Path(name).is_dir():
        configs = _of_folder(Path(name))
    elif str(name) in known:
        configs = known[str(name)]
    else:
        raise TideError(
            f"the sizes of {one_line(name, 100)} are not known, and nothing is downloaded for a plan; give its folder, "
            f"or --d-model, --blocks and --tokens in the place of --pipeline (known: {', '.join(known)})"
        )
    return _of_configs(str(name), configs, size)


def given_sizes(d_model: int, n_blocks: int, tokens: int) -> PipelineSizes:
    """Sizes of which only width, blocks and tokens of an image are known; images and captions are not counted.

    A block is taken to have :data:`BLOCK_WEIGHTS` d^2 weights.

    ``d_model`` is the width, ``n_blocks`` the number of blocks, ``tokens`` those of an image.
    """
    for what, value in (("d_model", d_model), ("blocks", n_blocks), ("tokens", tokens)):
        check_count(what, value)
    weights = BLOCK_WEIGHTS * d_model**2 * n_blocks
    return PipelineSizes(
        name=f"a transformer of {n_blocks} blocks, width {d_model}, {tokens} tokens an image",
        source=f"given, with {BLOCK_WEIGHTS} d^2 weights a block; images and captions are not counted",
        d_model=d_model,
        n_blocks=n_blocks,
        n_tokens=tokens,
        pass_flops=_pass_flops(weights, tokens, 0, 0, d_model, n_blocks),
        n_weights=weights,
    )


def sizes_of_adapter(adapter: Adapter, size: tuple[int, ...] | None, source: str) -> PipelineSizes:
    """The sizes of a pipeline that is loaded."""
    models = [each for each in adapter.pipe.components.values() if isinstance(each, nn.Module)]
    texts = [model for name, model in adapter.pipe.components.items() if name.startswith("text_encoder") and model]
    modulation = adapter.modulation(0).config
    return _sizes(
        adapter,
        image_size(adapter, size),
        texts,
        name=adapter.name or type(adapter.pipe).__name__,
        source=source,
        n_weights=sum(map(_count, models)),
        caption_tokens=caption_length(adapter) or _caption_tokens(adapter.pipe, texts),
        d_conditioning=modulation.d_embedding if modulation.conditioned else 0,
    )


def _of_configs(name: str, configs: Configs, size: tuple[int, ...] | None) -> PipelineSizes:
    """The models are built on the meta device, which holds no values."""
    try:
        with torch.device("meta"):
            parts = [_built(diffusers, configs["transformer"])]
            parts += [_built(diffusers, configs["vae"])] if configs["vae"] else []
            texts = [_built(transformers, each) for each in configs["text_encoders"]]
        adapter = adapter_for(_pipeline(configs["pipeline"], *parts))
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise TideError(f"the configurations of {one_line(name, 100)} make no pipeline ({one_line(error)})") from error
    return _sizes(
        adapter,
        image_size(adapter, size),
        texts,
        name=name,
        source=configs["source"],
        n_weights=sum(map(_count, (*parts, *texts))),
        caption_tokens=configs.get("caption_tokens", _caption_tokens(adapter.pipe, texts)),
        # Whether there is a conditioning shows in the weights alone; it is less than 1 % of a store.
        d_conditioning=adapter.d_model,
    )


def _sizes(
    adapter: Adapter, size: tuple[int, ...], texts: list[Any], *, caption_tokens: int, **known: Any
) -> PipelineSizes:
    tokens, d_model, n_blocks = n_tokens(adapter, size), adapter.d_model, adapter.n_blocks
    images, captions = (sum(counts) for counts in zip(*map(_weights, adapter.blocks), strict=True))
    return PipelineSizes(
        d_model=d_model,
        n_blocks=n_blocks,
        n_tokens=tokens,
        n_pixels=prod(size),
        family=adapter.family,
        pass_flops=_pass_flops(images, tokens, captions, caption_tokens, d_model, n_blocks),
        encode_flops=_vae_flops(adapter, size) + sum(2 * sum(_weights(text)) * caption_tokens for text in texts),
        **known,
    )


def _pass_flops(weights: int, tokens: int, of_captions: int, caption_tokens: int, d_model: int, n_blocks: int) -> float:
    attention = 4 * n_blocks * tokens * (tokens + caption_tokens) * d_model
    return float(2 * weights * tokens + 2 * of_captions * caption_tokens + attention)


def _weights(model: nn.Module) -> tuple[int, int]:
    """Weights that are multiplied with every token of the image, and with every token of the caption: of linear layers
    and convolutions, but for those of norms, which see the timestep alone."""
    images = captions = 0
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d) and "norm" not in name:
            if _OF_CAPTIONS.search(name):
                captions += part.weight.numel()
            else:
                images += part.weight.numel()
    return images, captions


def _vae_flops(adapter: Adapter, size: tuple[int, ...]) -> float:
    """Operations of the VAE's encoder on one image, counted in a pass on the meta device; 0 without a VAE."""
    vae = getattr(adapter.pipe, "vae", None)
    if vae is None:
        return 0.0
    with torch.device("meta"):
        bare = type(vae).from_config(vae.config)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        try:
            bare.encode(torch.empty(1, 3, *size, device="meta"))
        except (RuntimeError, ValueError):
            if len(size) == 2:
                raise
            bare.encode(torch.empty(size[0], 3, *size[1:], device="meta"))  # of pictures, frame by frame (Latte)
    return float(counted.get_total_flops())


def _count(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


def _caption_tokens(pipe: Any, texts: list[Any]) -> int:
    """The length to which the pipeline pads captions unless told otherwise; CLIP's 77 where it does not say."""
    if not texts:
        return 0
    length = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
    return 77 if length is None else int(length.default)


def _built(library: Any, config: Mapping[str, Any]) -> nn.Module:
    kind = getattr(library, config["_class_name"])
    values = {name: value for name, value in config.items() if not name.startswith("_")}
    return kind.from_config(values) if library is diffusers else kind(kind.config_class(**values))


def _pipeline(name: str, transformer: nn.Module, vae: nn.Module | None = None) -> Any:
    """The pipeline of these models; its other parts are None."""
    kind = getattr(diffusers, name)
    parts = [part for part in inspect.signature(kind.__init__).parameters if part not in ("self", "args", "kwargs")]
    return kind(**{**dict.fromkeys(parts), "transformer": transformer, "vae": vae})


def _of_folder(folder: Path) -> Configs:
    index = read_json(folder / "model_index.json", dict[str, Any])
    texts = [part for part, value in index.items() if part.startswith("text_encoder") and value[0] is not None]
    read = {part: read_json(folder / part / "config.json", dict[str, Any]) for part in ("transformer", *texts)}
    for part in texts:
        read[part] = {**read[part], "_class_name": index[part][1]}
    vae = folder / "vae" / "config.json"
    return Configs(
        pipeline=str(index["_class_name"]),
        transformer=read["transformer"],
        vae=read_json(vae, dict[str, Any]) if vae.is_file() else None,
        text_encoders=[read[part] for part in texts],
        source=f"the configurations in {folder}",
    )
