"""The page's built files: all there, in the wheel, and nothing in them comes from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch

import pytest

from tests.helpers.pages import ROOT

STATIC = ROOT / "tide/browser/static"


def test_the_page_names_only_files_beside_it():
    page = (STATIC / "index.html").read_text()
    named = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert {"main.js", "style.css", "icon.svg"} == set(named)
    assert all((STATIC / name).is_file() for name in named)


def test_no_built_file_holds_an_address_elsewhere():
    for path in STATIC.iterdir():
        found = set(re.findall(r"https?://[\w.-]+", path.read_text()))
        assert found <= {"http://www.w3.org"}, path.name  # the names of SVG and MathML


def test_every_built_file_is_package_data():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["tide"]
    for path in STATIC.iterdir():
        assert any(fnmatch(f"browser/static/{path.name}", pattern) for pattern in data)


@pytest.mark.slow
def test_the_wheel_holds_the_page(tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    packed = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "x"], cwd=copy, input=packed, check=True)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir", "--wheel-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(copy)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"tide/browser/static/{path.name}" for path in STATIC.iterdir()} <= names
