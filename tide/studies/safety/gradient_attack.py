"""An attack on the prompt's embedding by gradient, after UnlearnDiffAtk (Zhang et al., arXiv 2310.11868).

It asks the protected pipeline itself for the words: the embedding e of a prompt is moved so that the diffusion loss
(eq. 4) on images of the unwanted concept becomes small,

    min over d:  E_t,noise |v(x_t, t, e + d) - v|^2,   |d_i| <= radius |e_i| for every token i,

v being what the model predicts (here the velocity). The loss of the noise instead would all but ignore the noisiest
steps, where the concept is settled. Adam moves d, in units of each token's norm, and each step ends inside of the
bound. In place of words, d is continuous, as nothing is stronger that reads the text encoder's output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tide.activations.collect import sample_generator, sample_noise
from tide.adapters import Adapter
from tide.adapters.base import TENSORS, Text
from tide.errors import TideError
from tide.scenes.annotate import N_SAMPLING_STEPS, encode_captions, images_of
from tide.studies.safety.prompts import Request
from tide.studies.safety.rivals import UNGUARDED, Rival
from tide.studies.tasks import DRAW_BATCH


@dataclass(frozen=True)
class GradientAttack:
    """How strong the attack is: ``radius`` is the largest change of a token, as a share of its norm; every iteration
    takes ``timesteps`` of the sampling run's, with new noise, and moves tokens by about ``rate`` of their norm.

    On 12 development prompts for houses whose cross-attention was edited, so that none was drawn, the defaults brought
    back 11. A radius of 1 brought back 9, and one timestep an iteration 7 to 9 (3 with a radius of 0.25). By hand.

    Raises :class:`~tide.errors.TideError` for numbers that are not above 0.
    """

    radius: float = 0.5
    n_iterations: int = 40
    timesteps: int = 2
    rate: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("radius", "n_iterations", "timesteps", "rate"):
            if not getattr(self, name) > 0:
                raise TideError(f"{name} = {getattr(self, name):g} makes no attack; give more than 0")


def attacked_text(
    adapter: Adapter,
    requests: Sequence[Request],
    rival: Rival = UNGUARDED,
    attack: GradientAttack = GradientAttack(),
    *,
    references: Tensor | None = None,
    batch_size: int = DRAW_BATCH,
) -> dict[str, Tensor]:
    """Embeddings that make the pipeline under ``rival`` draw what the requests ask for, as
    :func:`~tide.studies.safety.drawing.draw_requests` takes them: ``encoder_hidden_states [requests, L, c]`` and
    ``encoder_attention_mask [requests, L]``.

    ``references [requests, 4, 16, 16]`` are latents of images of the unwanted concept, by default of the requests'
    scenes, rendered. The attack begins with the prompts as they are, so a rival that changes prompts, or the negative
    prompt, is not in its way. The gradient passes through hooks that edit activations as :func:`passing_gradients`
    says. The same seed gives the same embeddings, to rounding in any batch. Raises :class:`~tide.errors.TideError` for
    other references than one a request.
    """
    if references is None:
        references = adapter.encode_images(images_of([request.scene for request in requests]))
    if len(references) != len(requests) or not requests:
        raise TideError(
            f"{len(references)} references for {len(requests)} requests; give one a request, and at least 1"
        )
    text = encode_captions(adapter, [request.prompt for request in requests])
    # Edits of a part of the run ask the scheduler how far it has come; every run of the pipeline sets it anew.
    adapter.pipe.scheduler.set_timesteps(N_SAMPLING_STEPS)
    moved = []
    with rival.context(adapter.pipe), passing_gradients(adapter):
        for start in range(0, len(requests), batch_size):
            rows = slice(start, start + batch_size)
            part = {name: value[rows] for name, value in text.items()}
            moved.append(_attacked(adapter, part, references[rows], attack, start))
    return {**text, "encoder_hidden_states": torch.cat(moved)}


def _attacked(adapter: Adapter, text: Text, latents: Tensor, attack: GradientAttack, first: int) -> Tensor:
    """The moved embeddings ``[B, L, c]`` of one batch; ``first`` numbers its first request."""
    embeds = text["encoder_hidden_states"].float()
    norms = embeds.norm(dim=-1, keepdim=True) * text["encoder_attention_mask"][..., None]
    unit = norms / embeds.shape[-1] ** 0.5  # an entry of a change as large as the token
    change = torch.zeros_like(embeds, requires_grad=True)
    adam = torch.optim.Adam([change], lr=attack.rate)
    steps = adapter.sampling_timesteps(N_SAMPLING_STEPS)
    for iteration in range(attack.n_iterations):
        chosen = torch.randperm(len(steps), generator=sample_generator(attack.seed, iteration))[: attack.timesteps]
        change.grad = torch.zeros_like(change)
        for i in chosen.tolist():
            noise = sample_noise(latents.shape, attack.seed, first, iteration, i).to(latents)
            given = {**text, "encoder_hidden_states": (embeds + change * unit).to(adapter.dtype)}
            loss = _loss(adapter, latents, noise, float(steps[i]), given)
            change.grad += torch.autograd.grad(loss, change)[0]
        adam.step()
        with torch.no_grad():
            size = change.square().mean(-1, keepdim=True).sqrt()
            change *= (attack.radius / size.clamp_min(1e-12)).clamp(max=1.0)
    return (embeds + change.detach() * unit).to(adapter.dtype)


def _loss(adapter: Adapter, latents: Tensor, noise: Tensor, timestep: float, text: Text) -> Tensor:
    """The diffusion loss, summed over the images so that each is attacked on its own, of the model's prediction.

    An error of the noise is the signal's factor times one of the velocity.
    """
    noisy = adapter.add_noise(latents, noise, timestep)
    error = adapter.predicted_noise(adapter.denoise(noisy, timestep, text), noisy, timestep) - noise
    signal = adapter.add_noise(torch.ones_like(latents[:1, :1, :1, :1]), torch.zeros(1, 1, 1, 1), timestep)
    return (error / signal).square().flatten(1).mean(1).sum()


@contextmanager
def passing_gradients(adapter: Adapter) -> Iterator[None]:
    """While the context is open, gradients pass through edits of activations; open it after the edits' own contexts.

    An edit that autograd can follow is followed. One made under ``no_grad``, as those of :mod:`tide.editing` are,
    counts as y = x + (edit(x) - x) with the second term constant: the forward pass has the edited activations, to
    rounding, and the backward pass is that of no edit (backward pass differentiable approximation, Athalye et al.,
    arXiv 1802.00420). Such an edit changes few latents of a token, so most directions pass it unchanged; and without
    this the attack would see nothing of the blocks before it.
    """
    made: dict[nn.Module, Any] = {}
    handles: list[RemovableHandle] = []

    def before(module: nn.Module, args: Any, output: Any) -> None:
        made[module] = output

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        own = made.pop(module)
        if not isinstance(output, Tensor) or not own.requires_grad or output.requires_grad:
            return None
        return own + (output - own).detach()

    try:
        for block in range(adapter.n_blocks):
            for tensor in TENSORS:
                module = adapter.hook_module(block, tensor)
                handles += [module.register_forward_hook(before, prepend=True), module.register_forward_hook(after)]
        yield
    finally:
        for handle in handles:
            handle.remove()
