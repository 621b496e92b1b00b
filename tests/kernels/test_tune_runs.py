"""The runs that are timed: every kernel has one, and it is repeatable."""

import pytest
import torch

from tide_kernels import backend_status, tune, tune_runs
from tide_kernels.tune_runs import Operands, Shape

configs = pytest.importorskip("tide_kernels.triton.configs", reason="needs Triton")
launch = pytest.importorskip("tide_kernels.triton.launch", reason="needs Triton")


def test_every_configuration_in_use_has_a_runner():
    # "fold" runs inside scatter and backward_latents, and is looked up only for float32 sums. "order" and "add_parts"
    # are short launches before and after modulation_gradients, and are timed with it.
    assert set(configs._TABLE) - set(tune_runs.KERNELS) <= {"fold", "order", "add_parts"}


@pytest.mark.parametrize("k", [1, 8], ids=["selection by groups", "selection of whole rows"])
@pytest.mark.parametrize("kernel", tune_runs.KERNELS)
def test_a_run_looks_up_what_its_job_tunes(kernel, k, monkeypatch):
    if reason := backend_status()["triton"]:
        pytest.skip(f"triton: {reason}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if kernel == "pre_activations" and device.type == "cpu":
        pytest.skip("a choice between cuBLAS and Triton is looked up on a GPU alone")
    looked_up, look_up = set(), launch.lookup
    monkeypatch.setattr(launch, "lookup", lambda *what: (looked_up.add(configs.key(*what)), look_up(*what))[1])
    monkeypatch.setattr(tune_runs.backend(), "dense_above", lambda device: 0.0 if kernel in tune_runs.DENSE else 1.0)
    (job,) = tune.jobs([kernel], [Shape(6, 20, 200, k)], torch.float16, device)
    looked_up.clear()
    job.run()
    assert job.key in looked_up


@pytest.mark.parametrize("kernel", configs.FAR)
def test_far_configurations_are_possible(kernel):
    table = configs.static(kernel, "sm_90", torch.bfloat16, 1152)
    for far in configs.FAR[kernel]:
        assert all(configs._is_possible(entry, value, table) for entry, value in far.items())


def test_shapes_are_read_from_the_command_line():
    assert Shape.parse("8,16,64,4") == Shape(8, 16, 64, 4)
    with pytest.raises(Exception, match="write N,d,n,k"):
        Shape.parse("8,16")


@pytest.mark.parametrize("k", [1, 8], ids=["compact codes", "masked codes"])
@pytest.mark.parametrize("kernel", tune_runs.KERNELS)
def test_a_run_gives_the_same_bits_each_time(kernel, k):
    reason = backend_status()["triton"]
    if reason is not None:
        pytest.skip(f"triton: {reason}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    runner, size = tune_runs.RUNNERS[kernel]
    shape = Shape(6, 20, 200, k)
    assert hasattr(shape, size)
    run = runner(Operands(shape, torch.float32, device))
    first = [result.clone() for result in run()]
    assert first
    assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))


def test_both_forms_of_the_encoders_gradients_give_the_same_result(monkeypatch, tmp_path):
    # One works from the tokens and the modulation, the other from the modulated tokens: tuning compares them.
    if reason := backend_status()["triton"]:
        pytest.skip(f"triton: {reason}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    operands = Operands(Shape(6, 20, 200, 8), torch.float32, device)
    key = configs.key("encoder_gradients", launch.architecture(device), torch.float32, 20)
    found = []
    for group_tokens in (1, 1000):
        path = tmp_path / f"{group_tokens}.json"
        tune.save(path, {key: {"group_tokens": group_tokens}})
        monkeypatch.setenv("TIDE_KERNELS_CACHE", str(path))
        configs.reload()
        found.append([result.clone() for result in tune_runs.RUNNERS["encoder_gradients"][0](operands)()])
    configs.reload()
    assert tune.same(found[1], found[0], torch.float32)
