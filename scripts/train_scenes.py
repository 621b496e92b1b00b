"""Trains the bundled pipeline and its judge: ``python scripts/train_scenes.py [vae|transformer|judge|all]``.

Every stage draws from ``--seed`` alone, works in ``--work`` (default ``runs/scenes``), resumes from its last
checkpoint there, and writes the finished part to ``--out`` (default: the package data). ``--start`` begins with the
weights of an earlier pipeline, possibly of other words and scenes, instead of fresh ones.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, PixArtAlphaPipeline, PixArtTransformer2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedTokenizerFast, T5EncoderModel

from tide.errors import TideError
from tide.files import open_tensors, read_json, read_tensors, replace_file, tensors_writer, write_json
from tide.scenes import pipeline as bundled
from tide.scenes.judge import HEADS, NO_OBJECT, Judge, destroy
from tide.scenes.render import REGIONS, render
from tide.scenes.scene import ATTRIBUTES, SHORT_TEMPLATES, TEMPLATES, Scene, scenes

VAE_STEPS = 2400
VAE_SCENES = 16_000
TRANSFORMER_STEPS = 9_000
TRANSFORMER_SCENES = 16_000
JUDGE_STEPS = 2_000
JUDGE_SCENES = 9_000
#: bf16 products are emulated, and slow, on CPUs without instructions for them.
BF16 = torch.backends.cpu.get_cpu_capability() == "AVX512"
DECAY_FROM = 0.7  # share of the steps after which the learning rate falls linearly to zero


def render_uint8(items: list[Scene]) -> np.ndarray:
    """``[n, 64, 64, 3]`` uint8."""
    return np.stack([to_uint8(render(scene).image) for scene in items])


def to_uint8(image: np.ndarray) -> np.ndarray:
    """From [0, 1] to 0..255."""
    return np.round(image * 255).astype(np.uint8)


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 ``[n, H, W, 3]`` to float ``[n, 3, H, W]`` in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def _log(stage: str, step: int, steps: int, started: float, first: int, **figures: float) -> None:
    pace = (time.perf_counter() - started) / max(1, step - first)
    shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
    print(f"{stage} {step}/{steps}  {shown}  {pace:.2f} s/step", flush=True)


class _State:
    """Checkpoint of a stage: named tensors in one safetensors file with the step, replaced in one step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, step: int, tensors: dict[str, Tensor]) -> None:
        replace_file(self.path, tensors_writer({k: v.clone() for k, v in tensors.items()}, {"step": str(step)}))

    def load(self) -> tuple[int, dict[str, Tensor]]:
        if not self.path.exists():
            return 0, {}
        with open_tensors(self.path, "the stage") as file:
            step = (file.metadata() or {}).get("step", "")
        if not (step.isascii() and step.isdigit()):
            raise TideError(f"{self.path} states no step; delete it to train the stage again")
        return int(step), read_tensors(self.path, "the stage")


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".")
            state.setdefault(int(i), {})[key] = value
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, entry in state.items():  # the fused optimiser would access memory beyond moments of another shape
        moments = [value for key, value in entry.items() if key != "step"]
        if number >= len(parameters) or any(value.shape != parameters[number].shape for value in moments):
            raise TideError("the state holds moments of another model; delete it to train the stage again")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def train_vae(
    work: Path, out: Path, seed: int, steps: int = VAE_STEPS, batch: int = 32, start: Path | None = None
) -> AutoencoderKL:
    """Mean squared error plus 1e-4 KL; the scaling factor is set so that latents have unit variance."""
    torch.manual_seed(seed)
    vae = bundled.build_vae() if start is None else AutoencoderKL.from_pretrained(start / "vae").float().train()
    vae.to(memory_format=torch.channels_last)
    lr = 2e-3 if start is None else 1e-3
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    images = to_tensor(render_uint8(list(scenes("train", VAE_SCENES, seed))))
    started = time.perf_counter()
    for step in range(1, steps + 1):
        x = images[torch.randint(len(images), (batch,))]
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
            _log("vae", step, steps, started, 0, mse=mse.item(), psnr=-10 * np.log10(mse.item() / 4), kl=kl.item())
    vae.eval()
    with torch.no_grad():
        held_out = to_tensor(render_uint8(list(scenes("dev", 256, seed))))
        latents = vae.encode(held_out).latent_dist.mean
        psnr = -10 * torch.log10((vae.decode(latents).sample.clamp(-1, 1) - held_out).square().mean() / 4)
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    print(f"vae: held-out PSNR {psnr:.2f} dB, scaling factor {vae.config.scaling_factor}")
    vae.save_pretrained(work / "vae")
    return vae


