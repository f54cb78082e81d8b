"""Windows: what goes into one, and what it adds up to, by hand and by law."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfu_sdk.export.signals import Signals
from mfu_sdk.export.totals import Totals
from mfu_sdk.export.windows import MAX_STEPS, Windows, sums

from .conftest import EPOCH_NS, make_step


def closed(steps):
    windows = Windows()
    done = [window for step in steps for window in windows.add(step)[1]]
    return done + windows.close()


def test_sums(step):
    """Two timed steps with all known: FLOPs, times and ratios by hand."""
    total = sums([step(0), step(1, duration_s=3.0, model_flops=20, hardware_flops=20, mfu=0.1, expected_mfu=0.4)])
    assert (total.steps, total.timed, total.counted, total.unknown) == (2, 2, 2, 0)
    assert (total.model_flops, total.hardware_flops, total.available_flops) == (60, 70, 400.0)
    assert total.mfu == 0.15
    assert total.hfu == 0.175
    # 0.8 × 100 + 0.4 × 300 of 400: not the mean of 0.8 and 0.4.
    assert (total.expected_flops, total.expected_available_flops) == (200.0, 400.0)
    assert total.expected_mfu == 0.5
    assert (total.time_s, total.tokens, total.samples) == (4.0, 32, 4)
    assert total.arithmetic_intensity == 10.0


def test_weights(step):
    """What is a rate is weighted by time, what is coverage is the least."""
    total = sums(
        [
            step(0, duration_s=1.0, achievable_mfu=0.8, mfu_by_dtype=0.2, batch_running=1.0, coverage=0.9),
            step(1, duration_s=3.0, achievable_mfu=0.4, mfu_by_dtype=0.6, batch_running=5.0, coverage=1.0),
        ]
    )
    assert total.achievable_mfu == pytest.approx(0.5)
    assert total.mfu_by_dtype == pytest.approx(0.5)
    assert total.batch_running == 4.0
    assert total.coverage == 0.9


SERVED = {"requests": 3, "requests_failed": 1, "requests_s": 1.5}


@pytest.mark.parametrize("change", [{"count_source": "measured"}, {"error_type": "ValueError"}])
def test_untimed(step, change):
    """A step that was counted while it ran, or failed, is in no sum of times or FLOPs."""
    total = sums([step(0), step(1, duration_s=50.0, **change)])
    assert (total.steps, total.timed, total.counted, total.unknown) == (2, 1, 1, 0)
    assert (total.time_s, total.model_flops, total.available_flops) == (1.0, 40, 100.0)


def test_volumes(step):
    """Tokens, samples and requests are those of every step that did not fail, counted while it ran or not."""
    total = sums(
        [
            step(0, **SERVED),
            step(1, count_source="measured", **SERVED),
            step(2, error_type="ValueError", tokens=None, **SERVED),
        ]
    )
    assert (total.steps, total.finished, total.timed) == (3, 2, 1)
    assert (total.tokens, total.samples) == (32, 4)
    assert (total.requests, total.requests_failed, total.requests_s) == (6, 2, 3.0)
    assert sums([step(0), step(1, count_source="measured", tokens=None)]).tokens is None


def test_requests(step):
    """A step that tells of no requests adds none; only where no step tells of any is their sum unknown."""
    total = sums([step(0), step(1, **SERVED), step(2, requests=0, requests_failed=0, requests_s=0.0)])
    assert (total.requests, total.requests_failed, total.requests_s) == (3, 1, 1.5)
    total = sums([step(0), step(1)])
    assert (total.requests, total.requests_failed, total.requests_s) == (None, None, None)


def test_run_tokens(step):
    """A run's tokens are its windows', those of untimed ones too; a window of failed steps has no part in them."""
    totals = Totals()
    totals.add(sums([step(0, error_type="ValueError")]))
    assert totals.tokens is None
    totals.add(sums([step(1, count_source="measured")]))
    assert (totals.tokens, totals.time_s) == (16, None)
    totals.add(sums([step(2)]))
    totals.add(sums([step(3, error_type="ValueError")]))
    assert (totals.tokens, totals.time_s) == (32, 1.0)
    totals.add(sums([step(4, tokens=None)]))
    totals.add(sums([step(5)]))
    assert (totals.tokens, totals.time_s) == (None, 3.0)


@pytest.mark.parametrize("change", [{"model_flops": None, "mfu": None}, {"peak_flops_per_s": None, "mfu": None}])
def test_unknown(step, change):
    """A step without numerator or denominator is in neither sum, but its time has passed."""
    total = sums([step(0), step(1, **change)])
    assert (total.timed, total.counted, total.unknown) == (2, 1, 1)
    assert (total.time_s, total.model_flops, total.available_flops, total.mfu) == (2.0, 40, 100.0, 0.4)


def test_partly_unknown(step):
    """A sum that one of its steps does not know is not known: the rest would make a wrong ratio."""
    total = sums([step(0), step(1, hardware_flops=None, hfu=None, tokens=None, device_s=None)])
    assert total.hardware_flops is None
    assert total.hfu is None
    assert total.tokens is None
    assert total.device_s is None
    assert total.model_flops == 80


def test_nothing_known(step):
    """A window of counted-while-run steps has no sums at all, not sums of zero."""
    total = sums([step(0, count_source="measured")])
    assert (total.time_s, total.model_flops, total.available_flops, total.mfu) == (None, None, None, None)


def test_expectation_subset(step):
    """Expected FLOPs are held against the available FLOPs of the steps that have an expectation, and no others."""
    total = sums([step(0), step(1, expected_mfu=None)])
    assert (total.expected_flops, total.expected_available_flops, total.expected_mfu) == (80.0, 100.0, 0.8)
    assert total.available_flops == 200.0


def test_interval_of_the_expectation(step):
    """Its ends are over the same steps, weighted alike; where one step does not know its own, they are not known."""
    total = sums([step(0), step(1, duration_s=3.0, expected_mfu=0.4, expected_low_mfu=0.2, expected_high_mfu=0.6)])
    # 0.7 × 100 + 0.2 × 300 of 400, and 0.9 × 100 + 0.6 × 300.
    assert (total.expected_low_mfu, total.expected_high_mfu) == pytest.approx((0.325, 0.675))
    total = sums([step(0), step(1, expected_low_mfu=None)])
    assert (total.expected_mfu, total.expected_low_mfu, total.expected_high_mfu) == pytest.approx((0.8, None, 0.9))
    # A step without an expectation has none to know.
    total = sums([step(0), step(1, expected_mfu=None, expected_low_mfu=None, expected_high_mfu=None)])
    assert (total.expected_low_mfu, total.expected_high_mfu) == (0.7, 0.9)


def test_huge(step):
    """FLOP sums are exact integers beyond 2^63."""
    total = sums([step(0, model_flops=10**19), step(1, model_flops=10**19 + 1)])
    assert total.model_flops == 2 * 10**19 + 1


def test_aligned(step):
    """A step belongs to the 30 s of wall clock in which it started, though it ends in the next."""
    first, second = closed([step(0), step(29, duration_s=5.0), step(34)])
    assert [record.index for record in first.steps] == [0, 29]
    assert (first.start_unix_ns, first.end_unix_ns) == (EPOCH_NS, EPOCH_NS + 34 * 10**9)
    assert [record.index for record in second.steps] == [34]
    assert second.slot == first.slot + 1


@pytest.mark.parametrize(
    "change",
    [
        {"phase": "eval"},
        {"convention": "full"},
        {"peak_dtype": "bfloat16"},
        {"peak_source": "user"},
        {"peak_flops_per_s": 200.0},
        {"peak_flops_per_s": None},
    ],
)
def test_denominators(step, change):
    """Steps that do not share a denominator do not share a window, also when they take turns."""
    windows = closed([step(0), step(1, **change), step(2), step(3, **change)])
    assert [[record.index for record in window.steps] for window in windows] == [[0, 2], [1, 3]]


def test_full():
    """A window closes at 1,024 steps and the next of the same slot has another first step."""
    windows = closed([make_step(i, duration_s=0.01, start_unix_ns=EPOCH_NS + i) for i in range(MAX_STEPS + 1)])
    assert [len(window.steps) for window in windows] == [1024, 1]
    assert windows[0].slot == windows[1].slot


def test_expiry(step):
    """A window waits one second past its end for a step that started in it."""
    windows = Windows()
    windows.add(step(0))
    assert windows.expire(EPOCH_NS + 30_999_999_999) == []
    assert [len(window.steps) for window in windows.expire(EPOCH_NS + 31_000_000_000)] == [1]
    assert windows.close() == []


def test_arrays(step):
    """Durations in µs, negative where not timed; utilizations in basis points, -1 where there is none."""
    windows = closed(
        [
            step(0, duration_s=0.0123456, mfu=0.41237),
            step(1, count_source="measured"),
            step(2, mfu=None),
            step(3, duration_s=1e-9, error_type="ValueError"),
        ]
    )
    assert windows[0].durations_us == [12346, -1_000_000, 1_000_000, -1]
    assert windows[0].utilizations_bp == [4124, -1, -1, -1]


steps_strategy = st.lists(
    st.builds(
        lambda index, gap, duration, flops, peak, source, phase, error: make_step(
            index,
            start_unix_ns=EPOCH_NS + gap,
            duration_s=duration,
            model_flops=flops,
            peak_flops_per_s=peak,
            count_source=source,
            phase=phase,
            error_type=error,
        ),
        index=st.integers(0, 10**6),
        gap=st.integers(0, 90 * 10**9),
        duration=st.floats(1e-4, 60),
        flops=st.none() | st.integers(0, 10**20),
        peak=st.none() | st.sampled_from([1e12, 3e14]),
        source=st.sampled_from(["cached", "measured"]),
        phase=st.sampled_from(["train", "eval"]),
        error=st.sampled_from([None, None, "ValueError"]),
    ),
    min_size=1,
    max_size=60,
)


@given(steps_strategy)
def test_conservation(steps):
    """However steps are cut into windows, the windows' sums add up to the steps', and no step is lost or doubled."""
    windows = closed(steps)
    totals = Totals()
    for window in windows:
        assert len({(step.phase, step.peak_flops_per_s) for step in window.steps}) == 1
        totals.add(sums(window.steps))
    assert sum(len(window.steps) for window in windows) == len(steps)
    counted = [step for step in steps if step.counts]
    timed = [step for step in steps if step.timed]
    assert totals.model_flops == (sum(step.model_flops for step in counted) if counted else None)
    if counted:
        assert totals.available_flops == pytest.approx(math.fsum(step.available_flops for step in counted))
    finished = [step for step in steps if step.error_type is None]
    assert totals.tokens == (16 * len(finished) if finished else None)
    if timed:
        assert totals.time_s == pytest.approx(math.fsum(step.duration_s for step in timed))


def test_a_runs_waiting_is_that_of_its_windows():
    """As long as each window with timed steps knows its own; once one does not, nothing is the sum of all."""
    totals = Totals()
    totals.add(sums([make_step(0)]), Signals(comm_s=0.25, skew_s=0.5, host_s=0.125))
    totals.add(sums([make_step(1, count_source="measured")]))
    totals.add(sums([make_step(2)]), Signals(comm_s=0.5, skew_s=0.0))
    assert (totals.comm_s, totals.skew_s, totals.host_s) == (0.75, 0.5, None)
    totals.add(sums([make_step(3)]))
    assert (totals.comm_s, totals.skew_s) == (None, None)
