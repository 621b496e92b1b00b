"""Machines whose constants ship with the package."""

import pytest

from tests.helpers.plans import machine
from tide.errors import TideError
from tide.planning import load_machine, machine_names
from tide.planning.machines import CONSTANTS


@pytest.mark.parametrize("name", machine_names()[1:])
def test_every_machine_has_every_constant(name):
    found = load_machine(name)
    per_step = {name for name in found.of_step("topk")}
    assert found.name == name
    assert {each.rpartition(".")[2] for each in found.constants} == CONSTANTS.keys() >= per_step
    assert all(each.source and each.value >= 0 for each in found.constants.values())


@pytest.mark.parametrize("name", ["h300", "here", "../sizes", ""])
def test_an_unknown_machine_lists_those_there_are(name):
    with pytest.raises(TideError, match=r"^machine '.*' is unknown; use here or nvidia-h200$"):
        load_machine(name)


def test_steps_that_were_not_measured():
    with pytest.raises(TideError, match="steps of activation relu were not measured on round; use --machine here, or"):
        machine().of_step("relu")


def test_a_plan_of_one_activation_rests_on_its_own_constants():
    found = load_machine("nvidia-h200").used_for("topk")
    assert "topk.dense" in found
    assert "rate" in found
    assert not [name for name in found if name.startswith("jumprelu")]
