"""Edits as a file: a prompt, how it is drawn, and changes of numbered latents one after the other."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, get_args

from tide.checks import GUIDANCE
from tide.editing.change import Change, WhereLatents
from tide.editing.edits import Branch
from tide.editing.progress import check_steps
from tide.errors import TideError
from tide.files import read_json, write_json
from tide.files.schema import check_schema
from tide.messages import one_line

if TYPE_CHECKING:
    from tide.adapters import Adapter
    from tide.sae.model import TIDE

FORMAT = "tide-recipe/1"
#: Letters of a prompt; no text encoder reads as many.
LONGEST_PROMPT = 10_000
#: Seeds are those of the command line.
MOST_SEED = 2**32 - 1


class _Format(TypedDict):
    """What the file says beside the recipe's own fields."""

    format: str


@dataclass(frozen=True)
class Recipe:
    """A prompt and the changes of its image, in the order in which they are applied.

    Attributes:
        prompt: what is drawn.
        changes: none draws the unedited image.
        seed, n_steps, guidance_scale, size, branch, renormalise: as in :func:`~tide.editing.draw_edits`.
        sae: fingerprint of the autoencoder whose latents the numbers name (``tide.fingerprint.fingerprint([model])``);
            None is not checked.

    Raises:
        TideError: a value is none of these.
    """

    prompt: str
    changes: tuple[Change, ...]
    seed: int = 0
    n_steps: int = 20
    guidance_scale: float = GUIDANCE
    size: tuple[int, ...] | None = None
    branch: Branch = "conditional"
    renormalise: bool = False
    sae: str | None = None

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        if not 0 <= self.seed <= MOST_SEED:
            raise TideError(f"seed = {self.seed} must be 0 to {MOST_SEED}")
        if self.n_steps < 1:
            raise TideError(f"n_steps = {self.n_steps} must be at least 1")
        if not math.isfinite(self.guidance_scale):
            raise TideError(f"guidance_scale = {self.guidance_scale} is not a finite number; give one, such as 4.5")
        if self.size is not None and (len(self.size) not in (2, 3) or min(self.size) < 1):
            raise TideError(f"size = {self.size} must be a height and a width of at least 1 pixel, or frames and these")
        if self.branch not in get_args(Branch):
            raise TideError(f"branch = {self.branch!r} is unknown; use one of {', '.join(get_args(Branch))}")

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """The recipe in a file. Raises :class:`~tide.errors.TideError` as :meth:`from_dict`, and for a file that cannot
        be read or is not JSON."""
        return cls.from_dict(read_json(Path(path)), str(path))

    def save(self, path: str | Path) -> None:
        """Writes the recipe as JSON, in one step."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def from_dict(cls, data: Any, where: str = "the recipe") -> Recipe:
        """What :meth:`to_dict` returned, parsed from JSON.

        Raises :class:`~tide.errors.TideError`, naming ``where``, for another format, for fields that are missing,
        unknown or of another type, and for values that a recipe cannot have.
        """
        check_schema(data, _Format, where)
        if (found := data["format"]) != FORMAT:
            raise TideError(f"{where} has the format {one_line(repr(found), 60)} and not {FORMAT!r}; make it again")
        check_schema(data, cls, where)
        _check_known(data, ("format", *_names(cls)), where)
        for i, change in enumerate(data["changes"]):
            _check_known(change, _names(Change), f"{where}: changes[{i}]")
            _check_known(change.get("where") or (), _names(WhereLatents), f"{where}: changes[{i}].where")
        try:
            changes = tuple(map(_change, data["changes"]))
            size = data.get("size")
            given = {name: data[name] for name in _names(cls) if name in data}
            return cls(**{**given, "changes": changes, "size": size and tuple(size)})
        except TideError as error:
            raise TideError(f"{where}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The recipe for JSON: lists in place of tuples."""
        written: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {"format": FORMAT, **written}

    def check(self, model: TIDE, adapter: Adapter) -> None:
        """Raises :class:`~tide.errors.TideError` if the recipe does not fit: it names the latents of another SAE,
        latents or image tokens that there are not, steps or a size that the pipeline cannot draw in, or a part of the
        run without any of its steps."""
        # A recipe is read and written without a pipeline's libraries.
        from tide.adapters.sizes import image_size, n_tokens
        from tide.fingerprint import fingerprint

        adapter.check_steps(self.n_steps)
        if self.sae is not None and self.sae != (found := fingerprint([model])):
            raise TideError(
                f"the recipe names latents of the SAE {one_line(self.sae, 60)} and this is {found}; use the SAE that "
                "it was made with"
            )
        tokens = n_tokens(adapter, image_size(adapter, self.size))
        for change in self.changes:
            check_steps(change.steps, self.n_steps)
            change.edit().check(model.n_latents)
            change.places(model, tokens)


def _check_prompt(prompt: str) -> None:
    if not prompt.strip():
        raise TideError("the prompt is empty; say what to draw")
    if len(prompt) > LONGEST_PROMPT:
        raise TideError(f"the prompt has {len(prompt)} letters; give at most {LONGEST_PROMPT}")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise TideError(f"the prompt {one_line(ascii(prompt), 60)} is not UTF-8 text; write it in UTF-8") from None


def _names(kind: Any) -> list[str]:
    return [each.name for each in fields(kind)]


def _check_known(data: Iterable[str], known: Sequence[str], where: str) -> None:
    """A field that is misspelt would otherwise be left at its default, and another image drawn."""
    if unknown := [name for name in data if name not in known]:
        raise TideError(f"{where} has the unknown field {one_line(repr(unknown[0]), 60)}; use {', '.join(known)}")


def _change(data: dict[str, Any]) -> Change:
    """A change that the schema has passed."""
    given = _tuples(data)
    if given.get("where") is not None:
        given["where"] = WhereLatents(**_tuples(given["where"]))
    return Change(**given)


def _tuples(data: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
