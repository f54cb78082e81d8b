"""Who watches a run's device: asked while steps are under way and when a window closes, and never missed."""

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from mfu_sdk.export.destination import Destination
from mfu_sdk.export.encode import encode
from mfu_sdk.export.pipeline import Exports, PeakRatios, Pipeline
from mfu_sdk.export.signals import Signals
from mfu_sdk.export.windows import sums
from mfu_sdk.settings import Settings

from .conftest import EPOCH_NS, SEEN, attributes_of

NOWHERE = Destination("http://127.0.0.1:9")


class Observer:
    """Writes down what it is asked; fails where it is told to."""

    def __init__(self, *, fails=False):
        self.asked = []
        self.fails = fails

    def look(self, now_unix_ns):
        self._ask("look", now_unix_ns)

    def signals(self, window, total):
        self._ask("signals", total.timed)
        return SEEN

    def close(self):
        self._ask("close")

    def _ask(self, *question):
        self.asked.append(question)
        if self.fails:
            raise RuntimeError("the driver is gone")


@pytest.fixture
def watched(identity):
    """A pipeline whose spans stay here, and its clock."""

    def make(observer):
        now_ns = [EPOCH_NS]
        pipeline = Pipeline(
            identity,
            Settings(spans="windows"),
            Exports(NOWHERE, None),
            unix_ns=lambda: now_ns[0],
            monotonic_s=lambda: 0.0,
        )
        pipeline.observer = observer
        sent = []
        pipeline._traces.add = lambda span, **_: sent.append(span)
        pipeline._traces.deliver = lambda deadline_s: None
        return pipeline, now_ns, sent

    return make


def test_when_it_is_asked(watched, step):
    """A look in each turn while a window is open, its signals when it closes, and an end with the thread."""
    observer = Observer()
    pipeline, now_ns, sent = watched(observer)
    pipeline.deliver(None)
    assert observer.asked == []
    pipeline.consume(step(0))
    pipeline.deliver(None)
    now_ns[0] = EPOCH_NS + 31 * 10**9
    pipeline.deliver(None)
    pipeline.deliver(None)
    assert observer.asked == [("look", EPOCH_NS), ("look", now_ns[0]), ("signals", 1)]
    pipeline.retire()
    assert observer.asked[-1] == ("close",)
    (window,) = [attributes_of(Span.FromString(body).attributes) for body in sent]
    assert window["mfu.witness.utilization"] == SEEN.witness


def test_one_that_fails(watched, step, monkeypatch):
    """A window goes without what could not be seen, and nothing else happens."""
    monkeypatch.setenv("MFU_GUARD", "log")
    observer = Observer(fails=True)
    pipeline, _, sent = watched(observer)
    pipeline.consume(step(0))
    pipeline.deliver(None)
    pipeline.flush()
    pipeline.retire()
    assert [name for name, *_ in observer.asked] == ["look", "signals", "close"]
    (window,) = [attributes_of(Span.FromString(body).attributes) for body in sent]
    assert window["mfu.step.time"] == 1.0
    assert {"mfu.clock.ratio", "mfu.step.comm_time", "mfu.throttle.reasons"}.isdisjoint(window)


def test_nothing_held_it_back(spans, window):
    """That no reason was seen is known, and is not the same as that nobody looked."""
    total = sums(window.steps)
    seen, unseen = (
        attributes_of(Span.FromString(encode(spans.window(window, total, Signals(throttled=reasons)))).attributes)
        for reasons in ((), None)
    )
    assert seen["mfu.throttle.reasons"] == []
    assert "mfu.throttle.reasons" not in unseen


def test_a_peak_measured_again(identity):
    """Its ratio is a gauge of the device and the dtype."""
    pipeline = Pipeline(identity, Settings(), Exports(None, NOWHERE), unix_ns=lambda: EPOCH_NS, monotonic_s=lambda: 0.0)
    pipeline.consume(PeakRatios({"bfloat16": 0.92}))
    data = pipeline._measured.snapshot(pipeline._resource, EPOCH_NS, dropped={}, alive=True)
    (metric,) = [each for each in data.resource_metrics[0].scope_metrics[0].metrics if each.name == "mfu.peak.ratio"]
    (point,) = metric.data.data_points
    assert (point.value, dict(point.attributes)) == (0.92, {"mfu.peak.dtype": "bfloat16"})
