"""The statistics of a calibration."""

import pytest

from mfu_sdk.peak.statistics import rate_of, spread


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
