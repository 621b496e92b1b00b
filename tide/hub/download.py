"""Files of a checkpoint from the Hub's cache, fetched there first if need be."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tide.hub.names import Repository
from tide.hub.refusals import refusals

CONFIG = "config.json"
#: What describes a repository to people; a checkpoint is whole without them.
DESCRIBING = ("README.md",)
#: The files that a checkpoint consists of, and those that describe it. No other is ever fetched.
FILES = (CONFIG, "model.safetensors", "names.jsonl", "run.json", "training.json", "curves.png", *DESCRIBING)


def fetched(
    repository: Repository,
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder in the cache that holds :data:`FILES` of a repository's folder, and those of its folders ``block-N``.

    Args:
        repository: what to fetch.
        token: default the one that `hf auth login` saved, or the environment's ``HF_TOKEN``.
        cache_dir: default that of ``huggingface_hub`` (``HF_HOME``).
        local_files_only: ask nobody; only what the cache has.

    Raises:
        TideError: there is no such repository or revision, it may not be read, or neither the Hub nor the cache has it.
    """
    from huggingface_hub import snapshot_download

    wanted = [repository.within(each) for file in FILES for each in (file, f"block-*/{file}")]
    with refusals(repository), _no_matches_unsaid():
        folder = snapshot_download(
            repository.name,
            revision=repository.revision,
            allow_patterns=wanted,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            library_name="tide-sae",
        )
    return Path(folder) / (repository.subfolder or "")


@contextmanager
def _no_matches_unsaid() -> Iterator[None]:
    """Leaves out huggingface_hub's warning that no file matched, which lists all patterns: whoever finds no checkpoint
    in the folder says so in one line."""
    log = logging.getLogger("huggingface_hub._snapshot_download")
    log.addFilter(_says_more)
    try:
        yield
    finally:
        log.removeFilter(_says_more)


def _says_more(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("No files matched")
