"""Trains the judge of the bundled pipeline (:mod:`tide.scenes.judge`), in one go: it keeps no state."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from pipeline_training import UNTRAINED, load_vae, to_tensor, to_uint8
from torch import Tensor
from training_state import Progress

from tide.files import write_json
from tide.scenes.judge import HEADS, NO_OBJECT, Judge, destroy
from tide.scenes.render import REGIONS, render
from tide.scenes.scene import ATTRIBUTES, Scene, scenes

JUDGE_STEPS = 2_000
JUDGE_SCENES = 9_000


@dataclass(frozen=True)
class Examples:
    """Scenes to learn from.

    Attributes:
        images: ``[n, 3, 64, 64]`` in [-1, 1].
        regions: ``[n, 64, 64]``, the region of each pixel by its place in ``REGIONS``.
        targets: attribute -> ``[n]``, the scene's value by its place in ``ATTRIBUTES``.
        wrecked: ``[m, 3, 64, 64]``, pictures that show nothing.
    """

    images: Tensor
    regions: Tensor
    targets: dict[str, Tensor]
    wrecked: Tensor


def train_judge(work: Path, out: Path, seed: int, steps: int = JUDGE_STEPS, batch: int = 64) -> None:
    """Cross-entropy per attribute and of the pixels' regions on renders, on renders that passed through the VAE, and on
    wreckage.

    Wreckage has the class "no valid object" and no other label.
    """
    vae = load_vae(work / "vae", UNTRAINED).eval()
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 3])
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
    examples = _examples(vae, list(scenes("train", JUDGE_SCENES, seed + 1)))
    progress = Progress("judge", 0, steps)
    for step in range(1, steps + 1):
        loss = _loss(judge, examples, batch, rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            progress.log(step, loss=loss.item())
    judge.eval()
    report = {split: _accuracy(judge, list(scenes(split, 1000, seed + 2)), seed) for split in ("dev", "test")}
    print("judge:", json.dumps(report))
    judge.save_pretrained(out / "judge")
    write_json(out / "judge" / "accuracy.json", report)


def _drawn(items: list[Scene]) -> tuple[Tensor, Tensor]:
    """Images and regions, as in :class:`Examples`."""
    rendered = [render(scene) for scene in items]
    images = to_tensor(np.stack([to_uint8(each.image) for each in rendered]))
    return images, torch.from_numpy(np.stack([each.regions for each in rendered]))


def _examples(vae: AutoencoderKL, items: list[Scene]) -> Examples:
    images, regions = _drawn(items)
    targets = {name: torch.tensor([ATTRIBUTES[name].index(s[name]) for s in items]) for name in ATTRIBUTES}
    third = len(images) // 3
    for start in range(0, third, 250):  # a third of the scenes are seen as the pipeline would decode them
        images[start : start + 250] = _through(vae, images[start : start + 250], 0.1, start)
    wrecked = torch.cat([_through(vae, images[-500:], spread, 5) for spread in (1.5, 2.5)])
    return Examples(images, regions, targets, wrecked)


def _through(vae: AutoencoderKL, images: Tensor, spread: float, seed: int) -> Tensor:
    """Images encoded, disturbed in latent space by ``spread`` standard deviations, and decoded."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean
        scale = spread / vae.config.scaling_factor
        return vae.decode(latents + scale * torch.randn(latents.shape, generator=generator)).sample.clamp(-1, 1)


def _loss(judge: Judge, examples: Examples, batch: int, rng: np.random.Generator) -> Tensor:
    """Of a batch that is drawn here; a quarter of it is wreckage."""
    rows = torch.from_numpy(rng.integers(len(examples.images), size=batch))
    x = examples.images[rows] + 0.03 * torch.randn(batch, 3, 64, 64)
    n_wrecked = batch // 4
    half = n_wrecked // 2
    x[:half] = destroy(x[:half], rng)
    x[half:n_wrecked] = examples.wrecked[torch.from_numpy(rng.integers(len(examples.wrecked), size=n_wrecked - half))]
    logits, where = judge(x)
    labels = examples.targets["class"][rows].clone()
    labels[:n_wrecked] = HEADS["class"].index(NO_OBJECT)
    loss = F.cross_entropy(logits["class"], labels)
    for name in ATTRIBUTES:
        if name != "class":
            loss = loss + F.cross_entropy(logits[name][n_wrecked:], examples.targets[name][rows][n_wrecked:])
    return loss + F.cross_entropy(where[n_wrecked:], examples.regions[rows][n_wrecked:])


def _accuracy(judge: Judge, items: list[Scene], seed: int) -> dict[str, float]:
    """The share of scenes that are read right by attribute, the IoU of each region, and the wreckage that is told."""
    x, truth = _drawn(items)
    verdicts = judge.read(x)
    report = {a: float(np.mean([v.agrees(s, a) for v, s in zip(verdicts, items, strict=True)])) for a in ATTRIBUTES}
    found = judge.regions(x)
    for i, name in enumerate(REGIONS):
        both, either = (found == i) & (truth == i), (found == i) | (truth == i)
        report[f"IoU of the {name}"] = float(both.sum() / either.sum())
    broken = judge.read(destroy(x, np.random.default_rng([seed, 4])))
    report["wreckage recognised"] = float(np.mean([not v.valid for v in broken]))
    return report
