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
from tide.adapters.packing import PACK, pack, unpack
from tide.adapters.places import Places
from tide.adapters.spec import Blocks, Embedding, Sinusoid, Spec
from tide.errors import TideError
from tide.sae.modulation import Modulation


def at(root: Any, path: str) -> Any:
    """The attribute at a dotted path; ``root`` itself at an empty one."""
    return reduce(getattr, path.split(".") if path else (), root)


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
            cls.family, cls.flow_matching, cls.timestep_unit = spec.family, spec.flow_matching, spec.timestep_unit
            cls.shifts_latents, cls.steps_both_branches = spec.shifts_latents, spec.steps_both_branches
            cls.latents_argument, cls.timestep_argument = spec.latents_argument, spec.timestep_argument
            cls.call_defaults, cls.result, cls.draws = spec.call_defaults, spec.result, spec.draws
            cls.scales_channels, cls.vae_has_frames = spec.scales_channels, spec.vae_has_frames

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
        if type(self).image_tokens is not DeclaredAdapter.image_tokens:  # one's own, of an adapter that extends this
            return super().token_views(blocks, args, kwargs)
        arguments = self.arguments(args, kwargs)
        grid = self.grid_of(args, kwargs)
        n_tokens = None if grid is None else prod(grid)
        n_images = arguments[self.latents_argument].shape[1] if self.spec.packed else n_tokens
        return {block: Places(self.kind_of(block), n_tokens, n_images) for block in blocks}

    def token_grid(self, *latents: int) -> tuple[int, ...]:
        patch = PACK if self.spec.packed else int(self.transformer.config.patch_size)
        return *latents[:-2], latents[-2] // patch, latents[-1] // patch

    def grid_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, ...] | None:
        arguments = self.arguments(args, kwargs)
        if self.spec.grid == "img_ids":
            return _grid_of_positions(arguments.get("img_ids"))
        if self.spec.grid == "img_shapes":
            shapes = arguments.get("img_shapes")
            return None if not shapes else _without_one_frame(shapes[0][0])
        if self.spec.grid == "size arguments":
            return tuple(int(arguments[name]) for name in ("num_frames", "height", "width"))
        hidden = arguments.get(self.latents_argument)
        if not isinstance(hidden, Tensor) or hidden.ndim < 4:
            return None
        return self.token_grid(*hidden.shape[2:])

    # -- modulation

    def embedding_of(self, block: int) -> Embedded | GivenRows | None:
        spec, kind = self.embedding, self.kind_of(block)
        if kind.given is not None:
            return GivenRows(kind.given, kind.given_rows)
        if spec is None or not self.is_conditioned:
            return None
        if spec.added is not None:
            return Embedded(at(self.transformer, spec.added), None, None)
        whole = self._embedding_module(spec, block)
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
        return bool(getattr(self.transformer, spec.conditioned, None))

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
        if self.spec.guidance == "two calls":
            return torch.ones(batch_size, dtype=torch.bool)
        first = self.spec.guidance.partition(", ")[0]
        return halves(batch_size, do_cfg, conditional="first" if first == "conditional" else "last")

    def conditional_of(self, args: Sequence[Any], kwargs: Mapping[str, Any], guidance: Guidance) -> Tensor:
        if self.spec.guidance != "two calls":
            return super().conditional_of(args, kwargs, guidance)
        arguments = self.arguments(args, kwargs)
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
        found = self.pipe.encode_prompt(
            list(prompts),
            **{
                **{name: call[name].default for name in text.as_called},
                **({} if max_sequence_length is None or text.length is None else {text.length: max_sequence_length}),
                **text.arguments,
            },
        )
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
        steps = self.given_timestep(timestep, latents)
        prediction = self.transformer(
            **({"return_dict": False} if self.takes("return_dict") else {}),
            **{
                self.latents_argument: pack(latents) if self.spec.packed else latents,
                self.timestep_argument: steps.to(self.dtype) if self.spec.rounds_timestep else steps,
            },
            **{**self.spec.call, **self.call_arguments(latents, steps, text)},
            **{name: value.to(latents.device) for name, value in text.items()},
        )
        prediction = prediction if isinstance(prediction, Tensor) else prediction[0]
        return self.prediction_of(prediction, tuple(latents.shape[2:]))

    def prediction_of(self, output: Any, size: tuple[int, ...]) -> Tensor:
        """What :meth:`denoise` returns, of what the transformer returned for latents of this ``size``."""
        return self.spec.sign * self.unpacked(output, size)[:, : self.latent_channels].float()

    def latents_of(self, arguments: Mapping[str, Any], size: tuple[int, ...]) -> Tensor:
        """The latents ``[B, c, *size]`` of a call of the transformer."""
        return self.unpacked(arguments[self.latents_argument], size)

    def call_arguments(self, latents: Tensor, steps: Tensor, text: Text) -> dict[str, Any]:
        """Further arguments of a call on these latents, at the timesteps ``steps`` that the transformer is given."""
        return {}

    def check_latents_alone(self) -> None:
        """Raises :class:`~tide.errors.TideError` if the transformer also takes pictures as channels of its input."""
        given = int(self.transformer.config.in_channels) // (PACK**2 if self.spec.packed else 1)
        if given != self.latent_channels:
            raise TideError(
                f"this transformer is given {given - self.latent_channels} channels of pictures beside the latents, "
                "which noised images do not have; collect along the sampling process instead"
            )

    @property
    def latent_channels(self) -> int:
        """Channels of the scaled latents that :meth:`denoise` takes."""
        return super().latent_channels // (PACK**2 if self.spec.packed else 1)

    # -- the pipeline

    @property
    def default_latents(self) -> tuple[int, ...]:
        if self.spec.size == "call":
            return self._size_of_call()
        side = self.transformer.config.sample_size if "config" in self.spec.size else self.pipe.default_sample_size
        return int(side), int(side)

    def _size_of_call(self) -> tuple[int, ...]:
        call = inspect.signature(type(self.pipe).__call__).parameters
        height, width = (call[name].default // self.pixels_per_latent for name in ("height", "width"))
        if self.spec.draws == "images":
            return height, width
        return self.latent_frames(call["num_frames"].default), height, width

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
        return self._unpacked_drawing(found, kwargs) if self.spec.packed else found

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
        if scale != "guidance_scale":
            kwargs = {scale: guidance_scale, **kwargs}
            guidance_scale = None
        return super().run_pipeline(prompts, n_steps, guidance_scale, generators, **kwargs)

    def _unpacked_drawing(self, packed: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        scale = self.pixels_per_latent
        own = (side * scale for side in self.default_latents[-2:])
        height, width = (kwargs.get(name) or side for name, side in zip(("height", "width"), own, strict=True))
        rows, columns = self.token_grid(height // scale, width // scale)
        if packed.shape[1] != rows * columns:
            raise TideError(
                f"{type(self.pipe).__name__} drew {packed.shape[1]} tokens and not {rows} x {columns}; give pictures "
                "of the size that is drawn, and _auto_resize=False where the pipeline has it"
            )
        return self.unpacked(packed, (height // scale, width // scale))

    def unpacked(self, latents: Tensor, size: tuple[int, ...]) -> Tensor:
        return unpack(latents, self.token_grid(*size)) if self.spec.packed else latents  # type: ignore[arg-type]


def _kind_name(module: nn.Module) -> str:
    return "single-stream block" if "Single" in type(module).__name__ else type(module).__name__


def _not_modulated(spec: Spec, chunk: Chunk, kind: Blocks) -> str:
    name = spec.transformer
    if spec.embedding is None or not kind.chunks:
        return f"the blocks of {name} are not modulated; train with modulation: none"
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
