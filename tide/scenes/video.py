"""A tiny pipeline of videos: a real ``LattePipeline`` of diffusers for the clips of :mod:`tide.scenes.moving`.

It continues the bundled pipeline: the VAE is the same, each block over the tokens of a frame begins as one of the
PixArt, and the blocks over frames begin without effect, so that it draws still scenes frame by frame before it is
trained. The trained weights are not shipped; ``python scripts/train_moving_scenes.py`` makes them in minutes.
"""

from __future__ import annotations

import inspect

import torch
from diffusers import DiffusionPipeline, LattePipeline, LatteTransformer3DModel, PixArtTransformer2DModel
from torch import nn
from transformers import T5EncoderModel

from tide.scenes.moving import MOVING_VOCABULARY, N_FRAMES
from tide.scenes.pipeline import build_pipeline, build_scheduler, build_text_encoder, build_tokenizer


def build_video_transformer(start: PixArtTransformer2DModel) -> LatteTransformer3DModel:
    """As many blocks over the tokens of a frame as ``start`` has, with its weights, and as many over frames, whose
    outputs are zero."""
    names = set(inspect.signature(LatteTransformer3DModel).parameters) & set(start.config)
    model = LatteTransformer3DModel(**{name: start.config[name] for name in names}, video_length=N_FRAMES)
    weights = start.state_dict()
    model.load_state_dict({**model.state_dict(), **{name: value.float() for name, value in weights.items()}})
    for block in model.temporal_transformer_blocks:
        for linear in (block.attn1.to_out[0], block.ff.net[2]):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
    return model


def build_video_text_encoder(start: T5EncoderModel) -> T5EncoderModel:
    """``start`` with fresh rows for the words that captions of clips have in addition."""
    encoder = build_text_encoder(len(MOVING_VOCABULARY) + 3)
    weights = {name: value.float() for name, value in start.state_dict().items()}
    for name, value in encoder.state_dict().items():
        weights[name] = torch.cat([weights[name], value[len(weights[name]) :]])
    encoder.load_state_dict(weights)
    return encoder


def build_video_pipeline(start: DiffusionPipeline | None = None) -> LattePipeline:
    """The pipeline before its training.

    ``start`` is the pipeline that it continues, such as :func:`~tide.scenes.load_pipeline`; default one with random
    weights.
    """
    start = start or build_pipeline()
    pipe = LattePipeline(
        tokenizer=build_tokenizer(MOVING_VOCABULARY),
        text_encoder=build_video_text_encoder(start.text_encoder).eval(),
        vae=start.vae,
        transformer=build_video_transformer(start.transformer).eval(),
        scheduler=build_scheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
