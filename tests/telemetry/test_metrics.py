"""The instruments: what they count, and what OpenTelemetry's encoder makes of them."""

import dataclasses

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.resources import Resource

from mfu_sdk import semconv
from mfu_sdk.export.metrics import Metrics
from mfu_sdk.requests import InferenceRecord

from .conftest import DRIFT, EPOCH_NS

REQUEST = InferenceRecord("handle", EPOCH_NS, 0.004, 10, 10, "cached", 3, 1, 1)
STREAMED = dataclasses.replace(REQUEST, time_to_first_token_s=0.1, time_per_output_token_s=0.02)


def taken(metrics, *, dropped=None, alive=True, now_ns=EPOCH_NS + 60, export_s=0.0):
    data = metrics.snapshot(Resource({}), now_ns, dropped=dropped or {}, alive=alive, export_s=export_s)
    return {metric.name: metric for metric in data.resource_metrics[0].scope_metrics[0].metrics}


def value(found, name, **labels):
    (point,) = [point for point in found[name].data.data_points if labels.items() <= dict(point.attributes).items()]
    return point.value


def make(**changes):
    return Metrics(changes.pop("device_id", None), EPOCH_NS, delta=changes.pop("delta", False), **changes)


def test_counters(step):
    """All steps are steps; those that did not fail have tokens; timed ones have time; counted ones have FLOPs."""
    metrics = make()
    metrics.step(step(0))
    metrics.step(step(1, model_flops=None, mfu=None))
    metrics.step(step(2, count_source="measured", duration_s=9.0))
    metrics.step(step(3, error_type="ValueError", duration_s=9.0))
    found = taken(metrics)
    assert value(found, "mfu.step.count") == 4.0
    assert value(found, "mfu.token.count") == 48.0
    assert value(found, "mfu.step.time", **{"mfu.step.component": "total"}) == 2.0
    assert value(found, "mfu.step.time", **{"mfu.step.component": "data"}) == 0.2
    assert value(found, "mfu.model.flop") == 40.0
    assert value(found, "mfu.hardware.flop") == 50.0
    assert value(found, "mfu.available.flop") == 100.0


def test_absent(step):
    """What was never known is not there: no zero stands in for it."""
    metrics = make()
    metrics.step(step(0, model_flops=None, mfu=None, tokens=None, peak_flops_per_s=None, expected_mfu=None))
    assert {"mfu.model.flop", "mfu.token.count", "mfu.peak.flop_rate", "mfu.utilization"}.isdisjoint(taken(metrics))


def test_buckets(step):
    """A value on a bound falls into the bucket that the bound closes; one beyond all bounds into the last."""
    metrics = make()
    for index, duration_s in enumerate((0.005, 0.0051, 1000.0)):
        metrics.step(step(index, duration_s=duration_s))
    (point,) = taken(metrics)["mfu.step.duration"].data.data_points
    assert point.explicit_bounds == semconv.METRICS["mfu.step.duration"].bounds
    assert (point.bucket_counts[0], point.bucket_counts[1], point.bucket_counts[-1]) == (1, 1, 1)
    assert (point.count, point.min, point.max) == (3, 0.005, 1000.0)
    assert point.sum == pytest.approx(1000.0101)


def test_registered(step):
    """Every instrument is emitted with its registered unit, and only registered metric attributes are on it."""
    metrics = make(device_id="GPU-1", gen_ai="chat", model_name="acme/llama")
    metrics.step(step(0, device_s=0.5, batch_feasible=16.0))
    metrics.inference(STREAMED)
    metrics.inference(dataclasses.replace(STREAMED, outcome="failed", error_type="KeyError"))
    metrics.overhead(0.001)
    metrics.peak_ratios({"float32": 0.9})
    metrics.drift_scores({"train": 0.5})
    metrics.drift(DRIFT)
    found = taken(metrics, dropped={"exit": 1})
    assert set(found) == set(semconv.METRICS)
    for name, metric in found.items():
        assert metric.unit == semconv.METRICS[name].unit
        labels = {label for point in metric.data.data_points for label in point.attributes}
        assert labels == set(semconv.METRICS[name].labels)
        for point in metric.data.data_points:
            for label, text in point.attributes.items():
                assert "metric" in semconv.ATTRIBUTES[label].on
                assert isinstance(text, str)
            assert point.attributes["hw.id"] == "GPU-1"


def test_huge(step):
    """10^19 FLOPs, more than an int64 holds, are encoded as a double and take nothing else with them."""
    metrics = make()
    metrics.step(step(0, model_flops=10**19, hardware_flops=10**19))
    data = metrics.snapshot(Resource({}), EPOCH_NS + 1, dropped={}, alive=True)
    encoded = encode_metrics(data).resource_metrics[0].scope_metrics[0].metrics
    (flops,) = [metric for metric in encoded if metric.name == "mfu.model.flop"]
    assert flops.sum.data_points[0].as_double == 1e19
    for metric in encoded:
        if metric.WhichOneof("data") != "histogram":
            kind = getattr(metric, metric.WhichOneof("data"))
            assert all(point.WhichOneof("value") == "as_double" for point in kind.data_points)


