"""The statistics of a calibration."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfu_sdk.peak.statistics import between_runs, estimate, rate_of, spread, within_run


def test_order_statistics_by_hand() -> None:
    """Of 1..11 the closest-rank interpolation gives 2, 6 and 10."""
    found = spread([11, 1, 10, 2, 9, 3, 8, 4, 7, 5, 6])
    assert (found.samples, found.p10, found.median, found.p90) == (11, 2.0, 6.0, 10.0)
    assert found.relative == pytest.approx(8 / 6)


def test_one_sample_has_no_spread() -> None:
    """A single batch is its own median, and its interval is the floor's."""
    found = spread([4.0])
    assert found.relative == 0
    assert (rate_of(4.0, found, 0.25).low, rate_of(4.0, found, 0.25).high) == (3.0, 5.0)


def test_the_interval_holds_noisy_batches() -> None:
    """Batches that differ by more than the floor widen the interval beyond it."""
    found = spread([1.0, 10.0, 10.0, 10.0, 30.0])
    rate = rate_of(10.0, found, 0.01)
    assert rate.low == pytest.approx(4.6)
    assert rate.high == pytest.approx(22.0)


def test_nothing_measured() -> None:
    """No batch is an error, not a rate of zero."""
    with pytest.raises(ValueError, match="no batch"):
        spread([])


def test_within_a_run_by_hand() -> None:
    """Two groups of means 9 and 11: s = √2, t(1) = 12.706, so ± 12.706 · √2 / √2."""
    assert within_run([[8, 10], [10, 12]]) == pytest.approx(12.706)
    # Six batches are cut into two groups of three, with the same means.
    assert within_run([[8, 9, 10, 10, 11, 12]]) == pytest.approx(12.706)
    assert within_run([[1.0, 2.0]]) == math.inf


def test_between_runs_by_hand() -> None:
    """9, 10 and 11: s = 1, t(2) = 4.303, so the next lies within ± 4.303 · √(4/3)."""
    assert between_runs([9, 10, 11]) == pytest.approx(4.303 * math.sqrt(4 / 3))


def test_history_takes_the_place_of_the_floor() -> None:
    """Alone a run has the floor; with two like it the interval is what they differ by, with two unlike it wide."""
    batches = [[100.0] * 12]
    assert estimate(batches, 0.02).low == pytest.approx(98)
    assert estimate(batches, 0.02, history=[100.1]).low == pytest.approx(98)
    near = estimate(batches, 0.02, history=[100.1, 99.9])
    assert near.high - 100 == pytest.approx(4.303 * 0.1 * math.sqrt(4 / 3))
    far = estimate(batches, 0.02, history=[110.0, 90.0])
    assert far.high - 100 == pytest.approx(4.303 * 10 * math.sqrt(4 / 3))


def test_the_median_is_reported() -> None:
    """One batch that was stalled moves neither the value nor, much, the others."""
    found = estimate([[100.0] * 11 + [10.0]], 0.02)
    assert found.flops_per_s == 100
    assert found.low < 98


@given(st.lists(st.floats(1, 1e18), min_size=1, max_size=60), st.floats(0.001, 0.5))
def test_an_interval_holds_its_value(rates: list[float], floor: float) -> None:
    """Whatever the batches, 0 < low ≤ value ≤ high, and all are finite."""
    for rate in (estimate([rates], floor), rate_of(spread(rates).p90, spread(rates), floor)):
        assert 0 < rate.low <= rate.flops_per_s <= rate.high < math.inf


@given(st.lists(st.floats(0.5, 2.0), min_size=6, max_size=40), st.floats(0.1, 1e15))
def test_units_scale(rates: list[float], scale: float) -> None:
    """In other units the same interval."""
    plain, scaled = estimate([rates], 0.02), estimate([[scale * rate for rate in rates]], 0.02)
    assert scaled.low == pytest.approx(scale * plain.low, rel=1e-6)
    assert scaled.high == pytest.approx(scale * plain.high, rel=1e-6)


def test_history_only_widens_a_processors() -> None:
    """Earlier runs that agree leave ± 25 %; ones that differ widen it."""
    over = spread([100.0] * 5)
    assert rate_of(100, over, 0.25, history=[100, 101, 99]).low == 75
    assert rate_of(100, over, 0.25, history=[140, 60, 100]).high > 150
