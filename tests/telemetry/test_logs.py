"""Drift as log events: told at once, once at each turn, to whom it may be told and no further."""

import dataclasses
import itertools
import random
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsPartialSuccess,
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.logs.v1.logs_pb2 import LogsData
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from mfu_sdk import semconv
from mfu_sdk.drift.budget import Budget
from mfu_sdk.drift.detector import Tuning
from mfu_sdk.drift.watch import Watch
from mfu_sdk.export import allowed, logs
from mfu_sdk.export.destination import configured, destination
from mfu_sdk.export.encode import Envelope
from mfu_sdk.export.identity import Ids
from mfu_sdk.export.logs import NUMBERS, Log
from mfu_sdk.export.pipeline import Close, Exports, Pipeline
from mfu_sdk.export.resource import SCOPE
from mfu_sdk.export.telemetry import Telemetry
from mfu_sdk.records import Count, Peaks, Rate
from mfu_sdk.run.drifting import Drifting
from mfu_sdk.run.ledger import Ledger
from mfu_sdk.run.work import Work
from mfu_sdk.settings import Provider, Settings
from mfu_sdk.testing import FakeClock

from .conftest import DRIFT, EPOCH_NS, IDENTITY, SUMMARY, attributes_of
from .test_otlp_grpc import GrpcCollector

RESOURCE = Resource({"service.name": "gpt", "mfu.run.attempt": 2, "odd": [1.5, 2.5]}, "https://schema/1")
FOUND = dataclasses.replace(DRIFT, recovered_step=None, recovered_unix_ns=None)
LATER = dataclasses.replace(FOUND, onset_step=900, onset_unix_ns=EPOCH_NS + 10**9)
TURNS = [("WARN", FOUND.found_unix_ns), ("INFO", DRIFT.recovered_unix_ns)]


def stock(log):
    """The same record as OpenTelemetry's own SDK holds it."""
    context = SpanContext(log.trace_id, log.span_id, is_remote=False, trace_flags=TraceFlags(int(log.sampled)))
    return ReadableLogRecord(
        LogRecord(
            timestamp=log.unix_ns,
            observed_timestamp=log.observed_unix_ns,
            context=set_span_in_context(NonRecordingSpan(context)),
            severity_text=log.severity,
            severity_number=SeverityNumber(NUMBERS[log.severity]),
            body=log.body,
            attributes=log.attributes,
            event_name=log.event_name,
        ),
        RESOURCE,
        SCOPE,
    )


def ours(made):
    return Envelope(RESOURCE).request([logs.encode(log) for log in made])


@pytest.mark.parametrize("event", [FOUND, DRIFT], ids=["found", "recovered"])
def test_like_opentelemetry(spans, collector, event):
    """To a reader it is what OpenTelemetry's own exporter sends, byte for byte the same message."""
    log = logs.drift(event, spans.drift(event, EPOCH_NS), EPOCH_NS + 7)
    exporter = OTLPLogExporter(endpoint=f"{collector.url}/v1/logs")
    exporter.export([stock(log)])
    exporter.shutdown()
    (theirs,) = collector.bodies("/v1/logs")
    assert ExportLogsServiceRequest.FromString(ours([log])) == ExportLogsServiceRequest.FromString(theirs)
    assert LogsData.FromString(ours([log])) == LogsData.FromString(theirs)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
int64s = st.integers(-(2**63), 2**63 - 1)
values = st.one_of(st.floats(), int64s, texts, st.booleans(), st.lists(int64s, max_size=9), st.lists(texts, max_size=5))
times = st.integers(0, 2**64 - 1)
any_log = st.builds(
    Log,
    texts,
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    times,
    times,
    st.sampled_from(list(NUMBERS)),
    texts,
    st.dictionaries(texts.filter(bool), values, max_size=8),
    st.booleans(),
)


@given(st.lists(any_log, min_size=1, max_size=3))
def test_any_log(made):
    """Whatever a record holds: the message of OpenTelemetry's encoder, but for NaN, which no message equals."""
    theirs = encode_logs([stock(log) for log in made])
    assert str(ExportLogsServiceRequest.FromString(ours(made))) == str(theirs)


