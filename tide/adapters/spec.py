"""A family of diffusion transformers as a table row: what :class:`~tide.adapters.declared.DeclaredAdapter` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from tide.adapters.base import Chunk

#: Where a modulation's (shift, scale) are among the chunks of a projection, counted in widths; None: there is none.
Chunks = Mapping[Chunk, tuple[int | None, int | None]]
#: Shift, scale and gate of the attention, then of the feed-forward.
SIXTHS: Chunks = MappingProxyType({"msa": (0, 1), "mlp": (3, 4)})
#: Scale and gate of the attention, then of the feed-forward.
QUARTERS: Chunks = MappingProxyType({"msa": (None, 0), "mlp": (None, 2)})
#: Shift, scale and gate of both: attention and feed-forward read the same tokens.
THIRDS: Chunks = MappingProxyType({"msa": (0, 1), "mlp": (0, 1)})

#: Where the image tokens are in what a module gets or returns: alone, in a tuple, in one tensor with the text before or
#: behind them, as a map ``[B, d, rows, columns]``, or per head ``[B, T, heads, d / heads]``.
Place = Literal["image", "text, image", "image, text", "text + image", "image + text", "map", "heads"]
#: Rows of a guided call, in their order, or a call of its own for the negative prompt; "none" of models that are
#: distilled for guidance, which have rows of prompts only.
Guidance = Literal["unconditional, conditional", "conditional, unconditional", "two calls", "none"]


@dataclass(frozen=True)
class Blocks:
    """A list of equal blocks.

    Attributes:
        path: of the list in the transformer.
        output: where the image tokens are in a block's output.
        attention, feed_forward: the attributes that hold them; None where the block has none to hook.
        attention_output, feed_forward_output: where the image tokens are in what they return.
        attention_input, feed_forward_input: and in what they get as their first argument, the hidden states.
        linear: path of the adaLN projection in the block, or for all blocks, with a leading slash, in the transformer;
            one for each chunk where they are apart; None without modulation.
        chunks: where shift and scale are among the projection's chunks; a chunk that is missing is not modulated.
        table: the block's parameter ``[chunks, d_model]`` that is added to the projection (adaLN-single).
        given: the block's argument ``[B, rows, d_model]`` that holds scale and shift, the rows being its chunks, where
            they are no projection of a timestep embedding that could be copied; in the place of ``linear``.
    """

    path: str = "transformer_blocks"
    output: Place = "image"
    attention: str | None = "attn1"
    feed_forward: str | None = "ff"
    attention_output: Place = "image"
    feed_forward_output: Place = "image"
    attention_input: Place = "image"
    feed_forward_input: Place = "image"
    linear: str | Mapping[Chunk, str] | None = "norm1.linear"
    chunks: Chunks = field(default_factory=lambda: SIXTHS)
    table: str | None = None
    given: str | None = None

    def linear_of(self, chunk: Chunk) -> str | None:
        """The path of a chunk's adaLN projection."""
        return self.linear if self.linear is None or isinstance(self.linear, str) else self.linear[chunk]

    def throughout(self) -> Blocks:
        """The same, where attention and feed-forward get and return the tokens as the block returns them."""
        places = ("attention_output", "feed_forward_output", "attention_input", "feed_forward_input")
        same: dict[str, Any] = dict.fromkeys(places, self.output)
        return replace(self, **same)

    @property
    def given_rows(self) -> list[int]:
        """The rows of :attr:`given` that are scales and shifts of image tokens."""
        return sorted({row for chunk in self.chunks.values() for row in chunk if row is not None})


#: The blocks of Flux and of models that are built as it is: first those of two streams, which share an attention, then
#: those of one stream, which add attention and feed-forward in one projection behind one norm.
DOUBLE = Blocks(output="text, image", attention="attn", attention_output="image, text")
SINGLE = Blocks("single_transformer_blocks", "text + image", None, None, linear="norm.linear", chunks=THIRDS)


@dataclass(frozen=True)
class Sinusoid:
    """A projection of the timestep that the model computes without a module: as ``get_timestep_embedding`` of diffusers
    with these arguments."""

    num_channels: int = 256
    flip_sin_to_cos: bool = True
    downscale_freq_shift: float = 0.0
    scale: float = 1.0
    max_period: float = 10000.0


@dataclass(frozen=True)
class Embedding:
    """``temb = embedder(sinusoid(factor * timestep given)) + conditioning``, which the projections of blocks read.

    Attributes:
        path: of the module of the transformer that returns temb; empty for the transformer itself.
        part: its place in that module's output, where that is a tuple.
        sinusoid: the module in it that projects the timestep, or the projection itself.
        embedder: the module in it that embeds the projection.
        layers: the embedder's two linear layers.
        conditioned: whether something is added; or the attribute of the transformer that says so.
        added: the module in it that makes what is added, where no module returns temb.
        factor: what the model multiplies the timestep by that it is given.
        of_block: path is that of a module in each block.
        activation: projections read SiLU(temb), and not temb itself.
    """

    path: str = "time_text_embed"
    part: int | None = None
    sinusoid: str | Sinusoid = "time_proj"
    embedder: str = "timestep_embedder"
    layers: tuple[str, str] = ("linear_1", "linear_2")
    conditioned: bool | str = False
    added: str | None = None
    factor: float = 1.0
    of_block: bool = False
    activation: bool = True


