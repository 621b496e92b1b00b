"""The adapter of a family that a :class:`~tide.adapters.spec.Spec` declares; families that are odd override it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from math import prod
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from tide.adapters import schedule
from tide.adapters.adaln import copied_modulation, given_modulation
from tide.adapters.base import (
    Adapter,
    Block,
    Chunk,
    Embedded,
    GivenRows,
    Text,
    TokenView,
    check_tensor,
    check_text_encoder,
    halves,
)
from tide.adapters.guidance import Guidance
from tide.adapters.packing import pack, positions, unpack
from tide.adapters.places import Places
from tide.adapters.spec import Blocks, Embedding, Sinusoid, Spec
from tide.errors import TideError
from tide.sae.modulation import Modulation

#: The fields of a spec that are attributes of every adapter, by the same names.
_OF_ADAPTERS = (
    "family",
    "flow_matching",
    "inverted",
    "latents_argument",
    "timestep_argument",
    "timestep_unit",
    "draws",
    "shifts_latents",
    "scales_channels",
    "vae_has_frames",
    "steps_both_branches",
    "result",
    "call_defaults",
)


def at(root: Any, path: str) -> Any:
    """The attribute at a dotted path; itself at an empty one."""
    return reduce(getattr, path.split("."), root) if path else root


class DeclaredAdapter(Adapter):
    """Everything that a :class:`~tide.adapters.spec.Spec` says, done.

    Args:
        pipe: a pipeline of diffusers.
    """

    spec: ClassVar[Spec]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        spec = vars(cls).get("spec")
        if spec is not None:
            for name in _OF_ADAPTERS:
                setattr(cls, name, getattr(spec, name))

    # -- blocks

    @property
    def lists(self) -> list[tuple[Blocks, nn.ModuleList]]:
        """The lists of blocks that this model has, in the order in which they run."""
        return [(each, at(self.transformer, each.path)) for each in self.spec.blocks]

    @property
    def blocks(self) -> list[nn.Module]:
        return [block for _, blocks in self.lists for block in blocks]

    def kind_of(self, block: int) -> Blocks:
        """What the spec says of the block of this number."""
        kinds = [kind for kind, blocks in self.lists for _ in blocks]
        return kinds[block]

    @property
    def d_model(self) -> int:
        if self.spec.width is not None:
            return int(at(self.transformer, self.spec.width))
        config = self.transformer.config
        return int(config.num_attention_heads * config.attention_head_dim)

    def hook_module(self, block: int, tensor: str = "output") -> nn.Module:
        check_tensor(tensor, read=True)
        index = self.resolve_block(block)
        module, kind = self.blocks[index], self.kind_of(index)
        if tensor == "output":
            return module
        name = kind.attention if tensor.startswith("attention") else kind.feed_forward
        if name is None:
            raise TideError(f"block {index} is a {_kind_name(module)}, which has no {tensor} of its own; use output")
        found: nn.Module = at(module, name)
        return found

    # -- image tokens

    def image_tokens(self, output: Any, tensor: str = "output") -> Tensor:
        return Places(self.spec.blocks[0]).image_tokens(output, tensor)

    def with_image_tokens(self, output: Any, x: Tensor, tensor: str = "output") -> Any:
        return Places(self.spec.blocks[0]).with_image_tokens(output, x, tensor)

    def token_views(
        self, blocks: Iterable[int], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> dict[int, TokenView]:
        cls = type(self)
        if cls.image_tokens is not DeclaredAdapter.image_tokens or cls.token_view is not Adapter.token_view:
            return super().token_views(blocks, args, kwargs)  # one's own, of an adapter that extends this
        grid = self.grid_of(args, kwargs)
        n_tokens = None if grid is None else prod(grid)
        n_images = self.n_images_of(args, kwargs)
        return {block: Places(self.kind_of(block), n_tokens, n_images) for block in blocks}

    def token_grid(self, *latents: int) -> tuple[int, ...]:
        own = None if self.spec.packed else getattr(self.transformer.config, "patch_size", None)
        patch = self.spec.square if own is None else own
        if isinstance(patch, int):
            patch = (getattr(self.transformer.config, "patch_size_t", None) or 1, patch, patch)
        return tuple(side // each for side, each in zip(latents, patch[-len(latents) :], strict=True))

    def grid_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, ...] | None:
        arguments = self.arguments(args, kwargs)
        if self.spec.grid == "img_ids":
            return _grid_of_positions(arguments.get("img_ids"))
        if self.spec.grid == "img_shapes":
            shapes = arguments.get("img_shapes")
            # A list for each row, of the image and of reference pictures; or the image alone (ControlNet).
            return (
                None if not shapes else _without_one_frame(shapes[0][0] if isinstance(shapes[0], list) else shapes[0])
            )
        if self.spec.grid == "size arguments":
            return tuple(int(arguments[name]) for name in ("num_frames", "height", "width"))
        hidden = arguments.get(self.latents_argument)
        if not isinstance(hidden, Tensor) or hidden.ndim < (3 if self.spec.draws == "audio" else 4):
            return None
        return self.token_grid(*hidden.shape[2:])

    def n_images_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
        if self.spec.packed:
            return int(self.arguments(args, kwargs)[self.latents_argument].shape[1])
        return super().n_images_of(args, kwargs)

    # -- modulation

    def embedding_of(self, block: int) -> Embedded | GivenRows | None:
        if type(self).conditioning_of is not DeclaredAdapter.conditioning_of:
            return None  # one's own, of an adapter that extends this
        spec, kind = self.embedding, self.kind_of(block)
        if kind.given is not None:
            return GivenRows(kind.given, kind.given_rows)
        if spec is None or not self.is_conditioned:
            return None
        whole = self._embedding_module(spec, block)
        if spec.added is not None:
            return Embedded(at(whole, spec.added), spec.part, None)
        return Embedded(whole, spec.part, at(whole, spec.embedder))

    @property
    def embedding(self) -> Embedding | None:
        """Of the timestep, in this model."""
        return self.spec.embedding

    @property
    def is_conditioned(self) -> bool:
        """Whether the model adds something to its timestep embedding."""
        spec = self.spec.embedding
        if spec is None or isinstance(spec.conditioned, bool):
            return spec is not None and bool(spec.conditioned)
        found = reduce(lambda owner, name: getattr(owner, name, None), spec.conditioned.split("."), self.transformer)
        return bool(found)

    def _embedding_module(self, spec: Embedding, block: int) -> nn.Module:
        module: nn.Module = at(self.blocks[block] if spec.of_block else self.transformer, spec.path)
        return module

    def conditioning_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
        """None: it is read during the call, from the modules that :meth:`embedding_of` names."""
        return None

    def modulation(self, block: Block, chunk: Chunk = "msa", *, next_block: bool = False) -> Modulation:
        index = self.modulated_block(block, chunk, next_block)
        module, kind, spec = self.blocks[index], self.kind_of(index), self.embedding
        if kind.given is not None and chunk in kind.chunks:
            rows = kind.given_rows
            shift, scale = (None if place is None else rows.index(place) for place in kind.chunks[chunk])
            return given_modulation(self.d_model, len(rows), scale=scale, shift=shift)
        path = kind.linear_of(chunk) if chunk in kind.chunks else None
        if spec is None or path is None:
            raise TideError(_not_modulated(self.spec, chunk, kind))
        shift, scale = kind.chunks[chunk]
        embedding = self._embedding_module(spec, index)
        sinusoid = spec.sinusoid
        offset, factor = self.timestep_unit
        embedder = at(embedding, spec.embedder)
        return copied_modulation(
            self.transformer,
            sinusoid if isinstance(sinusoid, Sinusoid) else at(embedding, sinusoid),
            embedder,
            at(self.transformer, path[1:]) if path.startswith("/") else at(module, path),
            layers=spec.layers,
            d_model=self.d_model,
            scale=scale,
            shift=shift,
            table_of=None if kind.table is None else module,
            table=kind.table or "",
            conditioned=self.is_conditioned,
            timestep=(offset * spec.factor, factor * spec.factor),
            activation=spec.activation,
        )

    # -- the rows of guidance

    def conditional_rows(self, batch_size: int, do_cfg: bool) -> Tensor:
        if self.spec.guidance in ("two calls", "none"):
            return torch.ones(batch_size, dtype=torch.bool)
        first = self.spec.guidance.partition(", ")[0]
        return halves(batch_size, do_cfg, conditional="first" if first == "conditional" else "last")

    def conditional_of(self, args: Sequence[Any], kwargs: Mapping[str, Any], guidance: Guidance) -> Tensor:
        arguments = self.arguments(args, kwargs)
        if self.spec.guidance == "none":
            return self.conditional_rows(self.n_rows(arguments), False)
        if self.spec.guidance != "two calls":
            return super().conditional_of(args, kwargs, guidance)
        name, place = next(iter(self.spec.text.outputs.items()))
        prompt = guidance.is_prompt(arguments.get(name), place, self.spec.negative)
        return torch.full((self.n_rows(arguments),), prompt)

    # -- one call of the transformer

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None = None) -> dict[str, Tensor]:
        """What the transformer gets of the prompts, a row each: the arguments that the spec's ``text`` names, floating
        point in its dtype, and ``guidance [B]`` for models that embed the scale.

        ``max_sequence_length`` is by default the pipeline's own.
        """
        check_text_encoder(self.pipe)
        text, call = self.spec.text, inspect.signature(type(self.pipe).__call__).parameters
        arguments = {**{name: call[name].default for name in text.as_called}, **text.arguments}
        if max_sequence_length is not None and text.length is not None:
            arguments[text.length] = max_sequence_length
        if text.count is not None:
            arguments[text.count] = len(prompts)
        found = self.pipe.encode_prompt(list(prompts), **arguments)
        parts = found if isinstance(found, tuple | list) else (found,)
        encoded = {name: self._given(parts[place]) for name, place in text.outputs.items() if parts[place] is not None}
        if text.guidance is not None and self.transformer.config.guidance_embeds:
            encoded["guidance"] = self._embedded_guidance(next(iter(encoded.values())))
        return encoded

    def _given(self, part: Tensor) -> Tensor:
        return part.to(self.dtype) if part.is_floating_point() else part

    def _embedded_guidance(self, like: Tensor) -> Tensor:
        return torch.full((len(like),), self.guidance_scale, device=like.device)

    @property
    def guidance_scale(self) -> float:
        """The guidance scale that :meth:`encode_prompts` gives a model that embeds it."""
        return float(self.spec.text.guidance or 0.0)

    def denoise(self, latents: Tensor, timestep: Tensor | float, text: Text) -> Tensor:
        """The model's prediction for noisy ``latents [B, c, ...]``: one call, no guidance; float32. A flow model's is
        the velocity from image to noise. A learned variance, where the model has one, is dropped."""
        self.check_latents_alone()
        latents = latents.to(self.device, self.dtype)
        text = {name: value.to(latents.device) for name, value in text.items()}
        steps = self.given_timestep(timestep, latents)
        arguments = {
            self.latents_argument: self.packed(latents),
            self.timestep_argument: steps.to(self.dtype) if self.spec.rounds_timestep else steps,
            **self.text_arguments(text, prod(self.token_grid(*latents.shape[2:]))),
            **self.spec.call,
            **self.call_arguments(latents, steps, text),
        }
        given = arguments.pop(self.latents_argument)  # by position, as pipelines of diffusers do
        plain = {"return_dict": False} if self.takes("return_dict") else {}
        output = self.transformer(given, **plain, **arguments)
        prediction = output if isinstance(output, Tensor) else output[0]
        return self.prediction_of(prediction, tuple(latents.shape[2:]))

    def _embedded(self, name: str, value: Tensor) -> Tensor:
        """A text's argument as the model is given it; the guidance scale in the units that it embeds."""
        factor = self.guidance_factor
        return value if name != "guidance" or factor == 1 else value * factor

    @property
    def guidance_factor(self) -> float:
        """What the pipeline multiplies an embedded guidance scale by."""
        return self.spec.text.guidance_factor

    def prediction_of(self, output: Any, size: tuple[int, ...]) -> Tensor:
        """What :meth:`denoise` returns, of what the transformer returned for latents of this ``size``."""
        return self.spec.sign * self.unpacked(output, size)[:, : self.latent_channels].float()

    def latents_of(self, arguments: Mapping[str, Any], size: tuple[int, ...]) -> Tensor:
        """The latents ``[B, c, *size]`` of a call of the transformer."""
        return self.unpacked(arguments[self.latents_argument], size)

    def call_arguments(self, latents: Tensor, steps: Tensor, text: Text) -> dict[str, Any]:
        """Further arguments of a call on these latents, at the timesteps ``steps`` that the transformer is given: where
        it takes ``img_ids``, the positions of the image tokens; where ``img_shapes``, their rows and columns."""
        if self.spec.grid not in ("img_ids", "img_shapes"):
            return {}
        rows, columns = self.token_grid(*latents.shape[2:])
        if self.spec.grid == "img_shapes":
            return {"img_shapes": [[(1, rows, columns)]] * len(latents)}
        return {"img_ids": positions((rows, columns), self._n_axes).to(latents)}

    def text_arguments(self, text: Text, n_images: int | None) -> dict[str, Any]:
        given: dict[str, Any] = {name: self._embedded(name, value) for name, value in text.items()}
        if self.spec.text.mask_of_all is not None:
            mask = text[self.spec.text.mask_of_all]
            given[self.spec.text.mask_of_all] = torch.cat([mask, mask.new_ones(len(mask), n_images or 0)], dim=1)
        if self.spec.grid == "img_ids":
            words = next(iter(text.values()))
            given = {"txt_ids": words.new_zeros(words.shape[1], self._n_axes), **given}
        return given

    @property
    def _n_axes(self) -> int:
        """How many coordinates the position of a token has."""
        return len(self.transformer.config.axes_dims_rope)

    def check_latents_alone(self) -> None:
        """Raises :class:`~tide.errors.TideError` if the transformer also takes pictures as channels of its input."""
        given = int(self.transformer.config.in_channels) // (self.spec.square**2 if self.spec.packed else 1)
        if given != self.latent_channels:
            raise TideError(
                f"this transformer is given {given - self.latent_channels} channels of pictures beside the latents, "
                "which noised images do not have; collect along the sampling process instead"
            )

    @property
    def latent_channels(self) -> int:
        """Channels of the scaled latents that :meth:`denoise` takes: what it is given may have further ones."""
        config = self.transformer.config
        channels = getattr(config, self.spec.channels, None) or config.in_channels
        return int(channels) // (self.spec.square**2 if self.spec.packed else 1)

    # -- the pipeline

    @property
    def default_latents(self) -> tuple[int, ...]:
        if self.spec.size == "call":
            return self._size_of_call()
        config = self.transformer.config
        if self.spec.size == "config.sample_height":
            return int(config.sample_frames), int(config.sample_height), int(config.sample_width)
        if isinstance(self.spec.size, int):
            side = self.spec.size // self.pixels_per_latent
        else:
            side = config.sample_size if "config" in self.spec.size else self.pipe.default_sample_size
        return (int(side),) if self.spec.draws == "audio" else (int(side), int(side))

    def _size_of_call(self) -> tuple[int, ...]:
        call = inspect.signature(type(self.pipe).__call__).parameters
        own = (call[name].default or getattr(self.pipe, f"default_{name}") for name in ("height", "width"))
        height, width = (side // self.pixels_per_latent for side in own)
        if self.spec.draws == "images":
            return height, width
        if self.spec.frames not in call:
            raise TideError(f"{type(self.pipe).__name__} draws as many frames as it is given; say how many")
        return self.latent_frames(call[self.spec.frames].default), height, width

    def schedule_arguments(self, n_steps: int) -> dict[str, Any]:
        scheduler = self.pipe.scheduler
        arguments: dict[str, Any] = {}
        if self.spec.max_shift is not None:
            arguments = {**schedule.resolution_shift(scheduler, self._shifted_by(), max_shift=self.spec.max_shift)}
        if self.spec.sigmas and not getattr(scheduler.config, "use_flow_sigmas", False):
            arguments["sigmas"] = np.linspace(1, 1 / n_steps, n_steps)
        return arguments

    def _shifted_by(self) -> int:
        """The number of tokens that shifts the schedule."""
        return prod(self.token_grid(*self.default_latents))

    def generate(
        self,
        prompts: Sequence[str],
        *,
        n_steps: int,
        guidance_scale: float,
        generators: list[torch.Generator],
        **kwargs: Any,
    ) -> Tensor:
        found = self.run_pipeline(prompts, n_steps, guidance_scale, generators, **kwargs)
        return self._unpacked_drawing(found, kwargs) if self.spec.packed or self.spec.sequence else found

    def run_pipeline(
        self,
        prompts: Sequence[str],
        n_steps: int,
        guidance_scale: float | None,
        generators: list[torch.Generator],
        **kwargs: Any,
    ) -> Tensor:
        length, scale = kwargs.pop("max_sequence_length", None), self.spec.guidance_scale
        if length is not None and self.spec.text.length is not None:
            kwargs[self.spec.text.length] = length
        if "num_frames" in kwargs:
            kwargs[self.spec.frames] = kwargs.pop("num_frames")
        if scale != "guidance_scale":
            kwargs = {scale: guidance_scale, **kwargs}
            guidance_scale = None
        return super().run_pipeline(prompts, n_steps, guidance_scale, generators, **kwargs)

    def _unpacked_drawing(self, packed: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        size = self.drawn_size(kwargs)
        grid = self.token_grid(*size)
        if packed.shape[1] != prod(grid):
            raise TideError(
                f"{type(self.pipe).__name__} drew {packed.shape[1]} tokens and not {' x '.join(map(str, grid))}; give "
                "pictures of the size that is drawn, and _auto_resize=False where the pipeline has it"
            )
        return self.unpacked(packed, size)

    def drawn_size(self, kwargs: Mapping[str, Any]) -> tuple[int, ...]:
        """The size of the latents, behind their channels, that the pipeline draws with these arguments."""
        scale = self.pixels_per_latent
        *frames, height, width = self.default_latents
        height, width = (
            (kwargs.get(name) or 0) // scale or own for name, own in (("height", height), ("width", width))
        )
        if frames and kwargs.get("num_frames"):
            frames = [self.latent_frames(kwargs["num_frames"])]
        return *frames, height, width

    def packed(self, latents: Tensor) -> Tensor:
        """What the transformer gets for latents ``[B, c, ...]``: the inverse of :meth:`unpacked`."""
        if self.spec.sequence:
            return latents.flatten(2).transpose(1, 2)
        return pack(latents, self.spec.square) if self.spec.packed else latents

    def unpacked(self, latents: Tensor, size: tuple[int, ...]) -> Tensor:
        if self.spec.sequence:
            return latents.transpose(1, 2).unflatten(2, size)
        if not self.spec.packed:
            return latents
        rows, columns = self.token_grid(*size)
        return unpack(latents, (rows, columns), self.spec.square)


def _kind_name(module: nn.Module) -> str:
    return "single-stream block" if "Single" in type(module).__name__ else type(module).__name__


def _not_modulated(spec: Spec, chunk: Chunk, kind: Blocks) -> str:
    name = spec.transformer
    if spec.embedding is None or not kind.chunks:
        return f"the blocks of {name} are not modulated; set modulation = false"
    part = "feed-forward" if chunk == "mlp" else "attention"
    return f"the {part} of {name} is not modulated; use chunk {' or '.join(map(repr, kind.chunks))}"


def _without_one_frame(shape: Sequence[int]) -> tuple[int, ...]:
    frames, rows, columns = (int(n) for n in shape)
    return (rows, columns) if frames == 1 else (frames, rows, columns)


def _grid_of_positions(places: Tensor | None) -> tuple[int, int] | None:
    """Rows and columns by the positions ``[tokens, 3 or more]``: those whose first one is not 0 are of references."""
    if places is None:
        return None
    reference, row = places.reshape(-1, *places.shape[-2:])[0].unbind(1)[:2]
    own = row[reference == 0]
    # Counted: in bfloat16 the numbers of rows above 256 are not exact.
    columns = int((own == 0).sum())
    if not columns or len(own) % columns:
        return None
    return len(own) // columns, columns
