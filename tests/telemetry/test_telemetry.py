"""One run's telemetry against a real collector that is well, down, slow or picky."""

import dataclasses
import math
import re
import threading

import pytest

from mfu_sdk.export.destination import Destination
from mfu_sdk.export.pipeline import Close, Exports, Pipeline
from mfu_sdk.export.telemetry import Telemetry
from mfu_sdk.export.worker import QUEUE_ITEMS
from mfu_sdk.requests import InferenceRecord
from mfu_sdk.settings import Settings

from .conftest import EPOCH_NS, attributes_of
from .test_spans import DRIFT

MINUTE_NS = 60 * 10**9


@pytest.fixture
def opened(collector, identity):
    """Opens telemetry to the collector and makes sure that its thread ends."""
    made = []

    def open_(spans="all", *, url=None, clock=lambda: EPOCH_NS, **env):
        found = Telemetry.open(
            identity,
            Settings(spans=spans, overhead_budget=None),
            env={"OTEL_EXPORTER_OTLP_ENDPOINT": url or collector.url, **env},
            unix_ns=clock,
        )
        assert found is not None
        made.append(found)
        return found

    yield open_
    collector.stop()
    for telemetry in made:
        assert telemetry.stop(0.1) or telemetry.stop(120.0)


def total(spans, name):
    return math.fsum(attributes_of(span.attributes).get(name, 0.0) for span in spans)


def test_nothing_configured(identity):
    """Without an endpoint, or with the SDK switched off, there is no telemetry."""
    assert Telemetry.open(identity, Settings(), env={}) is None
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    assert Telemetry.open(identity, Settings(enabled=False), env=env) is None


def test_run(opened, collector, step, summary):
    """Three steps and a close: three step spans, a window, a run, and the counters, all delivered."""
    telemetry = opened()
    for index in range(3):
        telemetry.step(step(index))
    telemetry.overhead(0.25)
    telemetry.close(summary)
    assert telemetry.flush(120.0)
    assert telemetry.dropped == {}
    assert sorted(span.name for span in collector.spans()) == ["mfu.run"] + ["mfu.step"] * 3 + ["mfu.window"]
    (run,) = collector.spans("mfu.run")
    assert attributes_of(run.attributes)["mfu.model.flop"] == 120.0
    points = collector.points()
    assert points["mfu.step.count"] == [({"mfu.phase": "train"}, 3.0)]
    overhead = {labels["mfu.sdk.thread"]: value for labels, value in points["mfu.sdk.overhead"]}
    assert overhead.keys() == {"step", "export"}
    assert overhead["step"] == 0.25
    assert points["mfu.run.info"] == [({}, 0.0)]


