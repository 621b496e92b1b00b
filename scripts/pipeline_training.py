"""Trains the parts of a small PixArt pipeline, whatever its pictures are: a VAE, then a transformer and text encoder.

Stages keep their state in one file below ``work`` and continue from it; a stage that was stopped and continued gives
the same weights as one that ran through.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DiffusionPipeline, ModelMixin, PixArtAlphaPipeline
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from training_state import Progress, State, load_optimizer, named, optimizer_tensors
from transformers import PreTrainedTokenizerFast, T5EncoderModel

from tide.errors import TideError
from tide.scenes import pipeline as bundled

#: bf16 products are emulated, and slow, on CPUs without instructions for them.
BF16 = torch.backends.cpu.get_cpu_capability() == "AVX512"
#: Remedies of :func:`load_vae`.
STARTED, UNTRAINED = "--start is the folder of a pipeline", "train the stage vae first"
DECAY_FROM = 0.7  # share of the steps after which the learning rate falls linearly to zero


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 ``[n, H, W, 3]`` to float ``[n, 3, H, W]`` in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(image: np.ndarray) -> np.ndarray:
    """From [0, 1] to 0..255."""
    return np.round(image * 255).astype(np.uint8)


# -- the VAE ---------------------------------------------------------------------------------------------------------


def load_vae(folder: Path, remedy: str) -> AutoencoderKL:
    """Raises :class:`~tide.errors.TideError`, which ends with the ``remedy``, for a folder without one."""
    if not (folder / "config.json").is_file():
        raise TideError(f"{folder} holds no VAE; {remedy}")
    return AutoencoderKL.from_pretrained(folder)


def fit_vae(
    vae: AutoencoderKL, draw: Callable[[], Tensor], state: State, steps: int, lr: float, every: int = 100
) -> None:
    """Mean squared error plus 1e-4 KL on the batches ``[B, 3, H, W]`` of ``draw``, which uses torch's generator.

    Every ``every`` steps it saves its state.
    """
    vae.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    first = _resume_vae(vae, optimizer, schedule, state)
    progress = Progress("vae", first, steps)
    for step in range(first + 1, steps + 1):
        x = draw()
        with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
            posterior = vae.encode(x).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        mse = (decoded.float() - x).square().mean()
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        optimizer.zero_grad()
        (mse + 1e-4 * kl).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            progress.log(step, mse=mse.item(), psnr=-10 * np.log10(mse.item() / 4), kl=kl.item())
        if step % every == 0 or step == steps:
            kept = named("model.", vae.state_dict()) | optimizer_tensors(optimizer)
            state.save(step, kept | {"random": torch.get_rng_state()})
    vae.eval()


def _resume_vae(
    vae: AutoencoderKL,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.OneCycleLR,
    state: State,
) -> int:
    first, tensors = state.load()
    if first > schedule.total_steps:
        raise TideError(f"{state.path} has made {first} steps; ask for as many or more, or delete it to train anew")
    if tensors:
        state.restore(vae, "model.", tensors)
        load_optimizer(optimizer, tensors)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the optimiser has made its steps in an earlier run
            for _ in range(first):
                schedule.step()
        torch.set_rng_state(tensors["random"])
        print(f"vae: resuming from step {first}")
    return first


def finish_vae(vae: AutoencoderKL, images: Tensor, path: Path) -> None:
    """Sets the scaling factor, so that latents of ``images [n, 3, H, W]`` have unit variance, and saves the VAE."""
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean
        psnr = -10 * torch.log10((vae.decode(latents).sample.clamp(-1, 1) - images).square().mean() / 4)
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    print(f"vae: PSNR {psnr:.2f} dB, scaling factor {vae.config.scaling_factor}")
    vae.save_pretrained(path)


def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Scaled latent means ``[n, c, h, w]`` of images ``[n, 3, H, W]`` in [-1, 1]."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=BF16):
        return vae.encode(images).latent_dist.mean.float() * vae.config.scaling_factor


# -- the transformer -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """What a pipeline has beside its VAE."""

    tokenizer: PreTrainedTokenizerFast
    text_encoder: T5EncoderModel
    transformer: ModelMixin


#: A batch of scaled latents ``[B, c, h, w]`` and its captions, from the step's generator.
Draw = Callable[[np.random.Generator], tuple[Tensor, list[str]]]
#: What the model predicts for noisy latents at timesteps ``[B]`` and captions; text encoder and transformer in it.
Predict = Callable[[nn.ModuleDict, Tensor, Tensor, list[str], PreTrainedTokenizerFast, torch.Generator], Tensor]


@dataclass(frozen=True)
class Kind:
    """What differs between pipelines.

    Attributes:
        predict: a call of the transformer.
        pipeline: the class.
        rise: steps over which the learning rate rises.
        forget: the least share of a step's weights in their exponential average.
        high: below 1, and the lower the more, high noise is drawn more often than low.
    """

    predict: Predict
    pipeline: type[DiffusionPipeline]
    rise: int = 300
    forget: float = 0.0015
    high: float = 0.7


def fit_transformer(
    parts: Parts,
    vae: AutoencoderKL,
    draw: Draw,
    work: Path,
    seed: int,
    steps: int,
    lr: float,
    every: int = 500,
    kind: Kind | None = None,
) -> nn.ModuleDict:
    """Minimises the MSE of the v-prediction, text encoder included; returns the exponential average of the weights.

    Every ``every`` steps it saves its state and the pipeline so far (``work/pipeline``). ``kind`` is by default that of
    the bundled pipeline.
    """
    kind = kind or PIXART
    model = nn.ModuleDict({"text_encoder": parts.text_encoder, "transformer": parts.transformer}).train()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    state = State(work / "transformer-state.safetensors")
    first, tensors = state.load()
    if tensors:
        state.restore(model, "model.", tensors)
        state.restore(average, "average.", tensors)
        load_optimizer(optimizer, tensors)
        print(f"transformer: resuming from step {first}")
    alphas = bundled.build_scheduler().alphas_cumprod
    tokenizer = copy.deepcopy(parts.tokenizer)  # it keeps the padding of its last call, which is not to be saved
    progress = Progress("transformer", first, steps)
    losses: list[float] = []
    for step in range(first + 1, steps + 1):
        loss = _loss(model, tokenizer, alphas, draw, np.random.default_rng([seed, step]), kind)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * _warmth(step, steps, kind.rise)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), max(kind.forget, 1 / (step + 1)))
        losses.append(loss)
        if step % 100 == 0:
            progress.log(step, loss=float(np.mean(losses[-100:])), norm=norm.item())
        if step % every == 0 or step == steps:
            weights = named("model.", model.state_dict()) | named("average.", average.state_dict())
            state.save(step, weights | optimizer_tensors(optimizer))
            save_pipeline(vae, average, parts.tokenizer, work / "pipeline", kind.pipeline)
    return average


def _warmth(step: int, steps: int, rise: int) -> float:
    """The learning rate of a step as a share of the highest: a rise over ``rise`` steps, and a fall at the end."""
    decay = (steps - step) / max(1.0, steps * (1 - DECAY_FROM))
    return min(1.0, step / rise, max(decay, 0.0))


def _loss(
    model: nn.ModuleDict,
    tokenizer: PreTrainedTokenizerFast,
    alphas: Tensor,
    draw: Draw,
    rng: np.random.Generator,
    kind: Kind,
) -> float:
    """The loss on one batch, whose gradients are added to those of ``model``."""
    noise_source = torch.Generator().manual_seed(int(rng.integers(2**62)))
    x0, captions = draw(rng)
    # Attributes are decided at high noise, so those timesteps are drawn more often than low ones.
    t = (1000 * torch.rand(len(x0), generator=noise_source) ** kind.high).long().clamp(max=999)
    noise = torch.randn(x0.shape, generator=noise_source)
    row = (-1, *[1] * (x0.ndim - 1))
    a, s = alphas[t].sqrt().view(row), (1 - alphas[t]).sqrt().view(row)
    # On a CPU the backward pass of bf16 flash attention is slower than that of plain products.
    attention = sdpa_kernel(SDPBackend.MATH) if BF16 else nullcontext()
    with torch.autocast("cpu", torch.bfloat16, enabled=BF16), attention:
        predicted = kind.predict(model, a * x0 + s * noise, t, captions, tokenizer, noise_source)
        # The other half of the channels would be the variance.
        loss = F.mse_loss(predicted[:, : x0.shape[1]].float(), a * noise - s * x0)
        loss.backward()
    return loss.item()


def _of_images(
    model: nn.ModuleDict,
    noisy: Tensor,
    t: Tensor,
    captions: list[str],
    tokenizer: PreTrainedTokenizerFast,
    rng: torch.Generator,
) -> Tensor:
    tokens = _tokens(tokenizer, captions)
    text = model["text_encoder"](tokens["input_ids"], attention_mask=tokens["attention_mask"])[0]
    predicted: Tensor = model["transformer"](
        noisy,
        encoder_hidden_states=text,
        encoder_attention_mask=tokens["attention_mask"],
        timestep=t,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    ).sample
    return predicted


PIXART = Kind(_of_images, PixArtAlphaPipeline)


def _tokens(tokenizer: PreTrainedTokenizerFast, captions: Sequence[str]) -> dict[str, Tensor]:
    length = tokenizer.model_max_length
    return tokenizer(list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt")


def save_pipeline(
    vae: AutoencoderKL,
    model: nn.ModuleDict,
    tokenizer: PreTrainedTokenizerFast,
    path: Path,
    kind: type[DiffusionPipeline] = PixArtAlphaPipeline,
) -> None:
    """Writes the pipeline in fp16, which is how it ships."""
    pipe = kind(
        tokenizer=tokenizer,
        text_encoder=copy.deepcopy(model["text_encoder"]),
        vae=copy.deepcopy(vae),
        transformer=copy.deepcopy(model["transformer"]),
        scheduler=bundled.build_scheduler(),
    )
    pipe.vae.register_to_config(_name_or_path="")  # without the folder that it was trained in
    pipe.to(torch.float16).save_pretrained(path)
