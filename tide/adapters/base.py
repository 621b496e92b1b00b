"""All that the rest of the package knows of a diffusion transformer and its pipeline, behind one class."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tide.errors import TideError
from tide.sae.modulation import Modulation

#: What can be hooked of a block: its output (the residual stream), its self-attention's output, its
#: feed-forward's.
TENSORS = ("output", "attention", "feed_forward")
#: Which scale and shift of a block: those before the self-attention or those before the feed-forward.
Chunk = Literal["msa", "mlp"]
#: A number, negative from the end, or "penultimate".
Block = int | str
#: Keyword arguments of the transformer that carry the prompts, one row each.
Text = Mapping[str, Tensor]

_ADAPTERS: dict[type, type[Adapter]] = {}


class Adapter(ABC):
    """One model family: where its blocks are, where their modulation comes from, how its pipeline runs it.

    Subclasses serve one transformer class each and are found through :func:`adapter_for`. What depends on the
    scheduler (eqs 3 and 4) is here, for schedulers with ``alphas_cumprod``.

    Args:
        pipe: a diffusers pipeline. It is read, never changed.
    """

    family: ClassVar[str]

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.transformer: Any = pipe.transformer
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
        return len(self.blocks)

    def resolve_block(self, block: Block) -> int:
        """A block's number; negative ones count from the end, "penultimate" is the last but one."""
        n = self.n_blocks
        index = n - 2 if block == "penultimate" else block
        if not isinstance(index, int) or not -n <= index < n or (block == "penultimate" and n < 2):
            raise TideError(f"block {block} does not exist; this transformer has blocks 0..{n - 1}")
        return index % n

    @abstractmethod
    def hook_module(self, block: int, tensor: str = "output") -> nn.Module:
        """The module whose output holds ``tensor`` of ``block``."""

    def image_tokens(self, output: Any, tensor: str = "output") -> Tensor:
        """The image tokens ``[B, T, d_model]`` in the output of :meth:`hook_module`."""
        return output

    def with_image_tokens(self, output: Any, x: Tensor, tensor: str = "output") -> Any:
        """``output`` with its image tokens replaced by ``x``."""
        return x

    @abstractmethod
    def token_grid(self, latent_height: int, latent_width: int) -> tuple[int, int]:
        """Rows and columns of the image tokens of latents of this size; tokens are in row-major order."""

    # -- one call of the transformer ----------------------------------------------------------------------

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a transformer call by name, whether they came by keyword or by position."""
        return dict(self._signature.bind(self.transformer, *args, **kwargs).arguments)

    def timestep_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """The timestep ``[B]`` of a transformer call, float32, in the unit that the transformer is given."""
        arguments = self.arguments(args, kwargs)
        hidden = arguments["hidden_states"]
        timestep = arguments.get("timestep")
        if timestep is None:
            raise TideError("the transformer was called without a timestep; pass timestep=")
        timestep = torch.as_tensor(timestep, device=hidden.device).reshape(-1)
        return timestep.to(torch.float32).expand(len(hidden))

    @abstractmethod
    def conditioning_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
        """What the model adds to its timestep embedding in a call, ``[B, d_embedding]`` float32, or None."""

    @abstractmethod
    def modulation(self, block: Block, chunk: Chunk = "msa", *, next_block: bool = False) -> Modulation:
        """A :class:`Modulation` equal to the block's own adaLN, or with ``next_block`` the following
        one's."""

    # -- the pipeline -------------------------------------------------------------------------------------

    @abstractmethod
    def conditional_rows(self, batch_size: int, do_cfg: bool) -> Tensor:
        """Bool mask ``[batch_size]`` of the rows of a pipeline's call that belong to the prompt."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None = None) -> dict[str, Tensor]:
        """Transformer keyword arguments of the prompts, one row each, without guidance."""

    @abstractmethod
    def denoise(self, latents: Tensor, timestep: Tensor | float, text: Text) -> Tensor:
        """The model's prediction for noisy ``latents [B, c, h, w]``: one call, no guidance; float32."""

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[str],
        *,
        n_steps: int,
        guidance_scale: float,
        generators: list[torch.Generator],
        **kwargs: Any,
    ) -> Tensor:
        """Runs the pipeline, one generator a prompt, and returns the final latents."""

    @property
    def device(self) -> torch.device:
        return torch.device(self.pipe._execution_device)

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype

    @property
    def latent_channels(self) -> int:
        return int(self.transformer.config.in_channels)

    @torch.no_grad()
    def encode_images(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images ``[B, 3, H, W]`` in [-1, 1] to scaled latents ``[B, c, h, w]``, float32.

        The mode of the VAE's posterior; a sample of it if a generator is given.
        """
        vae = self.pipe.vae
        if vae is None:
            raise TideError("the pipeline has no VAE; load it with one or pass latents instead of images")
        posterior = vae.encode(images.to(self.device, vae.dtype)).latent_dist
        latents = (posterior.mode() if generator is None else posterior.sample(generator)).float()
        return (latents - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor

    # -- the noise schedule -------------------------------------------------------------------------------

    def _signal_and_noise(self, timestep: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), shaped to multiply ``like [B, c, h, w]``, float32."""
        scheduler = self.pipe.scheduler
        alphas = getattr(scheduler, "alphas_cumprod", None)
        if alphas is None:
            raise TideError(f"{type(scheduler).__name__} has no alphas_cumprod; use DPM-Solver, DDIM or DDPM")
        index = torch.as_tensor(timestep, device="cpu").round().long().reshape(-1)
        if int(index.min()) < 0 or int(index.max()) >= len(alphas):
            wrong = int(index.max() if int(index.max()) >= len(alphas) else index.min())
            raise TideError(f"timestep {wrong} does not exist; this scheduler has 0..{len(alphas) - 1}")
        abar = alphas.cpu()[index].to(like.device, torch.float32).reshape(-1, 1, 1, 1)
        return abar.sqrt(), (1 - abar).sqrt()

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: Tensor | float) -> Tensor:
        """Eq. 3: sqrt(abar_t) latents + sqrt(1 - abar_t) noise, float32; ``timestep`` a number or ``[B]``."""
        signal, sigma = self._signal_and_noise(timestep, latents)
        return signal * latents.float() + sigma * noise.to(latents.device, torch.float32)

    def predicted_noise(self, prediction: Tensor, latents: Tensor, timestep: Tensor | float) -> Tensor:
        """The noise (eq. 4) that a :meth:`denoise` prediction for noisy ``latents`` stands for, float32."""
        kind = self.pipe.scheduler.config.prediction_type
        prediction, latents = prediction.float(), latents.float()
        if kind == "epsilon":
            return prediction
        signal, sigma = self._signal_and_noise(timestep, latents)
        if kind == "v_prediction":
            return signal * prediction + sigma * latents
        if kind == "sample":
            return (latents - signal * prediction) / sigma
        raise TideError(f"prediction_type {kind!r} is unknown; use epsilon, v_prediction or sample")

    def sampling_timesteps(self, n_steps: int) -> Tensor:
        """The timesteps of the pipeline's scheduler when it samples in ``n_steps`` steps, descending, on the
        CPU."""
        scheduler = self.pipe.scheduler
        if not 1 <= n_steps <= scheduler.config.num_train_timesteps:
            raise TideError(f"{n_steps} sampling steps asked for; give 1..{scheduler.config.num_train_timesteps}")
        # set_timesteps resets a scheduler's state, so a copy takes it.
        scheduler = type(scheduler).from_config(scheduler.config)
        scheduler.set_timesteps(n_steps)
        return torch.unique(scheduler.timesteps.cpu()).flip(0)  # second-order schedulers repeat timesteps


def check_tensor(tensor: str) -> None:
    if tensor not in TENSORS:
        raise TideError(f"tensor {tensor!r} is unknown; use one of {', '.join(TENSORS)}")


def register(transformer: type) -> Callable[[type[Adapter]], type[Adapter]]:
    """Class decorator: the adapter serves this transformer class and its subclasses."""

    def add(adapter: type[Adapter]) -> type[Adapter]:
        _ADAPTERS[transformer] = adapter
        return adapter

    return add


def adapter_for(pipe: Any) -> Adapter:
    """The adapter of a pipeline, by the class of its transformer.

    Raises :class:`~tide.errors.TideError` if none is registered for it.
    """
    transformer = getattr(pipe, "transformer", None)
    for cls in type(transformer).__mro__:
        if cls in _ADAPTERS:
            return _ADAPTERS[cls](pipe)
    found = f"no transformer (a {type(pipe).__name__})" if transformer is None else type(transformer).__name__
    supported = ", ".join(sorted(cls.__name__ for cls in _ADAPTERS))
    raise TideError(
        f"{found} is not supported; supported: {supported}. "
        "To add one, decorate a subclass of tide.adapters.Adapter with @tide.adapters.register(<its class>)"
    )
