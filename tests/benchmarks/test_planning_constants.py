"""The constants of plans are those that the command derives from the committed records."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from benchmarks import planning_constants as constants
from tests.helpers.plans import work
from tide.planning import here, load_machine, sizes_of
from tide.planning.model import Model


@pytest.fixture(scope="module")
def record() -> constants.Record:
    return constants.Record(constants.RECORD)


def test_what_ships_is_what_the_records_give(record):
    assert load_machine("nvidia-h200") == constants.h200(record)
    assert json.loads(here.GLOO.read_text()) == asdict(constants.gloo(constants.WIRE))


def test_the_recorded_collection_is_given_back(record):
    """281,246 tokens a second, of which all 1024 of an image are kept."""
    sizes = sizes_of(constants.COLLECTED)
    seconds = constants.PASSES * sizes.pass_flops * 27 / 28 / constants.forward_rate(record).value
    assert constants.PASSES * sizes.n_tokens / seconds == pytest.approx(281_246, rel=1e-4)


@pytest.mark.parametrize("shape", [constants.DENSE, constants.SHORT, constants.SPARSE], ids=str)
def test_the_recorded_steps_of_topk_are_given_back(record, shape):
    """Three constants of four are fitted to three steps; the update is no part of these."""
    of = {"n_latents": shape.n_latents, "k": shape.k, "pipeline": sizes_of(constants.COLLECTED)}
    machine = load_machine("nvidia-h200")
    model = Model(work(**of), machine)
    step = model.step(shape.n_tokens) - model.work.parameters * machine["update"]
    assert step == pytest.approx(record.seconds("peers", shape, "tide triton, all terms, replayed"), rel=1e-6)


def test_the_regimes_break_even_where_they_were_measured_to(record):
    """Dense and sparse steps are equally long at 0.8 % of the latents by the record; all terms cost the sparse one a
    little more, and the two are interpolated between few points: a factor of two."""
    topk = constants.topk_steps(record)
    even = (topk["dense"] - topk["sparse"]) / topk["place"]
    (note,) = record.all["stages"]["dispatch"]["units"]["break-even"]["notes"]
    assert 0.5 < even / (float(note.removeprefix("at ").rstrip("%")) / 100) < 2


def test_what_was_not_measured_is_said_to_be_assumed():
    machine = load_machine("nvidia-h200")
    assumed = {name for name, each in machine.constants.items() if not each.measured}
    assert {"pixel", "encode_rate", "write", "read", "wire_inside", "wire_between", "node", "update"} <= assumed
    assert {"rate", "memory", "scratch", "topk.dense"}.isdisjoint(assumed)