def test_conservation(opened, collector, step, summary):
    """Σ over windows = Σ over step spans = the counters = the run's span, whatever the steps were."""
    steps = [
        step(
            index,
            start_unix_ns=EPOCH_NS + index * 700_000_000,
            duration_s=0.1 * (1 + index % 7),
            model_flops=None if index % 11 == 5 else 3 * 10**18 + index,
            peak_flops_per_s=None if index % 13 == 7 else 1e19,
            phase="eval" if index % 10 == 0 else "train",
            tokens=100 + index,
            samples=1 + index % 3,
            requests=None if index % 4 == 0 else index % 5,
            requests_failed=None if index % 4 == 0 else index % 2,
            requests_s=None if index % 4 == 0 else 0.25 * (index % 5),
            count_source="measured" if index % 17 == 0 else "cached",
            error_type="ValueError" if index == 100 else None,
        )
        for index in range(200)
    ]
    telemetry = opened()
    for record in steps:
        telemetry.step(record)
    telemetry.close(summary)
    assert telemetry.flush(120.0)
    windows, kept, (run,) = collector.spans("mfu.window"), collector.spans("mfu.step"), collector.spans("mfu.run")
    assert len(kept) == 200
    counted = [record for record in steps if record.counts]
    assert 100 < len(counted) < 200
    summable = [
        span for span in kept if {"mfu.model.flop", "mfu.available.flop"} <= attributes_of(span.attributes).keys()
    ]
    points = collector.points()
    for name, truth in (
        ("mfu.model.flop", sum(record.model_flops for record in counted)),
        ("mfu.available.flop", math.fsum(record.available_flops for record in counted)),
    ):
        for found in (
            total(windows, name),
            total(summable, name),
            total([run], name),
            math.fsum(value for _, value in points[name]),
        ):
            assert found == pytest.approx(truth, rel=1e-12)
    finished = [record for record in steps if record.error_type is None]
    # As `Spans.step` has it: every step span without an error; each weighs 1 here, where all are kept.
    whole = [span for span in kept if "error.type" not in attributes_of(span.attributes)]
    assert len([record for record in steps if record.timed]) < len(finished) == len(whole) == 199
    tokens = sum(record.tokens for record in finished)
    assert total([run], "mfu.token.count") == math.fsum(value for _, value in points["mfu.token.count"]) == tokens
    for name, truth in (
        ("mfu.token.count", tokens),
        ("mfu.sample.count", sum(record.samples for record in finished)),
        ("mfu.request.count", sum(record.requests or 0 for record in finished)),
        ("mfu.request.failed", sum(record.requests_failed or 0 for record in finished)),
        ("mfu.request.time", math.fsum(record.requests_s or 0.0 for record in finished)),
    ):
        assert total(windows, name) == total(whole, name) == truth
    unknown = sum(attributes_of(span.attributes)["mfu.window.step.unknown"] for span in windows)
    assert unknown == len([record for record in steps if record.timed and not record.counts])
    assert sum(len(attributes_of(span.attributes)["mfu.window.step.durations"]) for span in windows) == 200


@pytest.mark.parametrize(
    ("spans", "names"),
    [
        ("all", {"mfu.run", "mfu.window", "mfu.step", "mfu.inference"}),
        ("auto", {"mfu.run", "mfu.window", "mfu.step", "mfu.inference"}),
        ("windows", {"mfu.run", "mfu.window", "mfu.inference"}),
        ("off", {"mfu.run"}),
    ],
)
def test_modes(opened, collector, step, summary, spans, names):
    """MFU_SPANS decides what is sent; the run's sums and the counters are there in every mode."""
    telemetry = opened(spans)
    telemetry.step(step(0))
    telemetry.inference(InferenceRecord("f", EPOCH_NS, 0.5, 1, 1, "cached", 1, 1, 1))
    telemetry.close(summary)
    assert telemetry.flush(120.0)
    assert {span.name for span in collector.spans()} == names
    assert attributes_of(collector.spans("mfu.run")[0].attributes)["mfu.model.flop"] == 40.0
    assert collector.points()["mfu.model.flop"][0][1] == 40.0


def test_last(opened, collector, step, summary):
    """Under `auto` the last step is kept besides the sample, without weight."""
    telemetry = opened("auto")
    for index in range(301):
        telemetry.step(step(index, start_unix_ns=EPOCH_NS + index * 10**8, duration_s=0.1))
    telemetry.step(step(301, start_unix_ns=EPOCH_NS + 301 * 10**8, duration_s=0.1))
    telemetry.close(summary)
    assert telemetry.flush(120.0)
    found = {
        attributes_of(span.attributes)["mfu.step.index"]: attributes_of(span.attributes)
        for span in collector.spans("mfu.step")
    }
    assert found[301]["mfu.sample.reason"] == "last"
    assert "mfu.sample.ratio" not in found[301]
    assert 20 < len(found) < 60


