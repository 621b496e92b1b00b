"""Every family's real pipeline, tiny and with random weights: text encoders and tokenizers made from scratch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from operator import attrgetter
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderDC, AutoencoderKL, DDIMScheduler, DPMSolverMultistepScheduler
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
)

from tide.adapters import Adapter, adapter_for, tap
from tide.scenes.pipeline import MAX_CAPTION_TOKENS, build_pipeline, build_text_encoder, build_tokenizer

#: Hidden width of the text encoders other than T5, whose width is 128.
TEXT = 32
STEPS = 3


def build_vae(stages: int, latent_channels: int = 4, **options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        block_out_channels=(8,) * stages,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=latent_channels,
        mid_block_add_attention=False,
        **options,
    )


def _clip(cls: type) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(build_tokenizer()),
        hidden_size=TEXT,
        intermediate_size=2 * TEXT,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=TEXT,
        max_position_embeddings=MAX_CAPTION_TOKENS,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    return cls(config)


def _gemma() -> Gemma2Model:
    return Gemma2Model(
        Gemma2Config(
            vocab_size=len(build_tokenizer()),
            hidden_size=TEXT,
            intermediate_size=2 * TEXT,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            pad_token_id=0,
        )
    )


def build_pixart() -> Any:
    return build_pipeline()


def build_dit() -> Any:
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, out_channels=8, num_layers=3, sample_size=8, patch_size=2
    )
    labels = {0: "tench, Tinca tinca", 1: "house"}
    return diffusers.DiTPipeline(transformer, build_vae(3), DDIMScheduler(), id2label=labels)


def build_sd3(scheduler: FlowMatch | None = None, in_channels: int = 4, latent_channels: int = 4) -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=latent_channels,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=128,
        caption_projection_dim=32,
        pooled_projection_dim=2 * TEXT,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=scheduler or FlowMatch(shift=3.0),
        vae=build_vae(3, latent_channels, scaling_factor=1.5, shift_factor=0.06),
        text_encoder=_clip(CLIPTextModelWithProjection),
        tokenizer=build_tokenizer(),
        text_encoder_2=_clip(CLIPTextModelWithProjection),
        tokenizer_2=build_tokenizer(),
        text_encoder_3=build_text_encoder(),
        tokenizer_3=build_tokenizer(),
    )


def build_flux(guidance_embeds: bool = True, in_channels: int = 16) -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=in_channels,
        out_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=128,
        pooled_projection_dim=TEXT,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    pipe = diffusers.FluxPipeline(
        scheduler=FlowMatch(use_dynamic_shifting=guidance_embeds),
        vae=build_vae(3, scaling_factor=0.4, shift_factor=0.1),
        text_encoder=_clip(CLIPTextModel),
        tokenizer=build_tokenizer(),
        text_encoder_2=build_text_encoder(),
        tokenizer_2=build_tokenizer(),
        transformer=transformer,
    )
    pipe.default_sample_size = 8
    return pipe


def build_sana() -> Any:
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=3,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=TEXT,
        sample_size=8,
    )
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41,
    )
    scheduler = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    return diffusers.SanaPipeline(build_tokenizer(), _gemma(), vae, transformer, scheduler)


def build_lumina2() -> Any:
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=48,
        num_layers=3,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(300, 16, 16),
        cap_feat_dim=TEXT,
    )
    vae = build_vae(4, scaling_factor=0.4, shift_factor=0.1)
    return diffusers.Lumina2Pipeline(transformer, FlowMatch(shift=6.0), vae, _gemma(), build_tokenizer())


def build_lumina_next() -> Any:
    transformer = diffusers.LuminaNextDiT2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=3,
        num_attention_heads=2,
        num_kv_heads=2,
        multiple_of=16,
        cross_attention_dim=TEXT,
    )
    nn.init.zeros_(transformer.pad_token)  # left uninitialised by the model, and not used for images of one size
    return diffusers.LuminaPipeline(transformer, FlowMatch(), build_vae(4), _gemma(), build_tokenizer())


def build_hunyuan() -> Any:
    transformer = diffusers.HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=32,
        num_layers=4,
        cross_attention_dim=TEXT,
        cross_attention_dim_t5=128,
        pooled_projection_dim=16,
    )
    bert = BertConfig(
        vocab_size=len(build_tokenizer()),
        hidden_size=TEXT,
        intermediate_size=2 * TEXT,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
    )
    return diffusers.HunyuanDiTPipeline(
        vae=build_vae(4),
        text_encoder=BertModel(bert),
        tokenizer=build_tokenizer(),
        transformer=transformer,
        scheduler=DDIMScheduler(prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=build_text_encoder(),
        tokenizer_2=build_tokenizer(),
    )


#: Of a chunk of a block: the module that norms without modulation, and the one that reads the modulated tokens.
Norms = Mapping[str, tuple[str, str]]
_JOINT: Norms = {"msa": ("norm1.norm", "attn"), "mlp": ("norm2", "ff")}
_ADALN_SINGLE: Norms = {"msa": ("norm1", "attn1"), "mlp": ("norm2", "ff")}


@dataclass(frozen=True)
class Family:
    """How the tests draw with a family's pipeline, and where to look inside its blocks.

    ``size`` is of the images in pixels, ``grid`` of their tokens; ``guided`` what makes a run guided.
    """

    build: Callable[[], Any]
    size: tuple[int, int]
    grid: tuple[int, int]
    norms: Norms
    guided: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 3.0, "negative_prompt": "a tree"})
    arguments: Mapping[str, Any] = field(default_factory=lambda: {"max_sequence_length": 20})
    prompts: tuple[str, str] = ("a red cube", "a house, far")

    def norms_of(self, block: nn.Module) -> Norms:
        return {"msa": ("norm.norm", "proj_mlp")} if hasattr(block, "proj_mlp") else self.norms


FAMILIES = {
    "pixart": Family(build_pixart, (64, 32), (8, 4), _ADALN_SINGLE),
    "dit": Family(
        build_dit,
        (32, 32),
        (4, 4),
        {"msa": ("norm1.norm", "attn1"), "mlp": ("norm3", "ff")},
        guided={"guidance_scale": 3.0},
        prompts=("house", "7"),
    ),
    "sd3": Family(build_sd3, (32, 16), (4, 2), _JOINT),
    "flux": Family(
        build_flux,
        (32, 16),
        (4, 2),
        _JOINT,
        {"guidance_scale": 2.0, "true_cfg_scale": 3.0, "negative_prompt": "a tree"},
    ),
    "sana": Family(build_sana, (64, 32), (16, 8), _ADALN_SINGLE),
    "lumina2": Family(
        build_lumina2,
        (64, 32),
        (4, 2),
        {"msa": ("norm1.norm", "attn"), "mlp": ("ffn_norm1", "feed_forward")},
        arguments={"max_sequence_length": 40},
    ),
    "lumina_next": Family(
        build_lumina_next, (64, 32), (4, 2), {"msa": ("norm1.norm", "attn1"), "mlp": ("ffn_norm1", "feed_forward")}
    ),
    "hunyuan": Family(build_hunyuan, (64, 32), (4, 2), {"msa": ("norm1.norm", "attn1")}),
}
#: Families that guide by a call of its own for the negative prompt.
TWO_CALLS = ("flux", "lumina2")


def prepared(pipe: Any, seed: int = 0) -> Any:
    """``pipe`` in evaluation mode, its weights random but reproducible and no branch of a block silent."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    for name, component in pipe.components.items():
        if isinstance(component, nn.Module):
            component.eval().requires_grad_(False)
            for parameter in component.parameters() if name == "transformer" else ():
                if not parameter.any():
                    nn.init.normal_(parameter, std=0.2, generator=generator)
    return pipe


