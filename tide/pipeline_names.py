"""Names of pipelines as files record them, read without the libraries that load pipelines."""

from __future__ import annotations

from pathlib import Path

from tide.sae.checkpoint import load_config
from tide.sae.sets import one_of

#: The name of the pipeline, and of the images, that the package ships.
BUNDLED = "scenes"
#: Its files, by which old checkpoints name it (tide.scenes.pipeline.DATA).
_FILES = Path(__file__).parent / "scenes" / "data" / "pipeline"


def pipeline_name(name: str | Path) -> str:
    """How results record a pipeline or data set: a folder by its absolute path, anything else as it is."""
    return str(Path(name).resolve()) if name != BUNDLED and Path(name).is_dir() else str(name)


def recorded_pipeline(checkpoint: str | Path) -> str | None:
    """The pipeline that the config of a checkpoint, or of a set of them, names, read without weights; None if it names
    none.

    Old checkpoints may name the folder of the pipeline's transformer.
    """
    name = load_config(one_of(checkpoint)).pipeline
    if name is None:
        return None
    path = Path(name).parent if Path(name).name == "transformer" else Path(name)
    return BUNDLED if path.resolve() == _FILES.resolve() else str(path)
