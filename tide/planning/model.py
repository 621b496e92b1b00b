"""The cost of the ways to train, from sizes and constants: time, disk, memory of a rank, bytes on the wire.

Nothing here measures. :data:`FORMULAS` says in words what the functions compute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch

from tide.activations.stream import HELD
from tide.activations.writer import estimate_bytes
from tide.planning.machines import Machine
from tide.planning.work import Work
from tide.training.matching import MATCHED_ROWS
from tide.training.sources import BUFFER_ROWS
from tide_kernels import LossOptions

#: Symbol -> what it stands for.
SYMBOLS = {
    "I": "images",
    "c": "passes of the transformer for an image, 2 with pairs",
    "T": "tokens of an image",
    "f": "share of the tokens that is kept",
    "L": "blocks of the transformer",
    "m": "blocks that are trained",
    "W": "GPUs, one rank each",
    "d": "width of the activations",
    "a": "activations of a token, 2 for a transcoder",
    "n": "latents",
    "k": "active latents of a token",
    "B": "tokens of a step",
    "b": "bytes of a number of the activations",
    "e": "epochs",
    "u": "uses of an activation before the next pass replaces it",
    "G": "GPUs that divide the latents of a model",
}
#: What is computed -> how.
FORMULAS = {
    "tokens of a block": "R = I c round(T f); steps of a training: S = e R / B",
    "images": "ceil(I / W) pixels pixel",
    "encode": "ceil(I / W) (VAE + text encoders) / encode_rate",
    "forward": "ceil(I / W) c (2 weights tokens + 4 L T (T + caption) d) (last block + 1) / L / rate",
    "stores": "m (R (a d b + 16) + c I 4 (1 + conditioning)) bytes",
    "step": "d (n weights + B min(n dense, n sparse + k place)) + (2 n d + n + d) update",
    "training": "S step + min(S B, 65536) n d match; from stores a step takes B (a d b + 16) / read at least",
    "from stores": "images + encode + forward + stores / (W write) + ceil(m / W) training",
    "live, block parallel": "ceil(e / u) (images + encode + forward) + ceil(m / W) (training + wire)",
    "data parallel": "images + encode + forward + stores / (W write) + m (training of B / W tokens a step + wire)",
    "tokens on the wire": "S B (a d b + 16) (W - 1) / W ceil(e / u) / e bytes to the owner of a block",
    "gradients on the wire": "S 2 (W - 1) / W 4 (2 n d + n + d) bytes from each rank for a block",
    "counts on the wire": "S 2 ((G - 1) / G + (W - G) / W) 8 (2^16 + 2^15) bytes from each rank for BatchTopK, G >= 1",
    "latents divided": "as data parallel, with B G / W tokens a step, n / G latents and k / G of them active",
    "of it on the wire": "S B G / W (G - 1) 4 (2 d / G, with TopK + k) + S 2 (W - G) / W 4 ((2 n d + n) / G + d) bytes",
    "an autoencoder": "16 (2 n d + n + d + modulation) bytes: weights, gradients, two moments in float32",
    "memory": "pipeline + pass or autoencoder + step; live all of these at once, and four times 65536 tokens a block",
}

#: Bytes of a row of activations besides its values: sample, token, group.
_ROW_BYTES = 16
_FLOAT = 4
#: Bytes of the counts by which ranks find the cut of BatchTopK: of the upper, then of the lower bits of float32.
_COUNTS = 8 * (2**16 + 2**15)
#: Numbers of a parameter in training: itself, its gradient, two moments.
_COPIES = 4
#: What a block computes of a token at least, in units of d: the token, and the inside of its feed-forward.
_PASS_WIDTHS = 5


@dataclass(frozen=True)
class Way:
    """What one way to train takes.

    Attributes:
        name: of the way.
        seconds: of its parts, one after another on the busiest rank.
        disk: bytes of all stores.
        memory: bytes of the busiest rank, by what they hold, where it needs most.
        wire: bytes that all ranks together send.
    """

    name: str
    seconds: dict[str, float]
    disk: float
    memory: dict[str, float]
    wire: float

    @property
    def total_seconds(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())

    @property
    def total_memory(self) -> float:
        """Bytes of the busiest rank."""
        return sum(self.memory.values())


class Model:
    """The costs of ``work`` on a machine."""

    def __init__(self, work: Work, machine: Machine) -> None:
        self.work, self.machine = work, machine
        self._step = machine.of_step(work.activation)

    def ways(self) -> list[Way]:
        """Three ways, and one more where GPUs divide the latents."""
        divided = [self.latents_divided()] if self.work.shard_latents > 1 else []
        return [self.from_stores(), self.live(), self.data_parallel(), *divided]

    def from_stores(self) -> Way:
        """Collected to disk once; then each rank trains its blocks from their stores, one after another."""
        work = self.work
        seconds = {**self._collection, "training": work.owned * self.training(work.batch_tokens, self._read)}
        return Way("from stores", seconds, self.disk, self._larger(self._trainer(work.batch_tokens)), 0.0)

    def live(self) -> Way:
        """Every rank runs the transformer on its share of the images and owns some of the blocks; tokens travel to the
        owners of their blocks."""
        work = self.work
        times = math.ceil(work.epochs / work.reuse)
        seconds = {name: times * self._collection[name] for name in ("images", "encode", "forward")}
        seconds["training"] = work.owned * self.training(work.batch_tokens)
        # Once for all uses of a pass.
        sent = work.steps * work.batch_tokens * self._row * self._elsewhere * times / work.epochs
        seconds["wire"] = work.owned * sent / self._wire
        memory = {
            **self._collector,
            "autoencoders": work.owned * self._autoencoder,
            "buffers": work.owned * HELD * BUFFER_ROWS * self._row,
            "step": self._scratch(work.batch_tokens),
        }
        return Way("live, block parallel", seconds, 0.0, memory, len(work.blocks) * sent)

    def data_parallel(self) -> Way:
        """Collected to disk once; then all ranks train one block after another, each on its share of every step."""
        work = self.work
        share = math.ceil(work.batch_tokens / work.n_gpus)
        sent = len(work.blocks) * work.steps * _summed(_FLOAT * work.parameters + self._counts, work.n_gpus)
        seconds = {
            **self._collection,
            "training": len(work.blocks) * self.training(share, self._read / work.n_gpus),
            "wire": sent / self._wire,
        }
        return Way("data parallel", seconds, self.disk, self._larger(self._trainer(share)), work.n_gpus * sent)

    def latents_divided(self) -> Way:
        """Collected to disk once; then all ranks train one block after another. ``shard_latents`` at a time have the
        same share of a step's tokens and divide the latents."""
        work, across = self.work, self.work.shard_latents
        groups = work.n_gpus // across
        share = math.ceil(work.batch_tokens / groups)
        part = Model(work.with_part_of_the_latents(), self.machine)
        values = 2 / across * work.d_model + (work.k if work.activation == "topk" else 0)
        of_tokens = share * (across - 1) * _FLOAT * values + _summed(self._counts, across)
        of_latents = _summed(_FLOAT * part.work.parameters + self._counts, groups)
        steps = len(work.blocks) * work.steps
        seconds = {
            **self._collection,
            "training": len(work.blocks) * part.training(share, self._read / groups),
            "wire": steps * (of_tokens / self._wire_among(across) + of_latents / self._wire),
        }
        wire = work.n_gpus * steps * (of_tokens + of_latents)
        return Way("latents divided", seconds, self.disk, self._larger(part._trainer(share)), wire)

    def step(self, n_tokens: int) -> float:
        """Seconds of a step of so many tokens, with its update."""
        n, k, of = self.work.n_latents, self.work.k, self._step
        token = min(n * of["dense"], n * of["sparse"] + k * of["place"])
        return (
            self.work.d_model * (n * of["weights"] + n_tokens * token) + self.work.parameters * self.machine["update"]
        )

    def training(self, n_tokens: int, read: float = 0.0) -> float:
        """Seconds of all steps of an autoencoder, each of which reads for ``read`` seconds in the background, and of
        setting its threshold at the end."""
        work = self.work
        matched = min(work.steps * n_tokens, MATCHED_ROWS) * work.n_latents * work.d_model * self._step["match"]
        return work.steps * max(self.step(n_tokens), read) + matched

    @property
    def disk(self) -> float:
        """Bytes of all stores."""
        work = self.work
        return len(work.blocks) * estimate_bytes(
            work.n_images,
            work.pipeline.n_tokens,
            work.d_model,
            token_fraction=work.options.token_fraction,
            paired=work.options.paired,
            d_conditioning=work.pipeline.d_conditioning,
            dtype=torch.bfloat16 if self.machine.itemsize == 2 else torch.float32,
            target=work.tensors > 1,
        )

    @cached_property
    def _collection(self) -> dict[str, float]:
        """Seconds of a collection, on ranks that share the images and wait for nobody."""
        work, sizes, machine = self.work, self.work.pipeline, self.machine
        images = math.ceil(work.n_images / work.n_gpus)
        until = (max(work.blocks) + 1) / sizes.n_blocks  # a pass ends after the last block asked for
        return {
            "images": images * sizes.n_pixels * machine["pixel"],
            "encode": images * sizes.encode_flops / machine["encode_rate"],
            "forward": images * work.passes * sizes.pass_flops * until / machine["rate"],
            "write": self.disk / work.n_gpus / machine["write"],
        }

    @property
    def _row(self) -> int:
        """Bytes of a row of activations."""
        return self.work.tensors * self.work.d_model * self.machine.itemsize + _ROW_BYTES

    @property
    def _read(self) -> float:
        """Seconds to read the rows of a step."""
        return self.work.batch_tokens * self._row / self.machine["read"]

    @property
    def _elsewhere(self) -> float:
        """The share of what all ranks hold that is on other ranks."""
        return (self.work.n_gpus - 1) / self.work.n_gpus

    @property
    def _wire(self) -> float:
        """Bytes a second to and from a rank, among all."""
        return self._wire_among(self.work.n_gpus)

    def _wire_among(self, n_ranks: int) -> float:
        """Bytes a second to and from each of so many neighbours; the slower wire where they are of several nodes."""
        node = self.machine["node"]
        inside = self.work.n_gpus <= node or node % n_ranks == 0
        return self.machine["wire_inside" if inside else "wire_between"]

    @property
    def _counts(self) -> int:
        """Bytes of BatchTopK's counts. A CPU first finds the cut of a sample."""
        if self.work.activation != "batch_topk":
            return 0
        return _COUNTS * (2 if self.machine.device == "cpu" else 1)

    @property
    def _collector(self) -> dict[str, float]:
        """Memory of a rank that collects: the pipeline, a pass, and the rows that are kept of it."""
        work, sizes = self.work, self.work.pipeline
        rows = work.options.batch_size * work.passes * sizes.n_tokens
        kept = work.options.batch_size * work.image_rows * len(work.blocks) * work.tensors
        return {
            "pipeline": sizes.n_weights * self.machine.itemsize,
            "pass": (rows * _PASS_WIDTHS + kept) * work.d_model * self.machine.itemsize,
        }

    @property
    def _autoencoder(self) -> float:
        return _FLOAT * _COPIES * (self.work.parameters + self.work.modulation_parameters)

    def _trainer(self, n_tokens: int) -> dict[str, float]:
        """Memory of a rank that trains from a store, with steps of so many tokens."""
        return {"autoencoders": self._autoencoder, "step": self._scratch(n_tokens)}

    def _scratch(self, n_tokens: int) -> float:
        """What a step needs of a chunk of its tokens."""
        options, device = LossOptions(self.work.k, paired=self.work.options.paired), torch.device(self.machine.device)
        chunk = options.tokens_per_chunk(n_tokens, self.work.n_latents, device)
        return min(n_tokens, chunk) * self.work.n_latents * self.machine["scratch"]

    def _larger(self, trainer: dict[str, float]) -> dict[str, float]:
        """That of the collection or that of the training, which follow each other."""
        return max(self._collector, trainer, key=lambda held: sum(held.values()))


def _summed(n_bytes: float, ranks: int) -> float:
    """Bytes that each of so many ranks sends until all have the sum of their tensors, in a ring."""
    return 2 * (ranks - 1) / ranks * n_bytes
