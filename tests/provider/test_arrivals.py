"""Requests that the engine reads by itself: the rows that Python makes of them, or none, and one another's never."""

import itertools
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from mfu_sdk.provider.arrivals import FLAWS, Arrival, Arrivals, AttributeLimits, Outcome, Stored
from mfu_sdk.provider.receive.limits import Limits
from mfu_sdk.provider.receive.otlp import UndecodableError, decode_traces, double_text, time_bounds
from mfu_sdk.provider.store import Store

NOW = 1_780_000_200 * 10**9
OLDEST, NEWEST = time_bounds(NOW)
LIMITS = Limits(attributes=AttributeLimits(count=12, name=64, value=2_000))
_tenants = (f"tenant {number}" for number in itertools.count())


@pytest.fixture(scope="module")
def arrivals(store: Store) -> Arrivals:
    """Where the module's store takes groups apart."""
    return Arrivals(store, 0, LIMITS.attributes)


@pytest.fixture
def add(arrivals: Arrivals) -> Callable[..., list[Outcome]]:
    """Adds one group of (tenant, body)."""

    def made(*group: tuple[str, bytes]) -> list[Outcome]:
        return arrivals.add([Arrival(tenant, body) for tenant, body in group], OLDEST, NEWEST)

    return made


def stored(store: Store, tenant: str) -> list[dict[str, Any]]:
    rows = store.query(
        "SELECT *, toUnixTimestamp64Nano(Timestamp) AS ns FROM otel.otel_traces WHERE mfu_tenant_id = {tenant:String}"
        " ORDER BY TraceId, SpanId",
        tenant=tenant,
    )
    for row in rows:
        assert row["ResourceAttributes"].pop("mfu.tenant.id") == tenant
    return rows


Add = Callable[..., list[Outcome]]
_ids = itertools.count(1)


def request(change: Callable[[Span], object] = lambda span: None, spans: int = 1) -> ExportTraceServiceRequest:
    made = ExportTraceServiceRequest()
    group = made.resource_spans.add()
    group.resource.attributes.add(key="service.name").value.string_value = "gpt"
    for _ in range(spans):
        number = next(_ids)
        span = group.scope_spans.add().spans.add(
            name="mfu.step",
            trace_id=number.to_bytes(16, "big"),
            span_id=number.to_bytes(8, "big"),
            start_time_unix_nano=NOW - number,
            end_time_unix_nano=NOW,
        )
        change(span)
    return made


# --- the same rows -------------------------------------------------------------------------------------------------

