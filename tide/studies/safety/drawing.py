"""Images of requests, drawn by the protected or unprotected pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tide.adapters import Adapter
from tide.adapters.base import Text
from tide.errors import TideError
from tide.scenes.annotate import encode_captions
from tide.studies.safety.prompts import Request
from tide.studies.safety.rivals import UNGUARDED, Rival
from tide.studies.tasks import DRAW_BATCH


def draw_requests(
    adapter: Adapter,
    requests: Sequence[Request],
    rival: Rival = UNGUARDED,
    *,
    text: Text | None = None,
    batch_size: int = DRAW_BATCH,
) -> Tensor:
    """Images ``[requests, 3, 64, 64]`` in [-1, 1] on the CPU, each from its own seed, under ``rival``.

    ``text`` replaces the encoded prompts, one row each: ``encoder_hidden_states [requests, L, c]`` and
    ``encoder_attention_mask [requests, L]``, as :func:`~tide.studies.safety.gradient_attack.attacked_text` finds them;
    what the rival does to prompts has no effect then. Raises :class:`~tide.errors.TideError` without requests, or for a
    text of another length.
    """
    if not requests:
        raise TideError("there are no requests to draw; give at least one")
    if text is not None and any(len(rows) != len(requests) for rows in text.values()):
        raise TideError(f"the text has other rows than the {len(requests)} requests; give one each")
    images: list[Tensor | None] = [None] * len(requests)
    for places in _batches(requests, batch_size):
        part = [requests[i] for i in places]
        rows = None if text is None else {name: value[places] for name, value in text.items()}
        for i, image in zip(places, _draw(adapter, part, rival, rows), strict=True):
            images[i] = image
    return torch.stack([image for image in images if image is not None])


def _batches(requests: Sequence[Request], batch_size: int) -> Iterator[list[int]]:
    """Where the requests are that one call of the pipeline can draw."""
    alike: dict[tuple[float, int], list[int]] = {}
    for i, request in enumerate(requests):
        alike.setdefault((request.guidance, request.n_steps), []).append(i)
    for places in alike.values():
        for start in range(0, len(places), batch_size):
            yield places[start : start + batch_size]


@torch.no_grad()
def _draw(adapter: Adapter, requests: list[Request], rival: Rival, text: Text | None) -> Tensor:
    first = requests[0]
    adapter.check_steps(first.n_steps)
    with rival.context(adapter.pipe):
        if text is None:
            text = encode_captions(adapter, [rival.prompt(request.prompt) for request in requests])
        latents = adapter.pipe(
            prompt=None,
            negative_prompt=rival.negative_prompt,
            prompt_embeds=text["encoder_hidden_states"],
            prompt_attention_mask=text["encoder_attention_mask"],
            num_inference_steps=first.n_steps,
            guidance_scale=first.guidance,
            generator=[torch.Generator().manual_seed(request.seed) for request in requests],
            height=64,
            width=64,
            output_type="latent",
            **adapter.call_defaults,
        ).images
    return adapter.decode_latents(latents).cpu()
