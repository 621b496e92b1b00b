"""Workflows, the licences that are allowed, and the version: each names what is there, and stands in one place."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from check_wheels import UNSTABLE
from dependencies import EXTRAS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([\w-]+):(?!=)", MAKEFILE, re.MULTILINE))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def steps(path: Path) -> list[list[str]]:
    """The words of every command line that a workflow runs."""
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    lines = [line for job in jobs for step in job["steps"] for line in step.get("run", "").splitlines()]
    return [shlex.split(line) for line in lines if line.strip()]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_the_targets_and_variables_that_a_workflow_names_are_there(path):
    made = [words[1:] for words in steps(path) if words[0] == "make"]
    assert made
    for words in made:
        assert {word for word in words if "=" not in word} <= TARGETS, words
        for name in (word.partition("=")[0] for word in words if "=" in word):
            assert f"$({name})" in MAKEFILE or f"$(if $({name})" in MAKEFILE, words


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read_unless_a_job_says_otherwise(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert "concurrency" in workflow


def test_the_oldest_torch_that_is_tested_is_the_oldest_that_is_allowed():
    (tested,) = re.findall(r"TORCH=([\d.]+)", (ROOT / ".github/workflows/tests.yml").read_text())
    (bound,) = (line for line in PROJECT["project"]["dependencies"] if line.startswith("torch"))
    assert f"{bound.removeprefix('torch>=')}.0" == tested


def test_the_pythons_that_are_named_are_tested():
    named = [line.rpartition(" ")[2] for line in PROJECT["project"]["classifiers"] if ":: Python :: 3." in line]
    matrix = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]["tests"]["strategy"]["matrix"]
    assert named == matrix["python"]


def test_the_version_comes_from_tags_alone():
    assert "version" not in PROJECT["project"]
    assert "version" in PROJECT["project"]["dynamic"]
    assert any(line.startswith("setuptools-scm") for line in PROJECT["build-system"]["requires"])


def test_no_licence_that_asks_for_the_source_of_the_whole_is_allowed():
    allowed = [line.strip() for line in PROJECT["tool"]["pip-licenses"]["allow-only"].split(";")]
    assert not [line for line in allowed if re.search(r"GPL|UNKNOWN|Proprietary", line)]
    assert "" not in allowed[:-1]


def test_every_tool_of_a_release_is_pinned():
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    tools = [line.split(";")[0].strip() for line in PROJECT["project"]["optional-dependencies"]["release"]]
    assert set(tools) <= pinned


def test_the_licences_of_every_extra_that_users_install_are_checked():
    assert {*EXTRAS, "dev", "bench", "parity", "site", "notebooks", "release"} == {
        "", *PROJECT["project"]["optional-dependencies"]
    }  # fmt: skip
    page = (ROOT / "docs/installing.md").read_text()
    assert [name for name in EXTRAS if name and f"[{name}]`" not in page] == []


@pytest.mark.parametrize(
    ("symbol", "unstable"),
    [
        ("_ZN2at6Tensor3addE", True), ("_ZNK3c1010TensorImpl5sizesEv", True), ("_ZTIN3c105ErrorE", True),
        ("_ZTVN5torch8autograd4NodeE", True), ("PyModule_Create2", True), ("_Py_Dealloc", True),
        ("aoti_torch_empty_strided", False), ("torch_call_dispatcher", False), ("_ZNSt6vectorIfSaIfEED1Ev", False),
    ],
)  # fmt: skip
def test_symbols_outside_the_stable_interface_are_told(symbol, unstable):
    assert bool(UNSTABLE.match(symbol)) == unstable


def test_the_citation_names_the_software_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["license"] == PROJECT["project"]["license"]
    assert "2503.07050" in citation["preferred-citation"]["url"]


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name)
def test_an_issue_form_is_whole(path):
    form = yaml.safe_load(path.read_text())
    if path.name != "config.yml":
        assert {"name", "description", "body"} <= form.keys()
        assert len({entry["id"] for entry in form["body"]}) == len(form["body"])
