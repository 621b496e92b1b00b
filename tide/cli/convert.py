"""``tide convert``: sparse autoencoders of other libraries as checkpoints, and checkpoints as theirs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from tide.cli.command import Command
from tide.cli.usage import Aspect, with_option
from tide.cli.values import Folder, MaybeBlock, MaybeCount, MaybeNumber, MaybeText, Text, option, read_by
from tide.errors import TideError

if TYPE_CHECKING:
    from tide.conversion import Origin
    from tide.runs import Contents

_Library = Literal["saelens", "sparsify", "dictionary_learning", "overcomplete"]
_FROM_FOREIGN = "from_library block family pipeline tensor transcoder k"
_SOURCE = "folder that another library saved an SAE to; with --to a checkpoint folder that `tide train` wrote"


@dataclass(frozen=True, kw_only=True)
class Convert(Command):
    """Turn an SAE of another library into a checkpoint, or with --to a checkpoint into one of theirs.

    Latents and reconstructions stay the same; what cannot stay is refused, or listed. A TIDE depends on the timestep
    and other libraries' SAEs do not, so it is frozen at one. Nothing of a foreign file is run.
    """

    usage: ClassVar[tuple[Aspect, ...]] = (
        with_option("to", uses="at_timestep", leaves_out=_FROM_FOREIGN),
        with_option("transcoder", leaves_out="tensor"),
    )

    folder: Annotated[str, read_by(str, "DIR"), tyro.conf.Positional, tyro.conf.arg(metavar="DIR", help=_SOURCE)]
    out: Folder
    """folder to write"""
    to: Annotated[_Library | None, option()] = None
    """write a folder of this library"""
    at_timestep: MaybeNumber = None
    """timestep to freeze a TIDE at, 0 to 1000"""
    from_library: Annotated[_Library | None, option()] = None
    """the library that saved the folder (default: found out by its files)"""
    block: MaybeBlock = None
    """number of the block that the SAE was trained on; commands that run a pipeline need it"""
    family: MaybeText = None
    """family of the transformer, such as pixart"""
    pipeline: MaybeText = None
    """pipeline that it was trained on: a diffusers id or folder"""
    tensor: Text = "output"
    """what of the block it encodes: output, attention or feed_forward"""
    transcoder: MaybeText = None
    """for a transcoder, the module that it imitates: attention or feed_forward"""
    k: MaybeCount = None
    """active latents of a token on average, where the files do not say"""

    def run(self) -> None:
        from tide.cli.common import output_folder, writing
        from tide.runs import write_run

        out = Path(self.out)
        if out.resolve() == Path(self.folder).resolve():
            raise TideError(f"{out} is the folder to be converted; write to another one")
        with output_folder(out), writing(out):
            holds = self._read(out) if self.to is None else self._write(out)
            write_run(out, holds, self.made_by())
        lost = holds.configuration["lost"]
        print("\n".join([f"{', '.join(holds.files)} in {out}.", *(f"Lost: {each}." for each in lost)]))

    def _read(self, out: Path) -> Contents:
        from tide.conversion import read_sae
        from tide.conversion.convert import check_free
        from tide.runs import Contents
        from tide.sae.checkpoint import CONFIG, WEIGHTS

        check_free(out, WEIGHTS)
        found = read_sae(self.folder, self.from_library, origin=self._origin(), k=self.k)
        found.model.save_pretrained(out)
        config = found.model.config
        return Contents(
            kind="autoencoder",
            blocks=[] if config.block is None else [config.block],
            family=config.family,
            pipeline=config.pipeline,
            data={"name": str(Path(self.folder).resolve())},
            configuration={**_said(found), "source": found.config},
            files={CONFIG: "figures", WEIGHTS: "autoencoder"},
        )

    def _write(self, out: Path) -> Contents:
        from tide.conversion import write_sae
        from tide.fingerprint import fingerprint
        from tide.interpretation.names import NAMES
        from tide.runs import Contents
        from tide.sae import TIDE
        from tide.sae.sets import check_single

        check_single(self.folder)
        model = TIDE.from_pretrained(Path(self.folder))
        config = model.config
        assert self.to is not None
        found = write_sae(model, out, self.to, at=self.at_timestep)
        beside = [f"names, notes and stars of latents ({NAMES})"] if (Path(self.folder) / NAMES).exists() else []
        return Contents(
            kind="conversion",
            blocks=[] if config.block is None else [config.block],
            family=config.family,
            pipeline=config.pipeline,
            autoencoder={"folder": str(Path(self.folder).resolve()), "weights": fingerprint([model])},
            configuration={**_said(found, *beside), "timestep": self.at_timestep},
            files={name: "figures" if name.endswith(".json") else "weights" for name in found.files},
        )

    def _origin(self) -> Origin:
        from tide.conversion import Origin
        from tide.sae.config import input_of

        if isinstance(self.block, str):
            raise TideError(f"{self.block} is not known without the model; give the block's number")
        return Origin(
            block=self.block,
            family=self.family,
            pipeline=self.pipeline,
            tensor=self.tensor if self.transcoder is None else input_of(self.transcoder),
            target=self.transcoder,
        )


def _said(found: Any, *lost: str) -> dict[str, Any]:
    return {"library": found.library, "kind": found.kind, "lost": [*found.lost, *lost]}
