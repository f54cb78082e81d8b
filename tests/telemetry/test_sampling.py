"""Which steps get a span, and that the weights of those that do add up to all."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfu_sdk.export.sampling import Kept, Sampler

from .conftest import EPOCH_NS


def run(sampler, count, period_s, *, first=0, start_ns=EPOCH_NS, failed=()):
    """`count` back-to-back steps of `period_s`: what is kept, by index."""
    kept = {}
    for n in range(count):
        decision = sampler.keep(first + n, start_ns + round(n * period_s * 1e9), period_s, failed=first + n in failed)
        if decision:
            kept[first + n] = decision
    return kept


@pytest.mark.parametrize("spans", ["windows", "off"])
def test_no_spans(spans):
    """`windows` and `off` keep no step, failed ones included."""
    assert run(Sampler(spans), 10, 0.1, failed=(3,)) == {}


def test_all():
    """`all` keeps every step, each standing for itself."""
    assert run(Sampler("all"), 5, 0.001) == {n: Kept("all", 1.0) for n in range(5)}


def test_slow():
    """`auto` keeps every step of a loop of 2 steps a second."""
    assert run(Sampler("auto"), 120, 0.5) == {n: Kept("all", 1.0) for n in range(120)}


@pytest.mark.parametrize(("period_s", "every"), [(0.25, 2), (0.1, 8), (0.01, 64)])
def test_fast(period_s, every):
    """Beyond that it keeps one in the power of two that brings the rate to 2 a second or less, by index."""
    kept = run(Sampler("auto"), 10 * every, period_s, first=1)
    assert kept.pop(1) == Kept("all", 1.0)
    assert kept == {n: Kept("periodic", 1 / every) for n in range(every, 10 * every + 1, every)}


def test_besides():
    """A failed step, and the first, are kept though the sample passes them by; they have no weight."""
    sampler = Sampler("auto")
    run(sampler, 400, 0.1)
    kept = run(sampler, 8, 0.1, first=401, start_ns=EPOCH_NS + 30 * 10**9, failed=(403, 408))
    assert kept == {403: Kept("error", None), 408: Kept("periodic", 0.125)}


def test_burst():
    """A window that follows an idle one does not fill with spans: the present rate counts too."""
    sampler = Sampler("auto")
    run(sampler, 1, 29.0)
    kept = run(sampler, 3000, 0.01, first=1, start_ns=EPOCH_NS + 30 * 10**9)
    assert len(kept) <= 3000 / 64 + 2


def test_recovers():
    """Once a window was slow enough, the next keeps every step again."""
    sampler = Sampler("auto")
    run(sampler, 3000, 0.01)
    slow = run(sampler, 30, 1.0, first=3000, start_ns=EPOCH_NS + 30 * 10**9)
    later = run(sampler, 30, 1.0, first=3030, start_ns=EPOCH_NS + 60 * 10**9)
    assert len(slow) == 1
    assert len(later) == 30


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 40))
def test_weights(period_ms, windows):
    """Σ 1/ratio over the kept steps is the number of steps, to within one period at either end of each window."""
    sampler = Sampler("auto")
    total = 0
    weight = 0.0
    largest = 1.0
    for slot in range(min(windows, 3)):
        count = int(30_000 / period_ms)
        kept = run(sampler, count, period_ms / 1000, first=total, start_ns=EPOCH_NS + slot * 30 * 10**9)
        total += count
        weights = [1 / found.ratio for found in kept.values() if found.ratio]
        weight += sum(weights)
        largest = max([largest, *weights])
    assert abs(weight - total) <= 2 * largest * 3