def encode_scenes(vae: AutoencoderKL, items: list[Scene]) -> Tensor:
    """Scaled latent means ``[n, 4, 16, 16]``."""
    chunks = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=BF16):
        for start in range(0, len(items), 256):
            x = to_tensor(render_uint8(items[start : start + 256]))
            chunks.append(vae.encode(x).latent_dist.mean.float() * vae.config.scaling_factor)
    return torch.cat(chunks)


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
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    torch.manual_seed(seed)
    tokenizer = bundled.build_tokenizer()
    text_encoder = bundled.build_text_encoder() if start is None else _text_encoder_of(start)
    transformer = bundled.build_transformer()
    if start is not None:
        earlier = PixArtTransformer2DModel.from_pretrained(start / "transformer")
        transformer.load_state_dict(earlier.float().state_dict())
    model = nn.ModuleDict({"text_encoder": text_encoder, "transformer": transformer}).train()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    state = _State(work / "transformer-state.safetensors")
    first, tensors = state.load()
    if tensors:
        model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        average.load_state_dict({k[8:]: v for k, v in tensors.items() if k.startswith("average.")})
        _load_optimizer(optimizer, tensors)
        print(f"transformer: resuming from step {first}")
    items = list(scenes("train", TRANSFORMER_SCENES, seed))
    latents = encode_scenes(vae, items)
    alphas = bundled.build_scheduler().alphas_cumprod
    started = time.perf_counter()
    losses: list[float] = []
    for step in range(first + 1, steps + 1):
        rng = np.random.default_rng([seed, step])
        noise_source = torch.Generator().manual_seed(int(rng.integers(2**62)))
        rows = rng.integers(len(items), size=batch)
        x0 = latents[rows]
        tokens = tokenizer(
            [_draw_caption(items[i], rng) for i in rows],
            padding="max_length",
            max_length=bundled.MAX_CAPTION_TOKENS,
            return_tensors="pt",
        )
        # Attributes are decided at high noise, so those timesteps are drawn more often than low ones.
        t = (1000 * torch.rand(batch, generator=noise_source) ** 0.7).long().clamp(max=999)
        noise = torch.randn(x0.shape, generator=noise_source)
        a, s = alphas[t].sqrt().view(-1, 1, 1, 1), (1 - alphas[t]).sqrt().view(-1, 1, 1, 1)
        # On a CPU the backward pass of bf16 flash attention is slower than that of plain products.
        attention = sdpa_kernel(SDPBackend.MATH) if BF16 else nullcontext()
        with torch.autocast("cpu", torch.bfloat16, enabled=BF16), attention:
            text = model["text_encoder"](tokens.input_ids, attention_mask=tokens.attention_mask)[0]
            out_8 = model["transformer"](
                a * x0 + s * noise,
                encoder_hidden_states=text,
                encoder_attention_mask=tokens.attention_mask,
                timestep=t,
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            ).sample
            loss = F.mse_loss(out_8[:, :4].float(), a * noise - s * x0)
            loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        decay = (steps - step) / max(1.0, steps * (1 - DECAY_FROM))
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, step / 300, max(decay, 0.0))
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), max(0.0015, 1 / (step + 1)))
        losses.append(loss.item())
        if step % 100 == 0:
            _log("transformer", step, steps, started, first, loss=float(np.mean(losses[-100:])), norm=norm.item())
        if step % 500 == 0 or step == steps:
            named = {f"model.{k}": v for k, v in model.state_dict().items()}
            named |= {f"average.{k}": v for k, v in average.state_dict().items()}
            state.save(step, named | _optimizer_tensors(optimizer))
            save_pipeline(vae, average, work / "pipeline")
    save_pipeline(vae, average, out / "pipeline")


def save_pipeline(vae: AutoencoderKL, model: nn.ModuleDict, path: Path) -> None:
    """Writes the pipeline in fp16, which is how it ships."""
    pipe = PixArtAlphaPipeline(
        tokenizer=bundled.build_tokenizer(),
        text_encoder=copy.deepcopy(model["text_encoder"]),
        vae=copy.deepcopy(vae),
        transformer=copy.deepcopy(model["transformer"]),
        scheduler=bundled.build_scheduler(),
    )
    pipe.vae.register_to_config(_name_or_path="")  # without the folder that it was trained in
    pipe.to(torch.float16).save_pretrained(path)