def test_sentence():
    """One sentence says which steps, how much, since when and why; neither evidence nor names of the tenant's."""
    assert logs.sentence(FOUND) == (
        "In train, model FLOPs a second are 25.0% lower since step 500; cause: configuration_drift."
    )
    assert logs.sentence(dataclasses.replace(DRIFT, change=0.1, measure="efficiency", cause="unknown")) == (
        "In train, MFU over the expected recovered at step 800, having been 10.0% higher since step 500; "
        "cause: unknown."
    )


# --- one run -------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(identity):
    """Opens telemetry by an environment, and makes sure that its threads end."""
    made = []

    def open_(env, provider=Provider(), **settings):  # noqa: B008 - frozen
        made.append(
            Telemetry.open(identity, Settings(provider=provider, **settings), env=env, unix_ns=lambda: EPOCH_NS)
        )
        return made[-1]

    yield open_
    for telemetry in made:
        assert telemetry.stop(0.1) or telemetry.stop(120.0)


@pytest.fixture
def server():
    """A collector that speaks gRPC."""
    running = GrpcCollector()
    yield running
    running.stop()


def turns(collector):
    return [(log.severity_text, log.time_unix_nano) for log in collector.logs()]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_at_once(opened, collector, server, protocol):
    """A record when it is found, with nothing asked for or ended, one when it has recovered, and none twice."""
    to = server if protocol == "grpc" else collector
    telemetry = opened({"OTEL_EXPORTER_OTLP_ENDPOINT": to.url, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol})
    telemetry.drift(FOUND)
    assert to.wait_for(lambda: turns(to) == TURNS[:1])
    assert not to.spans("mfu.drift")
    telemetry.drift(FOUND)
    telemetry.drift(DRIFT)
    telemetry.drift(DRIFT)
    assert to.wait_for(lambda: turns(to) == TURNS)
    telemetry.drift(LATER)
    telemetry.close(SUMMARY)
    assert telemetry.flush(120.0)
    assert turns(to) == [*TURNS, ("WARN", FOUND.found_unix_ns)]
    assert telemetry.dropped == {}


def test_what_is_told(opened, collector):
    """Trace, span, attributes, resource and scope are those of the excursion's span, which comes later."""
    telemetry = opened({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url})
    telemetry.configured("f" * 16, "1" * 16)
    telemetry.drift(FOUND)
    telemetry.drift(DRIFT)
    telemetry.close(SUMMARY)
    assert telemetry.flush(120.0)
    (span,) = collector.spans("mfu.drift")
    found, recovered = collector.logs()
    for log in (found, recovered):
        assert (log.trace_id, log.span_id) == (span.trace_id, span.span_id)
        assert (log.event_name, log.flags, log.observed_time_unix_nano) == ("mfu.drift", 1, EPOCH_NS)
    assert span.trace_id == Ids("run-7", 1, 3).run_trace().to_bytes(16, "big")
    assert attributes_of(recovered.attributes) == attributes_of(span.attributes)
    assert attributes_of(found.attributes) == {
        name: value for name, value in attributes_of(span.attributes).items() if name != semconv.DRIFT_RECOVERED_STEP
    }
    assert (found.body.string_value, recovered.body.string_value) == (logs.sentence(FOUND), logs.sentence(DRIFT))
    sender = collector.trace_requests()[-1].resource_spans[0]
    assert attributes_of(sender.resource.attributes)["mfu.config.fingerprint"] == "f" * 16
    for body in collector.bodies("/v1/logs"):
        for group in ExportLogsServiceRequest.FromString(body).resource_logs:
            assert (group.resource, group.schema_url) == (sender.resource, sender.schema_url)
            assert [each.scope for each in group.scope_logs] == [sender.scope_spans[0].scope]


