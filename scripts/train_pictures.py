"""Trains a small PixArt pipeline on a folder of named pictures: ``python scripts/train_pictures.py --data FOLDER``.

The folder is an image folder as ``tide collect --data`` reads it: square pictures, and a ``metadata.jsonl`` with
``file_name`` and ``text``, the caption. Columns that may be there: ``texts``, other captions of the picture;
``weight``, how often it is drawn relative to others (default 1); ``flip``, whether its mirror image fits the captions
(default false). ``scripts/emoji_pictures.py`` makes such a folder.

Every stage draws from ``--seed`` alone, works in ``--work`` and resumes from its last checkpoint there, so that the
same command continues a training that was stopped. The pipeline is written to ``--out``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from mistakes import count, told
from named_pictures import Picture, Pictures, captions_of, words_of
from pipeline_training import (
    STARTED,
    UNTRAINED,
    Parts,
    encode,
    finish_vae,
    fit_transformer,
    fit_vae,
    load_vae,
    save_pipeline,
)
from torch import Tensor
from training_state import State

from tide.scenes import pipeline as bundled

VAE_STEPS = 1_000
TRANSFORMER_STEPS = 6_500
BLOCKS = 12
#: The pictures that the transformer sees: each as it is, and moved, scaled and mirrored in fixed ways.
VERSIONS = 4
#: How often a caption is another than ``text``, and how often it is left out for classifier-free guidance.
OTHER_CAPTION, NO_CAPTION = 0.3, 0.1


def train_vae(pictures: Pictures, work: Path, seed: int, steps: int, batch: int, start: Path | None) -> None:
    """Begins with the weights of the bundled VAE, or those of ``start``: they know edges and areas of one colour."""
    torch.manual_seed(seed)
    vae = load_vae((start or bundled.DATA / "pipeline") / "vae", STARTED).float().train()

    def draw() -> Tensor:
        rows = torch.multinomial(pictures.weights, batch, replacement=True)
        return torch.stack([pictures.moved(int(row), torch.default_generator) for row in rows])

    fit_vae(vae, draw, State(work / "vae-state.safetensors"), steps, lr=1e-3)
    finish_vae(vae, pictures.some(256), work / "vae")


def train_transformer(pictures: Pictures, work: Path, out: Path, seed: int, steps: int, batch: int) -> None:
    """With the text encoder, from fresh weights."""
    vae = load_vae(work / "vae", UNTRAINED).eval()
    torch.manual_seed(seed)
    words, longest = words_of(pictures.rows)
    tokenizer = bundled.build_tokenizer(words, longest)
    parts = Parts(tokenizer, bundled.build_text_encoder(len(tokenizer)), bundled.build_transformer(BLOCKS))
    latents = _latents(vae, pictures, seed)
    share = (pictures.weights / pictures.weights.sum()).double().numpy()
    share /= share.sum()

    def draw(rng: np.random.Generator) -> tuple[Tensor, list[str]]:
        rows = rng.choice(len(share), size=batch, p=share)
        return latents[rng.integers(VERSIONS, size=batch), rows], [_draw_caption(pictures.rows[i], rng) for i in rows]

    average = fit_transformer(parts, vae, draw, work, seed, steps, lr=8e-4, every=200)
    save_pipeline(vae, average, tokenizer, out)


def _latents(vae: AutoencoderKL, pictures: Pictures, seed: int) -> Tensor:
    """``[VERSIONS, n, c, h, w]``: the pictures as they are, then in :data:`VERSIONS` - 1 other ways."""
    source = torch.Generator().manual_seed(seed)
    versions = [[pictures.image(i) for i in range(len(pictures.rows))]]
    versions += [[pictures.moved(i, source) for i in range(len(pictures.rows))] for _ in range(VERSIONS - 1)]
    batches = [torch.stack(images).split(128) for images in versions]
    return torch.stack([torch.cat([encode(vae, batch) for batch in each]) for each in batches])


def _draw_caption(picture: Picture, rng: np.random.Generator) -> str:
    kind = rng.random()
    if kind < NO_CAPTION:
        return ""
    captions = captions_of(picture)
    if kind < NO_CAPTION + OTHER_CAPTION and len(captions) > 1:
        return captions[1 + rng.integers(len(captions) - 1)]
    return captions[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("vae", "transformer", "all"), default="all", nargs="?")
    parser.add_argument("--data", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--work", type=Path, default=Path("runs/pictures"), help="where the state of a stage is kept")
    parser.add_argument("--out", type=Path, default=Path("runs/pictures/final"), help="folder of the pipeline")
    parser.add_argument("--start", type=Path, metavar="DIR", help="folder of a pipeline whose VAE to start from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-steps", type=count, default=VAE_STEPS)
    parser.add_argument("--steps", type=count, default=TRANSFORMER_STEPS, help="steps of the transformer")
    parser.add_argument("--batch", type=count, default=32, help="pictures a step; the VAE takes half of them")
    args = parser.parse_args()
    with told():
        pictures = Pictures.read(args.data)
        if args.stage != "transformer":
            train_vae(pictures, args.work, args.seed, args.vae_steps, max(1, args.batch // 2), args.start)
        if args.stage != "vae":
            train_transformer(pictures, args.work, args.out, args.seed, args.steps, args.batch)


if __name__ == "__main__":
    main()
