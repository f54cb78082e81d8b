"""What telling of a run may cost: spans are shed first, windows next, counters never, and what fits comes back."""

import pytest

from mfu_sdk.export.budget import Budget
from mfu_sdk.export.telemetry import Telemetry
from mfu_sdk.settings import Settings

from .conftest import EPOCH_NS, attributes_of


def interval(budget, spans_s=0.0, windows_s=0.0, rest_s=0.0):
    """128 steps of 1/8 s, one interval of 16 s, that cost this much: whether anything changed."""
    budget.spend(rest_s)
    changed = [budget.step(0.125, spans_s / 128, windows_s / 128) for _ in range(128)]
    return any(changed)


def kept(budget):
    return budget.keeps_spans, budget.keeps_windows


@pytest.fixture
def budget(monkeypatch):
    """One of 0.5 %, 80 ms of an interval."""
    monkeypatch.setattr("mfu_sdk.export.budget.INTERVAL_S", 16.0)
    return Budget(0.005)


def test_within(budget):
    """What costs 0.4 % is let be."""
    assert not interval(budget, spans_s=0.032, windows_s=0.016, rest_s=0.016)
    assert kept(budget) == (True, True)
    assert budget.cost_share == pytest.approx(0.004)


def test_spans_first_windows_next(budget):
    """Over the budget spans go, then windows if they alone are over it; then nothing is left that could go."""
    assert interval(budget, spans_s=0.05, windows_s=0.1)
    assert kept(budget) == (False, True)
    assert interval(budget, windows_s=0.1)
    assert kept(budget) == (False, False)
    assert not interval(budget, rest_s=0.2)
    assert kept(budget) == (False, False)


def test_what_is_not_dear_stays(budget):
    """Where counters or the step path are what costs, leaving out cheap spans and windows would mend nothing."""
    assert not interval(budget, spans_s=0.007, windows_s=0.07, rest_s=0.4)
    assert kept(budget) == (True, True)


def test_back_again(budget):
    """What was shed comes back once all together would take less than four fifths of the budget, 64 ms."""
    interval(budget, spans_s=0.03, rest_s=0.06)
    assert kept(budget) == (False, True)
    assert not interval(budget, rest_s=0.035)
    assert interval(budget, rest_s=0.033)
    assert kept(budget) == (True, True)


def test_windows_that_never_fit(budget):
    """Windows that took more than the budget alone stay out: they would again."""
    interval(budget, spans_s=0.05, windows_s=0.1)
    interval(budget, windows_s=0.1)
    assert not interval(budget)
    assert kept(budget) == (False, False)


def test_no_limit():
    """MFU_OVERHEAD_BUDGET=off sheds nothing."""
    unlimited = Budget(None)
    assert not interval(unlimited, spans_s=9.0, windows_s=9.0)
    assert kept(unlimited) == (True, True)


def test_a_pipeline(identity, collector, step, summary, caplog):
    """With next to no budget: counters tell everything, the loss is counted by its reason, one line names the setting,
    and the steps of windows that were left out are in the flight recorder.
    """
    telemetry = Telemetry.open(
        identity,
        Settings(spans="all", overhead_budget=1e-7),
        env={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url},
        unix_ns=lambda: EPOCH_NS,
    )
    for index in range(400):
        telemetry.step(step(index))
    telemetry.close(summary)
    assert not telemetry.flush(120.0)
    points = collector.points()
    assert points["mfu.step.count"][0][1] == 400.0
    assert points["mfu.model.flop"][0][1] == 400 * 40.0
    # Two decisions: after 64 steps spans go, after 128 windows, of which four of 30 s had gone by then.
    assert len(collector.spans("mfu.step")) == 64
    windows = [attributes_of(span.attributes) for span in collector.spans("mfu.window")]
    assert [window["mfu.window.step.count"] for window in windows] == [30] * 4
    lost = {labels["mfu.drop.reason"]: value for labels, value in points["mfu.sdk.dropped"]}
    assert lost == {"budget": 400 - 64 + 14 - 4}
    assert "(MFU_OVERHEAD_BUDGET); step spans" in caplog.text
    assert telemetry.recorder.missing == 400 - 120
    assert telemetry.recorder.path.exists()
