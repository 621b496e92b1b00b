"""Ranks that train one model make the steps of one process, and resume in any number."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch

from tests.helpers.ranks import run_ranks
from tests.helpers.trainings import (
    MODULATION,
    ROWS,
    D,
    N,
    assert_same,
    batch,
    config,
    interrupted,
    stream,
    with_target,
)
from tide.activations.block_batch import BlockBatch
from tide.activations.shared_stream import Shares
from tide.errors import TideError
from tide.sae import TIDE
from tide.sae.checkpoint import read_config
from tide.training.learner import Learner, Origin
from tide.training.start import started
from tide.training.state import RESUME, STATE
from tide.training.trainer import fit_blocks
from tide.world import Grid, World

BLOCK = 6
#: Latents die and are revived within these steps, gradients are clipped, k falls, and a threshold is set at the end.
STEPS = 40
CASES: dict[str, dict[str, Any]] = {
    "TopK": {"activation": "topk"},
    "TopK with an auxiliary loss, centred": {"activation": "topk", "loss.auxk": 0.1, "loss.k_aux": 4, "centre": True},
    "BatchTopK": {"activation": "batch_topk"},
    "BatchTopK that knows the timestep": {"activation": "batch_topk", "timestep_thresholds": True},
    "JumpReLU": {"activation": "jumprelu"},
    "JumpReLU that knows the timestep, centred": {
        "activation": "jumprelu", "timestep_thresholds": True, "centre": True,
    },
    "of the modulated tokens' LayerNorm, without pairs": {"activation": "jumprelu", "pre_norm": "layernorm"},
    "BatchTopK of nested dictionaries": {"activation": "batch_topk", "loss.prefixes": (0.25, 0.5)},
    "a transcoder of TopK, centred": {"activation": "topk", "centre": True},
    "a transcoder of nested dictionaries that knows the timestep": {
        "activation": "jumprelu", "timestep_thresholds": True, "loss.prefixes": (0.5,), "loss.auxk": 0.1,
        "loss.k_aux": 4,
    },
}  # fmt: skip


#: Ranks, and how many of them at a time divide the latents.
RANKS = {
    "2 ranks": (2, 1),
    "4 ranks": (4, 1),
    "2 ranks that divide the latents": (2, 2),
    "4 ranks that divide tokens and latents": (4, 2),
}
#: Their names, as parameters of whole trainings.
TRAINED = [*list(RANKS)[:3], pytest.param(list(RANKS)[3], marks=pytest.mark.slow)]


def cases(across: int) -> list[str]:
    """Those that ranks which divide the latents can train."""
    return [case for case in CASES if across == 1 or "nested" not in case]


def built(case: str, world: World, **more: Any):
    """The configuration, and a fresh model."""
    options = CASES[case] | {"steps": STEPS, "log_every": 1, "clip": 0.05, "shard_latents": world.latents.count, **more}
    made = config().changed(options)
    of = {"tensor": "feed_forward_input", "target": "feed_forward"} if "transcoder" in case else {}
    described = made.model_config(D, MODULATION, family="pixart", block=BLOCK, **of)
    return made, TIDE(described, seed=3, among=world.latents)


def parts(world: World, case: str, source=stream):
    """This rank's rows of each batch."""
    part = Shares(world).part(ROWS)

    def from_step(step: int) -> Iterator[BlockBatch]:
        for each in source(step):
            each.paired = each.paired and "without pairs" not in case
            whole = with_target(each) if "transcoder" in case else each
            yield BlockBatch({BLOCK: whole.merged().take(part)})

    return from_step


def fit(
    case: str, out: Path, world: World | None = None, *, source=stream, resume: bool = False, **more: Any
) -> Learner:
    world = world or World()
    made, model = built(case, world, **more)
    learner = Learner(model, made, out, world)
    batches = parts(world, case, source)
    fit_blocks({BLOCK: learner}, batches, {BLOCK: Origin()}, title="", resume=resume, progress=False, world=world)
    return learner


