"""Sets of autoencoders: a folder with a checkpoint for each block, ``block-N``, as one training of several makes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tide.errors import TideError
from tide.files.per_block import found_blocks
from tide.messages import one_line
from tide.sae.checkpoint import CONFIG, load_config
from tide.sae.config import TIDEConfig

#: What the members of a set must have in common.
COMMON = ("family", "pipeline", "tensor")


def members(folder: str | Path, blocks: Sequence[int] | None = None) -> dict[int, Path]:
    """Block -> checkpoint of a set, ascending; none of a folder that is a checkpoint itself, or no set. ``blocks``:
    those that are wanted, default all.

    Raises :class:`~tide.errors.TideError`, which names the member's folder, for a block that the set lacks, a member
    that is not whole or of another block than its name says, and for members of different families, pipelines or
    tensors.
    """
    path = Path(folder)
    found = {} if (path / CONFIG).exists() else found_blocks(path)
    if not found:
        return {}
    if missing := sorted(set(blocks or ()) - found.keys()):
        raise TideError(f"{path} holds no block {missing[0]}; it holds {', '.join(map(str, found))}")
    wanted = {block: each for block, each in found.items() if not blocks or block in blocks}
    _check_common({each: _config_of(block, each) for block, each in wanted.items()})
    return wanted


def one_of(folder: str | Path) -> Path:
    """The first checkpoint of a set; the folder itself where it is no set."""
    path = Path(folder)
    found = {} if (path / CONFIG).exists() else found_blocks(path)
    return next((each for each in found.values() if (each / CONFIG).exists()), path)


def check_single(folder: str | Path) -> None:
    """Raises :class:`~tide.errors.TideError` for a set where one checkpoint is asked for."""
    if (one := one_of(folder)) != Path(folder):
        raise TideError(f"{folder} holds the checkpoints of several blocks; give one of them, such as {one}")


def _config_of(block: int, path: Path) -> TIDEConfig:
    try:
        config = load_config(path)
    except TideError as error:
        raise TideError(f"{path} is not a whole checkpoint ({one_line(error, 200)}); train it again") from error
    if config.block != block:
        raise TideError(f"{path} holds a checkpoint of block {config.block}; name its folder block-{config.block}")
    return config


def _check_common(configs: dict[Path, TIDEConfig]) -> None:
    (first, expected), *others = configs.items()
    for path, config in others:
        for name in COMMON:
            was, now = getattr(expected, name), getattr(config, name)
            if was != now:
                raise TideError(
                    f"{path} is of the {name} {now!r} and {first.name} beside it of {was!r}; "
                    "give a folder whose checkpoints were trained together"
                )
