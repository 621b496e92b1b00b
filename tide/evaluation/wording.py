"""The figures of :func:`tide.evaluation.evaluate` as tables and in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tide.tables import text_table

NAMES = {"tide": "", "pca_k": "PCA k", "pca_k/4": "PCA k/4", "mean": "mean"}
FIT = {"mse": ("mse_normalised", ".4f"), "cosine": ("cosine", ".4f"), "variance": ("explained_variance", ".4f")}
IMAGES = {
    "held-out": "held-out images",
    "training": "training images",
    "unrecorded": "images (the checkpoint does not record what it was trained on)",
}
#: More active latents than this share of the channels are hardly sparse.
HARDLY_SPARSE = 0.5
#: With fewer firings than this for each latent, many that are only rare count as dead.
FIRINGS = 10
NOTHING_TO_RECOVER = (
    "recovered -: zeroing adds no loss beyond its sampling error, or the loss is below the clean one; read the ratio."
)


def images_in_words(n: int, kind: str) -> str:
    """How many images, and what those of a :data:`~tide.images.trained.Kind` are called."""
    return f"{n} {IMAGES[kind].replace('images', 'image', 1) if n == 1 else IMAGES[kind]}"


def evaluation_text(figures: dict[str, Any]) -> str:
    """Three tables: a row a model, the clean model and the zeroed block; the diffusion loss by timestep, the worst
    ratio marked; reconstruction by timestep.

    ``figures`` are what :func:`tide.evaluation.evaluate` returned.
    """
    kind, loss = figures["sae"]["kind"], figures["diffusion_loss"]
    parts = [_models(figures), _by_timestep(kind, loss), _fit_by_timestep(kind, figures["models"]["tide"]["timestep"])]
    shares = [each["recovered"] for each in (*loss["variants"].values(), *loss["by_timestep"].values())]
    return "\n\n".join([_read(figures), *parts, *_notes(figures, refused=None in shares)])


def evaluation_sentence(figures: dict[str, Any]) -> str:
    """What the figures come to: variance explained, what the reconstruction costs, where it is worst."""
    tide, pca, kind = figures["models"]["tide"], figures["models"]["pca_k"], figures["sae"]["kind"]
    return (
        f"On {images_in_words(figures['images']['measured'], figures['images']['of'])} the {kind} explains "
        f"{_cell(tide['explained_variance'], '.1%')} of the variance (PCA of rank {pca['rank']}: "
        f"{_cell(pca['explained_variance'], '.1%')}). {_cost(figures['diffusion_loss'])}"
    )


def blocks_text(found: dict[str, Any]) -> str:
    """The figures of :func:`tide.evaluation.evaluate_blocks`: a row a block, and their mean.

    ``found`` is what that function returned.
    """
    blocks, average = found["blocks"], found["average"]
    rows = [(f"block {block}", *_of_block(figures)) for block, figures in blocks.items()]
    rows.append(("mean", *_of_block(_means(average))))
    header = ("", *FIT, "l0", "dead", "PCA k/4", "loss", "ratio", "recovered")
    first = next(iter(blocks.values()))
    refused = any(figures["diffusion_loss"]["recovered"] is None for figures in blocks.values())
    notes = ["PCA k/4: the variance that a PCA of a quarter of the rank explains.", *[NOTHING_TO_RECOVER] * refused]
    return "\n\n".join([_read(first), _table(header, rows), "\n".join(notes)])


def blocks_sentence(found: dict[str, Any]) -> str:
    """What the average over the blocks comes to, and which block is reconstructed worst.

    ``found`` is what :func:`tide.evaluation.evaluate_blocks` returned.
    """
    blocks, average = found["blocks"], found["average"]
    explained = {block: figures["models"]["tide"]["explained_variance"] for block, figures in blocks.items()}
    known = {block: value for block, value in explained.items() if value is not None}
    images = next(iter(blocks.values()))["images"]
    mean = _means(average)
    ratio = _ratio(mean["diffusion_loss"]["ratio"])
    worst = min(known, key=lambda block: known[block], default=None)
    least = "" if worst is None else f", least on block {worst} ({known[worst]:.1%})"
    return (
        f"On {images_in_words(images['measured'], images['of'])} the autoencoders of {len(blocks)} blocks explain "
        f"{_cell(mean['models']['tide']['explained_variance'], '.1%')} of the variance on average{least}; with one of "
        f"them in place the diffusion loss is {ratio} times the clean one on average"
    )


def _of_block(figures: dict[str, Any]) -> tuple[str, ...]:
    tide, loss = figures["models"]["tide"], figures["diffusion_loss"]
    return (
        *_fit(tide),
        _cell(tide["l0"], ".1f"),
        _cell(tide["dead"], ".1%"),
        _cell(figures["models"]["pca_k/4"]["explained_variance"], ".4f"),
        *_loss({**loss, "loss": loss["reconstructed"]}),
    )


def _means(average: Any) -> Any:
    """The means of :func:`tide.evaluation.table.average`, in the form of the figures of a block."""
    if not isinstance(average, Mapping):
        return average
    if average.keys() == {"mean", "spread", "blocks"}:
        return average["mean"]
    return {name: _means(each) for name, each in average.items()}


def _cost(loss: dict[str, Any]) -> str:
    ratio, worst = loss["ratio"], loss["by_timestep"][loss["worst"]]["ratio"]
    if ratio is None:
        return f"With its reconstruction in place the diffusion loss has no ratio to the clean {loss['clean']:#.4g}"
    adds = f"adds {ratio - 1:.1%} to" if ratio >= 1 else f"takes {1 - ratio:.1%} off"
    share = f"no recovered share can be told from zeroing the block ({_cell(loss['ablated'], '#.4g')})"
    if loss["recovered"] is not None:
        share = f"of what zeroing the block adds, {loss['recovered']:.1%} is recovered"
    return (
        f"Its reconstruction in place {adds} the diffusion loss: {loss['reconstructed']:#.4g} against "
        f"{loss['clean']:#.4g} clean, ratio {_ratio(ratio)}, at worst {_ratio(worst)} at timestep {loss['worst']}; "
        f"{share}"
    )


def _read(figures: dict[str, Any]) -> str:
    images, tokens = figures["images"], figures["models"]["tide"]["tokens"]
    return (
        f"{images['read']}: {images['fit']} to fit PCA and mean, {images['measured']} measured ({tokens:.0f} tokens), "
        f"{images['loss']} in the model.\nmse: in units of the activations' mean square; l0: active latents a token; "
        "dead: latents that never fired;\nloss: of the noise (eq. 4), with the row in place of the block's output; "
        "ratio: of that loss to the clean one."
    )


def _models(figures: dict[str, Any]) -> str:
    loss = figures["diffusion_loss"]
    rows = [
        (
            NAMES[name] or figures["sae"]["kind"],
            *_fit(row),
            f"{row['l0']:.1f}" if "l0" in row else "",
            f"{row['dead']:.1%}" if "dead" in row else "",
            *_loss(loss["variants"][name]),
        )
        for name, row in figures["models"].items()
    ]
    empty = ("",) * (len(FIT) + 2)
    rows.append(("clean", *empty, _cell(loss["clean"], "#.4g"), "", ""))
    zeroed = None if loss["ablated"] is None or not loss["clean"] else loss["ablated"] / loss["clean"]
    rows.append(("zeroed", *empty, _cell(loss["ablated"], "#.4g"), _ratio(zeroed), ""))
    return _table(("", *FIT, "l0", "dead", "loss", "ratio", "recovered"), rows)


def _by_timestep(kind: str, loss: dict[str, Any]) -> str:
    rows = [
        (
            f"t {t}",
            *(_cell(each[name], "#.4g") for name in ("clean", "reconstructed", "ablated")),
            _ratio(each["ratio"]),
            _cell(each["recovered"], ".1%"),
            "< worst" if t == loss["worst"] else "",
        )
        for t, each in loss["by_timestep"].items()
    ]
    return _table(("diffusion loss", "clean", kind, "zeroed", "ratio", "recovered", ""), rows)


def _fit_by_timestep(kind: str, bins: Mapping[str, Any]) -> str:
    return _table((f"{kind} by timestep", *FIT), [(f"t {name}", *_fit(row)) for name, row in bins.items()])


def _table(header: Sequence[str], rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join(line.rstrip() for line in text_table(header, rows).splitlines())


def _notes(figures: dict[str, Any], *, refused: bool) -> list[str]:
    sae, tokens, l0 = figures["sae"], figures["models"]["tide"]["tokens"], figures["models"]["tide"]["l0"]
    notes = [NOTHING_TO_RECOVER] if refused else []
    if sae["k"] >= sae["d_model"]:
        notes.append(
            f"PCA k has all {sae['d_model']} components and reproduces every activation; compare with PCA k/4."
        )
    if l0 > HARDLY_SPARSE * sae["d_model"]:
        notes.append(
            f"l0: {l0:.1f} latents a token for {sae['d_model']} channels are hardly sparse; train with a smaller k."
        )
    if tokens * l0 < FIRINGS * sae["n_latents"]:
        notes.append(
            f"dead: {tokens:.0f} tokens are few for {sae['n_latents']} latents, so rare ones count as dead; give more "
            "images or a larger token fraction."
        )
    return ["\n".join(notes)] if notes else []


def _fit(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(_cell(row[name], form) for name, form in FIT.values())


def _loss(variant: Mapping[str, Any]) -> tuple[str, str, str]:
    return _cell(variant["loss"], "#.4g"), _ratio(variant["ratio"]), _cell(variant["recovered"], ".1%")


def _cell(value: float | None, form: str) -> str:
    """The figure; "-" for one that is not known."""
    return "-" if value is None else f"{value:{form}}"


def _ratio(value: float | None) -> str:
    return _cell(value, ".2f" if value is not None and value < 1000 else ".3g")
