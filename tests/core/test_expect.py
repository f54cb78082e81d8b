"""The roofline, with numbers that a pencil can check."""

from dataclasses import replace

import pytest

from mfu_sdk.counting.expect import expect, main_dtype, memory_bytes_per_s
from mfu_sdk.records import Count, OpCost, Peaks, Rate

COUNT = Count(
    model_flops=4000,
    hardware_flops=4000,
    forward_flops=4000,
    backward_flops=0,
    recompute_flops=0,
    optimizer_flops=0,
    attention_flops_exact=0,
    attention_flops_full=0,
    by_dtype={"float32": 1000, "bfloat16": 3000},
    by_module={},
    by_op={},
    uncounted=(),
    coverage=1.0,
    bytes_moved=900,
    comm_bytes={},
    convention="exact",
    # One bound by arithmetic, run three times, and one by memory.
    ops=(
        OpCost("mm", "bfloat16", 1000, 100, 3),
        OpCost("mm", "float32", 1000, 100, 1),
        OpCost("add", "float32", 0, 600, 1),
    ),
)


def rate(value: float) -> Rate:
    return Rate(value, value, value, "test", 0.0)


PEAKS = Peaks(
    device="cuda",
    theoretical={"bfloat16": rate(1000.0)},
    achievable={"bfloat16": rate(500.0), "float32": rate(100.0)},
    memory=rate(100.0),
    clock_mhz=None,
    state={},
)


def test_each_operator_takes_the_longer_of_its_two_times() -> None:
    """3 × max(1000/500, 100/100) + max(1000/100, 1) + 600/100 = 6 + 10 + 6 s; MFU is 4000/(1000·22)."""
    found = expect(COUNT, PEAKS)
    assert found is not None
    assert (found.time_s, found.compute_s, found.memory_s) == (22.0, 16.0, 6.0)
    assert found.mfu == pytest.approx(4000 / 22_000)
    assert found.bound == "compute"


def test_the_headline_dtype_may_be_set() -> None:
    """Against fp32's 100 FLOP/s the same time is ten times the MFU."""
    found = expect(COUNT, PEAKS, peak_dtype="float32")
    assert found is not None
    assert found.mfu == pytest.approx(4000 / 2_200)


@pytest.mark.parametrize(
    "peaks",
    [
        replace(PEAKS, memory=None),
        replace(PEAKS, achievable={"bfloat16": rate(500.0)}),
        replace(PEAKS, theoretical={}, achievable={"float32": rate(100.0)}),
    ],
    ids=["memory", "a dtype", "the headline"],
)
def test_an_unknown_rate_makes_the_answer_unknown(peaks: Peaks) -> None:
    """Without a rate that an operator needs there is no expectation, never a guess."""
    assert expect(COUNT, peaks) is None


def test_nothing_executed_has_no_time() -> None:
    """No operators, no expectation."""
    assert expect(replace(COUNT, ops=()), PEAKS) is None


def test_theory_stands_in_for_a_dtype_that_was_not_measured() -> None:
    """1000 FLOPs at the datasheet's 200 take 5 s."""
    peaks = replace(PEAKS, theoretical={"bfloat16": rate(1000.0), "float16": rate(200.0)})
    found = expect(replace(COUNT, ops=(OpCost("mm", "float16", 1000, 10, 1),)), peaks)
    assert found is not None
    assert found.time_s == 5.0


def test_caches_are_faster_than_memory() -> None:
    """Between 1 kB at 400 and 4 kB at 200 B/s, 2 kB lies half way in logarithm; past the table memory's rate holds."""
    peaks = replace(PEAKS, memory_by_size=((1000, 400.0), (4000, 200.0)))
    assert memory_bytes_per_s(peaks, 10) == 400.0
    assert memory_bytes_per_s(peaks, 1000) == 400.0
    assert memory_bytes_per_s(peaks, 2000) == pytest.approx(300.0)
    assert memory_bytes_per_s(peaks, 4000) == 200.0
    assert memory_bytes_per_s(peaks, 4001) == 100.0
    assert memory_bytes_per_s(replace(peaks, memory=None), 4001) == 200.0
    assert memory_bytes_per_s(PEAKS, 1) == 100.0


def test_main_dtype_has_most_of_the_flops() -> None:
    """3000 of 4000 are bf16; without FLOPs it is float32."""
    assert main_dtype(COUNT.by_dtype) == "bfloat16"
    assert main_dtype({}) == "float32"
