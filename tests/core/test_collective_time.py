"""What a collective takes at sizes that were not measured, and what its bus rate is."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfu_sdk.counting.collective_time import COLLECTIVES, bus_factor, seconds
from mfu_sdk.records import CollectiveRate, CollectiveTime, Rate


def measured(*times: tuple[int, float]) -> CollectiveRate:
    return CollectiveRate(
        collective="all_reduce",
        over="host",
        link="nvlink",
        ranks=8,
        groups=1,
        backend="nccl",
        bus=Rate(1e11, 1e11, 1e11, "calibrated", 0.0),
        times=tuple(CollectiveTime(size, time, time, time, 7) for size, time in times),
    )


@pytest.mark.parametrize(
    ("collective", "ranks", "factor"),
    [
        ("all_reduce", 2, 1.0),
        ("all_reduce", 8, 1.75),
        ("all_gather", 2, 0.5),
        ("all_gather", 8, 0.875),
        ("reduce_scatter", 4, 0.75),
        ("all_to_all", 4, 0.75),
    ],
)
def test_factors_of_nccl_tests(collective: str, ranks: int, factor: float) -> None:
    """2(n−1)/n for an all-reduce, (n−1)/n for what goes round once."""
    assert bus_factor(collective, ranks) == factor


def test_an_all_reduce_is_the_other_two() -> None:
    """A ring reduces and scatters, then gathers: its bytes are those of both, for any number of ranks."""
    for ranks in range(2, 100):
        both = bus_factor("reduce_scatter", ranks) + bus_factor("all_gather", ranks)
        assert bus_factor("all_reduce", ranks) == pytest.approx(both, rel=1e-15)
    assert COLLECTIVES == ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")


LADDER = measured((1024, 10e-6), (4096, 20e-6), (65536, 80e-6))


@pytest.mark.parametrize(
    ("size_bytes", "time_s"),
    [
        # Below the smallest, its time.
        (0, 10e-6),
        (1, 10e-6),
        # What was measured.
        (1024, 10e-6),
        (4096, 20e-6),
        (65536, 80e-6),
        # Half of the way from 1024 to 4096 is 2048: the geometric mean of 10 and 20.
        (2048, 10e-6 * math.sqrt(2)),
        # A quarter of the way from 4096 to 65536 is 8192: 20 × 4^¼ = 20 √2.
        (8192, 20e-6 * math.sqrt(2)),
        # α = 10 µs and α + β·65536 = 80 µs make β·65536 = 70 µs: twice the size takes 150 µs, ten times 710.
        (131072, 150e-6),
        (655360, 710e-6),
    ],
)
def test_by_hand(size_bytes: int, time_s: float) -> None:
    """Linear between the logarithms, flat below, α + β·S above."""
    assert seconds(LADDER, size_bytes) == pytest.approx(time_s, rel=1e-12)


def test_noise_is_pooled() -> None:
    """A larger message that was faster shares the geometric mean with its neighbours: √(40 · 10) = 20."""
    noisy = measured((1024, 5e-6), (4096, 40e-6), (8192, 10e-6), (65536, 80e-6))
    assert seconds(noisy, 4096) == pytest.approx(20e-6)
    assert seconds(noisy, 6000) == pytest.approx(20e-6)
    assert seconds(noisy, 8192) == pytest.approx(20e-6)
    assert seconds(noisy, 1024) == 5e-6
    # Falling pools that meet become one: ∛(40 · 10 · 2.5) = 10.
    assert seconds(measured((8, 40.0), (16, 10.0), (32, 2.5)), 16) == pytest.approx(10.0)


def test_one_size_tells_no_latency() -> None:
    """Beyond the only size, or a flat ladder, its rate holds on."""
    assert seconds(measured((1000, 1e-3)), 5000) == pytest.approx(5e-3)
    assert seconds(measured((10, 1e-3), (1000, 1e-3)), 3000) == pytest.approx(3e-3)


def test_the_latency_is_the_smallest_time() -> None:
    """And while the largest message takes less than twice that, the bus rate is one of latency."""
    assert LADDER.latency == CollectiveTime(1024, 10e-6, 10e-6, 10e-6, 7)
    assert not LADDER.latency_bound
    assert not measured((1024, 10e-6), (8192, 20e-6)).latency_bound
    assert measured((1024, 10e-6), (8192, 19e-6)).latency_bound


def test_no_negative_sizes() -> None:
    """The value and the rule."""
    for wrong in (-1, math.nan):
        with pytest.raises(ValueError, match=r"size_bytes=.*0 bytes or more"):
            seconds(LADDER, wrong)


ladders = st.lists(
    st.tuples(st.integers(1, 2**40), st.floats(1e-7, 1e3)), min_size=1, max_size=8, unique_by=lambda each: each[0]
).map(lambda pairs: measured(*zip(sorted(size for size, _ in pairs), (time for _, time in pairs), strict=True)))


@given(ladders, st.lists(st.floats(0, 2.0**42), min_size=2, max_size=20))
def test_more_bytes_never_take_less(ladder: CollectiveRate, sizes: list[float]) -> None:
    """The time is monotone in the size, at what was measured and between and beyond it, however noisy."""
    at = sorted([*sizes, *(float(each.size_bytes) for each in ladder.times)])
    times = [seconds(ladder, size) for size in at]
    assert all(earlier <= later for earlier, later in itertools.pairwise(times))
    assert all(time > 0 and math.isfinite(time) for time in times)