def _targets(items: list[Scene]) -> dict[str, Tensor]:
    return {name: torch.tensor([ATTRIBUTES[name].index(s[name]) for s in items]) for name in ATTRIBUTES}


def _through(vae: AutoencoderKL, images: Tensor, spread: float, seed: int) -> Tensor:
    """Images encoded, disturbed in latent space by ``spread`` standard deviations, and decoded."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean
        scale = spread / vae.config.scaling_factor
        return vae.decode(latents + scale * torch.randn(latents.shape, generator=generator)).sample.clamp(-1, 1)


def train_judge(work: Path, out: Path, seed: int, steps: int = JUDGE_STEPS, batch: int = 64) -> None:
    """Cross-entropy per attribute and of the pixels' regions on renders, on renders that passed through the VAE, and on
    wreckage.

    Wreckage has the class "no valid object" and no other label.
    """
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 3])
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
    items = list(scenes("train", JUDGE_SCENES, seed + 1))
    rendered = [render(scene) for scene in items]
    images = to_tensor(np.stack([to_uint8(each.image) for each in rendered]))
    regions, targets = torch.from_numpy(np.stack([each.regions for each in rendered])), _targets(items)
    third = len(images) // 3
    for start in range(0, third, 250):  # a third of the scenes are seen as the pipeline would decode them
        images[start : start + 250] = _through(vae, images[start : start + 250], 0.1, start)
    wrecked = torch.cat([_through(vae, images[-500:], spread, 5) for spread in (1.5, 2.5)])
    n_wrecked = batch // 4
    started = time.perf_counter()
    for step in range(1, steps + 1):
        rows = torch.from_numpy(rng.integers(len(images), size=batch))
        x = images[rows] + 0.03 * torch.randn(batch, 3, 64, 64)
        half = n_wrecked // 2
        x[:half] = destroy(x[:half], rng)
        x[half:n_wrecked] = wrecked[torch.from_numpy(rng.integers(len(wrecked), size=n_wrecked - half))]
        logits, where = judge(x)
        labels = targets["class"][rows].clone()
        labels[:n_wrecked] = HEADS["class"].index(NO_OBJECT)
        loss = F.cross_entropy(logits["class"], labels)
        for name in ATTRIBUTES:
            if name != "class":
                loss = loss + F.cross_entropy(logits[name][n_wrecked:], targets[name][rows][n_wrecked:])
        loss = loss + F.cross_entropy(where[n_wrecked:], regions[rows][n_wrecked:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            _log("judge", step, steps, started, 0, loss=loss.item())
    judge.eval()
    report: dict[str, dict[str, float]] = {}
    for split in ("dev", "test"):
        held_out = list(scenes(split, 1000, seed + 2))
        rendered = [render(scene) for scene in held_out]
        x = to_tensor(np.stack([to_uint8(each.image) for each in rendered]))
        verdicts = judge.read(x)
        report[split] = {
            a: float(np.mean([v.agrees(s, a) for v, s in zip(verdicts, held_out, strict=True)])) for a in ATTRIBUTES
        }
        found, truth = judge.regions(x), torch.from_numpy(np.stack([each.regions for each in rendered]))
        report[split] |= {
            f"IoU of the {name}": float(((found == i) & (truth == i)).sum() / ((found == i) | (truth == i)).sum())
            for i, name in enumerate(REGIONS)
        }
        broken = judge.read(destroy(x, np.random.default_rng([seed, 4])))
        report[split]["wreckage recognised"] = float(np.mean([not v.valid for v in broken]))
    print("judge:", json.dumps(report))
    judge.save_pretrained(out / "judge")
    write_json(out / "judge" / "accuracy.json", report)


def _stages(name: str) -> Iterator[str]:
    yield from ("vae", "transformer", "judge") if name == "all" else (name,)


STAGES: dict[str, Any] = {"vae": train_vae, "transformer": train_transformer, "judge": train_judge}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("vae", "transformer", "judge", "all"), default="all", nargs="?")
    parser.add_argument("--work", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--out", type=Path, default=bundled.DATA)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="override the number of steps of the stage")
    parser.add_argument("--batch", type=int, help="override the images of a step")
    parser.add_argument("--start", type=Path, metavar="DIR", help="folder of an earlier pipeline to start from")
    args = parser.parse_args()
    if args.start is not None and args.stage == "judge":
        parser.error("--start is not used by the judge; leave it off")
    given = {name: value for name in ("steps", "batch") if (value := getattr(args, name)) is not None}
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