def test_drops_once():
    """Drops are told as totals and counted once."""
    metrics = make()
    taken(metrics, dropped={"queue_full": 5})
    assert value(taken(metrics, dropped={"queue_full": 7}), "mfu.sdk.dropped") == 7.0


def test_overhead_by_thread():
    """Time on the step path adds up as it is told; that of export threads is told as a total, counted once."""
    metrics = make(delta=True)
    metrics.overhead(0.25)
    metrics.overhead(0.5)
    found = taken(metrics, export_s=0.125)
    assert value(found, "mfu.sdk.overhead", **{"mfu.sdk.thread": "step"}) == 0.75
    assert value(found, "mfu.sdk.overhead", **{"mfu.sdk.thread": "export"}) == 0.125
    metrics.delivered(EPOCH_NS + 60)
    found = taken(metrics, export_s=0.375)
    (point,) = found["mfu.sdk.overhead"].data.data_points
    assert (point.attributes["mfu.sdk.thread"], point.value) == ("export", 0.25)


def test_alive():
    """`mfu.run.info` says whether the run lives."""
    metrics = make()
    assert value(taken(metrics), "mfu.run.info") == 1.0
    assert value(taken(metrics, alive=False), "mfu.run.info") == 0.0


def test_delta(step):
    """Under delta temporality an export that arrived is not sent again, and one that did not is."""
    metrics = make(delta=True)
    metrics.step(step(0))
    taken(metrics)
    metrics.step(step(1))
    found = taken(metrics, now_ns=EPOCH_NS + 60)
    assert value(found, "mfu.step.count") == 2.0
    metrics.delivered(EPOCH_NS + 60)
    metrics.step(step(2))
    found = taken(metrics, now_ns=EPOCH_NS + 90)
    assert value(found, "mfu.step.count") == 1.0
    (point,) = found["mfu.step.count"].data.data_points
    assert (point.start_time_unix_nano, point.time_unix_nano) == (EPOCH_NS + 60, EPOCH_NS + 90)


def test_requests():
    """Requests overlap: their durations are a histogram, their FLOPs are in no counter."""
    metrics = make()
    metrics.inference(REQUEST)
    metrics.inference(dataclasses.replace(REQUEST, duration_s=100.0))
    found = taken(metrics)
    (point,) = found["mfu.inference.duration"].data.data_points
    assert (point.count, point.bucket_counts[2], point.bucket_counts[-1]) == (2, 1, 1)
    assert "mfu.model.flop" not in found


def test_the_times_of_tokens_are_those_of_requests_that_finished():
    """A request that was left has a duration and no times of tokens; nothing of `gen_ai.*` is there unasked."""
    metrics = make()
    metrics.inference(STREAMED)
    metrics.inference(dataclasses.replace(STREAMED, outcome="cancelled", time_to_first_token_s=9.0))
    found = taken(metrics)
    (first,) = found["mfu.inference.time_to_first_token"].data.data_points
    (each,) = found["mfu.inference.time_per_output_token"].data.data_points
    (whole,) = found["mfu.inference.duration"].data.data_points
    assert (first.count, first.sum, each.count, each.sum, whole.count) == (1, 0.1, 1, 0.02, 2)
    assert not any(name.startswith("gen_ai") for name in found)


def test_gen_ai_names():
    """With an operation set, durations and times of tokens are there under OpenTelemetry's names too, errors apart."""
    metrics = make(gen_ai="chat")
    metrics.inference(STREAMED)
    metrics.inference(dataclasses.replace(STREAMED, outcome="failed", error_type="KeyError", duration_s=2.0))
    found = taken(metrics)
    own = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "mfu_sdk"}
    points = found["gen_ai.server.request.duration"].data.data_points
    assert [(dict(point.attributes), point.sum) for point in points] == [
        (own, REQUEST.duration_s),
        ({**own, "error.type": "KeyError"}, 2.0),
    ]
    (first,) = found["gen_ai.server.time_to_first_token"].data.data_points
    assert (dict(first.attributes), first.sum) == (own, 0.1)


def test_batch_fill(step):
    """How full batches are is the ratio of the two numbers of the latest step that has both."""
    metrics = make()
    metrics.step(step(0, batch_running=4.0, batch_feasible=16.0))
    metrics.step(step(1, batch_running=8.0))
    assert value(taken(metrics), "mfu.batch.fill_ratio") == 0.25


def test_drift():
    """Excursions are counted once each, those that are open are a gauge, and evidence stands beside them."""
    metrics = make()
    metrics.drift_scores({"train": 0.25, "eval": 0.0})
    assert value(taken(metrics), "mfu.drift.active", **{"mfu.phase": "train"}) == 0.0
    metrics.drift(dataclasses.replace(DRIFT, recovered_step=None))
    assert value(taken(metrics), "mfu.drift.active", **{"mfu.phase": "train"}) == 1.0
    metrics.drift_scores({"train": 1.5})
    metrics.drift(DRIFT)
    found = taken(metrics)
    assert value(found, "mfu.drift.count", **{"mfu.phase": "train"}) == 1.0
    assert value(found, "mfu.drift.active", **{"mfu.phase": "train"}) == 0.0
    assert value(found, "mfu.drift.score", **{"mfu.phase": "train"}) == 1.5
    assert value(found, "mfu.drift.score", **{"mfu.phase": "eval"}) == 0.0