@cache
def pipeline(name: str) -> Any:
    """The family's tiny pipeline; tests share it and leave it as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return prepared(FAMILIES[name].build())


def adapter(name: str) -> Adapter:
    return adapter_for(pipeline(name))


def _parts_of(name: str) -> dict[str, Any]:
    """The parts of a tiny pipeline of this class, and more: those of its family, with what the class adds."""
    if name.startswith("Flux"):
        # Of each token 16 of latents, and as many of a picture; Fill has a mask of 4 x 4 pixels of each latent, too.
        beside = 80 if "Fill" in name else 16 if "FluxControlNet" not in name and "Control" in name else 0
        parts = build_flux(in_channels=16 + beside).components
        net: Any = diffusers.FluxControlNetModel
        options = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
    elif name.startswith("Stable"):
        inpainting = name == "StableDiffusion3InpaintPipeline"
        parts = (build_sd3(in_channels=33, latent_channels=16) if inpainting else build_sd3()).components
        net = diffusers.SD3ControlNetModel
        options = {"num_layers": 2, "num_extra_conditioning_channels": int("Inpainting" in name)}
    elif name.startswith("Sana"):
        parts = build_sana().components
        config = {**parts["transformer"].config, "num_layers": 1}
        return {**parts, "controlnet": diffusers.SanaControlNetModel.from_config(config)}
    else:
        parts = build_hunyuan().components
        net, options = (
            diffusers.HunyuanDiT2DControlNetModel,
            {"transformer_num_layers": 4, "load_weights_from_transformer": False},
        )
        parts["requires_safety_checker"] = False
    return (
        {**parts, "controlnet": net.from_transformer(parts["transformer"], **options)}
        if "ControlNet" in name
        else parts
    )


@cache
def variant(name: str) -> Any:
    """A tiny pipeline of the class ``diffusers.<name>``, which draws from pictures too; shared by the tests."""
    cls = getattr(diffusers, name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts, taken = _parts_of(name), inspect.signature(cls.__init__).parameters
        pipe = cls(**{part: value for part, value in parts.items() if part in taken})
    if name.startswith("Flux"):
        pipe.default_sample_size = 8
    return prepared(pipe)


def draw(name: str, *, guided: bool = False, n_steps: int = STEPS, pipe: Any = None, **kwargs: Any) -> Tensor:
    """The final latents of both prompts."""
    family = FAMILIES[name]
    arguments = {"guidance_scale": 1.0, **(family.guided if guided else {}), **family.arguments, **kwargs}
    if name == "dit":
        arguments.pop("negative_prompt", None)
    if isinstance(arguments.get("negative_prompt"), str):
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(family.prompts)
    return adapter_for(pipe or pipeline(name)).generate(
        family.prompts,
        n_steps=n_steps,
        generators=[torch.Generator().manual_seed(i) for i in range(len(family.prompts))],
        **{"height": family.size[0], "width": family.size[1], **arguments},
    )


def hooks_of(pipe: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.transformer.modules())


def misfit(pipe: Any, name: str, block: int, chunk: str = "msa") -> float:
    """How far ``own.modulation`` of a block is from what the block does, relative to what that changes: of the tokens
    that the attention (or feed-forward) reads against the normed ones, scaled and shifted."""
    own, family = adapter_for(pipe), FAMILIES[name]
    module, seen = own.blocks[block], {}
    norms = family.norms_of(module)
    norm, reader = (attrgetter(path)(module) for path in norms.get(chunk, norms["msa"]))
    hooks = [
        norm.register_forward_hook(lambda _m, _a, output: seen.update(normed=output)),
        reader.register_forward_pre_hook(
            lambda _m, args, kwargs: seen.update(read=args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        ),
    ]
    with tap(own, {block: lambda x, call: seen.update(call=call)}):
        draw(name, pipe=pipe, n_steps=2)
    for hook in hooks:
        hook.remove()
    call, read = seen["call"], seen["read"]
    scale, shift = own.modulation(block, chunk)(call.timestep, call.conditioning)
    read = read.flatten(2).transpose(1, 2) if read.ndim == 4 else read
    expected = seen["normed"] * (1 + scale[:, None]) + shift[:, None]
    return float((read - expected).norm() / (read - seen["normed"]).norm())
