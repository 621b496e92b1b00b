"""What a transformer that TIDE does not know says of itself when its pipeline runs: the spec of its family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tide.adapters.packing import unpack
from tide.adapters.registry import families
from tide.adapters.spec import Blocks, Embedding, Spec, Text
from tide.adapters.weights import unwrapped
from tide.errors import TideError
from tide.messages import one_line
from tide.probing import calls
from tide.probing.arguments import FoundArguments, find_arguments
from tide.probing.blocks import FoundList, Parts, attention_and_feed_forward, candidate_lists, find_lists
from tide.probing.embedding import Embeddings
from tide.probing.geometry import Geometry, geometries, latents_argument
from tide.probing.modulation import FoundModulation, find_modulation
from tide.probing.naming import family_name
from tide.probing.places import is_row_major, tokens_at
from tide.probing.recording import Pass, Run, record, recorded
from tide.probing.text import FoundGuidance, FoundText, find_guidance, find_text
from tide.probing.timesteps import FoundTimestep, find_timestep, given_timesteps
from tide.probing.vae import FoundScaling, find_scaling
from tide.probing.values import close, sample_of
from tide.probing.wording import in_words


@dataclass
class Probe:
    """What was found of a family.

    Attributes:
        spec: the family's, with defaults where nothing was found.
        transformer: the class.
        geometry: of the latents of the runs.
        arguments: the transformer's further ones.
        found: (what, in words), a line each.
        missing: what could not be determined, and what to fill in.
    """

    spec: Spec
    transformer: type
    geometry: Geometry
    arguments: FoundArguments
    found: list[tuple[str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def probe(pipe: Any) -> Probe:
    """Runs the pipeline on two prompts for three steps, in a small size, with guidance and without, and looks on.

    Args:
        pipe: a pipeline of diffusers, whose transformer need not have an adapter.

    Raises :class:`~tide.errors.TideError` if it has no transformer, cannot be run, or has no blocks of image tokens.
    """
    transformer = unwrapped(getattr(pipe, "transformer", None))
    if not isinstance(transformer, nn.Module):
        raise TideError(f"{type(pipe).__name__} has no diffusion transformer, so there is nothing to probe")
    return _Prober(pipe, transformer).probe()


class _Prober:
    def __init__(self, pipe: Any, transformer: Any) -> None:
        self.pipe, self.transformer = pipe, transformer
        self.latents = calls.own_latents(pipe, transformer)
        self.size = calls.small_size(pipe, self.latents)
        self.missing: list[str] = []

    def probe(self) -> Probe:
        shapes = self._run(lambda path: False)
        lists = candidate_lists(self.transformer, shapes.passes[0])
        keep = _kept(list(lists))
        plain = self._run(keep)
        argument, latents = latents_argument(plain)
        geometry, found = self._blocks(argument, latents, plain, lists, keep)
        timestep = find_timestep(plain)
        text = find_text(self.pipe, plain, geometry.n_tokens)
        guidance, guided = self._guidance(plain, text, argument)
        modulations = [find_modulation(each, plain.passes, self.transformer, geometry) for each in found]
        embedding = self._embedding(plain, found, modulations, timestep, len(latents))
        scaling = self._scaling(plain, geometry)
        known = [argument, *text.outputs, *([] if timestep is None else [timestep.argument])]
        if text.guidance is not None:
            known.append("guidance")
        arguments = find_arguments(
            plain.passes[0], [plain.passes[-1], *guided.passes[:1]], known, geometry, next(iter(text.outputs), None)
        )
        spec = Spec(
            family=family_name(type(self.transformer).__name__, families()),
            transformer=type(self.transformer).__name__,
            pipelines={type(self.pipe).__name__: ()},
            blocks=tuple(_blocks_of(each, made) for each, made in zip(found, modulations, strict=True)),
            embedding=embedding,
            text=_text_of(text),
            guidance=guidance.rows or "none",
            negative=guidance.negative,
            guidance_scale="guidance_scale" if text.guidance is not None else guidance.scale,
            steps_both_branches=guidance.both_stepped,
            width=self._width(found[0].width),
            latents_argument=argument,
            call=arguments.constant,
            call_defaults=calls.plain_arguments(self.pipe),
            packed=geometry.packed,
            square=geometry.patch if geometry.packed or self._patch is None else 2,
            channels=self._channels(latents, geometry),
            shifts_latents=scaling.shifts is not False,
            scales_channels=scaling.by_channel,
            vae_has_frames=scaling.has_frames,
            **self._predicts(plain),
            **_drawing(geometry, plain.result),
            **self._scheduled(plain),
            **_timestep_of(timestep, plain, self.transformer),
        )
        spec = replace(spec, grid=_grid_source(plain.passes[0]) if geometry.packed else "latents", size=self._size())
        self._leave_out_known(arguments, spec, plain.passes[0])
        parts = [text.missing, scaling.missing, arguments.missing, *(each.missing for each in modulations)]
        self.missing += [what for missing in parts for what in missing]
        if timestep is None:
            self.missing.append("the argument for the timestep: timestep_argument and timestep_unit")
        lines = in_words(spec, found, modulations, geometry, guidance, timestep, scaling)
        return Probe(spec, type(self.transformer), geometry, arguments, lines, self.missing)

    # -- runs

    def _run(self, keep: Callable[[str], bool], *, guided: Sequence[str] | None = None, kind: str = "latent") -> Run:
        """A run without guidance, or with the scales ``guided``."""
        guidance = calls.guidance_arguments(self.pipe, guided is not None, names=guided)
        given = {**calls.run_arguments(self.pipe, self.size), **guidance}
        if "output_type" in calls.parameters_of(self.pipe):
            given["output_type"] = kind
        try:
            return record(self.pipe, self.transformer, given, keep)
        except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
            if isinstance(error, TideError):
                raise
            raise TideError(
                f"{type(self.pipe).__name__} could not draw two prompts in three steps ({type(error).__name__}: "
                f"{one_line(error)}); write the adapter by hand (docs/adapters.md)"
            ) from error

    def _guidance(self, plain: Run, text: FoundText, argument: str) -> tuple[FoundGuidance, Run]:
        """The first of the pipeline's scales that makes a second branch."""
        found, run = FoundGuidance(), plain
        for name in calls.scales_of(self.pipe):
            try:
                run = self._run(lambda path: False, guided=[name])
            except TideError as error:
                self.missing.append(f"a run with {name}: {error}")
                continue
            found = find_guidance(plain, run, text, argument)
            if found.rows is not None:
                found.scale = name
                break
        return found, run

    # -- the parts

    def _blocks(
        self, argument: str, latents: Tensor, plain: Run, lists: dict[str, nn.ModuleList], keep: Callable[[str], bool]
    ) -> tuple[Geometry, list[FoundList]]:
        expected = calls.small_latents(self.latents, calls.side_of_latent(self.pipe)) if self.size else self.latents
        given = plain.passes[0].arguments
        for geometry in geometries(argument, latents, expected, self.transformer.config):
            with torch.no_grad():
                with recorded(self.transformer, keep) as before:
                    self.transformer(**given)
                with recorded(self.transformer, keep) as after:
                    self.transformer(**{**given, argument: geometry.with_corner(latents)})
            found = find_lists(lists, before[0], after[0], geometry)
            if found:
                found = [each for each in found if each.width == found[-1].width]
                for each in found:
                    self._parts(each, before[0], after[0], geometry)
                return geometry, found
        raise TideError(
            f"no list of blocks in {type(self.transformer).__name__} returns the image tokens of latents "
            f"{list(latents.shape)}; write the adapter by hand (docs/adapters.md)"
        )

    def _parts(self, found: FoundList, before: Pass, after: Pass, geometry: Geometry) -> None:
        found.attention, found.feed_forward = attention_and_feed_forward(Parts(found, before, after, geometry).find())
        values = [each.call_of(found.first) for each in (before, after)]
        tokens = [tokens_at(each.output, found.output, geometry) for each in values if each is not None]
        if not is_row_major(tokens[0], tokens[1], geometry):
            self.missing.append(
                f"the order of the tokens of {found.path}, which is not row by row; override token_grid"
            )

    def _embedding(
        self,
        plain: Run,
        found: Sequence[FoundList],
        modulations: Sequence[FoundModulation],
        timestep: FoundTimestep | None,
        n_rows: int,
    ) -> Embedding | None:
        for each, made in zip(found, modulations, strict=True):
            if made.first_linear is None or timestep is None:
                continue
            given = given_timesteps(plain, timestep.argument, n_rows)
            result = Embeddings(self.transformer, plain.passes, made.first_linear, each.first, given).find()
            if result.embedding is not None:
                return result.embedding
            self.missing += [f"{what}; `embedding` says where it is" for what in result.missing]
        return None

    def _scaling(self, plain: Run, geometry: Geometry) -> FoundScaling:
        drawn = _drawn(plain.result)
        if drawn is None:
            return FoundScaling(missing=["the latents in what the pipeline returns; override generate"])
        if geometry.packed and drawn.ndim == 3 and drawn.shape[1] == geometry.n_tokens:
            drawn = unpack(drawn, geometry.grid)  # type: ignore[arg-type]
        decoded = self._run(lambda path: False, kind="pt").decoded
        return find_scaling(unwrapped(self.pipe.vae), drawn, torch.cat(decoded) if decoded else None)

    def _predicts(self, plain: Run) -> dict[str, Any]:
        scheduler = self.pipe.scheduler
        flow = type(scheduler).__name__.startswith("FlowMatch") or bool(scheduler.config.get("use_flow_sigmas"))
        stepped, output = plain.steps[0]["model_output"], sample_of(plain.passes[0].output)
        if stepped.ndim == output.ndim and stepped.ndim != 3:
            output = output[:, : stepped.shape[1]]  # without a learned variance
        sign = next((sign for sign in (1, -1) if close(sign * output, stepped)), None)
        if sign is None:
            self.missing.append("how the scheduler's velocity is made of the prediction; override prediction_of")
        return {"flow_matching": flow, "sign": sign or 1}

    def _scheduled(self, plain: Run) -> dict[str, Any]:
        given = plain.schedules[0] if plain.schedules else {}
        sigmas = given.get("sigmas")
        linear = np.linspace(1, 1 / calls.STEPS, calls.STEPS)
        usual = sigmas is not None and np.allclose(np.asarray(sigmas, float), linear, atol=1e-3)
        if sigmas is not None and not usual:
            self.missing.append("the sigmas that the pipeline passes to its scheduler; override schedule_arguments")
        own = self.pipe.scheduler.config.get("max_shift", 1.15)
        return {"sigmas": usual, "max_shift": None if given.get("mu") is None else float(own)}

    def _size(self) -> Any:
        if self.transformer.config.get("sample_size") is not None:
            return "config.sample_size"
        return "default_sample_size" if hasattr(self.pipe, "default_sample_size") else "call"

    @property
    def _patch(self) -> Any:
        return self.transformer.config.get("patch_size")

    def _leave_out_known(self, arguments: FoundArguments, spec: Spec, seen: Pass) -> None:
        """Takes out the positions of tokens that every adapter makes of :attr:`Spec.grid`."""
        axes = self.transformer.config.get("axes_dims_rope") or ()
        for name in ("img_ids", "txt_ids") if spec.grid == "img_ids" else ():
            if name in arguments.code and seen.arguments[name].shape[-1] == len(axes):
                del arguments.code[name]
        if spec.grid == "img_shapes":
            arguments.code.pop("img_shapes", None)

    def _channels(self, latents: Tensor, geometry: Geometry) -> Any:
        """The field of the config that says how many channels the transformer is given."""
        config, given = self.transformer.config, latents.shape[2 if geometry.packed else 1]
        if config.get("in_channels") not in (None, given):
            self.missing.append("what the transformer is given beside the latents")
        return "in_channels" if config.get("in_channels") == given else "out_channels"

    def _width(self, width: int) -> str | None:
        config = self.transformer.config
        heads, of_head = config.get("num_attention_heads"), config.get("attention_head_dim")
        if isinstance(heads, int) and isinstance(of_head, int) and heads * of_head == width:
            return None
        if getattr(self.transformer, "inner_dim", None) == width:
            return "inner_dim"
        named = [name for name, value in config.items() if value == width and isinstance(value, int)]
        if not named:
            self.missing.append(f"where the width of the image tokens ({width}) is kept; `width` is its path")
        usual = [name for name in named if name in ("hidden_size", "inner_dim", "d_model", "dim")]
        return next((f"config.{name}" for name in (*usual, *named)), None)


