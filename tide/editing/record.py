"""Records targets to edit towards: the latents of a block while the pipeline draws the target's prompt, or on images
that show the target, with and without it in the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tide.adapters import Adapter, Block, Call, of_prompt, run_until, tap
from tide.adapters.base import Text
from tide.editing.context import refuse_transcoder
from tide.editing.edits import Target
from tide.editing.reading import latents_of_call
from tide.errors import TideError
from tide.sae.model import TIDE
from tide.sae.position import Position, at_step, of_steps

#: Bytes that a recorded target may take in memory.
TARGET_BYTES = 8 * 10**9


@dataclass(frozen=True)
class Recording:
    """One target per image of the batch, and its raw activations ``[timesteps, images, tokens, d_model]``."""

    targets: list[Target]
    raw: Tensor

    @property
    def timesteps(self) -> Tensor:
        return self.targets[0].timesteps


def check_target_size(n_steps: int, n_tokens: int, n_latents: int, remedy: str) -> None:
    """Raises :class:`~tide.errors.TideError`, with ``remedy``, for a map of latents above :data:`TARGET_BYTES`."""
    if (n_bytes := 4 * n_steps * n_tokens * n_latents) > TARGET_BYTES:
        raise TideError(
            f"the target's latents take {n_bytes / 1e9:.0f} GB at {n_steps} steps of {n_tokens} tokens; {remedy}"
        )


@torch.no_grad()
def run_noised(
    adapter: Adapter,
    latents: Tensor,
    prompts: Sequence[str],
    timesteps: Tensor,
    *,
    seed: int = 0,
    max_sequence_length: int | None = None,
) -> None:
    """Runs the transformer on encoded images ``latents [images, c, h, w]`` at each of ``timesteps [timesteps]``, with
    one noise for all of them (Algorithm 1)."""
    text = adapter.encode_prompts(list(prompts), max_sequence_length)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    for t in timesteps.tolist():
        adapter.denoise(adapter.add_noise(latents, noise, t), t, text)


def record_targets(
    adapter: Adapter,
    model: TIDE,
    run: Callable[[], Any],
    *,
    pooled: bool = False,
    dtype: torch.dtype = torch.float16,
) -> Recording:
    """Calls ``run`` and keeps, of the prompts' rows at every step, the latents in ``dtype`` and the activations in
    float32 ("for every timestep, a directed vector exists between the latent feature and the target feature",
    appendix C).

    ``run`` draws the target prompts with the pipeline in one batch, or runs the transformer on images that show the
    target (:func:`run_noised`). ``pooled`` keeps their mean over the tokens alone: targets ``[timesteps, n_latents]``
    and ``raw [timesteps, images, 1, d_model]``.

    Raises :class:`~tide.errors.TideError` for a model that does not know its block, for a transcoder, and for a run
    without rows of the prompts.
    """
    refuse_transcoder(model)
    timesteps: list[float] = []
    latents: list[Tensor] = []
    raw: list[Tensor] = []

    def keep(x: Tensor, call: Call) -> None:
        timesteps.append(float(call.timestep[0]))
        z = latents_of_call(model, x, call)
        latents.append((z.mean(1) if pooled else z).to(dtype).cpu())
        raw.append((x.float().mean(1, keepdim=True) if pooled else x.float()).cpu())

    with tap(adapter, {model.config.trained_block: of_prompt(keep)}, model.config.tensor):
        run()
    if not timesteps:
        raise TideError(
            "the block met no row of the prompts while the target was recorded; draw at least one step, with a prompt "
            "that is not empty"
        )
    steps = torch.tensor(timesteps)
    per_image = torch.stack(latents, dim=1)
    return Recording([Target(steps, values) for values in per_image], torch.stack(raw))


@dataclass(frozen=True)
class ContrastRecording:
    """One block on reference images under two prompts: activations ``present`` and ``absent`` ``[timesteps, images,
    references, tokens, d_model]``, and the conditioning of each, ``[2, timesteps, images * references, d_embedding]``,
    or None."""

    timesteps: Tensor
    present: Tensor
    absent: Tensor
    conditioning: Tensor | None = None

    @property
    def direction(self) -> Tensor:
        """``present - absent`` averaged over the references, ``[timesteps, images, tokens, d_model]`` float32."""
        return self.mean_present - self.absent.float().mean(2)

    @property
    def mean_present(self) -> Tensor:
        """``present`` averaged over the references, as :attr:`direction`."""
        return self.present.float().mean(2)

    def targets(self, model: TIDE) -> list[tuple[Target, Target]]:
        """For each image, the latents (present, absent) averaged over its references."""
        given = (None, None) if self.conditioning is None else self.conditioning.unbind()
        present, absent = self._latents(model, self.present, given[0]), self._latents(model, self.absent, given[1])
        return [
            (Target(self.timesteps, with_it), Target(self.timesteps, without))
            for with_it, without in zip(present.unbind(1), absent.unbind(1), strict=True)
        ]

    def _latents(self, model: TIDE, x: Tensor, conditioning: Tensor | None) -> Tensor:
        """``[timesteps, images, tokens, n_latents]``, float16."""
        device = model.W_enc.device
        given = None if conditioning is None else conditioning.to(device)
        steps = enumerate(zip(self.timesteps.tolist(), x, strict=True))
        return torch.stack(
            [
                model.dense(rows.to(device), Position(t, at_step(given, i))).mean(1).half().cpu()
                for i, (t, rows) in steps
            ]
        )


@torch.no_grad()
def record_contrast(
    adapter: Adapter,
    blocks: Sequence[Block],
    references: Tensor,
    prompts: tuple[Sequence[str], Sequence[str]],
    timesteps: Tensor,
    *,
    per_image: int = 1,
    tensor: str = "output",
    seed: int = 0,
    max_sequence_length: int | None = None,
    batch_size: int = 32,
) -> dict[int, ContrastRecording]:
    """Block -> its activations on noised reference images (Algorithm 1) under a prompt that names the target, and under
    one that names the source instead. Both see the same noise, so they differ only by what the words change.

    ``references`` are encoded images ``[images * per_image, c, h, w]`` that show the target, ``per_image`` for each
    image to be edited, one after the other; ``prompts`` are (with the target, with the source), one a reference.
    """
    n = len(references)
    if not n or n % per_image or any(len(words) != n for words in prompts):
        raise TideError(
            f"{n} references and {len(prompts[0])} and {len(prompts[1])} prompts; give {per_image} references for "
            "each image and two prompts for each reference"
        )
    wanted = [adapter.resolve_block(block) for block in blocks]
    kept: dict[int, list[tuple[Tensor, Tensor | None]]] = {block: [] for block in wanted}
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, n, batch_size):
        part = slice(start, start + batch_size)
        noise = torch.randn(references[part].shape, generator=generator)
        text = adapter.encode_prompts([*prompts[0][part], *prompts[1][part]], max_sequence_length)
        for block, found in _under_both(adapter, wanted, references[part], noise, text, timesteps, tensor).items():
            kept[block].append(found)
    out = {}
    for block, batches in kept.items():
        both = torch.cat([x for x, _ in batches], dim=2).unflatten(2, (-1, per_image))
        given = [conditioning for _, conditioning in batches if conditioning is not None]
        conditioning = torch.cat(given, dim=2) if given else None
        out[block] = ContrastRecording(timesteps.float(), both[:, 0], both[:, 1], conditioning)
    return out


def _under_both(
    adapter: Adapter,
    blocks: Sequence[int],
    latents: Tensor,
    noise: Tensor,
    text: Text,
    timesteps: Tensor,
    tensor: str,
) -> dict[int, tuple[Tensor, Tensor | None]]:
    """Block -> what it holds of references ``latents [rows, c, h, w]`` under the two prompts of each in ``text``:
    activations ``[timesteps, 2, rows, tokens, d_model]`` and conditioning ``[2, timesteps, rows, d_embedding]`` or
    None."""
    rows: dict[int, list[Tensor]] = {block: [] for block in blocks}
    calls: dict[int, list[Call]] = {block: [] for block in blocks}

    def keep(x: Tensor, call: Call, *, block: int) -> None:
        rows[block].append(x.cpu())
        calls[block].append(call)

    for t in timesteps.tolist():
        noisy = torch.cat([adapter.add_noise(latents, noise, t)] * 2)
        taps = {block: partial(keep, block=block) for block in blocks}
        run_until(adapter, taps, partial(adapter.denoise, noisy, t, text), tensor)
    out = {}
    for block in blocks:
        given = of_steps([call.conditioning for call in calls[block]])
        conditioning = None if given is None else given.unflatten(1, (2, -1)).transpose(0, 1).cpu()
        out[block] = torch.stack(rows[block]).unflatten(1, (2, -1)), conditioning
    return out
