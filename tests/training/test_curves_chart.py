"""The chart of a training's curves."""

from __future__ import annotations

import errno

import pytest
from PIL import Image

from tests.helpers.trainings import batch, config, model
from tide.runs import contents
from tide.training import Job, train
from tide.training.curves_chart import draw_curves


def job() -> Job:
    return Job(config(), model(), lambda step: (batch(seed) for seed in range(step, 1000)), {})


def test_a_training_ends_with_its_chart(tmp_path):
    train(job(), tmp_path / "t")
    with Image.open(tmp_path / "t/curves.png") as picture:
        assert picture.width > 1000
        assert len(set(picture.convert("L").getdata())) > 20
    assert contents(tmp_path / "t").files["curves.png"] == "chart"


@pytest.mark.parametrize(
    "history", [[], [{"step": 10.0, "mse": 1.0, "revived": 0.0}]], ids=["empty", "of an old version"]
)
def test_histories_that_lack_figures(tmp_path, history):
    assert draw_curves(history, tmp_path / "c.png", "t")
    assert (tmp_path / "c.png").exists()


def test_a_full_disk_ends_no_training(tmp_path, monkeypatch):
    def full(self, path, **options):
        raise OSError(errno.ENOSPC, "it is full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    said = r"curves were not drawn, and training.json holds them, too: .*curves.png could not be written \(.*it is full"
    with pytest.warns(UserWarning, match=said):
        found = train(job(), tmp_path / "t")
    assert found.step == 60
    assert "curves.png" not in contents(tmp_path / "t").files