def _kept(lists: list[str]) -> Callable[[str], bool]:
    """The first block of every list, and all that is in no list: the values of a whole model would not fit."""

    def keep(path: str) -> bool:
        for each in lists:
            if path.startswith(f"{each}."):
                return path == f"{each}.0" or path.startswith(f"{each}.0.")
        return True

    return keep


def _drawn(result: Any) -> Tensor | None:
    for name in ("images", "frames"):
        found = getattr(result, name, None)
        if isinstance(found, Tensor):
            return found
    return None


def _drawing(geometry: Geometry, result: Any) -> dict[str, Any]:
    """What is drawn, where it is no images."""
    if len(geometry.size) == 2:
        return {}
    return {"draws": "videos", "result": "frames" if hasattr(result, "frames") else "images"}


def _grid_source(seen: Pass) -> Any:
    for name in ("img_ids", "img_shapes"):
        if seen.arguments.get(name) is not None:
            return name
    return "size arguments" if {"height", "width", "num_frames"} <= seen.arguments.keys() else "latents"


def _timestep_of(found: FoundTimestep | None, plain: Run, transformer: Any) -> dict[str, Any]:
    if found is None:
        return {}
    value, own = plain.passes[0].arguments[found.argument], plain.steps[0]["timestep"]
    rounds = (
        isinstance(value, Tensor)
        and value.dtype == transformer.dtype != torch.float32
        and getattr(own, "dtype", None) != value.dtype
    )
    return {"timestep_argument": found.argument, "timestep_unit": found.unit, "rounds_timestep": rounds}


def _text_of(found: FoundText) -> Text:
    return Text(
        found.outputs,
        found.arguments,
        found.as_called,
        found.length,
        guidance=found.guidance,
        guidance_factor=found.guidance_factor,
        mask_of_all=found.mask_of_all,
    )


def _blocks_of(found: FoundList, made: FoundModulation) -> Blocks:
    parts: dict[str, Any] = {}
    for name, part in (("attention", found.attention), ("feed_forward", found.feed_forward)):
        parts[name] = None if part is None else part.path
        if part is not None:
            parts |= {f"{name}_input": part.input, f"{name}_output": part.output}
    linears = {chunk: _relative(path, found.first) for chunk, path in made.linear.items()}
    alike = len(set(linears.values())) == 1
    return Blocks(
        found.path,
        found.output,
        **parts,
        linear=(next(iter(linears.values())) if alike else linears) if linears else None,
        chunks=made.chunks,
        table=made.table,
        given=made.given if not linears else None,
    )


def _relative(path: str, block: str) -> str:
    return path.removeprefix(f"{block}.") if path.startswith(f"{block}.") else f"/{path}"
