"""The search for launch configurations, with invented times."""

import json
import math

import pytest
import torch

from tide_kernels import tune

configs = pytest.importorskip("tide_kernels.triton.configs", reason="needs Triton")

START = {"BLOCK_M": 64, "num_warps": 4, "num_stages": 2}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    path = tmp_path / "cache" / "tuned.json"
    monkeypatch.setenv("TIDE_KERNELS_CACHE", str(path))
    configs.reload()
    yield path
    configs.reload()


def fake_job(result=lambda config: torch.ones(3)):
    """A kernel whose result depends on the configuration that is looked up for it, like a real one's."""

    def look_up():
        return configs.lookup("gather", "sm_90", torch.bfloat16, 1152)

    job = tune.Job("gather", "sm_90", torch.bfloat16, 1152, lambda: (result(look_up()),), "gather")
    return job, look_up


def test_neighbours_differ_in_one_entry_and_stay_in_range():
    found = tune.neighbours({"BLOCK_K": 16, "num_warps": 32, "num_stages": 1, "cublas": 1, "rows": 1})
    assert [tuple(c.values()) for c in found] == [
        (32, 32, 1, 1, 1),
        (16, 16, 1, 1, 1),
        (16, 32, 2, 1, 1),
        (16, 32, 1, 0, 1),
        (16, 32, 1, 1, 2),
    ]


def test_the_climb_finds_the_summit_over_several_steps():
    def seconds(config):
        return 1 + abs(math.log2(config["BLOCK_M"] / 256)) + abs(config["num_warps"] - 8)

    best, taken, tried = tune.climb(START, seconds(START), seconds)
    assert best == {"BLOCK_M": 256, "num_warps": 8, "num_stages": 2}
    assert taken == seconds(best)
    assert tried > 6


def test_the_climb_passes_over_failures_and_noise():
    assert tune.climb(START, 1.0, lambda config: None)[:2] == (START, 1.0)
    assert tune.climb(START, 1.0, lambda config: 0.99)[:2] == (START, 1.0)


def test_the_climb_ends_at_its_deadline():
    assert tune.climb(START, 1.0, lambda config: 0.1, deadline=-math.inf) == (START, 1.0, 0)


def test_winners_are_written_and_used(cache):
    job, look_up = fake_job()
    wanted = look_up()["num_warps"] * 2
    (outcome,) = tune.tune_all([job], lambda run: (run(), 1.0 / look_up()["num_warps"] ** 0.5)[1], cache)
    assert outcome.after["num_warps"] >= wanted
    assert look_up() == outcome.after
    assert json.loads(cache.read_text()) == {configs.key("gather", "sm_90", torch.bfloat16, 1152): outcome.after}
    assert "num_warps" in tune.show(outcome)


def test_a_faster_candidate_with_another_result_does_not_count(cache):
    job, look_up = fake_job(lambda config: torch.full((3,), float(config["num_warps"])))
    (outcome,) = tune.tune_all([job], lambda run: 1.0 / look_up()["num_warps"], cache)
    assert outcome.after["num_warps"] == outcome.before["num_warps"]


def test_a_candidate_that_raises_does_not_count(cache):
    job, look_up = fake_job()
    start = look_up()

    def timer(run):
        if look_up() != start:
            raise RuntimeError("out of resource: shared memory")
        return 1.0

    (outcome,) = tune.tune_all([job], timer, cache)
    assert outcome.after == outcome.before == start
    assert not cache.exists()
    assert "unchanged" in tune.show(outcome)


def test_the_start_is_what_the_file_says(cache):
    job, look_up = fake_job()
    key = configs.key("gather", "sm_90", torch.bfloat16, 1152)
    tune.save(cache, {key: {**look_up(), "num_warps": 16}})
    configs.reload()
    (outcome,) = tune.tune_all([job], lambda run: 1.0, cache)
    assert outcome.before["num_warps"] == 16


def test_no_time_left_tunes_nothing(cache):
    assert list(tune.tune_all([fake_job()[0]], lambda run: 1.0, cache, minutes=0)) == []


def test_saving_keeps_other_entries_and_leaves_no_other_file(cache):
    tune.save(cache, {"a": {"rows": 1}, "b": {"rows": 2}})
    tune.save(cache, {"b": {"rows": 3}})
    assert json.loads(cache.read_text()) == {"a": {"rows": 1}, "b": {"rows": 3}}
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


def test_results_may_differ_by_rounding_alone():
    exact = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    indices = torch.arange(5)
    assert tune.same((exact * (1 + 1e-6), indices), (exact, indices))
    assert not tune.same((exact * (1 + 1e-3), indices), (exact, indices))
    assert not tune.same((exact, indices + 1), (exact, indices))
    assert not tune.same((torch.full_like(exact, torch.nan), indices), (exact, indices))


def test_break_even_lies_where_the_lines_cross():
    # Gathers grow with the density, products do not: equal at 0.006.
    times = {density: (density / 0.006, 1.0) for density in (0.0015, 0.003, 0.012, 0.024)}
    assert tune.break_even(times) == pytest.approx(0.006)
    assert tune.break_even({0.1: (1.0, 2.0), 0.2: (1.0, 2.0)}) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_one_line_says_so(capsys):
    assert tune.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
