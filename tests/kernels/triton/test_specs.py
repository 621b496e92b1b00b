"""The records of ahead-of-time compilation."""

import pytest

from tide_kernels.triton import configs, specs
from tide_kernels.triton.gather import gather_kernel


def test_specialisations_name_every_argument():
    for record in specs.collect():
        assert set(record.signature) | set(record.constexprs) == set(record.kernel.arg_names), record.name
        assert set(record.aligned) <= set(record.signature), record.name


@pytest.mark.parametrize("arch", specs.ARCHS)
def test_every_kernel_has_a_record_for_every_architecture(arch):
    kernels = {record.kernel.__name__ for record in specs.collect()}
    assert {record.kernel.__name__ for record in specs.collect() if record.arch == arch} == kernels


def test_a_record_takes_blocks_and_options_from_the_configuration():
    config = {"PLACES": 8, "COLUMNS": 512, "rows": 3, "num_warps": 2, "num_stages": 1}
    signature = {"values": "*fp32", "d": "i32"}
    record = specs.spec("gather", "sm_90", gather_kernel, signature, {"COLUMNS": 256}, config, ("d",))
    assert record.constexprs == {"PLACES": 8, "COLUMNS": 256}  # an explicit constexpr overrides the configuration
    assert record.options == {"num_warps": 2, "num_stages": 1}
    assert record.aligned == ("values", "d")  # pointers always are
    assert set(record.options) <= set(configs.OPTIONS)


def test_a_record_without_arguments_has_them_as_constants():
    record = next(record for record in specs.collect() if record.name == "modulate bf16 layer norm")
    bare = specs.without(record, "scale", "stride_scale", LAYER_NORM=False)
    assert bare.name == "modulate bf16 layer norm without scale stride_scale LAYER_NORM=False"
    assert set(record.signature) - set(bare.signature) == {"scale", "stride_scale"}
    assert bare.constexprs == {**record.constexprs, "scale": None, "stride_scale": None, "LAYER_NORM": False}
    assert set(record.aligned) - set(bare.aligned) == {"scale", "stride_scale"}
    assert (record.whole, bare.whole) == (True, False)
