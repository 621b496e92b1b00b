"""Makes a bank of concepts from labelled images: :class:`tide.editing.Bank`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tide.editing.bank import Bank, Concept, Difference, SparseMeans
from tide.editing.record import ContrastRecording
from tide.editing.target_file import sae_record
from tide.errors import TideError
from tide.files import halved
from tide.interpretation.concepts import Annotated
from tide.interpretation.detecting import FittedDetector, fit_detectors
from tide.interpretation.reading import PIECE
from tide.sae.model import TIDE
from tide.sae.position import Position, at_step

#: Tokens of a concept that are kept, latents that its detector reads, and mean latents that are kept at each timestep.
TOKENS, READ, MEANS = 128, 32, 256


@dataclass(frozen=True)
class RecordedBank:
    """A bank, and how well its detectors tell their concepts on the held-out images."""

    bank: Bank
    detectors: dict[str, FittedDetector]


@torch.no_grad()
def record_bank(
    model: TIDE,
    fit: Annotated,
    held_out: Annotated,
    concepts: Sequence[str],
    contrasts: Mapping[tuple[str, str], Difference] | None = None,
    *,
    n_tokens: int = TOKENS,
    n_latents: int = READ,
    seed: int = 0,
) -> RecordedBank:
    """What ``model``'s block holds where each of ``concepts`` is.

    A concept's tokens are those of its mask, or all tokens of the images that its label names.

    Args:
        model: the TIDE that was trained on the block; its latents tell where a concept is.
        fit: labelled images, whose tokens are kept.
        held_out: other images at the same timesteps, for the detectors' figures.
        concepts: names of masks or labels of both.
        contrasts: (source, target) -> :func:`difference` of a recording at the same timesteps.
        n_tokens: kept of each concept, drawn at random, the same at every timestep; all where there are fewer.
        n_latents: that a detector reads at most.
        seed: of the tokens that are drawn.

    Raises:
        TideError: a concept is not labelled, or on all or none of the images; a contrast has other timesteps.
    """
    fitted = fit_detectors(model, fit, held_out, concepts, n_latents=n_latents)
    members = torch.stack([_members(fit, name) for name in concepts])
    present, absent = _mean_latents(model, fit, members)
    held = {}
    for i, name in enumerate(concepts):
        detector = fitted[name].detector
        x, there = fit.x.flatten(1, 2), members[i]
        # Of both means the same latents: what one list lacks would count as 0 there, and as the whole of a difference.
        strongest = torch.maximum(present[i], absent[i]).topk(min(MEANS, model.n_latents), dim=1).indices
        chosen = drawn_tokens(there, n_tokens, seed)
        held[name] = Concept(
            tokens=halved(x[:, chosen]),
            mean=torch.stack([step[there].float().mean(0) for step in x]),
            present=SparseMeans.at(present[i], strongest),
            absent=SparseMeans.at(absent[i], strongest),
            features=detector.features.int(),
            weights=detector.weights.cpu(),
            thresholds=detector.thresholds.cpu(),
        )
    for pair, found in (contrasts or {}).items():
        if len(found.keys) != len(fit.timesteps):
            raise TideError(
                f"the contrast of {' and '.join(pair)} has {len(found.keys)} timesteps and the images "
                f"{len(fit.timesteps)}; record both at the same"
            )
    return RecordedBank(Bank(sae_record(model), fit.timesteps.float(), held, dict(contrasts or {})), fitted)


def difference(recorded: ContrastRecording, mask: Tensor, *, n_tokens: int = TOKENS, seed: int = 0) -> Difference:
    """The activations under the source's word, and what the target's word changes, of tokens under ``mask``.

    ``recorded`` is :func:`~tide.editing.record.record_contrast`'s, with as many references as ``mask``, bool
    ``[references, tokens]``, has rows. ``n_tokens`` are drawn at random, the same at every timestep.

    ``seed`` is that of the drawn tokens.

    Raises:
        TideError: the mask is of another size, or empty.
    """
    absent, present = (x.flatten(1, 2).flatten(1, 2) for x in (recorded.absent, recorded.present))
    if mask.numel() != absent.shape[1]:
        raise TideError(f"the mask {list(mask.shape)} does not cover {absent.shape[1]} recorded tokens; make it again")
    chosen = drawn_tokens(mask.flatten(), n_tokens, seed)
    keys = absent[:, chosen].float()
    return Difference(halved(keys), halved(present[:, chosen].float() - keys))


def drawn_tokens(there: Tensor, n: int, seed: int) -> Tensor:
    """At most ``n`` of the tokens that ``there [tokens]`` has on, drawn at random: their numbers, ascending."""
    on = there.nonzero().flatten()
    if not len(on):
        raise TideError("no token shows the concept; give images that do")
    order = torch.randperm(len(on), generator=torch.Generator().manual_seed(seed))
    return on[order[:n]].sort().values


def _members(data: Annotated, concept: str) -> Tensor:
    """bool ``[images * tokens]``."""
    if concept in data.masks:
        return data.masks[concept].flatten()
    return data.labels[concept].repeat_interleave(data.n_tokens)


def _mean_latents(model: TIDE, data: Annotated, members: Tensor) -> tuple[Tensor, Tensor]:
    """Mean latents ``[concepts, T, n_latents]`` of the tokens with each concept and of those without; which have it is
    ``members [concepts, images * tokens]``."""
    shape = (len(members), len(data.timesteps), model.n_latents)
    inside, everywhere = torch.zeros(shape), torch.zeros(shape[1:])
    n = max(1, PIECE // (data.n_tokens * model.n_latents))
    weights = members.view(len(members), -1, data.n_tokens).float()
    for step, t in enumerate(data.timesteps.tolist()):
        for first in range(0, data.x.shape[1], n):
            images = slice(first, first + n)
            given = at_step(None if data.conditioning is None else data.conditioning[..., images, :], step)
            x = data.x[step, images].to(model.W_enc.device).float()
            z = model.dense(x.flatten(0, 1), Position(t, given)).cpu().float()
            inside[:, step] += weights[:, images].flatten(1) @ z
            everywhere[step] += z.sum(0)
    n_inside = members.sum(1).view(-1, 1, 1)
    n_outside = members.shape[1] - n_inside
    return inside / n_inside.clamp(min=1), (everywhere - inside) / n_outside.clamp(min=1)