def test_provider(opened, collector, other_collector):
    """The provider hears of it at once too: the allowed numbers and words, and no sentence, evidence or difference."""
    provider = Provider(endpoint=other_collector.url, headers="authorization=Bearer%20t")
    secret = dataclasses.replace(FOUND, evidence=("SECRET: 32 → 16",), fingerprint_diff=("SECRET",))
    telemetry = opened({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}, provider)
    telemetry.drift(secret)
    assert other_collector.wait_for(lambda: len(other_collector.logs()) == 1)
    assert collector.wait_for(lambda: len(collector.logs()) == 1)
    (theirs,), (ours_,) = other_collector.logs(), collector.logs()
    assert all(b"SECRET" not in body for body in other_collector.bodies("/v1/logs"))
    assert b"SECRET" in collector.bodies("/v1/logs")[0]
    assert not theirs.HasField("body")
    assert {theirs.event_name} <= allowed.EVENTS
    told = attributes_of(ours_.attributes)
    assert attributes_of(theirs.attributes) == {
        name: value for name, value in told.items() if name not in (semconv.DRIFT_EVIDENCE, semconv.DRIFT_DIFF)
    }
    assert (theirs.trace_id, theirs.span_id) == (ours_.trace_id, ours_.span_id)
    for body in other_collector.bodies("/v1/logs"):
        (group,) = ExportLogsServiceRequest.FromString(body).resource_logs
        assert attributes_of(group.resource.attributes).keys() <= allowed.RESOURCE
    (request,) = (each for each in other_collector.requests if each.path == "/v1/logs")
    assert request.headers["Authorization"] == "Bearer t"


def test_off(opened, collector, other_collector):
    """OTEL_LOGS_EXPORTER=none turns the tenant's off, OTEL_SDK_DISABLED both, and MFU_SPANS=off neither."""
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_LOGS_EXPORTER": "none"}
    telemetry = opened(env, Provider(endpoint=other_collector.url), spans="off")
    telemetry.drift(FOUND)
    telemetry.close(SUMMARY)
    assert telemetry.flush(120.0)
    assert (collector.logs(), turns(other_collector)) == ([], TURNS[:1])
    assert other_collector.logs()[0].flags == 0
    assert not configured(env | {"OTEL_SDK_DISABLED": "true"}, Provider(endpoint=other_collector.url))


def test_logs_alone(opened, collector):
    """The signal has variables of its own; where only they are set nothing else is sent."""
    env = {
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": f"{collector.url}/in",
        "OTEL_EXPORTER_OTLP_LOGS_HEADERS": "x-scope=one",
        "OTEL_EXPORTER_OTLP_LOGS_COMPRESSION": "gzip",
    }
    telemetry = opened(env)
    telemetry.drift(FOUND)
    telemetry.close(SUMMARY)
    assert telemetry.flush(120.0)
    (request,) = collector.requests
    assert (request.path, request.headers["X-Scope"], request.encoding) == ("/in", "one", "gzip")
    assert len(collector.bodies("/in")) == 1


# --- a collector that is not well ----------------------------------------------------------------------------------


