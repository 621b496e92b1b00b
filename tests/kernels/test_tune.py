"""The search for launch configurations, with invented times."""

import contextlib
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
    found = tune.neighbours({"BLOCK_K": 16, "num_warps": 32, "num_stages": 1, "cublas": 1, "rows": 1}, "gfx942")
    assert [tuple(c.values()) for c in found] == [
        (32, 32, 1, 1, 1),
        (16, 16, 1, 1, 1),
        (16, 32, 2, 1, 1),
        (16, 32, 1, 0, 1),
        (16, 32, 1, 1, 2),
    ]


def test_every_kernel_may_limit_its_registers_on_cuda():
    config = {"rows": 1, "num_warps": 4}
    assert {c["maxnreg"] for c in tune.neighbours(config, "sm_90") if "maxnreg" in c} == {96, 128, 168}
    limits = {c["maxnreg"] for c in tune.neighbours(config | {"maxnreg": 128}, "sm_90") if config.items() <= c.items()}
    assert limits == {96, 168, tune.NO_LIMIT}
    assert not any("maxnreg" in c for c in tune.neighbours(config, "gfx942"))


def test_a_choice_of_the_host_alone_has_no_other_entries():
    assert tune.neighbours(configs.static("pre_activations", "sm_90", torch.bfloat16, 1152), "sm_90") == [{"cublas": 0}]


def test_the_climb_finds_the_summit_over_several_steps():
    def seconds(config):
        return 1 + abs(math.log2(config["BLOCK_M"] / 256)) + abs(config["num_warps"] - 8)

    best, taken, tried = tune.climb(START, seconds(START), seconds, "gfx942")
    assert best == {"BLOCK_M": 256, "num_warps": 8, "num_stages": 2}
    assert taken == seconds(best)
    assert tried > 6


def test_the_climb_passes_over_failures_and_noise():
    assert tune.climb(START, 1.0, lambda config: None, "sm_90")[:2] == (START, 1.0)
    assert tune.climb(START, 1.0, lambda config: 0.99, "sm_90")[:2] == (START, 1.0)


def test_a_summit_far_away_is_found_if_it_is_named():
    far = {"BLOCK_M": 512, "num_warps": 16, "num_stages": 4}

    def seconds(config):
        return 0.1 if config == far else 1.0

    assert tune.climb(START, 1.0, seconds, "gfx942")[0] == START
    assert tune.climb(START, 1.0, seconds, "gfx942", others=[far])[:2] == (far, 0.1)


def test_the_climb_ends_at_its_deadline():
    def prepare(candidates):
        raise AssertionError("there is no time to compile")

    assert tune.climb(START, 1.0, lambda config: 0.1, "sm_90", -math.inf, prepare) == (START, 1.0, 0)


def test_all_candidates_of_a_round_are_prepared_before_the_first_is_measured():
    prepared = []

    def measure(config):
        assert config in prepared
        return 1.0

    tune.climb(START, 1.0, measure, "sm_90", prepare=prepared.extend)
    assert prepared == tune.neighbours(START, "sm_90")


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


def test_candidates_are_compiled_under_their_own_configurations(monkeypatch):
    launch = pytest.importorskip("tide_kernels.triton.launch")
    seen = []
    monkeypatch.setattr(launch, "compiling", lambda: contextlib.nullcontext())

    def result(config):
        seen.append(config["num_warps"])
        if config["num_warps"] == 8:
            raise RuntimeError("does not compile")
        return torch.ones(3)

    job, look_up = fake_job(result)
    start = look_up()
    tune.compile_candidates(job, [start | {"num_warps": warps} for warps in (4, 8, 16)])
    assert seen == [4, 8, 16]
    assert look_up() == start


def test_no_time_left_tunes_nothing(cache):
    assert list(tune.tune_all([fake_job()[0]], lambda run: 1.0, cache, minutes=0)) == []


def test_saving_keeps_other_entries_and_leaves_no_other_file(cache):
    tune.save(cache, {"a": {"rows": 1}, "b": {"rows": 2}})
    tune.save(cache, {"b": {"rows": 3}})
    assert json.loads(cache.read_text()) == {"a": {"rows": 1}, "b": {"rows": 3}}
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-3)], ids=str)
def test_results_may_differ_by_the_rounding_of_operands_alone(dtype, rounding):
    exact = torch.randn(1000, generator=torch.Generator().manual_seed(0))  # a float32 sum over such operands
    indices = torch.arange(5)
    assert tune.same((exact * (1 + rounding), indices), (exact, indices), dtype)
    assert not tune.same((exact * (1 + 100 * rounding), indices), (exact, indices), dtype)
    assert not tune.same((exact, indices + 1), (exact, indices), dtype)
    assert not tune.same((torch.full_like(exact, torch.nan), indices), (exact, indices), dtype)


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
