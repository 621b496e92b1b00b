"""What a TIDE finds in the tiny pipeline of videos, with the moving scenes as ground truth:
``python scripts/measure_moving_scenes.py --pipeline runs/moving-scenes/final``.

It collects clips of training scenes and trains one TIDE a block. Its latents, and the baselines' features (neurons,
principal components, latents of a random autoencoder), are chosen on training scenes and measured on scenes of the test
split. ``concepts.json`` in ``--out`` holds the figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mistakes import count, told
from torch import Tensor
from train_moving_scenes import load_trained

import tide
from tide.activations.batch import ActivationBatch
from tide.adapters import Adapter
from tide.evaluation.baselines import PCA, random_autoencoder
from tide.files import write_json
from tide.interpretation.concepts import Annotated, find_concepts, mean_latents
from tide.sae.model import TIDE
from tide.scenes.moving import MovingScene, annotated_clips, clips_of, moving_scenes
from tide.scenes.scene import ATTRIBUTES, CONCEPTS

#: Features of each token of the clips that choose, and of those that are measured; whether they have a sign.
Features = tuple[Tensor, Tensor, bool]
#: Concepts whose masks are measured; "object" is whatever class it has.
MEASURED = ("object", "shadow", *ATTRIBUTES["class"], *ATTRIBUTES["colour"], *ATTRIBUTES["ground"])
#: What a TIDE's latents are compared with: neurons, principal components, latents of an autoencoder with random
#: directions, and how often the other clips show each concept at the token's place, which no activation is needed for.
BASELINES = ("neuron", "pca", "random", "place")
STEPS = 300
#: The block over the tokens of a frame that begins as block 6 of the bundled pipeline, and the one over frames behind.
BLOCK, NEXT = 12, 13
#: Rows that the random autoencoder is calibrated on.
FITTED = 16_384


@dataclass(frozen=True)
class Sizes:
    """Clips to collect from, to choose on and to measure on; steps and sizes of the training."""

    collected: int = 192
    chosen: int = 40
    measured: int = 40
    timesteps: int = 3
    steps: int = STEPS
    n_latents: int = 1536
    k: int = 32
    batch_tokens: int = 1024


def collected(adapter: Adapter, items: Sequence[MovingScene], block: int, seed: int) -> list[ActivationBatch]:
    """An eighth of the tokens of each clip, at a timestep of its own."""
    parts = [items[first : first + 8] for first in range(0, len(items), 8)]
    batches = (
        (adapter.encode_images(clips_of(part)), adapter.encode_prompts([s.caption() for s in part])) for part in parts
    )
    options = tide.CollectOptions(token_fraction=1 / 8, batch_size=8)
    return [found[block] for found in tide.collect(adapter, batches, [block], options, seed=seed)]


def with_objects(data: Annotated) -> Annotated:
    """With the mask of the object, whatever its class."""
    data.masks["object"] = torch.stack([data.masks[name] for name in CONCEPTS["class"]]).any(0)
    return data


def centres(maps: Tensor, columns: int = 8) -> Tensor:
    """The mean column of non-negative maps ``[n, F, tokens of a frame]`` in each frame, ``[n, F]``; NaN where a frame's
    map is zero."""
    by_column = maps.unflatten(-1, (-1, columns)).sum(-2)
    return (by_column * torch.arange(columns)).sum(-1) / by_column.sum(-1)


def following(maps: Tensor, masks: Tensor) -> float:
    """How closely the centre of a map follows that of the mask over the frames of a clip: their correlation over the
    frames of all clips, each centre as its distance from its mean in its clip. In a frame whose map is zero, the centre
    counts as at its mean."""
    shown = masks.any(-1)
    found, wanted = (_from_mean(centres(x.float()), shown)[shown] for x in (maps, masks))
    scale = found.norm() * wanted.norm()
    return float(found @ wanted / scale) if scale > 0 else 0.0


def _from_mean(centre: Tensor, shown: Tensor) -> Tensor:
    known = centre.isfinite() & shown
    mean = torch.where(known, centre, 0.0).sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp(min=1)
    return torch.where(known, centre - mean, 0.0)


def features_of(
    model: TIDE, first: Annotated, second: Annotated, batches: list[ActivationBatch]
) -> dict[str, Features]:
    """Those of the model and of :data:`BASELINES`."""
    some = ActivationBatch.cat(batches).take(slice(FITTED))
    pca = PCA.fit(batches)
    frozen = random_autoencoder(model, some.x.float(), some.position)
    raw = [data.x.mean(0).flatten(0, 1) for data in (first, second)]
    often = torch.stack([first.masks[concept].float().mean(0) for concept in shown_in(first, second)], dim=1)
    found: dict[str, Features] = {
        "tide": (mean_latents(model, first), mean_latents(model, second), False),
        "neuron": (*_both(raw), True),
        "pca": (*_both(pca.coordinates(x) for x in raw), True),
        "random": (mean_latents(frozen, first), mean_latents(frozen, second), False),
        "place": (*_both(often.repeat(data.x.shape[1], 1) for data in (first, second)), False),
    }
    return found


def _both(each: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    first, second = each
    return first, second


def shown_in(*parts: Annotated) -> list[str]:
    """Those of :data:`MEASURED` that each of the parts shows."""
    return [concept for concept in MEASURED if all(bool(data.masks[concept].any()) for data in parts)]


def figures(found: Features, first: Annotated, second: Annotated, moves: Tensor, n_frames: int) -> dict[str, Any]:
    """Concept -> AUROC and IoU of the best feature on held-out clips, and their ``mean`` over the concepts; for the
    object also how closely its map follows it in the clips where it ``moves``."""
    concepts = shown_in(first, second)
    (chosen, held_out, signed), masks = found, [data.flat_masks(concepts) for data in (first, second)]
    best = find_concepts(concepts, (chosen, masks[0]), (held_out, masks[1]), signed=signed)
    out: dict[str, Any] = {
        c: {"feature": each.index, "auroc": round(each.auroc, 4), "iou": round(each.iou, 4)} for c, each in best.items()
    }
    out["mean"] = {name: round(sum(each[name] for each in out.values()) / len(out), 4) for name in ("auroc", "iou")}
    each = best["object"]
    values = (each.sign * held_out[:, each.index]).unflatten(0, (len(moves), n_frames, -1))
    # The map above the threshold that was chosen with the feature, as a picture of it would show.
    above = (values - each.threshold).clamp(min=0)[moves]
    mask = second.masks["object"].unflatten(1, (n_frames, -1))[moves]
    out["object"]["follows"] = round(following(above, mask), 4)
    return out


def measure(adapter: Adapter, block: int, out: Path, sizes: Sizes | None = None, seed: int = 0) -> dict[str, Any]:
    """Trains a TIDE of ``block`` in ``out`` and returns its figures beside the baselines'."""
    sizes = sizes or Sizes()
    batches = collected(adapter, list(moving_scenes("train", sizes.collected, seed)), block, seed)
    config = tide.TrainConfig(
        steps=sizes.steps, n_latents=sizes.n_latents, k=sizes.k, batch_tokens=sizes.batch_tokens, seed=seed
    )
    model = tide.train(tide.from_pool(batches, adapter, config, block=block), out).model.eval()
    choosing = list(moving_scenes("train", sizes.chosen, seed + 1))
    measuring = list(moving_scenes("test", sizes.measured, seed))
    timesteps = adapter.sampling_timesteps(20)[[4, 10, 15][: sizes.timesteps]]
    first = with_objects(annotated_clips(adapter, choosing, [block], timesteps, seed=seed)[block])
    second = with_objects(annotated_clips(adapter, measuring, [block], timesteps, seed=seed + 1)[block])
    moves = torch.tensor([scene.direction != "still" for scene in measuring])
    n_frames = int(adapter.transformer.config.video_length)
    of = features_of(model, first, second, batches)
    table = {name: figures(found, first, second, moves, n_frames) for name, found in of.items()}
    return {"block": block, **table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipeline", type=Path, default=Path("runs/moving-scenes/final"))
    parser.add_argument("--out", type=Path, default=Path("runs/moving-scenes/measured"))
    parser.add_argument(
        "--blocks", type=int, nargs="+", default=[BLOCK, NEXT], help="even: of a frame, odd: over frames"
    )
    parser.add_argument("--steps", type=count, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with told():
        adapter = tide.adapter_for(load_trained(args.pipeline))
        found = []
        for block in args.blocks:
            found.append(measure(adapter, block, args.out / f"block-{block}", Sizes(steps=args.steps), args.seed))
            for name in ("tide", *BASELINES):
                of = found[-1][name]
                print(f"block {block}  {name}: mean {of['mean']}  object {of['object']}", flush=True)
        write_json(args.out / "concepts.json", {"seed": args.seed, "steps": args.steps, "blocks": found})


if __name__ == "__main__":
    main()
