"""What a layer sweep comes to: its figures as a table, and in sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tide.evaluation.probes_by_timestep import SIZES
from tide.evaluation.statistics import mean_interval
from tide.evaluation.wording import images_in_words
from tide.tables import text_table

Figures = Mapping[str, Any]

#: The number of features of the probes that sentences are about.
PROBED = str(max(SIZES))


def known(figures: Any, *path: str) -> float | None:
    """A nested figure, None where it or a level above it is missing."""
    for name in path:
        figures = figures.get(name) if isinstance(figures, Mapping) else None
    return figures if isinstance(figures, int | float) else None


def by_block(found: Figures, *path: str) -> dict[str, float]:
    """Block -> a figure of it, of the blocks in which it is known."""
    values = {block: known(figures, *path) for block, figures in found["blocks"].items()}
    return {block: value for block, value in values.items() if value is not None}


def sweep_text(found: Figures) -> str:
    """A row a block, and their mean."""
    columns: dict[str, tuple[tuple[str, ...], str]] = {
        "variance": (("fit", "tide", "explained_variance"), ".4f"),
        "cosine": (("fit", "tide", "cosine"), ".4f"),
        "l0": (("fit", "tide", "l0"), ".1f"),
        "dead": (("fit", "tide", "dead"), ".1%"),
        "PCA k": (("fit", "pca_k", "explained_variance"), ".4f"),
        "recovered": (("loss", "tide", "recovered"), ".1%"),
        "of mean": (("loss", "tide", "recovered_mean"), ".1%"),
    }
    for name, head in (("tide", "latents"), ("neurons", "neurons"), ("random", "random")):
        columns[head] = (("probes", name, PROBED, "auroc"), ".3f")
    columns = {head: column for head, column in columns.items() if by_block(found, *column[0])}
    rows = [
        (f"block {block}", *(_cell(known(figures, *path), form) for path, form in columns.values()))
        for block, figures in found["blocks"].items()
    ]
    rows.append(("mean", *(_cell(known(found["average"], *path, "mean"), form) for path, form in columns.values())))
    return "\n".join(line.rstrip() for line in text_table(("", *columns), rows).splitlines())


def sweep_sentences(found: Figures) -> list[str]:
    """What is kept on average and where least; what it costs the model; which block tells concepts best, and whether
    latents tell them better than what needs no training."""
    sentences = [_reconstruction(found), _loss(found), _concepts(found), _against(found), _left_out(found)]
    return [each for each in sentences if each]


def _reconstruction(found: Figures) -> str:
    explained, mean = by_block(found, "fit", "tide", "explained_variance"), _mean(found, "fit", "tide")
    images, n = found["images"], len(found["blocks"])
    if not explained:
        return ""
    least = _extreme(explained, min)
    where = "" if n == 1 else f" on average over {n} blocks, least on block {least} ({explained[least]:.1%})"
    pca = _cell(_mean(found, "fit", "pca_k"), ".1%")
    return (
        f"On {images_in_words(images['measured'], images['of'])} the latents explain {_cell(mean, '.1%')} of the "
        f"variance{where}; a PCA of rank k explains {pca}."
    )


def _loss(found: Figures) -> str:
    recovered = by_block(found, "loss", "tide", "recovered")
    if not recovered:
        return "Zeroing these blocks adds no loss beyond its sampling error, so no recovered share is known."
    mean, pca = (_cell(known(found["average"], "loss", name, "recovered", "mean"), ".1%") for name in ("tide", "pca_k"))
    least = _extreme(recovered, min)
    where = "" if len(recovered) == 1 else f", least on block {least} ({recovered[least]:.1%})"
    return f"Of the loss that zeroing a block adds, {mean} is recovered{where}; the PCA recovers {pca}."


def _concepts(found: Figures) -> str:
    areas = by_block(found, "probes", "tide", PROBED, "auroc")
    if not areas:
        return ""
    best = _extreme(areas, max)
    error = known(found["blocks"][best], "probes", "tide", PROBED, "errors", "auroc")
    spread = "" if error is None else f"\N{NO-BREAK SPACE}\N{PLUS-MINUS SIGN}\N{NO-BREAK SPACE}{error:.3f}"
    where = f"block {best}" if len(areas) == 1 else f"block {best} best"
    return (
        f"Probes on {PROBED} latents tell the {len(found['concepts'])} concepts on {where}, with a mean AUROC of "
        f"{areas[best]:.3f}{spread} (0.5 is chance)."
    )


def _against(found: Figures) -> str:
    """In how many blocks latents tell concepts better than each baseline's features, and in how many worse,
    where the 95 % interval of the difference over the concepts does not hold 0."""
    ahead = {
        name: [_ahead(figures["probes"], name) for figures in found["blocks"].values() if figures["probes"]]
        for name in ("neurons", "pca", "random")
    }
    n = len(ahead["neurons"])
    if not n:
        return ""
    words = {"neurons": "raw neurons", "pca": "principal components", "random": "a random autoencoder's latents"}
    said = [f"{words[name]} in {values.count(1)} and lose in {values.count(-1)}" for name, values in ahead.items()]
    blocks = "1 block" if n == 1 else f"{n} blocks"
    return f"Of {blocks}, they beat probes on {', '.join(said)} (95 % intervals over the concepts)."


def _left_out(found: Figures) -> str:
    left_out = found["left_out"]
    return f"Left out, since too few show them or too few do not: {', '.join(left_out)}." if left_out else ""


def _ahead(probes: Figures, name: str) -> int:
    """1 if the latents' probes are ahead of those of ``name``, -1 if they are behind, 0 if neither is clear."""
    own, other = (probes[each][PROBED]["concepts"] for each in ("tide", name))
    pairs = [(own[c], other[c]) for c in own if own[c] is not None and other[c] is not None]
    low, high = mean_interval([a - b for a, b in pairs])
    return 1 if low > 0 else -1 if high < 0 else 0


def _mean(found: Figures, part: str, name: str) -> float | None:
    return known(found["average"], part, name, "explained_variance", "mean")


def _extreme(values: Mapping[str, float], which: Callable[..., str]) -> str:
    return which(values, key=lambda block: values[block])


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"