@dataclass(frozen=True)
class Text:
    """How prompts become arguments of the transformer.

    Attributes:
        outputs: argument of the transformer -> its place in what the pipeline's ``encode_prompt`` returns.
        arguments: what ``encode_prompt`` gets besides the prompts.
        as_called: names of its arguments that get the defaults of the pipeline's own call.
        length: its argument for the number of tokens; None where that is fixed.
        count: its argument for the number of prompts, where it has one.
        guidance: the guidance scale given to models that embed it (``config.guidance_embeds``), the pipeline's default.
        guidance_factor: what the pipeline multiplies that scale by.
        mask_of_all: the argument for a mask of the text that also covers the image behind it.
    """

    outputs: Mapping[str, int] = field(default_factory=lambda: {"encoder_hidden_states": 0})
    arguments: Mapping[str, Any] = field(default_factory=lambda: {"do_classifier_free_guidance": False})
    as_called: tuple[str, ...] = ()
    length: str | None = "max_sequence_length"
    count: str | None = None
    guidance: float | None = None
    guidance_factor: float = 1.0
    mask_of_all: str | None = None


@dataclass(frozen=True)
class Spec:
    """A family.

    Attributes:
        family: the name that stores and checkpoints carry.
        transformer: the class of diffusers.
        pipelines: the classes that call it in the way this says -> what they draw from besides the prompt.
        refused: the classes that do not -> why, and the class that runs the same parts in a way that does.
        blocks: its lists of blocks, in the order in which they run.
        embedding: of the timestep; None where blocks are not modulated.
        text: how prompts are encoded.
        guidance: where the rows of the negative prompt are.
        negative: with two calls, the place of the negative embeddings in what ``encode_prompt`` returns; None if it is
            called for them on its own.
        needs: the version of diffusers whose class and pipeline this says, where that is newer than the oldest that
            TIDE takes.
        models: the published models, as people call them.
        draws: what its pipelines draw.
        width: path of the width of the image tokens in the transformer; None: heads times their width.
        flow_matching: the model predicts a velocity.
        sign: 1, or -1 where the velocity leads from noise to image.
        inverted: the scheduler counts from noise (0) to image (1000), along the opposite of the velocity.
        channels: the field of the transformer's config for the channels of latents; that of its output where its input
            also holds pictures.
        latents_argument, timestep_argument: the transformer's arguments for the latents and for the timestep.
        timestep_unit: (a, b) where the transformer gets a + b t for the scheduler's timestep t.
        rounds_timestep: it gets the timestep in its own dtype.
        packed: tokens are squares of latents that the pipeline packs.
        square: the side of a token in latents where they are packed, or the config has no ``patch_size``.
        sequence: the pipeline's latents are a sequence ``[B, tokens, c]``, of one latent each.
        beside: arguments of the transformer for what it draws beside the latents (sound); ``text`` may hold them.
        grid: what says the rows and columns of a call: the size of its latents, or an argument.
        size: what says the size that the pipeline draws unless told otherwise; or its side in pixels.
            With "config.sample_height" also width and frames.
        frames: the pipeline's argument for the number of frames of a video.
        shifts_latents: the pipeline subtracts the VAE's ``shift_factor``.
        scales_channels: it scales each channel by ``latents_mean`` and ``latents_std`` of the VAE.
        vae_has_frames: the VAE takes images with frames, also where the pipeline draws images.
        sigmas: the pipeline passes its own sigmas, linear from 1 to 1 / n, to the scheduler.
        max_shift: of a schedule that is shifted by the image's size, the pipeline's default; None without.
        steps_both_branches: the scheduler steps the rows of both branches of guidance.
        guidance_scale: the pipeline's argument for classifier-free guidance.
        result: the attribute of what the pipeline returns that holds the latents.
        call: constant arguments of the transformer.
        call_defaults: what the pipeline gets unless told otherwise.
        received: what the transformer gets for the scheduler's t, in words, where the model's config decides.
        conditioning: what is added to the timestep embedding, in words.
        notes: what users should know of it, a sentence each.
    """

    family: str
    transformer: str
    pipelines: Mapping[str, tuple[str, ...]]
    blocks: tuple[Blocks, ...]
    embedding: Embedding | None
    text: Text
    guidance: Guidance
    negative: int | None = None
    refused: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)
    needs: str | None = None
    models: str = ""
    draws: Literal["images", "videos", "audio"] = "images"
    width: str | None = None
    flow_matching: bool = True
    sign: Literal[1, -1] = 1
    inverted: bool = False
    channels: Literal["in_channels", "out_channels"] = "in_channels"
    latents_argument: str = "hidden_states"
    timestep_argument: str = "timestep"
    timestep_unit: tuple[float, float] = (0.0, 1.0)
    rounds_timestep: bool = False
    packed: bool = False
    sequence: bool = False
    beside: tuple[str, ...] = ()
    square: int = 2
    grid: Literal["latents", "img_ids", "img_shapes", "size arguments"] = "latents"
    size: Literal["config.sample_size", "config.sample_height", "default_sample_size", "call"] | int = (
        "config.sample_size"
    )
    frames: str = "num_frames"
    shifts_latents: bool = True
    scales_channels: bool = False
    vae_has_frames: bool = False
    sigmas: bool = False
    max_shift: float | None = None
    steps_both_branches: bool = False
    guidance_scale: str = "guidance_scale"
    result: str = "images"
    call: Mapping[str, Any] = field(default_factory=dict)
    call_defaults: Mapping[str, Any] = field(default_factory=dict)
    received: str = ""
    conditioning: str = ""
    notes: tuple[str, ...] = ()


#: What specs of Flux and of models whose pipelines were made after its own have in common.
LIKE_FLUX: Mapping[str, Any] = MappingProxyType(
    {
        "guidance": "two calls",
        "width": "inner_dim",
        "timestep_unit": (0.0, 1 / 1000),
        "rounds_timestep": True,
        "packed": True,
        "grid": "img_ids",
        "size": "default_sample_size",
        "sigmas": True,
        "max_shift": 1.15,
    }
)
