"""What a guard is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tide.adapters import Adapter, Block
from tide.adapters.base import check_tensor
from tide.editing import Steer
from tide.editing.where import Detector, Where
from tide.errors import TideError
from tide.fingerprint import fingerprint
from tide.guards.refuge import Refuge
from tide.guards.words import Words

#: Calls after which an image whose words were mapped and that shows the concept all the same is sent to the refuge.
PATIENCE = 2


@dataclass(frozen=True)
class MadeFor:
    """The model that a guard was made for. ``weights``: the fingerprint of its transformer.

    Attributes:
        family: the model family.
        block: whose activations the guard reads.
        tensor: what of the block.
        d_model: width of the activations.
        weights: the fingerprint of the transformer.
    """

    family: str
    block: int
    tensor: str
    d_model: int
    weights: str

    @classmethod
    def of(cls, adapter: Adapter, block: Block, tensor: str) -> MadeFor:
        """Reads all weights of the transformer once, which takes about a second per GB."""
        weights = fingerprint([adapter.transformer])
        return cls(adapter.family, adapter.resolve_block(block), tensor, adapter.d_model, weights)

    def check(self, adapter: Adapter, concept: str) -> None:
        """Raises :class:`~tide.errors.TideError` for another family, width or number of blocks."""
        remedy = "make the guard with this pipeline"
        guard = f"the guard of {concept!r}"
        if self.family != adapter.family:
            raise TideError(f"{guard} was made for {self.family} and this is {adapter.family}; {remedy}")
        if self.d_model != adapter.d_model:
            raise TideError(
                f"{guard} was made for width {self.d_model} and this transformer has {adapter.d_model}; {remedy}"
            )
        if self.block >= adapter.n_blocks:
            raise TideError(
                f"{guard} watches block {self.block} and this transformer has blocks 0..{adapter.n_blocks - 1}; "
                f"{remedy}"
            )

    def weights_differ(self, adapter: Adapter) -> bool:
        """Whether the transformer has other weights than the guard was made with; reads them all once."""
        return fingerprint([adapter.transformer]) != self.weights


@dataclass(frozen=True, eq=False)
class Guard:
    """Keeps an unwanted concept out of the images that a pipeline draws.

    In every call of the transformer, image i has the score ``s_i = mean over its tokens of when.scores(x)``. It is
    *flagged* once ``s_i`` is above the threshold, until its run ends:

    1. from the next call on its text states pass through ``words``;
    2. if it is above the threshold again in ``patience`` calls with mapped words, its text becomes the ``refuge``;
    3. tokens of a flagged image whose words are mapped, and that ``where`` has on, are moved by ``what``.

    An image that was never flagged keeps its bits.

    Attributes:
        concept: what must not be drawn, a word.
        put: the word that stands in for it, or None.
        when: tells images by their mean latents.
        words: None leaves the words as they are.
        refuge: None sends no image there.
        where: the tokens that ``what`` moves; None where there is none.
        what: moves activations of the block; None moves none.
        made_for: the model.
        patience: calls.
        validated: how it was validated, as JSON has it.

    Raises:
        TideError: the parts do not go together.
    """

    concept: str
    put: str | None
    when: Detector
    made_for: MadeFor
    words: Words | None = None
    refuge: Refuge | None = None
    where: Where | None = None
    what: Steer | None = None
    patience: int = PATIENCE
    validated: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.where is None) != (self.what is None):
            raise TideError("a guard's where and what go together; give both or none")
        if self.refuge is not None and self.words is None:
            raise TideError("a refuge is for prompts that pass the map of words; give words=, or leave it off")
        if self.words is None and self.what is None:
            raise TideError(f"the guard of {self.concept!r} does nothing; give it words, or where and what")
        if self.refuge is not None and self.words is not None:
            self.words.check(self.refuge.states)
        detectors = [self.when, *(() if self.where is None else self.where.detectors)]
        for config in (each.model.config for each in detectors):
            own = (config.family or self.made_for.family, config.tensor)
            same_block = config.block is None or config.block == self.made_for.block
            if own != (self.made_for.family, self.made_for.tensor) or not same_block:
                raise TideError(
                    f"the guard of {self.concept!r} watches {self.made_for.tensor} of block {self.made_for.block} of "
                    f"{self.made_for.family}, and its latents are of {config.tensor} of block {config.block} of "
                    f"{config.family}; give it those of its own block"
                )
        width = self.when.model.d_model
        if width != self.made_for.d_model:
            raise TideError(
                f"the guard's latents are of width {width} and it was made for {self.made_for.d_model}; make it with "
                "an SAE of this transformer"
            )
        if self.what is not None:
            self.what.check(self.made_for.d_model)
            check_tensor(self.made_for.tensor)  # what is only read cannot be moved
        if self.patience < 1:
            raise TideError(f"patience = {self.patience} is a number of calls; give at least 1")

    def text_differs(self, adapter: Adapter) -> bool:
        """Whether the pipeline's text encoder is another than that of the guard's neutral caption; encodes it."""
        caption = self.validated.get("neutral_caption")
        return self.refuge is not None and isinstance(caption, str) and self.refuge.differs(adapter, caption)

    def image_scores(self, scores: Tensor) -> Tensor:
        """The score of each image, ``[images]``, from those of its tokens ``[images, tokens]``."""
        return scores.mean(1)
