"""Everything that the rest of the package knows about a diffusion transformer and its pipeline, in one class."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor, nn

from tide.adapters import schedule
from tide.adapters.blocks import Block, block_number, block_numbers
from tide.adapters.guidance import Guidance
from tide.adapters.pipelines import check_inputs
from tide.adapters.vae import channel_scales, decoded, encoded, pixels_per_latent, vae_of
from tide.adapters.weights import COMPUTE, computing_dtype, unwrapped
from tide.errors import TideError
from tide.sae.config import TARGETS, input_of
from tide.sae.modulation import Modulation

#: What can be hooked of a block: its output (the residual stream), the output of its self-attention, or that of its
#: feed-forward.
TENSORS = ("output", "attention", "feed_forward")
#: What enters the two modules, which can be read alone: the image tokens behind the block's norm and its modulation.
INPUTS = {input_of(target): target for target in TARGETS}
#: Which scale and shift of a block: those before its self-attention or those before its feed-forward.
Chunk = Literal["msa", "mlp"]
CHUNKS = get_args(Chunk)
#: Keyword arguments of the transformer that carry the prompts, one row each.
Text = Mapping[str, Tensor]

#: The dimensions of latents, batch and channels included.
_DIMENSIONS = {"images": 4, "videos": 5, "audio": 3}
#: How pipelines name what their VAE compresses, after "vae_".
_SPATIAL = ("scale_factor", "scale_factor_spatial", "spatial_scale_factor", "spatial_compression_ratio")
_TEMPORAL = ("scale_factor_temporal", "temporal_scale_factor", "temporal_compression_ratio")


class TokenView(Protocol):
    """Where the image tokens are in the output of a hooked module, or with a tensor of :data:`INPUTS` in its input,
    during one call of the transformer."""

    def image_tokens(self, output: Any, tensor: str = "output") -> Tensor: ...

    def with_image_tokens(self, output: Any, x: Tensor, tensor: str = "output") -> Any: ...


class Embedded(NamedTuple):
    """Where a call's conditioning can be read: what ``whole`` returns (its item ``part``, where that is a tuple) less
    what ``time`` returns, the embedding of the timestep alone; None where ``whole`` does not contain that."""

    whole: nn.Module
    part: int | None
    time: nn.Module | None


class GivenRows(NamedTuple):
    """Where a call's conditioning can be read: some rows of a block's argument ``[B, rows, d_model]``."""

    argument: str
    rows: list[int]


class Adapter(ABC):
    """One model family: where its blocks are, where their modulation comes from, how its pipeline runs it.

    Each subclass serves one transformer class and is found through :func:`~tide.adapters.adapter_for`. Outside of the
    transformer, timesteps are always the scheduler's: in :class:`~tide.adapters.Call`, for the modulation and for
    :meth:`denoise`.

    Args:
        pipe: a diffusers pipeline. It is read, never changed.
        component: the name of the pipeline's transformer, where it has several that take over from each other.
    """

    family: ClassVar[str]
    #: Noise is mixed in linearly and the model predicts a velocity, rather than by ``alphas_cumprod``.
    flow_matching: ClassVar[bool] = False
    #: The scheduler counts from noise (0) to image (1000), along the opposite of the velocity.
    inverted: ClassVar[bool] = False
    #: The transformer's arguments for the latents and for the timestep.
    latents_argument: ClassVar[str] = "hidden_states"
    timestep_argument: ClassVar[str] = "timestep"
    #: The transformer gets a + b t for the scheduler's timestep t.
    timestep_unit: tuple[float, float] = (0.0, 1.0)
    #: The attributes of a block that hold its self-attention and its feed-forward.
    modules: ClassVar[Mapping[str, str]] = {"attention": "attn1", "feed_forward": "ff"}
    #: What the pipeline draws, and so what its latents are: ``[B, c, h, w]``, with frames before the rows, or a line.
    draws: ClassVar[Literal["images", "videos", "audio"]] = "images"
    #: The pipeline subtracts the VAE's ``shift_factor`` from latents, where the VAE has one.
    shifts_latents: ClassVar[bool] = True
    #: The pipeline scales each channel of latents by ``latents_mean`` and ``latents_std`` of the VAE.
    scales_channels: ClassVar[bool] = False
    #: The VAE takes images with frames, also for a pipeline of images.
    vae_has_frames: ClassVar[bool] = False
    #: The pipeline's scheduler steps the rows of both branches of guidance, and not the images alone.
    steps_both_branches: ClassVar[bool] = False
    #: The attribute of what the pipeline returns that holds the latents.
    result: ClassVar[str] = "images"
    #: The pipeline has further transformers, so that a run may not call this one.
    runs_in_turn: bool = False
    #: What :meth:`generate` passes to the pipeline unless told otherwise.
    call_defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, pipe: Any, component: str = "transformer") -> None:
        self.pipe = pipe
        self.component = component
        self.transformer: Any = unwrapped(getattr(pipe, component))
        #: How results record the pipeline: the name or folder that it was loaded from, as far as that is known.
        self.name: str | None = _loaded_from(self.transformer)
        self._signature = inspect.signature(type(self.transformer).forward)

    # -- blocks -------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The transformer's blocks in the order in which they run."""

    @property
    @abstractmethod
    def d_model(self) -> int:
        """Width of the image tokens."""

    @property
    def n_blocks(self) -> int:
        """How many blocks the transformer has, numbered from 0."""
        return len(self.blocks)

    def resolve_block(self, block: Block) -> int:
        """A block's number; negative ones count from the end, "penultimate" is the last but one."""
        return block_number(block, self.n_blocks)

    def resolve_blocks(self, blocks: Sequence[Block]) -> list[int]:
        """The numbers of blocks, each once, in the order given; "all" stands for every block."""
        return block_numbers(blocks, self.n_blocks)

    def hook_module(self, block: int, tensor: str = "output") -> nn.Module:
        """The module whose output, or input, holds ``tensor`` of ``block``."""
        check_tensor(tensor, read=True)
        module = self.blocks[self.resolve_block(block)]
        return module if tensor == "output" else getattr(module, self.modules[INPUTS.get(tensor, tensor)])

    def image_tokens(self, output: Any, tensor: str = "output") -> Tensor:
        """The image tokens ``[B, T, d_model]`` in the output of :meth:`hook_module`, or in its input for a tensor of
        :data:`INPUTS`."""
        return output

    def with_image_tokens(self, output: Any, x: Tensor, tensor: str = "output") -> Any:
        """``output`` with its image tokens replaced by ``x``."""
        return x

    def token_view(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> TokenView:
        """What finds the image tokens during this call: the adapter itself, unless their place depends on the call."""
        return self

    def token_views(
        self, blocks: Iterable[int], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> dict[int, TokenView]:
        """:meth:`token_view` for each block; overridden for models whose blocks are of several kinds."""
        return dict.fromkeys(blocks, self.token_view(args, kwargs))

    def token_grid(self, *latents: int) -> tuple[int, ...]:
        """Rows and columns of the image tokens of latents of this height and width; of a video frames before them, of
        sound their number alone. Tokens are in row-major order."""
        patch = int(self.transformer.config.patch_size)
        return *latents[:-2], latents[-2] // patch, latents[-1] // patch

    # -- one call of the transformer ----------------------------------------------------------------------

    def grid_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, ...] | None:
        """:meth:`token_grid` of a transformer call; None where the call does not say."""
        hidden = self.arguments(args, kwargs).get(self.latents_argument)
        if not isinstance(hidden, Tensor) or hidden.ndim != _DIMENSIONS[self.draws]:
            return None
        config = getattr(self.transformer, "config", None)
        if type(self).token_grid is Adapter.token_grid and not hasattr(config, "patch_size"):
            return None
        return self.token_grid(*hidden.shape[2:])

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a transformer call by name, whether they came by keyword or by position."""
        return dict(self._signature.bind(self.transformer, *args, **kwargs).arguments)

    def takes(self, name: str) -> bool:
        """Whether the transformer has an argument of this name."""
        return name in self._signature.parameters

    def n_images_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
        """How many tokens of images a row of a transformer call has, those of reference pictures included; None where
        the call does not say."""
        grid = self.grid_of(args, kwargs)
        return None if grid is None else prod(grid)

    def text_arguments(self, text: Text, n_images: int | None) -> dict[str, Any]:
        """The arguments of the transformer for encoded prompts, in a call with so many tokens of images
        (:meth:`n_images_of`): ``text`` itself, unless the transformer takes it in another form."""
        return dict(text)

    def with_arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], changes: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a transformer call with those of :meth:`arguments` that ``changes`` names replaced."""
        places = {name: i - 1 for i, name in enumerate(self._signature.parameters)}  # the first is the transformer
        by_position = {places[name]: value for name, value in changes.items() if places[name] < len(args)}
        by_name = {name: value for name, value in changes.items() if places[name] >= len(args)}
        return tuple(by_position.get(i, value) for i, value in enumerate(args)), {**kwargs, **by_name}

    def timestep_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """The scheduler's timestep ``[B]`` of a transformer call, float32, undoing :attr:`timestep_unit`."""
        arguments = self.arguments(args, kwargs)
        timestep = arguments.get(self.timestep_argument)
        if timestep is None:
            raise TideError(f"the transformer was called without a timestep; pass {self.timestep_argument}=")
        timestep = torch.as_tensor(timestep, device=self.device_of(arguments))
        if timestep.ndim > 1:  # one for each token
            timestep = timestep.flatten(1).amax(1)
        timestep = timestep.reshape(-1)
        offset, factor = self.timestep_unit
        return ((timestep.to(torch.float32) - offset) / factor).expand(self.n_rows(arguments))

    def n_rows(self, arguments: Mapping[str, Any]) -> int:
        """Rows of a call of the transformer, guidance included."""
        return len(arguments[self.latents_argument])

    def device_of(self, arguments: Mapping[str, Any]) -> torch.device:
        """Where a call of the transformer has its latents."""
        hidden = arguments[self.latents_argument]
        found: torch.device = (hidden if isinstance(hidden, Tensor) else hidden[0]).device
        return found

    def given_timestep(self, timestep: Tensor | float, like: Tensor) -> Tensor:
        """``[B]``: what the transformer is given at the scheduler's ``timestep``, a number or ``[B]``."""
        offset, factor = self.timestep_unit
        steps = torch.as_tensor(timestep, device=like.device).reshape(-1).expand(len(like))
        return steps if (offset, factor) == (0, 1) else offset + factor * steps.to(torch.float32)

    @abstractmethod
    def conditioning_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
        """What the model adds to its timestep embedding in a call, ``[B, d_embedding]`` float32, or None."""

    def conditioning_of_blocks(
        self, blocks: Iterable[int], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> dict[int, Tensor | None]:
        """:meth:`conditioning_of` for each block; overridden for models whose blocks embed the call on their own."""
        return dict.fromkeys(blocks, self.conditioning_of(args, kwargs))

    def embedding_of(self, block: int) -> Embedded | GivenRows | None:
        """What tells a block's conditioning during a call; None where :meth:`conditioning_of` tells it before."""
        return None

    def modulated_block(self, block: Block, chunk: Chunk, next_block: bool) -> int:
        """The number of the block whose modulation is asked for; checks the arguments of :meth:`modulation`."""
        index = self.resolve_block(block) + next_block
        if index == self.n_blocks:
            raise TideError(f"block {block} is the last one and has no next block; use its own modulation")
        if chunk not in CHUNKS:
            raise TideError(f"chunk {chunk!r} is unknown; use one of {', '.join(CHUNKS)}")
        return index

    @abstractmethod
    def modulation(self, block: Block, chunk: Chunk = "msa", *, next_block: bool = False) -> Modulation:
        """A :class:`Modulation` equal to the block's own adaLN, or with ``next_block`` to that of the next block."""

    # -- the pipeline -------------------------------------------------------------------------------------

    @abstractmethod
    def conditional_rows(self, batch_size: int, do_cfg: bool) -> Tensor:
        """Bool mask ``[batch_size]`` of the rows that belong to the prompt; under guidance (``do_cfg``) the call holds
        both kinds of rows."""

    def conditional_of(self, args: Sequence[Any], kwargs: Mapping[str, Any], guidance: Guidance) -> Tensor:
        """Bool mask ``[B]``, on the CPU, of the rows of this call that belong to the prompt; the arguments are the
        objects that the pipeline passed."""
        batch_size = self.n_rows(self.arguments(args, kwargs))
        return self.conditional_rows(batch_size, guidance.holds_both(batch_size))

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None = None) -> dict[str, Tensor]:
        """Transformer keyword arguments of the prompts, one row each, without guidance."""

    @abstractmethod
    def denoise(self, latents: Tensor, timestep: Tensor | float, text: Text) -> Tensor:
        """The model's prediction for noisy ``latents [B, c, h, w]``: one call, no guidance; float32."""

    def generate(
        self,
        prompts: Sequence[str],
        *,
        n_steps: int,
        guidance_scale: float,
        generators: list[torch.Generator],
        **kwargs: Any,
    ) -> Tensor:
        """Runs the pipeline, with one generator for each prompt, and returns the final latents. ``kwargs`` go to the
        pipeline; a pipeline that also draws from a picture needs it there, by the name of its own argument.
        """
        return self.run_pipeline(prompts, n_steps, guidance_scale, generators, **kwargs)

    def run_pipeline(
        self,
        prompts: Sequence[str],
        n_steps: int,
        guidance_scale: float | None,
        generators: list[torch.Generator],
        **kwargs: Any,
    ) -> Tensor:
        """What the pipeline's own call returns. ``guidance_scale`` None leaves that argument to the pipeline."""
        check_inputs(self.pipe, kwargs)
        self.check_steps(n_steps)
        scale = {} if guidance_scale is None else {"guidance_scale": guidance_scale}
        # Some pipelines write their templates into the lists of prompts that they are given.
        kwargs = {name: list(given) if isinstance(given, list) else given for name, given in kwargs.items()}
        found: Tensor = getattr(
            self.pipe(
                prompt=list(prompts),
                num_inference_steps=n_steps,
                generator=generators,
                **scale,
                **{"output_type": "latent", **self.call_defaults, **kwargs},
            ),
            self.result,
        )
        return found

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes, also while its models are offloaded."""
        return torch.device(self.pipe._execution_device)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the transformer computes in, however its weights are stored; raises
        :class:`~tide.errors.TideError` if it is unknown."""
        dtype = computing_dtype(self.transformer)
        if dtype not in COMPUTE:
            raise TideError(
                f"the transformer's weights are {dtype}, which is a storage format only; load it in bfloat16, or store "
                "it smaller by enable_layerwise_casting"
            )
        return dtype

    @property
    def latent_channels(self) -> int:
        """Channels of the scaled latents ``[B, c, h, w]`` that :meth:`denoise` takes."""
        return int(self.transformer.config.in_channels)

    @torch.no_grad()
    def encode_images(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images ``[B, 3, H, W]`` in [-1, 1] to scaled latents ``[B, c, h, w]``, float32; clips ``[B, 3, F, H, W]`` to
        ``[B, c, f, h, w]``, and for a pipeline of videos an image to those of a clip of one frame.

        The mode of the VAE's posterior, or a sample of it if a generator is given; a VAE without a posterior
        (AutoencoderTiny, AutoencoderDC) has only one result. ``(x - shift_factor) * scaling_factor``, without the shift
        where the pipeline has none (:attr:`shifts_latents`); where the pipeline scales each channel
        (:attr:`scales_channels`), ``(x - latents_mean) / latents_std * scaling_factor``.
        """
        vae = vae_of(self.pipe, "pass latents instead of images")
        framed = (self.vae_has_frames or self.draws == "videos") and images.ndim == 4
        latents = encoded(vae, (images.unsqueeze(2) if framed else images).to(self.device), generator)
        mean, factor = channel_scales(vae, latents, by_channel=self.scales_channels, shifted=self.shifts_latents)
        latents = (latents - mean) * factor
        if self.draws == "images" and framed:
            latents = latents.squeeze(2)
        if latents.ndim != _DIMENSIONS[self.draws] or latents.shape[1] != self.latent_channels:
            raise TideError(
                f"a {type(vae).__name__} makes latents of shape {list(latents.shape)} and the transformer draws "
                f"{self.latent_channels} channels; load the pipeline with the VAE that the transformer was trained with"
            )
        return latents

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents ``[B, c, ...]``, as :meth:`generate` returns them, to images ``[B, 3, H, W]`` in [-1, 1], or
        clips ``[B, 3, F, H, W]``."""
        vae = vae_of(self.pipe, "keep the latents")
        framed = self.vae_has_frames and self.draws == "images"
        latents = (latents.unsqueeze(2) if framed else latents).to(self.device)
        mean, factor = channel_scales(vae, latents, by_channel=self.scales_channels, shifted=self.shifts_latents)
        images = decoded(vae, latents / factor + mean)
        return images.squeeze(2) if framed else images

    def latent_frames(self, frames: int) -> int:
        """Frames of the latents of a clip of so many frames: the first is encoded alone, then as many at once as the
        VAE compresses."""
        return (frames - 1) // self.frames_per_latent + 1

    def clip_frames(self, latent_frames: int) -> int:
        """Frames of the clip that so many frames of latents decode to: the inverse of :meth:`latent_frames`."""
        return (latent_frames - 1) * self.frames_per_latent + 1

    @property
    def frames_per_latent(self) -> int:
        """How many frames of a video one of its latents represents, after the first."""
        return int(self._of_vae(*(f"vae_{each}" for each in _TEMPORAL)) or 1)

    def unpacked(self, latents: Tensor, size: tuple[int, ...]) -> Tensor:
        """Latents as the pipeline hands them to its scheduler, as ``[B, c, *size]``."""
        return latents

    @property
    def pixels_per_latent(self) -> int:
        """Side of the square of pixels that one latent represents."""
        scale = self._of_vae(*(f"vae_{each}" for each in _SPATIAL))
        return int(scale or pixels_per_latent(vae_of(self.pipe, "give the size of latents")))

    def _of_vae(self, *names: str) -> int | None:
        """What the pipeline says of its VAE, by whichever of these names it has for it."""
        return next((found for name in names if (found := getattr(self.pipe, name, None))), None)

    @property
    def default_latents(self) -> tuple[int, ...]:
        """Height and width of the latents that the pipeline draws unless told otherwise; of a video frames before them,
        of sound the length alone."""
        side = int(self.transformer.config.sample_size)
        return side, side

    # -- the noise schedule -------------------------------------------------------------------------------

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: Tensor | float) -> Tensor:
        """Eq. 3, float32; ``timestep`` a number or ``[B]``: sqrt(abar_t) latents + sqrt(1 - abar_t) noise, or for
        flow matching (1 - sigma) latents + sigma noise."""
        signal, sigma = self.signal_and_noise(timestep, latents)
        return signal * latents.float() + sigma * noise.to(latents.device, torch.float32)

    def predicted_noise(self, prediction: Tensor, latents: Tensor, timestep: Tensor | float) -> Tensor:
        """The noise (eq. 4) that a :meth:`denoise` prediction for noisy ``latents`` implies, float32."""
        shares = self.signal_and_noise(timestep, latents)
        return schedule.noise_of(prediction, latents, *shares, self.prediction_type)

    def predicted_clean(self, prediction: Tensor, latents: Tensor, timestep: Tensor | float) -> Tensor:
        """The clean latents that a prediction for noisy ``latents [B, c, h, w]`` implies, float32."""
        shares = self.signal_and_noise(timestep, latents)
        return schedule.clean_of(prediction, latents, *shares, self.prediction_type)

    def signal_and_noise(self, timestep: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of image and noise at ``timestep``, a number or ``[B]``, shaped to multiply latents ``like``."""
        return schedule.signal_and_noise(self.pipe.scheduler, timestep, like, flow=self.flow_matching)

    @property
    def prediction_type(self) -> str:
        """What the model predicts: "velocity" with flow matching, else what the scheduler's config says."""
        return "velocity" if self.flow_matching else str(self.pipe.scheduler.config.prediction_type)

    def sampling_timesteps(self, n_steps: int) -> Tensor:
        """The timesteps of the pipeline's scheduler when it samples in ``n_steps`` steps, descending, on the CPU.

        If the schedule depends on the image's size, those for :attr:`default_latents`.
        """
        found = schedule.sampling_timesteps(self.pipe.scheduler, n_steps, **self.schedule_arguments(n_steps))
        return self.from_scheduler(found).sort(descending=True).values

    def from_scheduler(self, timestep: Tensor) -> Tensor:
        """Timesteps from 1000 (noise) to 0, of those of a scheduler that counts otherwise; most count so, too."""
        return 1000 - timestep if self.inverted else timestep

    def to_scheduler(self, timestep: Tensor) -> Tensor:
        """The inverse of :meth:`from_scheduler`."""
        return 1000 - timestep if self.inverted else timestep

    def prediction_of_step(self, prediction: Tensor) -> Tensor:
        """What the pipeline hands to its scheduler's step as the model's prediction, as :meth:`denoise` returns it."""
        return -prediction if self.inverted else prediction

    @property
    def run_timesteps(self) -> Tensor:
        """The timesteps of the run that the scheduler is set to, as it counts them, one for each call."""
        return torch.as_tensor(self.pipe.scheduler.timesteps)

    def of_step(self, prediction: Tensor, timestep: Any, sample: Tensor) -> tuple[Tensor, float, Tensor]:
        """What the model predicted, the timestep, and the noisy latents that it was given, of what the scheduler's
        ``step`` is given."""
        # Schedulers of another parametrisation scale them; the others return the sample itself.
        given = getattr(self.pipe.scheduler, "scale_model_input", lambda sample, _: sample)(sample, timestep)
        at = float(self.from_scheduler(torch.as_tensor(timestep).flatten()[:1]))
        return self.prediction_of_step(prediction), at, given

    def check_steps(self, n_steps: int) -> None:
        """Raises :class:`~tide.errors.TideError` for a number of steps that the pipeline cannot draw in."""
        self.sampling_timesteps(n_steps)

    def schedule_arguments(self, n_steps: int) -> dict[str, Any]:
        """What the pipeline passes to its scheduler in addition to the number of steps."""
        return {}


def _loaded_from(transformer: Any) -> str | None:
    """The pipeline's name or folder; its transformer lies in a folder of it."""
    path: str | Path | None = getattr(getattr(transformer, "config", None), "_name_or_path", None)
    return str(path or "").removesuffix("/transformer") or None


def check_tensor(tensor: str, *, read: bool = False) -> None:
    """Raises :class:`~tide.errors.TideError` unless ``tensor`` is one of :data:`TENSORS` or, where it is only ``read``,
    of :data:`INPUTS`."""
    known = (*TENSORS, *INPUTS) if read else TENSORS
    if tensor not in known:
        raise TideError(f"tensor {tensor!r} is unknown; use one of {', '.join(known)}")


def halves(batch_size: int, do_cfg: bool, *, conditional: Literal["first", "last"]) -> Tensor:
    """Bool mask of the conditional rows of a batch that, under guidance, holds both kinds in two halves.

    Args:
        batch_size: rows of the call, guidance included.
        do_cfg: whether the pipeline guides; without it all rows are conditional.
        conditional: which half is.
    """
    if do_cfg and batch_size % 2:
        raise TideError(
            f"a call with guidance holds two rows for each prompt and this one has {batch_size}, an odd number; use a "
            "pipeline that batches the rows of both kinds alone, or draw without guidance (guidance_scale=1)"
        )
    rows = torch.arange(batch_size)
    if not do_cfg:
        return rows >= 0
    return rows < batch_size // 2 if conditional == "first" else rows >= batch_size // 2


def check_text_encoder(pipe: Any) -> None:
    # One that has no such parts at all encodes in a way of its own.
    if any(getattr(pipe, part, pipe) is None for part in ("text_encoder", "tokenizer")):
        raise TideError(
            "the pipeline has no text encoder; load it with text_encoder and tokenizer, or pass embeddings instead of "
            "prompts"
        )