TEXTS = st.text(max_size=12) | st.sampled_from(["mfu.step", "it's \\ \"x\"\n\t", "é→\0", "'; DROP TABLE x; --", "1e5"])
SCALARS = st.one_of(
    st.builds(AnyValue, string_value=TEXTS),
    st.builds(AnyValue, bool_value=st.booleans()),
    st.builds(AnyValue, int_value=st.integers(-(2**63), 2**63 - 1)),
    st.builds(AnyValue, double_value=st.floats(width=64) | st.sampled_from([1e15, 1e16, 1e21, 1e-6, 1e-7, -0.0, 5e-324])),
    st.builds(AnyValue, bytes_value=st.binary(max_size=9)),
)
LISTS = st.builds(
    AnyValue,
    array_value=st.builds(
        ArrayValue,
        values=st.lists(st.builds(AnyValue, int_value=st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=6)
        | st.lists(st.builds(AnyValue, string_value=st.sampled_from(["a", "", "b c", "x, y", "[]"])), min_size=1),
    ),
)
ODD = st.one_of(
    st.just(AnyValue()),
    st.builds(AnyValue, array_value=st.builds(ArrayValue, values=st.lists(SCALARS, max_size=3))),
    st.builds(AnyValue, kvlist_value=st.builds(KeyValueList, values=st.lists(st.builds(KeyValue, key=TEXTS, value=SCALARS)))),
    st.builds(AnyValue, string_value=st.text(min_size=1999, max_size=2002)),
)  # fmt: skip
NAMES = st.sampled_from(["mfu.model.flop", "mfu.available.flop", "mfu.step.index", "mfu.phase", "mfu.tenant.id", "a b"])


def attributes(values: st.SearchStrategy[AnyValue], keys: st.SearchStrategy[str]) -> st.SearchStrategy[list[KeyValue]]:
    found = st.dictionaries(keys, values, max_size=8)
    return found.map(lambda pairs: [KeyValue(key=key, value=value) for key, value in pairs.items()])


@st.composite
def requests(draw: st.DrawFn, odd: bool) -> ExportTraceServiceRequest:
    """A request of a few resources and scopes; `odd`: with what the engine leaves to Python, too."""
    values = SCALARS | LISTS | ODD if odd else SCALARS | LISTS
    keys = NAMES | st.text(max_size=66 if odd else 10)
    made = ExportTraceServiceRequest()
    for _ in range(draw(st.integers(1, 2))):
        group = made.resource_spans.add(schema_url=draw(TEXTS))
        group.resource.attributes.extend(draw(attributes(values, keys | st.just("service.name"))))
        for _ in range(draw(st.integers(0, 2))):
            scoped = group.scope_spans.add()
            scoped.scope.name, scoped.scope.version = draw(TEXTS), draw(TEXTS)
            for _ in range(draw(st.integers(0, 4))):
                number = next(_ids)
                flaw = draw(st.integers(0, 12))
                start = NOW - draw(st.integers(0, 10**15)) if flaw != 4 else draw(st.sampled_from([0, 2**63, OLDEST - 1]))
                span = scoped.spans.add(
                    name=draw(TEXTS),
                    kind=draw(st.integers(-1, 7)),  # type: ignore[arg-type]  # kinds of tomorrow too
                    trace_id=number.to_bytes(16, "big") if flaw != 1 else draw(st.sampled_from([b"", bytes(16), b"x"])),
                    span_id=number.to_bytes(8, "big") if flaw != 2 else draw(st.sampled_from([b"", bytes(8), b"x" * 9])),
                    parent_span_id=draw(st.sampled_from([b"", b"\xff" * 8])),
                    trace_state=draw(TEXTS),
                    start_time_unix_nano=start,
                    end_time_unix_nano=min(start + draw(st.integers(0, 10**10)), 2**64 - 1) if flaw != 3 else start // 2,
                    dropped_attributes_count=1,
                )
                span.attributes.extend(draw(attributes(values, keys)))
                if draw(st.booleans()):
                    span.status.code = draw(st.integers(0, 4))  # type: ignore[assignment]  # codes of tomorrow too
                    span.status.message = draw(TEXTS)
                if odd and draw(st.integers(0, 9)) == 0:
                    span.events.add(name=draw(TEXTS), time_unix_nano=NOW)
                    span.links.add(trace_id=b"\1" * 16, span_id=b"\2" * 8)
    return made  # fmt: skip


def same(store: Store, arrivals: Arrivals, body: bytes) -> bool:
    """Whether the engine took `body`; if it did, its rows and rejections are Python's, else it stored nothing."""
    ours, pythons = next(_tenants), next(_tenants)
    [outcome] = arrivals.add([Arrival(ours, body)], OLDEST, NEWEST)
    if outcome is None:
        assert stored(store, ours) == []
        return False
    assert isinstance(outcome, Stored), outcome
    decoded = decode_traces(body, "protobuf", pythons, NOW, LIMITS)
    store.insert_spans(pythons, decoded.rows)
    assert (outcome.spans, outcome.rejected) == (len(decoded.rows), decoded.rejections)
    assert not decoded.notes
    assert stored(store, ours) == stored(store, pythons)
    return True


SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
# An example takes a store 0.1 s; to shrink one takes minutes.
PHASES = [Phase.explicit, Phase.generate]


@settings(suppress_health_check=SLOW, max_examples=3, deadline=None, phases=PHASES)
@given(st.lists(requests(odd=False), min_size=3, max_size=3))
def test_same_rows(store: Store, arrivals: Arrivals, made: list[ExportTraceServiceRequest]) -> None:
    """Whatever a plain request holds, the engine reads it, and stores what Python would have stored."""
    for each in made:
        assert same(store, arrivals, each.SerializeToString())


@settings(suppress_health_check=SLOW, max_examples=2, deadline=None, phases=PHASES)
@given(st.lists(requests(odd=True), min_size=3, max_size=3))
def test_same_rows_or_none(store: Store, arrivals: Arrivals, made: list[ExportTraceServiceRequest]) -> None:
    """What the engine cannot say in a row it leaves alone; it says nothing wrong."""
    for each in made:
        same(store, arrivals, each.SerializeToString())
