"""The group `benchmark`: which lengths are timed, and values that make no sense."""

import pytest

from results import columns
from runner.speed.settings import Benchmark, CpuBenchmark
from runner.system.errors import UserError


@pytest.mark.parametrize(("longest", "lengths"), [(64, [64]), (128, [128]), (200, [128, 200]), (512, [128, 384])])
def test_lengths_are_cut_to_those_of_the_dataset(longest: int, lengths: list[int]) -> None:
    assert CpuBenchmark().lengths(longest) == lengths
    assert CpuBenchmark(length=[16]).lengths(longest) == [16]
    assert Benchmark().lengths(longest) == []


@pytest.mark.parametrize(("values", "words"), [
    ({"batch": [0]}, r"benchmark.batch=\[0\]: give whole numbers above 0"),
    ({"threads": []}, r"benchmark.threads=\[\]: give whole numbers"),
    ({"precisions": ["float16"]}, "benchmark.precisions=.*float16.*: give"),
    ({"seconds": -1.0}, "benchmark.seconds=-1: give seconds from 0"),
])  # fmt: skip
def test_values_that_make_no_sense_are_refused(values: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        CpuBenchmark(**values)


def test_names_of_the_metrics() -> None:
    assert columns.latency("ONNX Runtime", "int8", 1, 128, 2) == "latency/onnx_runtime_int8_b1_l128_t2"
    assert columns.speedup("sparse", "bfloat16", 8, 384, 1) == "speedup/sparse_bfloat16_b8_l384_t1"
