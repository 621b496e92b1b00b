"""What a word of the prompt does to the latents: the same noisy image seen under two prompts, averaged over images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tide.adapters import Adapter, Call, run_until
from tide.editing.edits import Target
from tide.errors import TideError
from tide.sae.model import TIDE, inference


@dataclass(frozen=True)
class Contrast:
    """Mean latents and mean raw activations under a source and a target prompt, per timestep and token place.

    ``source`` and ``target`` have values ``[timesteps, tokens, n_latents]``; ``direction [timesteps, tokens,
    d_model]`` is the difference of the mean activations, target minus source, which raw steering adds.
    """

    source: Target
    target: Target
    direction: Tensor

    @property
    def timesteps(self) -> Tensor:
        return self.source.timesteps

    def pooled(self, tokens: Tensor | None = None) -> Contrast:
        """The same without a place: averaged over all tokens, or over those of a bool mask ``[tokens]``."""
        keep = slice(None) if tokens is None else tokens
        return Contrast(
            Target(self.timesteps, self.source.values[:, keep].mean(1)),
            Target(self.timesteps, self.target.values[:, keep].mean(1)),
            self.direction[:, keep].mean(1),
        )


@torch.no_grad()
def prompt_contrast(
    adapter: Adapter,
    model: TIDE,
    latents: Tensor,
    source_text: dict[str, Tensor],
    target_text: dict[str, Tensor],
    timesteps: Tensor,
    *,
    seed: int = 0,
    batch_size: int = 32,
) -> Contrast:
    """Runs Algorithm 1 over images ``latents [images, c, h, w]`` of the source concept, each once with its own prompt
    and once with the target's, at every timestep with the same noise. What differs is the concept alone, not the
    image, so that the difference stays small and is one the model itself makes.
    """
    if not len(latents) == len(next(iter(source_text.values()))) == len(next(iter(target_text.values()))):
        raise TideError("images, source prompts and target prompts differ in number; give one of each an image")
    if len(latents) == 0:
        raise TideError("there are no images of the source concept to contrast prompts on; collect some")
    block = model.config.block
    if block is None:
        raise TideError("this SAE does not know its block; train it with `tide train`")
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, Tensor] = {}
    for start in range(0, len(latents), batch_size):
        part = slice(start, start + batch_size)
        noise = torch.randn(latents[part].shape, generator=generator)
        both = {name: torch.cat([source_text[name][part], target_text[name][part]]) for name in source_text}
        for i, t in enumerate(timesteps.tolist()):
            noisy = adapter.add_noise(latents[part], noise, t)

            def add(x: Tensor, call: Call, *, i: int = i) -> None:
                half = len(x) // 2
                with inference(model):
                    z = model.encode(x.float(), call.timestep, call.conditioning).dense(model.n_latents)
                z = z.view(*x.shape[:2], -1)
                for name, value in (
                    ("source", z[:half]),
                    ("target", z[half:]),
                    ("direction", x[half:].float() - x[:half].float()),
                ):
                    if name not in sums:
                        sums[name] = torch.zeros(len(timesteps), *value.shape[1:])
                    sums[name][i] += value.sum(0).cpu()

            run = partial(adapter.denoise, torch.cat([noisy, noisy]), t, both)
            run_until(adapter, {block: add}, run, model.config.tensor)
    means = {name: value / len(latents) for name, value in sums.items()}
    steps = timesteps.float()
    return Contrast(Target(steps, means["source"]), Target(steps, means["target"]), means["direction"])
