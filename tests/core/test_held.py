"""A demand against peaks: the expected MFU and the interval that theirs allow, by hand."""

import pytest

from mfu_sdk.records import Peaks, Rate
from mfu_sdk.run.demand import Demand
from mfu_sdk.run.held import hold

RATE = Rate(1000.0, 900.0, 1100.0, "calibrated", 0.0)
PEAKS = Peaks("cpu", {}, {"float32": RATE}, RATE, None, {})


def demand(flops: int, expected_s: float, ends_s: tuple[float, float] | None) -> Demand:
    return Demand(flops, flops, {"float32": flops}, 0, 0, 10, 10.0, expected_s, "cached", interval_s=ends_s)


def test_interval_by_hand() -> None:
    """500 FLOPs of 1,000 a second in 1 s, 0.8 at best and 1.25 at worst: 0.5, between 0.4 and 0.625."""
    held = hold(demand(500, 1.0, (0.8, 1.25)), PEAKS, 1)
    assert (held.expected_low_mfu, held.expected_mfu, held.expected_high_mfu) == pytest.approx((0.4, 0.5, 0.625))
    two = hold(demand(500, 1.0, (0.8, 1.25)), PEAKS, 2)
    assert (two.expected_low_mfu, two.expected_mfu, two.expected_high_mfu) == pytest.approx((0.2, 0.25, 0.3125))


def test_without_an_interval() -> None:
    """What has no ends has none held against peaks either, and no work at all has no MFU."""
    held = hold(demand(500, 1.0, None), PEAKS, 1)
    assert (held.expected_low_mfu, held.expected_mfu, held.expected_high_mfu) == (None, 0.5, None)
    nothing = hold(Demand.nothing("float32"), PEAKS, 1)
    assert (nothing.expected_low_mfu, nothing.expected_mfu, nothing.expected_high_mfu) == (None, None, None)


def test_intervals_add_up() -> None:
    """Sums, multiples and parts of work have the sums, multiples and parts of its ends; an unknown one spoils a sum."""
    one, other = demand(500, 1.0, (0.8, 1.25)), demand(100, 0.2, (0.1, 0.3))
    assert (one + other).interval_s == pytest.approx((0.9, 1.55))
    assert one.times(3).interval_s == pytest.approx((2.4, 3.75))
    assert one.shared(2).interval_s == pytest.approx((0.4, 0.625))
    assert (one + demand(100, 0.2, None)).interval_s is None
    assert (one + Demand.nothing("float32")).interval_s == one.interval_s
