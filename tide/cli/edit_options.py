"""The options of ``tide edit``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from tide.cli import edit_bank, edit_where
from tide.cli.drawing import Drawing, Prompt
from tide.cli.edit_bank import FromBank
from tide.cli.edit_where import DrawnWhere
from tide.cli.usage import Aspect, fast_beside, with_option
from tide.cli.values import (
    Flag,
    MaybeCount,
    MaybeCounts,
    MaybeFeatures,
    MaybeFile,
    MaybeFolder,
    MaybeNames,
    MaybeRange,
    MaybeReplacement,
    MaybeScaling,
    MaybeText,
    Numbers,
    option,
)
from tide.errors import TideError

#: The factor of ``--towards-top`` where none is given: the one that Fig. 6's development prompts chose.
SCALED_BY = 3.0

#: What a recipe says itself, or has no use for.
NOT_WITH_RECIPE = (
    "prompt seed size n_steps guidance fast mask altered where bank strength steps branch renormalise search guard"
)
#: Options that a search tries itself, or has no use for.
NOT_SEARCHED = "steps branch altered where save_target guard"

#: Options of edits of latents, or of targets that are recorded beforehand.
NOT_BESIDE = "towards_image towards_top towards_pooled contrast save_target altered branch renormalise search"

_WHAT = tyro.conf.create_mutex_group(required=True, title="edit (one of)")
_WHERE = tyro.conf.create_mutex_group(required=False, title="where in the image (at most one of)")


def _target(asked: EditOptions) -> str:
    if asked.target is not None:
        return "with --target"
    return "without a target" if asked.towards is None and asked.change is None else "with --towards or --change"


#: A guidance scale of at most 1 leaves out the second half of each batch.
_ONE_BRANCH = Aspect(
    lambda asked: "with --guidance at most 1" if asked.guidance <= 1 else "with --guidance above 1",
    {"with --guidance at most 1": "", "with --guidance above 1": "branch"},
)


@dataclass(frozen=True, kw_only=True)
class EditOptions(Drawing):
    """What to edit, towards what, where and when."""

    supplies: ClassVar[Mapping[str, str]] = {"recipe": "prompt"}
    usage: ClassVar[tuple[Aspect, ...]] = (
        with_option("recipe", leaves_out=NOT_WITH_RECIPE),
        Aspect(
            _target,
            {
                "without a target": "",
                "with --target": "towards_top towards_pooled altered",
                "with --towards or --change": "towards_image towards_top towards_pooled contrast beside save_target "
                "altered",
            },
        ),
        with_option("contrast", leaves_out="towards_top save_target"),
        with_option("beside", leaves_out=NOT_BESIDE),
        with_option("altered", leaves_out="towards_pooled"),
        edit_where.usage(),
        edit_where.names_usage(),
        edit_bank.usage(),
        with_option("search", uses="search_sae search_prompts", leaves_out=NOT_SEARCHED),
        _ONE_BRANCH,
        fast_beside("n_steps"),
    )

    scale: Annotated[MaybeScaling, _WHAT] = None
    """multiply these latents by a factor, such as 12,40=3.0"""
    erase: Annotated[MaybeFeatures, _WHAT] = None
    """set these latents to zero"""
    erase_top: Annotated[MaybeCount, _WHAT] = None
    """set each token's N strongest latents to zero"""
    invert: Annotated[MaybeFeatures, _WHAT] = None
    """flip the sign of these latents"""
    invert_top: Annotated[MaybeCount, _WHAT] = None
    """flip the sign of each token's N strongest latents"""
    towards: Annotated[Prompt, _WHAT] = None
    """move towards the latents of this prompt at the same seed"""
    change: Annotated[MaybeReplacement, _WHAT] = None
    """move towards this prompt with a word replaced, such as red=blue"""
    target: Annotated[MaybeFile, _WHAT] = None
    """move towards the latents in a file that --save-target wrote"""
    what: Annotated[MaybeText, _WHAT] = None
    """put this concept of --bank there, such as blue"""
    recipe: Annotated[MaybeFile, _WHAT] = None
    """make the changes that this file lists; it also says the prompt and how to draw it, so leave --prompt off"""

    towards_image: MaybeFile = None
    """record the target's latents on this image, under the target's prompt"""
    towards_top: MaybeCount = None
    """scale the target's N strongest latents instead (appendix C.1)"""
    towards_pooled: Flag = False
    """average the target over the image"""
    contrast: Flag = False
    """move along the difference between --towards and --prompt on --towards-image (try strengths of 1 to 2)"""
    beside: Flag = False
    """move raw activations to what the target's prompt makes of the same noise at every step; a pass more a step"""
    save_target: MaybeFile = None
    """write the target's latents to this file, for --target"""

    mask: Annotated[MaybeFile, _WHERE] = None
    """edit only where this picture is bright; it has the size of the image"""
    altered: Annotated[MaybeCounts, _WHERE] = None
    """edit only the N tokens at which source and target differ most; one image for each N"""
    drawn_mask: DrawnWhere = field(default_factory=DrawnWhere)
    from_bank: FromBank = field(default_factory=FromBank)

    strength: Numbers = ()
    """strengths, one image each: 0 is no edit, 1 the whole; with --towards-top the factor (default 1; factor 3)"""
    steps: MaybeRange = None
    """edit only this part of the sampling run, such as 0.2 0.8"""
    branch: Annotated[Literal["conditional", "unconditional", "both"], option()] = "conditional"
    """which half of classifier-free guidance to edit"""
    renormalise: Flag = False
    """keep each token's latent norm (eq. 19)"""

    guard: MaybeNames = None
    """draw under these guards, which `tide guard make` wrote; edit.json says what they met"""

    search: Flag = False
    """find the --steps, --branch and --strength at which the edit works and the picture stays whole"""
    search_sae: MaybeNames = None
    """more checkpoints, of other blocks, to try it with"""
    search_prompts: MaybeFile = None
    """a file of more prompts to try it on, one a line (default: three seeds of --prompt)"""

    clip: MaybeFolder = None
    """folder of a CLIP model: score the images against --prompt and --towards (nothing is downloaded)"""
    lpips: MaybeFile = None
    """weights of torchvision's AlexNet, VGG-16 or SqueezeNet: score LPIPS to the unedited image"""

    @property
    def strengths(self) -> tuple[float, ...]:
        return self.strength or (SCALED_BY if self.towards_top else 1.0,)

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """The name of each edited picture, and what its row in edit.json says about the edit."""
        if self.altered:
            return {f"{n}-tokens": {"strength": self.strengths[0], "tokens": n} for n in self.altered}
        return {f"{strength:g}": {"strength": strength} for strength in self.strengths}

    def check(self) -> None:
        """Raises for options that do not go together."""
        from tide.editing.progress import check_steps

        if self.contrast and self.towards_image is None:
            raise TideError("--contrast records on an image; give --towards-image")
        if self.altered and len(self.strengths) > 1:
            raise TideError("--altered goes with one --strength; give one")
        _check_different("--strength", [f"{strength:g}" for strength in self.strengths])
        _check_different("--altered", [str(n) for n in self.altered or ()])
        if self.search_sae and self.target_prompt is None:
            raise TideError("--search-sae compares checkpoints by what they reach; give --towards or --change")
        if self.search_prompts is not None and (self.towards is not None or self.target is not None):
            raise TideError(
                "--search-prompts needs a target for each prompt; give --change, or an edit without a target"
            )
        if self.save_target is not None and Path(self.save_target).is_dir():
            raise TideError(f"{self.save_target} is a folder; give --save-target the name of a file")
        self.drawn_mask.check()
        self.from_bank.check(self.what, self.drawn_mask.concepts, self.renormalise)
        check_steps(self.steps, self.steps_drawn)


def _check_different(option: str, names: list[str]) -> None:
    """Each value of an option has one picture, which is named after its first six digits."""
    if repeated := [name for name in names if names.count(name) > 1]:
        raise TideError(f"{option} has {repeated[0]} twice, and each has one picture; give different ones")