def test_one_signal(identity, collector, step, summary):
    """With an endpoint for metrics only, no span goes anywhere."""
    env = {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{collector.url}/v1/metrics"}
    telemetry = Telemetry.open(identity, Settings(spans="all", overhead_budget=None), env=env, unix_ns=lambda: EPOCH_NS)
    assert telemetry is not None
    telemetry.step(step(0))
    telemetry.close(summary)
    assert telemetry.flush(120.0)
    assert {request.path for request in collector.requests} == {"/v1/metrics"}


def test_flush_keeps_going(opened, collector, step, summary):
    """A flush delivers what there is, and the windows before and after it are different spans of one trace."""
    telemetry = opened()
    telemetry.step(step(0))
    assert telemetry.flush(120.0)
    telemetry.step(step(1))
    telemetry.close(summary)
    assert telemetry.flush(120.0)
    first, second = collector.spans("mfu.window")
    assert first.trace_id == second.trace_id
    assert total([first, second], "mfu.model.flop") == 80.0


def test_down(opened, refused, step, caplog):
    """With nobody listening the caller notices nothing, the queue empties, and one warning a signal is logged."""
    telemetry = opened(url=refused)
    for index in range(50):
        telemetry.step(step(index))
    assert not telemetry.flush(0.5)
    assert not telemetry.flush(0.5)
    said = [record.getMessage() for record in caplog.records]
    assert len([line for line in said if "not delivered yet" in line]) <= 2
    assert all(record.exc_info is None for record in caplog.records)
    assert telemetry.stop(0.1) or telemetry.stop(120.0)
    # 50 steps and 2 windows.
    assert telemetry.dropped == {"exit": 52}


def test_overflow(opened, collector, step):
    """A collector that hangs holds up the thread, not the caller: what the queue cannot hold is counted."""
    collector.hung = True
    telemetry = opened("windows")
    telemetry.step(step(0))
    waiter = threading.Thread(target=telemetry.flush, args=(0.1,))
    waiter.start()
    assert collector.wait_for(lambda: len(collector.requests) == 1)
    for index in range(QUEUE_ITEMS + 9):
        telemetry.step(step(index))
    waiter.join()
    assert telemetry.dropped["queue_full"] == 9


def test_rejected(opened, collector, step, summary, caplog):
    """What the collector refuses for good is dropped at once, counted, and not tried again."""
    collector.status = 400
    telemetry = opened()
    telemetry.step(step(0))
    telemetry.close(summary)
    assert not telemetry.flush(120.0)
    # One step, one window, one run, and the metrics: once more where the flush comes after the run's own.
    assert telemetry.dropped == {"rejected": 3 + len(collector.bodies("/v1/metrics"))}
    assert re.search(r"rejects traces to 127.0.0.1:\d+ \(HTTP 400 Bad Request\)", caplog.text)


def test_partly_rejected(opened, collector, step, caplog):
    """Spans that a delivered request's answer refuses are counted."""
    collector.refuse_some(1)
    telemetry = opened("all", OTEL_METRICS_EXPORTER="none")
    telemetry.step(step(0))
    assert not telemetry.flush(120.0)
    # The step's request and the window's were each answered so.
    assert telemetry.dropped == {"rejected": 2}
    assert "too old" in caplog.text


class Clocks:
    """A wall clock and a monotonic one that move together and only when told."""

    def __init__(self):
        self.elapsed_s = 0.0

    def unix_ns(self):
        return EPOCH_NS + round(self.elapsed_s * 1e9)

    def monotonic_s(self):
        return 1000.0 + self.elapsed_s


@pytest.fixture
def clocks():
    return Clocks()


@pytest.fixture
def pipeline(collector, identity, clocks):
    """A pipeline without its thread, under a clock that the test moves."""

    def make(*, traces=True, metrics=True, spans="all", **changes):
        exports = Exports(
            Destination(f"{collector.url}/v1/traces") if traces else None,
            Destination(f"{collector.url}/v1/metrics") if metrics else None,
            **changes,
        )
        return Pipeline(
            identity,
            Settings(spans=spans, overhead_budget=None),
            exports,
            unix_ns=clocks.unix_ns,
            monotonic_s=clocks.monotonic_s,
        )

    return make


def drained(pipeline):
    """Deliver until it asks to wait: how long for."""
    while True:
        wait_s = pipeline.deliver(None)
        if wait_s is None or wait_s > 0:
            return wait_s


def test_retry(pipeline, collector, clocks, step):
    """After a 503 the same bytes, so the same ids, are sent again once the back-off is over, and not before."""
    made = pipeline(metrics=False)
    made.consume(step(0))
    made.flush()
    collector.script = [(503, None)] * 3
    waits = []
    for _ in range(3):
        waits.append(drained(made))
        sent = len(collector.requests)
        assert drained(made) == waits[-1]
        assert len(collector.requests) == sent
        clocks.elapsed_s += waits[-1]
    assert drained(made) is None
    # 1, 2 and 4 s, give or take a fifth.
    assert [low <= wait <= 1.5 * low for low, wait in zip((0.8, 1.6, 3.2), waits, strict=True)] == [True] * 3
    assert len({request.body for request in collector.requests[:4]}) == 1
    assert len(collector.requests) == 5
    assert made.dropped == {}


def consumed(pipeline, step, count):
    """Hands over `count` steps of one slot, 1 ms apart."""
    for index in range(count):
        pipeline.consume(step(index, duration_s=0.01, start_unix_ns=EPOCH_NS + index * 10**6))


@pytest.mark.parametrize("compression", ["none", "gzip", "deflate"])
def test_batches(identity, collector, clocks, step, compression):
    """Spans are encoded 32 at a time and sent 512 at a time, as one message whatever the compression."""
    traces = Destination(f"{collector.url}/v1/traces", compression=compression)
    made = Pipeline(
        identity,
        Settings(spans="all", overhead_budget=None),
        Exports(traces, None),
        unix_ns=clocks.unix_ns,
        monotonic_s=clocks.monotonic_s,
    )
    consumed(made, step, 1100)
    made.flush()
    assert drained(made) is None
    # A window of 1,024 steps and one of 76; then the steps.
    assert collector.chunk_sizes() == [[2], [32] * 16, [32] * 16, [32, 32, 12]]
    indices = [attributes_of(span.attributes)["mfu.step.index"] for span in collector.spans("mfu.step")]
    assert indices == list(range(1100))
    assert made.dropped == {}


def test_retry_batch(pipeline, collector, clocks, step):
    """A batch that was not taken goes again with what has come since, and each span is delivered in one request."""
    made = pipeline(metrics=False)
    consumed(made, step, 100)
    collector.script = [(503, "5")]
    assert drained(made) == pytest.approx(5.0)
    for index in range(100, 160):
        made.consume(step(index, duration_s=0.01, start_unix_ns=EPOCH_NS + index * 10**6))
    clocks.elapsed_s = 5.0
    assert drained(made) is None
    assert collector.chunk_sizes() == [[32] * 3, [32] * 3 + [32, 32]]
    first, second = collector.bodies("/v1/traces")
    assert second.startswith(first)
    assert made.dropped == {}


def test_rejected_batch(pipeline, collector, step):
    """A batch that is refused for good counts all its spans as lost, and the next one is sent."""
    made = pipeline(metrics=False)
    consumed(made, step, 600)
    collector.script = [(400, None)]
    assert drained(made) is None
    assert made.dropped == {"rejected": 512}
    made.flush()
    assert drained(made) is None
    assert made.dropped == {"rejected": 512}
    # 18 whole chunks of 600 steps, the last 24 steps, and the window before them.
    assert collector.chunk_sizes() == [[32] * 16, [32, 32], [1], [24]]


def test_abandoned_batch(pipeline, collector, step):
    """What is given up is counted once, though a request of it was tried."""
    made = pipeline(metrics=False)
    collector.status = 503
    consumed(made, step, 600)
    made.flush()
    assert drained(made) > 0
    made.abandon()
    assert made.dropped == {"exit": 601}


def test_retry_after(pipeline, collector, clocks, step):
    """The collector's own wish goes before our back-off."""
    made = pipeline(metrics=False)
    made.consume(step(0))
    made.flush()
    collector.script = [(429, "120")]
    assert drained(made) == pytest.approx(120.0)


def test_intervals(pipeline, collector, clocks, step):
    """Metrics go every interval with the totals so far; a window goes once its 30 s and the batch's 5 s are over."""
    made = pipeline(spans="windows", metric_interval_s=60.0)
    made.consume(step(0))
    for elapsed_s, paths in ((30.9, []), (31.0, []), (36.0, ["/v1/traces"]), (60.0, ["/v1/traces", "/v1/metrics"])):
        clocks.elapsed_s = elapsed_s
        assert drained(made) is None
        assert [request.path for request in collector.requests] == paths
    assert collector.points()["mfu.run.info"] == [({}, 1.0)]
    made.consume(step(61))
    clocks.elapsed_s = 120.0
    assert drained(made) is None
    assert collector.points()["mfu.step.count"][0][1] == 2.0


def test_metrics_stay_fresh(pipeline, collector, clocks, step):
    """Metrics that were not taken are sent later as they stand by then, once."""
    made = pipeline(traces=False)
    made.consume(step(0))
    made.flush()
    collector.script = [(503, "5")]
    assert drained(made) == pytest.approx(5.0)
    made.consume(step(1))
    clocks.elapsed_s = 5.0
    assert drained(made) is None
    assert collector.points()["mfu.step.count"][0][1] == 2.0
    assert len(collector.requests) == 2


def test_delta(pipeline, collector, step):
    """Under delta temporality two exports add up to what happened."""
    made = pipeline(traces=False, delta_metrics=True)
    counts = []
    for index in range(2):
        made.consume(step(index))
        made.flush()
        assert drained(made) is None
        counts.append(collector.points()["mfu.step.count"][0][1])
    assert counts == [1.0, 1.0]


def test_bounded(pipeline, collector, clocks, step):
    """With the collector down for a week of windows, memory stays within the outbox and the loss is counted."""
    made = pipeline(metrics=False, spans="windows")
    collector.status = 503
    for index in range(600):
        record = step(index, duration_s=1e-3)
        for n in range(128):
            start_ns = EPOCH_NS + index * 30 * 10**9 + n
            made.consume(dataclasses.replace(record, index=index * 128 + n, start_unix_ns=start_ns))
    made.flush()
    assert drained(made) > 0
    assert made._traces._outbox._bytes <= 4 * 2**20
    made.abandon()
    assert sum(made.dropped.values()) == 600


def test_after_close(pipeline, step, summary):
    """A record that slips in behind the close is counted as lost and reopens nothing."""
    made = pipeline()
    made.consume(Close(summary, None, EPOCH_NS + MINUTE_NS))
    made.consume(step(0))
    assert made.dropped == {"exit": 1}
    assert drained(made) is None


def test_drift(opened, collector, step, summary):
    """One span an excursion, when it has recovered or when the run ends; the resource says of which configuration."""
    telemetry = opened()
    telemetry.configured("f" * 16, "1" * 16)
    telemetry.step(step(0))
    over = dataclasses.replace(DRIFT, recovered_step=None, recovered_unix_ns=None)
    lasting = dataclasses.replace(over, onset_step=900)
    for event in (over, DRIFT, lasting):
        telemetry.drift(event)
    telemetry.drift_scores({"train": 2.0})
    telemetry.close(summary)
    assert telemetry.flush(120.0)
    recovered, open_one = sorted(
        collector.spans("mfu.drift"), key=lambda span: attributes_of(span.attributes)["mfu.drift.onset_step"]
    )
    assert recovered.end_time_unix_nano == DRIFT.recovered_unix_ns
    assert attributes_of(recovered.attributes)["mfu.drift.recovered_step"] == 800
    assert open_one.end_time_unix_nano == EPOCH_NS
    assert "mfu.drift.recovered_step" not in attributes_of(open_one.attributes)
    points = collector.points()
    assert points["mfu.drift.count"] == [({"mfu.phase": "train"}, 2.0)]
    assert points["mfu.drift.active"] == [({"mfu.phase": "train"}, 1.0)]
    assert points["mfu.drift.score"] == [({"mfu.phase": "train"}, 2.0)]
    for request in collector.trace_requests():
        for resource in request.resource_spans:
            named = attributes_of(resource.resource.attributes)
            assert (named["mfu.config.fingerprint"], named["mfu.config.intent"]) == ("f" * 16, "1" * 16)
            assert named["mfu.run.id"] == "run-7"


def test_windows_off_sends_no_drift(opened, collector, summary):
    """MFU_SPANS=off: metrics and the run's span only."""
    telemetry = opened("off")
    telemetry.drift(DRIFT)
    telemetry.close(summary)
    assert telemetry.flush(120.0)
    assert [span.name for span in collector.spans()] == ["mfu.run"]
