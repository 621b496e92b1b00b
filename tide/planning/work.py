"""What is to be collected and trained, and the counts that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from tide.activations.options import CollectOptions
from tide.checks import check_count
from tide.errors import TideError
from tide.messages import counted
from tide.planning.sizes import PipelineSizes

#: Width of the sinusoids of a timestep.
_FREQUENCIES = 256


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be trained, on how many GPUs.

    Attributes:
        pipeline: its sizes.
        n_images: to collect from.
        blocks: numbers of the blocks, each of which gets an autoencoder.
        n_gpus: GPUs, one rank each.
        n_latents, k, activation, batch_tokens: of every autoencoder and step (:class:`tide.training.TrainConfig`).
        epochs: how often every activation is trained on.
        reuse: how many of these times one pass serves in live training.
        shard_latents: how many GPUs at a time divide the latents of a model, if any are to; it divides ``n_gpus`` and
            ``n_latents``.
        options: what is kept of each image.

    Raises :class:`~tide.errors.TideError` for values that are not valid.
    """

    pipeline: PipelineSizes
    n_images: int
    blocks: tuple[int, ...]
    n_gpus: int
    n_latents: int
    k: int
    activation: str
    batch_tokens: int
    epochs: int = 1
    reuse: int = 1
    shard_latents: int = 1
    options: CollectOptions = field(default_factory=CollectOptions)

    def __post_init__(self) -> None:
        for name in ("n_images", "n_gpus", "epochs", "reuse", "shard_latents"):
            check_count(name, getattr(self, name))
        if self.n_gpus % self.shard_latents:
            raise TideError(
                f"shard_latents = {self.shard_latents} does not divide {counted(self.n_gpus, 'GPU')}; plan a multiple "
                f"of {self.shard_latents}, or leave it off"
            )

    @property
    def d_model(self) -> int:
        """The width of the pipeline's blocks."""
        return self.pipeline.d_model

    @property
    def passes(self) -> int:
        """Of the transformer for an image."""
        return 1 + self.options.paired

    @property
    def image_rows(self) -> int:
        """Rows of a block of an image."""
        return self.options.rows_per_image(self.pipeline.n_tokens)

    @property
    def tensors(self) -> int:
        """Activations of a row: of a transcoder what it reads and what it is to make of it."""
        return 1 if self.options.target is None else 2

    @property
    def rows(self) -> int:
        """Rows of a block of all images."""
        return self.n_images * self.image_rows

    @property
    def steps(self) -> int:
        """Of an autoencoder."""
        return max(1, self.epochs * self.rows // self.batch_tokens)

    @property
    def owned(self) -> int:
        """The most blocks of a rank."""
        return math.ceil(len(self.blocks) / self.n_gpus)

    @property
    def parameters(self) -> int:
        """Of an autoencoder without its modulation: both weights, both biases."""
        return 2 * self.n_latents * self.d_model + self.n_latents + self.d_model

    def with_part_of_the_latents(self) -> Work:
        """That of a rank among ``shard_latents``, on which an equal part of a token's latents is active."""
        across = self.shard_latents
        return replace(self, n_latents=self.n_latents // across, k=math.ceil(self.k / across))

    @property
    def modulation_parameters(self) -> int:
        """A timestep's embedding of width d, and its projection to scale and shift."""
        d = self.d_model
        return (_FREQUENCIES + 1) * d + (d + 1) * d + 2 * (d + 1) * d
