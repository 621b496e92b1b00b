"""Trains the tiny pipeline of videos on moving scenes: ``python scripts/train_moving_scenes.py``.

It continues the bundled pipeline (``--start``), keeps its VAE, and trains transformer and text encoder from ``--seed``
alone. A run resumes from its last checkpoint in ``--work`` (default ``runs/moving-scenes``). The pipeline is written to
``--out`` (default ``<work>/final``), with what it draws and how well: ``drawn.png``, ``drawn.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, LattePipeline, PixArtAlphaPipeline
from mistakes import count, told
from pipeline_training import Kind, Parts, encode, fit_transformer, save_pipeline
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

import tide
from tide.errors import TideError
from tide.files import replace_file, write_json
from tide.pictures import picture_writer, to_image
from tide.scenes import load_judge
from tide.scenes import pipeline as bundled
from tide.scenes.moving import MovingScene, clips_of, directions, moving_prompts, moving_scenes
from tide.scenes.scene import SHORT_TEMPLATES, TEMPLATES
from tide.scenes.video import build_video_pipeline
from tide.strips import Row, labelled

STEPS = 400
SCENES = 1_200
SAVED_EVERY = 100
DRAWING_STEPS = 20
#: Tokens that a LattePipeline pads prompts to.
LENGTH = 120
#: Tokens of a prompt that is drawn alone, to which the negative prompt beside it is cut.
TYPICAL_LENGTH = 16


def encode_clips(vae: AutoencoderKL, items: Sequence[MovingScene]) -> Tensor:
    """Scaled latent means ``[n, 4, F, 16, 16]``, frame by frame."""
    found = []
    for first in range(0, len(items), 32):
        clips = clips_of(items[first : first + 32])
        latents = encode(vae, clips.transpose(1, 2).flatten(0, 1))
        found.append(latents.unflatten(0, (len(clips), -1)).transpose(1, 2))
    return torch.cat(found)


def _draw_caption(scene: MovingScene, rng: np.random.Generator) -> str:
    kind = rng.random()
    if kind < 0.1:
        return ""  # the unconditional branch of classifier-free guidance
    templates = SHORT_TEMPLATES if kind < 0.3 else TEMPLATES
    return scene.caption(templates[rng.integers(len(templates))], speed=rng.random() < 0.8)


def predicted(
    model: nn.ModuleDict,
    noisy: Tensor,
    t: Tensor,
    captions: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    alone: Tensor,
) -> Tensor:
    """What the transformer predicts for noisy latents ``[B, 4, F, 16, 16]`` and captions, as a pipeline would call it;
    ``alone [B]`` says which of them it draws alone.

    A LattePipeline cuts the padding off a prompt that it draws alone. Of several prompts it sets the padding, up to 120
    tokens, to zero, and the transformer attends to it. The negative prompt keeps what the text encoder makes of it. As
    a row's padding tokens are equal, attending to n of them is attending to one with log n added to its score; so
    captions are padded little here, and a bias stands for the rest.
    """
    tokens = tokenizer([*captions], padding=True, return_tensors="pt")
    ids, mask = (nn.functional.pad(tokens[name], (0, 1)) for name in ("input_ids", "attention_mask"))
    text = model["text_encoder"](ids, attention_mask=mask)[0]
    is_negative = torch.tensor([not caption for caption in captions])[:, None]
    text = torch.where((is_negative | mask.bool())[..., None], text, torch.zeros((), dtype=text.dtype))
    n_words = mask.sum(1, keepdim=True)
    cut = torch.where(is_negative, TYPICAL_LENGTH - n_words, 0)
    padding = torch.where(alone[:, None], cut, LENGTH - n_words)
    bias = torch.where(mask.bool(), 0.0, (padding / (mask.shape[1] - n_words)).log().clamp(min=-10_000))
    out: Tensor = model["transformer"](
        noisy,
        encoder_hidden_states=text,
        encoder_attention_mask=bias[:, None].repeat_interleave(noisy.shape[2], 0),
        timestep=t,
    ).sample
    return out


def _of_clips(
    model: nn.ModuleDict,
    noisy: Tensor,
    t: Tensor,
    captions: list[str],
    tokenizer: PreTrainedTokenizerFast,
    rng: torch.Generator,
) -> Tensor:
    return predicted(model, noisy, t, captions, tokenizer, torch.rand(len(captions), generator=rng) < 0.5)


LATTE = Kind(_of_clips, LattePipeline, rise=50, forget=0.02, high=0.4)


def load_start(folder: Path | None) -> PixArtAlphaPipeline:
    """The pipeline that training continues; default the bundled one."""
    if folder is None:
        return bundled.load_pipeline()
    if not (folder / "model_index.json").is_file():
        raise TideError(f"{folder} holds no pipeline; --start is the folder of one")
    return PixArtAlphaPipeline.from_pretrained(folder)


def train(
    work: Path,
    out: Path,
    seed: int = 0,
    steps: int = STEPS,
    batch: int = 8,
    n_scenes: int = SCENES,
    lr: float = 8e-4,
    start: Path | None = None,
) -> LattePipeline:
    """Minimises the MSE of the v-prediction; saves the exponential average of the weights to ``out``."""
    torch.manual_seed(seed)
    pipe = build_video_pipeline(load_start(start))
    items = list(moving_scenes("train", n_scenes, seed))
    latents = encode_clips(pipe.vae, items)

    def draw(rng: np.random.Generator) -> tuple[Tensor, list[str]]:
        rows = rng.integers(len(items), size=batch)
        return latents[rows], [_draw_caption(items[i], rng) for i in rows]

    parts = Parts(pipe.tokenizer, pipe.text_encoder, pipe.transformer)
    average = fit_transformer(parts, pipe.vae, draw, work, seed, steps, lr, every=SAVED_EVERY, kind=LATTE)
    save_pipeline(pipe.vae, average, parts.tokenizer, out, LattePipeline)
    return load_trained(out)


def load_trained(path: Path) -> LattePipeline:
    """What :func:`train` has written, in float32."""
    if not (path / "model_index.json").is_file():
        raise TideError(f"{path} holds no pipeline; run `python scripts/train_moving_scenes.py`")
    pipe = LattePipeline.from_pretrained(path).to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_clips(
    pipe: LattePipeline,
    captions: Sequence[str],
    *,
    seed: int = 0,
    n_steps: int | None = None,
    guidance_scale: float = 2.0,
) -> Tensor:
    """Clips ``[n, 3, F, 64, 64]`` in [-1, 1], drawn in batches of 16; the seed of each is ``seed`` plus its place."""
    found = []
    for first in range(0, len(captions), 16):
        part = list(captions[first : first + 16])
        generators = [torch.Generator().manual_seed(seed + first + i) for i in range(len(part))]
        size = {"height": 64, "width": 64, "video_length": int(pipe.transformer.config.video_length)}
        drawn = pipe(
            part,
            num_inference_steps=n_steps or DRAWING_STEPS,
            guidance_scale=guidance_scale,
            generator=generators,
            output_type="pt",
            clean_caption=False,
            **size,
        ).frames
        found.append(drawn.transpose(1, 2) * 2 - 1)
    return torch.cat(found)


def judged(clips: Tensor, wanted: Sequence[MovingScene]) -> dict[str, float]:
    """The shares of clips ``[n, 3, F, 64, 64]`` that the judge finds right.

    Attributes are those of the frame in the middle, where the edge of the image cuts nothing off.
    """
    judge = load_judge()
    pairs = list(zip(directions(judge, clips), (scene.direction for scene in wanted), strict=True))
    kinds = {"direction": pairs, "direction of what moves": [pair for pair in pairs if pair[1] != "still"]}
    shares = {name: float(np.mean([a == b for a, b in some])) for name, some in kinds.items() if some}
    verdicts = judge.read(clips[:, :, clips.shape[2] // 2])
    for name in ("class", "colour", "depth", "shadow", "ground"):
        right = [verdict.agrees(scene.scene, name) for verdict, scene in zip(verdicts, wanted, strict=True)]
        shares[name] = float(np.mean(right))
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/moving-scenes"))
    parser.add_argument("--out", type=Path, help="default: the folder final of --work")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=count, default=STEPS)
    parser.add_argument("--batch", type=count, default=8, help="clips of a step")
    parser.add_argument("--scenes", type=count, default=SCENES, help="clips that are rendered to train on")
    parser.add_argument("--drawn", type=count, default=48, help="clips that are drawn and judged in the end")
    parser.add_argument(
        "--start", type=Path, metavar="DIR", help="folder of a pipeline to continue; default the bundled"
    )
    args = parser.parse_args()
    out = args.out or args.work / "final"
    with told():
        pipe = train(args.work, out, args.seed, args.steps, args.batch, args.scenes, start=args.start)
        wanted, captions = zip(*moving_prompts("dev", args.drawn, args.seed), strict=True)
        clips = draw_clips(pipe, captions)
        latents = encode_clips(pipe.vae, wanted)
        decoded = tide.adapter_for(pipe).decode_latents(latents).clamp(-1, 1)
        figures = {"drawn": judged(clips, wanted), "rendered, through the VAE": judged(decoded, wanted)}
        for name, shares in figures.items():
            print(f"{name}: " + "  ".join(f"{attribute} {share:.0%}" for attribute, share in shares.items()))
        write_json(out / "drawn.json", {"clips": args.drawn, "steps": args.steps, **figures})
        rows = [Row([to_image(clip)], (), caption) for clip, caption in zip(clips[:8], captions[:8], strict=True)]
        replace_file(out / "drawn.png", picture_writer(labelled(rows, side=512)))


if __name__ == "__main__":
    main()
