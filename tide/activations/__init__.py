"""Activations of a diffusion transformer: collected, stored, streamed."""

from tide.activations.batch import ActivationBatch
from tide.activations.collect import Prepared, collect, collect_sampling, prepare
from tide.activations.options import CollectOptions
from tide.activations.source import Prompts, Source
from tide.activations.store import ActivationStore
from tide.activations.stream import ActivationBuffer, LiveStream, stream
from tide.activations.to_disk import collect_to_disk
from tide.activations.writer import StoreWriter, estimate_bytes
from tide.images.opening import image_folder, open_data

__all__ = [
    "ActivationBatch",
    "ActivationBuffer",
    "ActivationStore",
    "CollectOptions",
    "LiveStream",
    "Prepared",
    "Prompts",
    "Source",
    "StoreWriter",
    "collect",
    "collect_sampling",
    "collect_to_disk",
    "estimate_bytes",
    "image_folder",
    "open_data",
    "prepare",
    "stream",
]
