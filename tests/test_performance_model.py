"""Floors by arithmetic and the performance model."""

from dataclasses import replace

import pytest

from benchmarks import floors, model, work
from benchmarks.shapes import Shape

PAPER = Shape(16384, 1152, 18432, 922)
SPARSE = Shape(16384, 1152, 18432, 32)
H200 = floors.CEILINGS["h200"]
# One operation, byte or gathered byte a second, and an L2 for everything: floors are the counts themselves.
UNIT = floors.Ceilings(flops=1.0, memory=1.0, l2=1e30, gathers=1.0)
SMALL = Shape(n_tokens=8, d_model=4, n_latents=16, k=2)


@pytest.mark.parametrize(
    ("name", "flops", "streamed", "gathered"),
    [
        ("modulate", 0, 2 * 8 * 4 * 2 + 2 * 64 * 4 * 2, 0),  # scale and shift of 64 groups
        ("pre_activations", 2 * 8 * 4 * 16, (8 * 4 + 16 * 4 + 8 * 16) * 2, 0),
        ("keep_top_", 0, 2 * 8 * 16 * 2, 0),
        ("select", 0, 8 * 16 * 2 + 8 * 2 * (2 + 4), 0),
        ("code_sums", 0, 8 * 16 * 2, 0),
        ("decode_dense", 2 * 8 * 4 * 16, (8 * 16 + 16 * 4) * 2 + 8 * 4 * 4, 0),
        ("reconstruction_loss", 0, 8 * 4 * (2 + 4 + 2), 0),
        ("add_product_", 2 * 8 * 4 * 16, (8 * 16 + 8 * 4) * 2 + 2 * 16 * 4 * 4, 0),
        ("masked_gradient", 2 * 8 * 4 * 16, (8 * 4 + 16 * 4 + 2 * 8 * 16) * 2, 0),
        (work.BY_GROUP, 2 * 8 * 4 * 16, (8 * 16 + 8 * 4 + 16 * 4) * 2 + 2 * 16 * 4 * 4, 0),
        ("modulation_gradients", 0, 8 * 4 * (4 + 2), 0),
        ("gather", 0, 8 * 2 * (2 + 4) + 8 * 4 * 4, 8 * 2 * 4 * 2),
        ("transpose", 0, 2 * 8 * 2 * 4, 0),
        ("backward_latents", 0, 16 * 4 * (2 + 16) + 8 * 2 * (2 + 4 + 4), 2 * 8 * 2 * 4 * 2),
        ("misfit", 0, 8 * 4 * (4 + 4 + 2), 0),
    ],
)
def test_counts_by_hand(name, flops, streamed, gathered):
    floor = floors.kernel_floors(SMALL, UNIT, regime="dense")[name]
    assert (floor.work.flops, floor.work.streamed, floor.work.gathered) == (flops, streamed, gathered)
    assert floor.seconds == max(flops, streamed, gathered)


def test_sequences_are_the_sums_of_their_kernels():
    found = floors.kernel_floors(PAPER, H200, regime="dense")
    sequence = ("add_product_", "decode_dense", "modulation_gradients")
    assert found[work.BY_TWO_PRODUCTS].seconds == pytest.approx(sum(found[name].seconds for name in sequence))
    few = floors.kernel_floors(replace(PAPER, n_latents=2304, k=461), H200, regime="dense")
    sequence = ("pre_activations", "keep_top_", "decode_dense", "misfit", "add_product_", "masked_gradient")
    assert found["aux"].seconds == pytest.approx(sum(few[name].seconds for name in (*sequence, work.BY_GROUP)))


def test_the_largest_of_the_times_binds():
    assert floors.floor_of(work.Work(flops=2, streamed=1), UNIT).bound == "products"
    assert floors.floor_of(work.Work(flops=1, streamed=2), UNIT).bound == "memory"
    assert floors.floor_of(work.Work(streamed=1, gathered=2, table=1), UNIT).bound == "gathers"


def test_a_table_that_does_not_fit_is_gathered_from_memory_in_part():
    ceilings = floors.Ceilings(flops=1.0, memory=1.0, l2=30.0, gathers=2.0)  # of which 20 bytes hold a table
    assert floors.floor_of(work.Work(gathered=8, table=10), ceilings).seconds == 4
    assert floors.floor_of(work.Work(gathered=8, table=40), ceilings).seconds == 8 * (0.5 / 2 + 0.5)


def test_what_fits_into_the_l2_streams_at_its_rate():
    ceilings = floors.Ceilings(flops=1.0, memory=1.0, l2=30.0, gathers=2.0)
    assert floors.floor_of(work.Work(streamed=20), ceilings).seconds == 10
    assert floors.floor_of(work.Work(streamed=21), ceilings).seconds == 21


@pytest.mark.parametrize(("shape", "regime", "milliseconds"), [(PAPER, "dense", 4.7), (SPARSE, "sparse", 2.1)])
def test_the_floor_of_a_step(shape, regime, milliseconds):
    assert floors.lower_regime(shape, H200) == regime
    assert 1e3 * floors.model_floor(work.Case(shape, regime), H200) == pytest.approx(milliseconds, abs=0.05)


@pytest.mark.parametrize("all_terms", [False, True], ids=["mse", "all terms"])
@pytest.mark.parametrize("regime", work.REGIMES)
def test_a_step_is_the_sum_of_its_parts(regime, all_terms):
    case = work.Case(PAPER, regime, all_terms)
    lines = model.lines(case, H200, work.BY_GROUP)
    assert sum(line.floor.seconds for line in lines) == pytest.approx(floors.model_floor(case, H200))
    assert all(line.expected > line.floor.seconds for line in lines)
    total = f"{1e3 * (sum(line.expected for line in lines) + model.overhead(case)):.3f}"
    assert total in model.report(case, H200, work.BY_GROUP).splitlines()[-2]


def test_the_page_has_every_kernel_and_says_what_it_is(capsys):
    arguments = ["--device", "h200", "--shape", "16384,1152,18432,922", "--terms", "all"]
    assert model.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "estimates, not measured" in printed
    for name in work.step_kernels(work.Case(PAPER, "dense", True), work.BY_TWO_PRODUCTS):
        assert f"| {name} " in printed


def test_measured_ceilings_take_the_place_of_a_device_s():
    assert model.ceilings_of("h200", ["memory=4e12"]) == replace(H200, memory=4e12)
    given = ["flops=1e15", "memory=8e12", "l2=1e8", "gathers=1e13"]
    assert model.ceilings_of(None, given) == floors.Ceilings(1e15, 8e12, 1e8, 1e13)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--device", "h200", "--shape", "16384,1152"], "--shape 16384,1152: give tokens,width,latents,active"),
        (["--device", "h200", "--shape", "1,2,3,x"], "--shape 1,2,3,x: give"),
        (["--device", "h200", "--shape", "1,2,3,4"], "at most all latents are active"),
        (["--device", "h200", "--shape", "0,2,3,1"], "sizes are at least 1"),
        (["--shape", "16,4,8,2"], "give --device h200 or h100"),
        (["--device", "h200", "--ceilings", "speed=3", "--shape", "16,4,8,2"], "--ceilings speed=3: give NAME=VALUE"),
        (["--device", "h200", "--ceilings", "memory=-1", "--shape", "16,4,8,2"], "--ceilings memory=-1: give"),
        (["--device", "h200", "--ceilings", "memory", "--shape", "16,4,8,2"], "--ceilings memory: give"),
    ],
)
def test_bad_input_gives_one_line(arguments, complaint, capsys):
    assert model.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert complaint in captured.err
    assert captured.err.count("\n") == 1