class Seconds:
    """A clock that is set."""

    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def pipeline(identity, collector):
    """Makes a pipeline whose logs alone go somewhere, with the clock that it goes by."""
    made = []

    def make(url=None):
        env = {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": f"{url or collector.url}/v1/logs"}
        clock = Seconds()
        exports = Exports(None, None, logs=destination("logs", env))
        made.append(Pipeline(identity, Settings(), exports, unix_ns=lambda: EPOCH_NS, monotonic_s=clock))
        return made[-1], clock

    yield make
    for each in made:
        each.retire()


def test_sent_again(pipeline, collector):
    """A collector that is away gets the same bytes when it is back, and what was found meanwhile behind them."""
    made, clock = pipeline()
    collector.script = [(503, "7"), (200, None)]
    made.consume(FOUND)
    assert made.deliver(None) == 7.0
    made.consume(DRIFT)
    assert made.deliver(None) == 7.0
    clock.now_s = 7.0
    assert made.deliver(None) is None
    first, second = collector.bodies("/v1/logs")
    assert second.startswith(first)
    assert made.dropped == {}


def test_given_up(pipeline, refused):
    """With nobody there the end of the run gives them up, and counts them."""
    made, _ = pipeline(refused)
    made.consume(FOUND)
    made.consume(DRIFT)
    assert made.deliver(None) is not None
    made.consume(Close(SUMMARY, None, EPOCH_NS))
    made.abandon()
    assert made.dropped == {"exit": 2}


def test_turned_away(pipeline, collector):
    """A collector without a pipeline for logs, and one that refuses a record, cost the record and nothing else."""
    made, _ = pipeline()
    collector.script = [(404, None)]
    made.consume(FOUND)
    assert made.deliver(None) is None
    assert made.dropped == {"rejected": 1}
    refusal = ExportLogsPartialSuccess(rejected_log_records=1, error_message="not kept")
    collector.answer = ExportLogsServiceResponse(partial_success=refusal).SerializeToString()
    made.consume(DRIFT)
    assert made.deliver(None) is None
    assert made.dropped == {"rejected": 2}


# --- a watch that finds one ----------------------------------------------------------------------------------------


def test_while_it_lasts(opened, collector):
    """Steps of 1.4 s after a baseline of 1 s are told of while they go on, their recovery after them, the end never."""
    telemetry = opened({"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": f"{collector.url}/v1/logs"})
    found = []
    tuning = Tuning(block_steps=4, baseline_blocks=16, settle_steps=4)
    peaks = Peaks("cpu", {}, {"bfloat16": Rate(1e4, 1e4, 1e4, "user", 0.0)}, None, None, {})
    drifting = Drifting(Watch(tuning, Budget()), peaks, {}, on_drift=found.append, telemetry=telemetry)
    ledger = Ledger(IDENTITY, peaks, Marks())
    ledger.drift = drifting
    demand = ledger.price(
        Count(600, 600, 200, 400, 0, 0, 0, 0, {"bfloat16": 600}, {}, {}, (), 1.0, 40, {}, "exact"), "cached"
    )
    generator = random.Random(0)
    clock = FakeClock(EPOCH_NS)
    index = itertools.count()

    def steps(number, duration_s):
        for _ in range(number):
            start_ns = clock.now_ns
            clock.advance(duration_s * generator.uniform(0.99, 1.01))
            start_s, end_s = ((at_ns - EPOCH_NS) / 1e9 for at_ns in (start_ns, clock.now_ns))
            ledger.add(Work(next(index), "train", start_s, end_s, start_ns, demand, waits=()))
        assert telemetry.flush(120.0)

    steps(256, 1.0)
    assert collector.logs() == []
    steps(100, 1.4)
    (log,) = collector.logs()
    (event,) = found
    assert (log.severity_text, log.time_unix_nano) == ("WARN", event.found_unix_ns)
    assert EPOCH_NS + 256 * 10**9 < log.time_unix_nano <= clock.now_ns
    assert attributes_of(log.attributes)["mfu.drift.change"] == event.change == pytest.approx(1 / 1.4 - 1, abs=0.03)
    steps(200, 1.0)
    drifting.close()
    assert telemetry.stop(120.0)
    assert turns(collector) == [("WARN", event.found_unix_ns), ("INFO", found[-1].recovered_unix_ns)]


class Marks:
    """Marks are seconds, and the device is never behind."""

    def mark(self):
        return 0.0

    def elapsed_s(self, start, end):
        return end - start

    def drain(self, mark):
        pass


# --- a process -----------------------------------------------------------------------------------------------------

PROGRAM = """
    import os, sys
    sys.path.insert(0, sys.argv[1])
    import dataclasses
    from conftest import DRIFT, IDENTITY
    from mfu_sdk.export.telemetry import Telemetry
    from mfu_sdk.settings import Settings
    telemetry = Telemetry.open(IDENTITY, Settings())
    telemetry.drift(dataclasses.replace(DRIFT, recovered_step=None, recovered_unix_ns=None))
    child = os.fork()
    if not child:
        telemetry.drift(DRIFT)
        telemetry.flush(5.0)
        sys.exit(0)
    os.waitpid(child, 0)
"""


def test_process(request, collector, monkeypatch):
    """A program that ends at once has told it, and what a forked child finds is not the parent's to tell."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(request.path.parent)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert turns(collector) == TURNS[:1]