def of_group(across: int = 1) -> World:
    import torch.distributed as dist

    number, count = dist.get_rank(), dist.get_world_size()
    return World(number, count) if across == 1 else Grid(number, count, across)


def trained(folder: str, across: int) -> dict[str, Any]:
    """Every case, as this rank has it in memory."""
    world, found = of_group(across), {}
    for number, case in enumerate(cases(across)):
        learner = fit(case, Path(folder) / str(number), world)
        weights = {name: value.clone() for name, value in learner.model.state_dict().items()}
        found[case] = (learner.history, weights, learner.revived, learner.saved)
    return found


class Ranks(NamedTuple):
    """What the ranks return, and the folder that they leave."""

    across: int
    folder: Path
    found: list[dict[str, Any]]

    def of(self, case: str) -> list[Any]:
        if case not in self.found[0]:
            pytest.skip("ranks that divide the latents refuse prefixes")
        return [each[case] for each in self.found]


@pytest.fixture(scope="module", params=TRAINED)
def ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    count, across = RANKS[request.param]
    return Ranks(across, folder, run_ranks(trained, count, str(folder), across, timeout=300))


def part_of(value: torch.Tensor, like: torch.Tensor, number: int) -> torch.Tensor:
    """The rows of ``value`` that rank ``number`` has, whose own are ``like``."""
    if value.shape == like.shape:
        return value
    return value[number % (len(value) // len(like)) * len(like) :][: len(like)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, Learner]:
    folder = tmp_path_factory.mktemp("alone")
    return {case: fit(case, folder / str(number)) for number, case in enumerate(CASES)}


@pytest.mark.parametrize("case", CASES)
def test_the_steps_are_those_of_one_process(ranks, alone, case):
    """The first steps to rounding; later ones to what rounding grows to, which a single flipped selection shows: a
    latent that is selected for another token changes a term by more than one in a thousand."""
    expected = alone[case]
    for number, (history, weights, revived, saved) in enumerate(ranks.of(case)):
        assert revived == expected.revived
        assert saved == STEPS
        for mine, own in zip(history, expected.history, strict=True):
            for name, value in own.items():
                tolerance = 2e-6 if own["step"] <= 3 else 1e-3
                same = math.isnan(value) and math.isnan(mine[name])
                # What is explained is 1 less a ratio, which is near 1 at first.
                assert same or mine[name] == pytest.approx(value, rel=tolerance, abs=1e-6), (own["step"], name)
        for name, value in expected.model.state_dict().items():
            size = value.float().square().mean().sqrt() + 1e-7
            own = part_of(value, weights[name], number)
            assert float((weights[name] - own).float().square().mean().sqrt()) <= 1e-3 * float(size), name


def first_gradients(case: str, folder: str, world: World) -> dict[str, torch.Tensor]:
    """Those of the first step of a fresh model."""
    made, model = built(case, world)
    learner = Learner(model, made, folder, world)
    batches = started({BLOCK: model}, parts(world, case)(0), STEPS, centre=made.centre, world=world)
    learner.train_step(next(batches)[BLOCK])
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def gradients_in_each_rank(folder: str, across: int) -> list[dict[str, torch.Tensor]]:
    return [first_gradients(case, folder, of_group(across)) for case in cases(across)]


@pytest.mark.parametrize(("count", "across"), [RANKS[name] for name in RANKS if RANKS[name][1] > 1])
def test_the_gradients_of_ranks_that_divide_the_latents_are_those_of_one_process(tmp_path, count, across):
    """Each rank has those of its latents, and of all latents what they share: modulation, b_dec, and what thresholds
    have in common. That is the least exact: the cut follows the thresholds, which cancels most of their common part."""
    ranks = run_ranks(gradients_in_each_rank, count, str(tmp_path), across)
    for case, *of_ranks in zip(cases(across), *ranks, strict=True):
        expected = first_gradients(case, str(tmp_path), World())
        for number, found in enumerate(of_ranks):
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                error = found[name] - part_of(value, found[name], number)
                rms, size = (float(each.square().mean().sqrt()) for each in (error, value))
                assert rms <= (1e-5 if name == "activation.gain.common" else 2e-6) * size, (case, name)


@pytest.mark.parametrize("case", CASES)
def test_all_ranks_hold_the_same_bits(ranks, case):
    """Of what they hold: those with other latents the same history."""
    found = ranks.of(case)
    for number, (history, weights, *_) in enumerate(found):
        assert history == found[0][0]
        assert_same(weights, found[number % ranks.across][1])


def test_the_folder_ends_as_one_process_leaves_it(ranks, alone):
    for number, case in enumerate(cases(ranks.across)):
        out = ranks.folder / str(number)
        assert {each.name for each in out.iterdir()} == {each.name for each in alone[case].out.iterdir()}
        assert [each.name for each in (out / RESUME).iterdir()] == [STATE.name]
        saved = TIDE.from_pretrained(out).state_dict()
        for rank, (_, weights, *_) in enumerate(ranks.of(case)):
            assert_same({name: part_of(value, weights[name], rank) for name, value in saved.items()}, weights)
        assert read_config(out)["activation"] == CASES[case]["activation"]


#: Without a mean, which is measured ahead and so on fewer batches where the data end early.
CASE = "BatchTopK that knows the timestep"


def stopped_and_resumed(folder: str, across: int = 1) -> dict[str, torch.Tensor]:
    """Stopped after 25 steps, with a checkpoint of step 20, and resumed."""
    world, out = of_group(across), Path(folder)
    until(25, out, world)
    return fit(CASE, out, world, resume=True, checkpoint_every=10).model.state_dict()


def resumed(folder: str, across: int = 1) -> dict[str, torch.Tensor]:
    return fit(CASE, Path(folder), of_group(across), resume=True).model.state_dict()


def until(step: int, out: Path, world: World | None = None) -> None:
    with pytest.raises(TideError, match="ended after"):
        fit(CASE, out, world, source=interrupted(step), checkpoint_every=10)


def begun(folder: str, across: int = 1) -> list[str]:
    until(25, Path(folder), of_group(across))
    return sorted(each.name for each in (Path(folder) / RESUME).iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("count", "across"), [(2, 1), (2, 2), (4, 2)])
def test_a_resumed_training_ends_with_the_same_bits(tmp_path, count, across):
    whole = run_ranks(resumed, count, str(tmp_path / "whole"), across)
    stopped = run_ranks(stopped_and_resumed, count, str(tmp_path / "parts"), across)
    for one, other in zip(whole, stopped, strict=True):
        assert_same(one, other)


@pytest.mark.slow
def test_a_training_resumes_in_another_number_of_ranks(tmp_path, alone):
    """From 2 to 4 and to 1, from 1 to 2: what it ends with is that of one process to what rounding grows to."""
    assert run_ranks(begun, 2, str(tmp_path / "two")) == [["step-20"]] * 2
    assert not (tmp_path / "two/model.safetensors").exists()
    (tmp_path / "one").mkdir()
    until(25, tmp_path / "one")
    shutil.copytree(tmp_path / "two", tmp_path / "also two")
    ends = {
        "2 to 4": run_ranks(resumed, 4, str(tmp_path / "two"))[0],
        "2 to 1": fit(CASE, tmp_path / "also two", resume=True).model.state_dict(),
        "1 to 2": run_ranks(resumed, 2, str(tmp_path / "one"))[0],
    }
    for name, found in ends.items():
        for weight, value in alone[CASE].model.state_dict().items():
            size = float(value.float().square().mean().sqrt()) + 1e-7
            assert float((found[weight] - value).float().square().mean().sqrt()) <= 1e-3 * size, (name, weight)
    assert [each.name for each in (tmp_path / "also two" / RESUME).iterdir()] == [STATE.name]


def without_room_at_the_end(folder: str) -> list[str]:
    """What the first rank has no room for is the checkpoint, when the last state is there; then it is resumed."""
    world, out, said = of_group(2), Path(folder), []
    with mock.patch("tide.training.learner.joined", side_effect=OSError("no room")):
        try:
            fit(CASE, out, world, steps=8)
        except (OSError, TideError) as error:
            said.append(str(error))
    said += sorted(each.name for each in (out / RESUME).iterdir())
    world.said("read")
    fit(CASE, out, world, steps=8, resume=True)
    return said


def test_a_training_whose_checkpoint_is_not_written_ends_when_it_is_resumed(tmp_path):
    first, second = run_ranks(without_room_at_the_end, 2, str(tmp_path))
    assert first == ["no room", "step-8"]
    assert second == ["rank 0 of 2 has ended: no room", "step-8"]
    assert [each.name for each in (tmp_path / RESUME).iterdir()] == [STATE.name]
    assert TIDE.from_pretrained(tmp_path).n_latents == N


#: Who begins a training and who ends it: ranks, and how many of them divide the latents.
HANDED_ON = {
    "latents among 2 to one process": ((2, 2), (1, 1)),
    "latents among 2 to tokens among 2": ((2, 2), (2, 1)),
    "tokens among 2 to latents among 2": ((2, 1), (2, 2)),
    "latents among 2 to latents among 4": ((2, 2), (4, 4)),
    "one process to latents among 2": ((1, 1), (2, 2)),
    "latents among 4 to both among 2": ((4, 4), (4, 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), HANDED_ON.values(), ids=HANDED_ON)
def test_a_training_resumes_with_its_latents_divided_otherwise(tmp_path, alone, before, after):
    """What it ends with is that of one process to what rounding grows to."""
    out = tmp_path / "out"
    if before == (1, 1):
        out.mkdir()
        until(25, out)
    else:
        assert run_ranks(begun, before[0], str(out), before[1]) == [["step-20"]] * before[0]
    if after == (1, 1):
        fit(CASE, out, resume=True)
    else:
        run_ranks(resumed, after[0], str(out), after[1])
    found = TIDE.from_pretrained(out).state_dict()
    for weight, value in alone[CASE].model.state_dict().items():
        size = float(value.float().square().mean().sqrt()) + 1e-7
        assert float((found[weight] - value).float().square().mean().sqrt()) <= 1e-3 * size, weight
    assert [each.name for each in (out / RESUME).iterdir()] == [STATE.name]


@pytest.mark.parametrize(("options", "what"), [
    ({"activation": "relu"}, "activation = relu"), ({"activation": "topk", "undo": True}, "undo"),
])  # fmt: skip
def test_what_only_one_process_trains(tmp_path, options, what):
    made = config(**options)
    model = TIDE(made.model_config(D, MODULATION, family="pixart", block=BLOCK), seed=3)
    with pytest.raises(TideError, match=rf"^{what} trains on one rank; use topk, batch_topk or jumprelu without undo"):
        Learner(model, made, tmp_path, World(0, 2))


def test_a_process_alone_divides_no_latents(tmp_path):
    made = config(shard_latents=2)
    model = TIDE(made.model_config(D, MODULATION, family="pixart", block=BLOCK), seed=3)
    with pytest.raises(TideError, match=r"^shard_latents = 2 is about `tide train` and tide.training.train under"):
        Learner(model, made, tmp_path)


def differing(folder: str, across: int = 1) -> str:
    """What a rank says where what all have is not the same on all."""
    world = of_group(across)
    made, model = built("TopK", world)
    learner = Learner(model, made, folder, world)
    with torch.no_grad():
        model.b_dec[0] += world.number
    try:
        learner.save()
    except TideError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("across", [1, 2])
def test_ranks_that_hold_different_weights_save_nothing(tmp_path, across):
    for said in run_ranks(differing, 2, str(tmp_path), across):
        assert said.startswith("the ranks hold different weights after step 0, which is not saved; start them on")
    assert not list(tmp_path.iterdir())


def test_batches_of_ranks_are_parts_of_the_whole():
    """As the other tests take for granted."""
    whole = batch(0).merged()
    first, second = (next(iter(parts(World(rank, 2), "TopK", lambda _: [batch(0)])(0)))[BLOCK] for rank in (0, 1))
    assert torch.equal(torch.cat([first.x, second.x]), whole.x)
    assert torch.equal(first.timestep, whole.timestep)
