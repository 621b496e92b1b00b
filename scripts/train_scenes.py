"""Trains the bundled pipeline and its judge: ``python scripts/train_scenes.py [vae|transformer|judge|all]``.

Every stage draws from ``--seed`` alone. ``vae`` and ``transformer`` resume from their last checkpoint in ``--work``
(default ``runs/scenes``), where the VAE stays; the pipeline and the judge are written to ``--out`` (default: the
package data). ``--start`` begins with the weights of an earlier pipeline, possibly of other words and scenes, instead
of fresh ones.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from judge_training import train_judge
from mistakes import count, told
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
    to_tensor,
    to_uint8,
)
from torch import Tensor
from training_state import State
from transformers import PreTrainedTokenizerFast, T5EncoderModel

from tide.files import read_json, write_json
from tide.scenes import pipeline as bundled
from tide.scenes.render import render
from tide.scenes.scene import SHORT_TEMPLATES, TEMPLATES, Scene, scenes

VAE_STEPS = 2400
VAE_SCENES = 16_000
TRANSFORMER_STEPS = 9_000
TRANSFORMER_SCENES = 16_000


def render_uint8(items: list[Scene]) -> np.ndarray:
    """``[n, 64, 64, 3]`` uint8."""
    return np.stack([to_uint8(render(scene).image) for scene in items])


def train_vae(
    work: Path, out: Path, seed: int, steps: int = VAE_STEPS, batch: int = 32, start: Path | None = None
) -> AutoencoderKL:
    """Mean squared error plus 1e-4 KL; the scaling factor is set so that latents have unit variance."""
    torch.manual_seed(seed)
    vae = bundled.build_vae() if start is None else load_vae(start / "vae", STARTED).float().train()
    images = to_tensor(render_uint8(list(scenes("train", VAE_SCENES, seed))))
    fit_vae(
        vae,
        lambda: images[torch.randint(len(images), (batch,))],
        State(work / "vae-state.safetensors"),
        steps,
        lr=2e-3 if start is None else 1e-3,
    )
    finish_vae(vae, to_tensor(render_uint8(list(scenes("dev", 256, seed)))), work / "vae")
    return vae


def encode_scenes(vae: AutoencoderKL, items: list[Scene]) -> Tensor:
    """Scaled latent means ``[n, 4, 16, 16]``."""
    parts = (items[start : start + 256] for start in range(0, len(items), 256))
    return torch.cat([encode(vae, to_tensor(render_uint8(part))) for part in parts])


def _draw_caption(scene: Scene, rng: np.random.Generator) -> str:
    kind = rng.random()
    if kind < 0.1:
        return ""  # the unconditional branch of classifier-free guidance
    templates = SHORT_TEMPLATES if kind < 0.2 else TEMPLATES
    return scene.caption(templates[rng.integers(len(templates))])


def _text_encoder_of(start: Path) -> T5EncoderModel:
    """The text encoder of an earlier pipeline; words that both vocabularies have keep their embeddings."""
    earlier = T5EncoderModel.from_pretrained(start / "text_encoder").float()
    before = PreTrainedTokenizerFast.from_pretrained(start / "tokenizer").get_vocab()
    encoder = bundled.build_text_encoder()
    table = encoder.get_input_embeddings().weight.detach().clone()
    for word, row in bundled.build_tokenizer().get_vocab().items():
        if word in before:
            table[row] = earlier.get_input_embeddings().weight[before[word]].detach()
    shared = {k: v for k, v in earlier.state_dict().items() if v.shape == encoder.state_dict()[k].shape}
    encoder.load_state_dict({**encoder.state_dict(), **shared})
    with torch.no_grad():
        encoder.get_input_embeddings().weight.copy_(table)
    return encoder


def train_transformer(
    work: Path,
    out: Path,
    seed: int,
    steps: int = TRANSFORMER_STEPS,
    batch: int = 32,
    lr: float = 8e-4,
    start: Path | None = None,
) -> None:
    """Minimises the MSE of the v-prediction, text encoder included; saves the exponential average of the weights."""
    vae = load_vae(work / "vae", UNTRAINED).eval()
    torch.manual_seed(seed)
    text_encoder = bundled.build_text_encoder() if start is None else _text_encoder_of(start)
    transformer = bundled.build_transformer()
    if start is not None:
        earlier = PixArtTransformer2DModel.from_pretrained(start / "transformer")
        transformer.load_state_dict(earlier.float().state_dict())
    parts = Parts(bundled.build_tokenizer(), text_encoder, transformer)
    items = list(scenes("train", TRANSFORMER_SCENES, seed))
    latents = encode_scenes(vae, items)

    def draw(rng: np.random.Generator) -> tuple[Tensor, list[str]]:
        rows = rng.integers(len(items), size=batch)
        return latents[rows], [_draw_caption(items[i], rng) for i in rows]

    average = fit_transformer(parts, vae, draw, work, seed, steps, lr)
    save_pipeline(vae, average, parts.tokenizer, out / "pipeline")


def _stages(name: str) -> Iterator[str]:
    yield from ("vae", "transformer", "judge") if name == "all" else (name,)


STAGES: dict[str, Any] = {"vae": train_vae, "transformer": train_transformer, "judge": train_judge}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("vae", "transformer", "judge", "all"), default="all", nargs="?")
    parser.add_argument("--work", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--out", type=Path, default=bundled.DATA)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=count, help="override the number of steps of the stage")
    parser.add_argument("--batch", type=count, help="override the images of a step")
    parser.add_argument("--start", type=Path, metavar="DIR", help="folder of an earlier pipeline to start from")
    args = parser.parse_args()
    if args.start is not None and args.stage == "judge":
        parser.error("--start is not used by the judge; leave it off")
    given = {name: value for name in ("steps", "batch") if (value := getattr(args, name)) is not None}
    with told():
        for stage in _stages(args.stage):
            start = {} if stage == "judge" else {"start": args.start}
            STAGES[stage](args.work, args.out, args.seed, **given, **start)
            _record(args.out / "training.json", stage, args, given)


def _record(path: Path, stage: str, args: argparse.Namespace, given: dict[str, int]) -> None:
    """Adds to ``path`` what the stage was trained with."""
    kept = read_json(path, dict[str, dict[str, Any]]) if path.exists() else {}
    defaults = {name: p.default for name, p in inspect.signature(STAGES[stage]).parameters.items()}
    kept[stage] = {
        "seed": args.seed,
        **{name: given.get(name, defaults[name]) for name in ("steps", "batch")},
        "from_earlier_weights": stage != "judge" and args.start is not None,
        "torch": torch.__version__,
    }
    write_json(path, kept)


if __name__ == "__main__":
    main()
