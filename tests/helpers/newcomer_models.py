"""Pipelines of a newcomer: a tiny PixArt and a tiny DiT, trained on drawn digits for seconds on one core.

They are made and trained as diffusers users do: the mean squared error of the prediction of noised latents (eq. 3, with
v as the target), classes and captions dropped in a tenth of the rows. Their VAE is the bundled one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from tests.helpers.newcomer import COLOURS, DIGITS, Digit
from tide.scenes.pipeline import load_pipeline

#: Blocks, heads, and width of a head.
SIZES = {"num_layers": 3, "num_attention_heads": 4, "attention_head_dim": 16}
LATENTS = {"in_channels": 4, "out_channels": 8, "sample_size": 16, "patch_size": 2}
N_WORDS = 8
_SCHEDULE = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "v_prediction"}

#: "No class" is number 1000 in diffusers' DiTPipeline, however many there are.
N_CLASSES = 1000

#: What a model predicts of noised latents at timesteps, for the rows of these numbers.
Predict = Callable[[Tensor, Tensor, Tensor], Tensor]


def trained_pixart(drawn: Sequence[Digit], steps: int, seed: int = 0) -> PixArtAlphaPipeline:
    """A PixArt that draws captions such as "a blue seven"."""
    torch.manual_seed(seed)
    pipe = PixArtAlphaPipeline(
        tokenizer=_tokenizer(),
        text_encoder=_text_encoder(),
        vae=load_pipeline().vae.float().eval(),
        transformer=PixArtTransformer2DModel(
            **SIZES, **LATENTS, cross_attention_dim=64, caption_channels=64, use_additional_conditions=False
        ),
        scheduler=DPMSolverMultistepScheduler(**_SCHEDULE),
    )
    captions = [each.caption for each in drawn] + [""]
    words, mask = (each.detach() for each in pipe.encode_prompt(captions, do_classifier_free_guidance=False)[:2])

    def predict(noised: Tensor, timesteps: Tensor, rows: Tensor) -> Tensor:
        conditions: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        return pipe.transformer(
            noised,
            encoder_hidden_states=words[rows],
            encoder_attention_mask=mask[rows],
            timestep=timesteps,
            added_cond_kwargs=conditions,
        ).sample

    _train(pipe, predict, drawn, steps)
    return pipe


def trained_dit(drawn: Sequence[Digit], steps: int, seed: int = 0) -> DiTPipeline:
    """A DiT that draws the classes of the digits' folders."""
    torch.manual_seed(seed)
    pipe = DiTPipeline(
        transformer=DiTTransformer2DModel(**SIZES, **LATENTS, num_embeds_ada_norm=N_CLASSES, dropout=0.0),
        vae=load_pipeline().vae.float().eval(),
        scheduler=DDIMScheduler(**_SCHEDULE, clip_sample=False),
        id2label=dict(enumerate(DIGITS)),
    )
    labels = torch.tensor([DIGITS.index(each.digit) for each in drawn] + [N_CLASSES])

    def predict(noised: Tensor, timesteps: Tensor, rows: Tensor) -> Tensor:
        return pipe.transformer(noised, timestep=timesteps, class_labels=labels[rows]).sample

    _train(pipe, predict, drawn, steps)
    return pipe


def _train(pipe: Any, predict: Predict, drawn: Sequence[Digit], steps: int, batch: int = 16, lr: float = 3e-3) -> None:
    """The last row that ``predict`` knows, after those of ``drawn``, is of no caption or class."""
    latents, noise_schedule = _encoded(pipe, drawn), DDIMScheduler(**_SCHEDULE)
    model = pipe.transformer.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        rows = torch.randint(len(drawn), (batch,))
        clean, timesteps = latents[rows], torch.randint(1000, (batch,))
        noise = torch.randn_like(clean)
        noised = noise_schedule.add_noise(clean, noise, timesteps)
        rows = torch.where(torch.rand(batch) < 0.1, len(drawn), rows)
        found = predict(noised, timesteps, rows).chunk(2, dim=1)[0]
        loss = F.mse_loss(found, noise_schedule.get_velocity(clean, noise, timesteps))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
    model.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)


@torch.no_grad()
def _encoded(pipe: Any, drawn: Sequence[Digit]) -> Tensor:
    pixels = np.stack([np.asarray(each.draw()) for each in drawn])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    return (
        torch.cat([pipe.vae.encode(each).latent_dist.mean for each in images.split(64)])
        * pipe.vae.config.scaling_factor
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    words = ("<pad>", "</s>", "<unk>", "a", *COLOURS, *DIGITS)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=N_WORDS
    )


def _text_encoder() -> T5EncoderModel:
    config = T5Config(
        vocab_size=3 + 1 + len(COLOURS) + len(DIGITS),
        **{"d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 4, "dropout_rate": 0.0},
        is_encoder_decoder=False,
        use_cache=False,
    )
    return T5EncoderModel(config).eval()
