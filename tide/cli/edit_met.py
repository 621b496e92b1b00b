"""What the edits of ``tide edit`` met in their runs: for edit.json, and in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tide.editing.met import Met

#: Latents that a line lists.
LISTED = 8


def as_row(met: Met) -> dict[str, Any]:
    """What a row of edit.json says: tokens that were edited (over all steps) and changed, by how much of their norm
    their activations moved, and if something was wrong, what. Of latents that the edit names, on how many of the tokens
    each was active; of those that a target names, how many were active at all. Of a mask that latents draw, its tokens
    at each edited step."""
    row: dict[str, Any] = {
        "edited_tokens": met.tokens,
        "changed_tokens": met.moved,
        "activation_change": met.change_of_norm,
    }
    if met.active:
        row["active"] = {str(latent): count for latent, count in met.active.items()}
    if met.inactive:
        row["inactive"] = met.inactive
        row["most_active"] = {str(latent): share for latent, share in met.fired_most.items()}
    if aimed := met.target_active:
        row["target_latents"] = len(aimed)
        row["target_latents_active"] = sum(count > 0 for count in aimed.values())
    if met.drawn is not None:
        row["tokens_by_step"] = [int(mask.sum()) for _, mask in met.masks]
    if met.nothing is not None:
        row["nothing_changed"] = met.nothing
    return row


def remarks(met: Mapping[str, Met]) -> Iterator[str]:
    """Lines about edits by the words that tell them apart ("at strength 1"): how often the latents were active that an
    edit names by number, which were instead if some were inactive, and why an edit changed nothing."""
    first = next(iter(met.values()))
    if first.active and first.tokens:
        yield f"On the edited tokens {_activity(met)}{first.candidates}."
    if aimed := first.target_active:
        active = sum(count > 0 for count in aimed.values())
        yield f"Of the target's strongest latents, {len(aimed)} in all, {active} were active on the edited tokens."
    for where, each in met.items():
        if each.masks and each.nothing is None:
            yield f"The mask had {_tokens(each)} a step {where}."
        if each.nothing is not None:
            yield f"Nothing changed {where}: {each.nothing}."


def _tokens(met: Met) -> str:
    """``9 to 20 of 64 tokens``."""
    counts = [int(mask.sum()) for _, mask in met.masks]
    least, most = min(counts), max(counts)
    return f"{least if least == most else f'{least} to {most}'} of {met.masks[0][1].numel()} tokens"


def _activity(met: Mapping[str, Met]) -> str:
    """Mean over the pictures."""
    latents = list(next(iter(met.values())).active)
    tokens = sum(each.tokens for each in met.values())
    words = []
    for latent in latents[:LISTED]:
        share = sum(each.active[latent] for each in met.values()) / tokens
        words.append(f"latent {latent} was " + (f"active on {share:.1%}" if share else "inactive (it never fired)"))
    more = [f"{len(latents) - LISTED} more (see edit.json)"] if len(latents) > LISTED else []
    return ", ".join([*words, *more])
