"""The bundled pipeline: a real but small ``PixArtAlphaPipeline`` of diffusers, with 6 M parameters.

``build_*`` make the parts with fresh weights; :func:`load_pipeline` loads the trained ones that the package ships
(``tide/scenes/data/pipeline``, written by ``python scripts/train_scenes.py``).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from tide.errors import TideError
from tide.scenes.scene import VOCABULARY

DATA = Path(__file__).parent / "data"

#: The longest caption of a template has 21 tokens, end mark included; the rest is room for longer prompts.
MAX_CAPTION_TOKENS = 24


def build_tokenizer(words: Sequence[str] = VOCABULARY, max_tokens: int = MAX_CAPTION_TOKENS) -> PreTrainedTokenizerFast:
    """One token for each of ``words``; others map to ``<unk>``."""
    vocabulary = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", *words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=max_tokens,
    )


def build_text_encoder(vocab_size: int = len(VOCABULARY) + 3) -> T5EncoderModel:
    """Two layers of T5 at width 128 over the tokens of :func:`build_tokenizer`, special ones included."""
    return T5EncoderModel(
        T5Config(
            vocab_size=vocab_size,
            d_model=128,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            is_encoder_decoder=False,
            use_cache=False,
        )
    )


def build_vae() -> AutoencoderKL:
    """64 x 64 pixels to 16 x 16 latents of 4 channels."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def build_transformer(blocks: int = 8) -> PixArtTransformer2DModel:
    """Blocks of width 192 over 8 x 8 image tokens, initialised as PixArt is (zero cross-attention and output)."""
    model = PixArtTransformer2DModel(
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=4,
        out_channels=8,
        num_layers=blocks,
        cross_attention_dim=192,
        caption_channels=128,
        sample_size=16,
        patch_size=2,
        use_additional_conditions=False,
    )
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(model.pos_embed.proj.weight.view(192, -1))
    nn.init.zeros_(model.pos_embed.proj.bias)
    for linear in (
        model.adaln_single.emb.timestep_embedder.linear_1,
        model.adaln_single.emb.timestep_embedder.linear_2,
        model.adaln_single.linear,
    ):
        nn.init.normal_(linear.weight, std=0.02)
    for block in model.transformer_blocks:
        nn.init.zeros_(block.attn2.to_out[0].weight)
    nn.init.zeros_(model.proj_out.weight)
    return model


def build_scheduler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++ of second order over a linear schedule of 1000 steps, for v-prediction."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_start=0.0001,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        solver_order=2,
        algorithm_type="dpmsolver++",
    )


def build_pipeline() -> PixArtAlphaPipeline:
    """The pipeline with random weights (for tests, and as the start of training)."""
    return PixArtAlphaPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=build_text_encoder().eval(),
        vae=build_vae().eval(),
        transformer=build_transformer().eval(),
        scheduler=build_scheduler(),
    )


def load_pipeline(dtype: torch.dtype = torch.float32, **kwargs: Any) -> PixArtAlphaPipeline:
    """The trained pipeline that ships with the package.

    ``dtype`` is that of the models; ``kwargs`` go to diffusers' ``from_pretrained``, such as a component that is to be
    left out: ``vae=None``.

    Raises :class:`~tide.errors.TideError` if the package data are missing (a checkout in which
    ``python scripts/train_scenes.py`` has not finished).
    """
    path = DATA / "pipeline"
    if not (path / "model_index.json").is_file():
        raise TideError(f"{path} holds no pipeline: reinstall tide-sae, or run `python scripts/train_scenes.py`")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch_dtype= is deprecated, not gone
        pipe = PixArtAlphaPipeline.from_pretrained(path, torch_dtype=dtype, **kwargs)
    # Checkpoints and results record this name, not the folder that the package happens to be installed in.
    pipe.transformer.register_to_config(_name_or_path="scenes")
    pipe.set_progress_bar_config(disable=True)
    return pipe
