"""The layer sweep: autoencoders of several blocks measured by block and timestep, beside their baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from tide.activations import Prepared
from tide.activations.options import check_fraction
from tide.activations.source import Source, check_source
from tide.adapters import Adapter
from tide.errors import TideError
from tide.evaluation.baselines import PCA, StrongestNeurons, random_autoencoder
from tide.evaluation.block_tokens import BlockTokens, read_tokens
from tide.evaluation.diffusion_loss import (
    Change,
    Intervention,
    Losses,
    clean_losses,
    image_losses,
    sae_intervention,
    zero_ablation,
)
from tide.evaluation.fit_by_timestep import Rebuild, by_model, by_projection, fit_by_timestep
from tide.evaluation.kept import Kept
from tide.evaluation.loss_by_timestep import loss_by_timestep
from tide.evaluation.probes_by_timestep import Features, probes_by_timestep
from tide.evaluation.sweep_images import Asked, Sides
from tide.evaluation.table import average, check_models, unseen_images
from tide.files import finite
from tide.fingerprint import fingerprint
from tide.sae.model import TIDE, inference
from tide.sae.position import Position

#: Bytes of the activations that are held at once: blocks beyond share passes of their own.
MOST_BYTES = 4 * 2**30
#: Rows that a random autoencoder is calibrated on.
CALIBRATED = 4096


def sweep(
    adapter: Adapter,
    models: Mapping[int, TIDE],
    source: Source,
    *,
    fit_source: Source | None = None,
    fit: float = 0.5,
    concepts: Sequence[str] | None = None,
    token_fraction: float | None = None,
    timesteps: int = 5,
    loss_images: int = 32,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = False,
    finished: Callable[[int], None] = lambda block: None,
) -> dict[str, Any]:
    """How well the autoencoders of several blocks reconstruct, what that costs the diffusion model, and what their
    latents tell of concepts, by block and timestep.

    The transformer runs once for all blocks where activations are read (for as many as 4 GiB hold), and once for the
    clean diffusion loss. Beside each autoencoder ("tide") stand: "random", one of the same sizes whose directions are
    random; "neurons", each token's k strongest channels; "pca_k" and "pca_k/4", a PCA of these ranks; "mean".

    Args:
        adapter: of the pipeline that the models were trained on.
        models: block -> its SAE, on the adapter's device, all of the same tensor.
        source: images with captions; those that trained a model are left out where enough remain. Its batches are
            passes of the transformer.
        fit_source: the images that baselines and probes are fitted to; None takes a share of ``source``, ``fit``.
        concepts: words of the captions; of rendered scenes, concepts that their masks show (default all). Without any
            there are no probes.
        token_fraction: of each image's tokens, in (0, 1]; None is 1/16, or at least 32 tokens.
        timesteps: steps of the sampling run at whose timesteps everything is measured.
        loss_images: the most images that the diffusion loss is measured on.
        seed: of tokens, noise and random autoencoders.
        out: a folder in which the figures of finished blocks are kept. The same call resumes what it holds.
        progress: show a bar on stderr if that is a terminal.
        finished: called with each block whose figures are kept.

    Returns:
        Numbers for JSON, None for one that is not known. Under ``"blocks"`` by number: ``"sae"``, sizes; ``"fit"``,
        for each of the above :func:`~tide.evaluation.fit_by_timestep.fit_by_timestep`; ``"loss"``,
        :func:`~tide.evaluation.loss_by_timestep.loss_by_timestep`, also of "zero"; ``"probes"``, of "tide", "random",
        "neurons" and "pca", :func:`~tide.evaluation.probes_by_timestep.probes_by_timestep`, or None. ``"average"``:
        :func:`~tide.evaluation.table.average` over the blocks. ``"timesteps"``, ``"images"``, ``"clean"`` (the loss),
        ``"concepts"`` and ``"left_out"`` (concepts that too few rows show, or do not show) are the same for all.

    Raises:
        TideError: as :func:`~tide.evaluation.evaluate_blocks`; a model is a transcoder; there is no concept to probe;
            ``out`` holds figures of other options.
    """
    check_models(adapter, models)
    _refuse_transcoders(models)
    if token_fraction is not None:
        check_fraction(token_fraction)
    for each in filter(None, (source, fit_source)):
        check_source(each)
    images = unseen_images(source, models.values())
    at = adapter.sampling_timesteps(timesteps)
    asked = Asked(adapter, images.source, fit_source, fit, token_fraction, concepts, seed)
    options = {"fit": fit, "token_fraction": token_fraction, "timesteps": timesteps, "loss_images": loss_images}
    kept = Kept(None if out is None else Path(out), {**options, "seed": seed, **asked.described()})
    own = {block: {"weights": fingerprint([model])} for block, model in models.items()}
    found = {block: kept.read(f"block-{block}", **own[block]) for block in models}
    left = [block for block, figures in found.items() if figures is None]
    common = kept.read("images")
    if left or common is None:
        sides = asked.sides()
        data = sides.loss_data(adapter.device, loss_images)
        clean = clean_losses(adapter, data, timesteps=at, seed=seed)
        counts = {**sides.counts(loss_images), **asked.read(), "of": images.kind}
        common = finite({"images": counts, **_common(sides, at, clean)})
        kept.write("images", common)
        measure = _Measure(adapter, sides, at, data, clean, seed)
        with tqdm(total=len(left), unit="block", disable=None if progress else True) as bar:
            for block, tokens in measure.read(models, left):
                figures: dict[str, Any] = finite(measure.block(models[block], tokens))
                kept.write(f"block-{block}", figures, **own[block])
                found[block] = figures
                finished(block)
                bar.update()
    rows = {str(block): found[block] for block in models}
    measured = [{name: row[name] for name in ("fit", "loss", "probes")} for row in rows.values() if row]
    return {**common, "blocks": rows, "average": average(measured)}


def _refuse_transcoders(models: Mapping[int, TIDE]) -> None:
    for block, model in models.items():
        if model.config.target is not None:
            raise TideError(
                f"the model of block {block} is a transcoder of {model.config.target}, which a sweep does not measure; "
                "run `tide evaluate` on it"
            )


def _common(sides: Sides, timesteps: Tensor, clean: Losses) -> dict[str, Any]:
    by_t = {f"{t:g}": sum(values) / len(values) for t, values in clean.items()}
    return {
        "timesteps": timesteps.tolist(),
        "clean": {"loss": sum(by_t.values()) / len(by_t), "timestep": by_t},
        "concepts": None if sides.labels is None else sides.labels.counted(),
        "left_out": None if sides.labels is None else sides.labels.left_out,
    }


class _Variant(NamedTuple):
    """Something in the place of a block's tokens: how it rebuilds them, outside the model and in it, its features for
    probes, if it has any of its own, and how many latents."""

    rebuild: Rebuild
    intervention: Intervention
    features: tuple[str, Features] | None = None
    n_latents: int | None = None


@dataclass(frozen=True)
class _Measure:
    """What all blocks share: the images of both sides, timesteps, encoded images and clean loss."""

    adapter: Adapter
    sides: Sides
    timesteps: Tensor
    data: list[Prepared]
    clean: Losses
    seed: int

    def read(
        self, models: Mapping[int, TIDE], blocks: Sequence[int]
    ) -> Iterator[tuple[int, tuple[BlockTokens, BlockTokens]]]:
        """The tokens of each block, those to fit to and those to measure; blocks share the passes."""
        for group in self._groups(blocks):
            tensor = models[group[0]].config.tensor
            tokens = [
                read_tokens(
                    self.adapter, side.images, group, self.timesteps, side.places, tensor=tensor, seed=self.seed + i
                )
                for i, side in enumerate(self.sides.both)
            ]
            for block in group:
                yield block, (tokens[0].pop(block), tokens[1].pop(block))

    def _groups(self, blocks: Sequence[int]) -> Iterator[Sequence[int]]:
        """Consecutive blocks whose activations fit into :data:`MOST_BYTES`."""
        rows = sum(side.places.numel() for side in self.sides.both) * len(self.timesteps)
        each = rows * self.adapter.d_model * self.adapter.dtype.itemsize
        n = max(1, MOST_BYTES // each)
        return (blocks[i : i + n] for i in range(0, len(blocks), n))

    def block(self, model: TIDE, tokens: tuple[BlockTokens, BlockTokens]) -> dict[str, Any]:
        """The figures of one block."""
        adapter, labels, block = self.adapter, self.sides.labels, model.config.trained_block
        fitted, measured = tokens
        with inference(model):
            variants = self._variants(model, fitted)
            scale = float(model.activation_scale)
            fits = {
                name: fit_by_timestep(each.rebuild, measured, adapter.device, scale=scale, n_latents=each.n_latents)
                for name, each in variants.items()
            }
            changes = {name: Change(block, each.intervention) for name, each in variants.items()}
            changes["zero"] = Change(block, zero_ablation)
            options: dict[str, Any] = {"timesteps": self.timesteps, "tensor": model.config.tensor, "seed": self.seed}
            losses = image_losses(adapter, self.data, changes, **options)
            probed = dict(each.features for each in variants.values() if each.features)
            probes = (
                None
                if labels is None
                else {
                    name: probes_by_timestep(features, fitted, measured, labels, adapter.device)
                    for name, features in probed.items()
                }
            )
        sizes = {"d_model": model.d_model, "n_latents": model.n_latents, "k": model.config.k}
        kind = "TIDE" if model.modulation is not None else "SAE"
        losses_of = loss_by_timestep(losses, self.clean)
        return {"sae": {"kind": kind, **sizes}, "fit": fits, "loss": losses_of, "probes": probes}

    def _variants(self, model: TIDE, fitted: BlockTokens) -> dict[str, _Variant]:
        """The autoencoder and its baselines, which are fitted to ``fitted``."""
        device, k = self.adapter.device, model.config.k
        pca = PCA.fit_rows(x for x, _ in fitted.steps(device))
        neurons = StrongestNeurons(pca.mean, k)
        random = _calibrated(model, fitted, device, self.seed)
        found = {
            "tide": _Variant(by_model(model), sae_intervention(model), ("tide", model.dense), model.n_latents),
            "random": _Variant(by_model(random), sae_intervention(random), ("random", random.dense), model.n_latents),
            "neurons": _Variant(
                by_projection(neurons.project), neurons.intervention(), ("neurons", lambda x, position: x)
            ),
        }
        for name, rank in (("pca_k", k), ("pca_k/4", k // 4), ("mean", 0)):
            features = ("pca", lambda x, position: pca.coordinates(x)) if name == "pca_k" else None
            project = by_projection(partial(pca.project, rank=rank))
            found[name] = _Variant(project, pca.intervention(rank), features)
        return found


def _calibrated(model: TIDE, fitted: BlockTokens, device: torch.device, seed: int) -> TIDE:
    """A random autoencoder, calibrated on some of the rows of all timesteps."""
    n_steps, n_images, n_tokens = fitted.x.shape[:3]
    n = max(1, min(n_images, CALIBRATED // (n_steps * n_tokens)))
    x = fitted.x[:, :n].flatten(0, 2).to(device).float()
    conditioning = fitted.conditioning
    if conditioning is not None:
        conditioning = conditioning[..., :n, :].expand(n_steps, n, -1).flatten(0, 1).to(device)
    timestep = fitted.timesteps.repeat_interleave(n).to(device)
    return random_autoencoder(model, x, Position(timestep, conditioning), seed)
