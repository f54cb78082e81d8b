"""Requests that the engine reads by itself: the rows that Python makes of them, or none, and one another's never."""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from mfu_sdk.provider import rollup
from mfu_sdk.provider.arrivals import FLAWS, Arrival, Arrivals, AttributeLimits, Outcome, Stored, TooMuchError
from mfu_sdk.provider.receive.limits import Limits
from mfu_sdk.provider.receive.otlp import UndecodableError, decode_traces, double_text, time_bounds
from mfu_sdk.provider.rollup import Range
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

TEXTS = st.text(max_size=12) | st.sampled_from(["mfu.step", 'it\'s \\ "x"\n\t', "é→\0", "'; DROP TABLE x; --", "1e5"])
SCALARS = st.one_of(
    st.builds(AnyValue, string_value=TEXTS),
    st.builds(AnyValue, bool_value=st.booleans()),
    st.builds(AnyValue, int_value=st.integers(-(2**63), 2**63 - 1)),
    st.builds(
        AnyValue, double_value=st.floats(width=64) | st.sampled_from([1e15, 1e16, 1e21, 1e-6, 1e-7, -0.0, 5e-324])
    ),
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
    st.builds(
        AnyValue,
        kvlist_value=st.builds(KeyValueList, values=st.lists(st.builds(KeyValue, key=TEXTS, value=SCALARS))),
    ),
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
                start = (
                    NOW - draw(st.integers(0, 10**15)) if flaw != 4 else draw(st.sampled_from([0, 2**63, OLDEST - 1]))
                )
                span = scoped.spans.add(
                    name=draw(TEXTS),
                    kind=draw(st.integers(-1, 7)),  # those of tomorrow too
                    trace_id=number.to_bytes(16, "big") if flaw != 1 else draw(st.sampled_from([b"", bytes(16), b"x"])),
                    span_id=number.to_bytes(8, "big")
                    if flaw != 2
                    else draw(st.sampled_from([b"", bytes(8), b"x" * 9])),
                    parent_span_id=draw(st.sampled_from([b"", b"\xff" * 8])),
                    trace_state=draw(TEXTS),
                    start_time_unix_nano=start,
                    end_time_unix_nano=min(start + draw(st.integers(0, 10**10)), 2**64 - 1)
                    if flaw != 3
                    else start // 2,
                    dropped_attributes_count=1,
                )
                span.attributes.extend(draw(attributes(values, keys)))
                if draw(st.booleans()):
                    span.status.code = draw(st.integers(0, 4))  # those of tomorrow too
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
    assert outcome == Stored(len(decoded.rows), decoded.rejections, decoded.notes)
    assert stored(store, ours) == stored(store, pythons)
    return True


SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
# An example takes a store 0.1 s; to shrink one takes minutes.
PHASES = [Phase.explicit, Phase.generate]


@settings(suppress_health_check=SLOW, max_examples=6, deadline=None, phases=PHASES)
@given(requests(odd=False))
def test_same_rows(store: Store, arrivals: Arrivals, made: ExportTraceServiceRequest) -> None:
    """Whatever a plain request holds, the engine reads it, and stores what Python would have stored."""
    assert same(store, arrivals, made.SerializeToString())


@settings(suppress_health_check=SLOW, max_examples=6, deadline=None, phases=PHASES)
@given(requests(odd=True))
def test_same_rows_or_none(store: Store, arrivals: Arrivals, made: ExportTraceServiceRequest) -> None:
    """What the engine cannot say in a row it leaves alone; it says nothing wrong."""
    same(store, arrivals, made.SerializeToString())


# --- one group, many senders ---------------------------------------------------------------------------------------


@pytest.fixture
def tenants() -> tuple[str, str]:
    """Two tenants that no other test uses."""
    return next(_tenants), next(_tenants)


def test_a_group_is_told_apart(store: Store, add: Add, tenants: tuple[str, str]) -> None:
    """Requests of one group keep their tenants, whatever they claim, and their own rejections."""
    one, other = tenants
    bad = request(lambda span: setattr(span, "trace_id", b""), spans=2)
    bad.resource_spans[0].resource.attributes.add(key="mfu.tenant.id").value.string_value = one
    bad.resource_spans.extend(request().resource_spans)
    assert add((one, request(spans=3).SerializeToString()), (other, bad.SerializeToString()), (one, b"")) == [
        Stored(3, {}),
        Stored(1, {FLAWS[0]: 2}),
        Stored(0, {}),
    ]
    assert [len(stored(store, tenant)) for tenant in tenants] == [3, 1]


def _length_delimited(field: int, value: bytes) -> bytes:
    return bytes([field << 3 | 2, len(value)]) + value


GARBAGE = {
    "noise": bytes(range(1, 200)),
    "truncated": request().SerializeToString()[:-3],
    "claims more than there is": b"\x0a\x7f" + request().SerializeToString()[2:20],
    "claims beyond its scope": _length_delimited(1, _length_delimited(2, _length_delimited(2, b"\x0a\x70x"))),
    "field zero": b"\x02\x00",
    "a number that never ends": b"\x08" + b"\xff" * 20,
    "text that is not UTF-8": request().SerializeToString().replace(b"mfu.step", b"mfu.\xff\xfe\xfd\xfc"),
    "two resources": _length_delimited(1, _length_delimited(1, b"\x10\x01") * 2),
}  # fmt: skip


@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE)
def test_garbage_harms_nobody(store: Store, add: Add, tenants: tuple[str, str], body: bytes) -> None:
    """A request that is none stores nothing and leaves the others of its group as they are."""
    one, other = tenants
    outcomes = add((one, request().SerializeToString()), (other, body), (one, request().SerializeToString()))
    assert [outcomes[0], outcomes[2]] == [Stored(1, {}), Stored(1, {})]
    assert outcomes[1] in (None, Stored(0, {}))
    assert [len(stored(store, tenant)) for tenant in tenants] == [2, 0]


def test_any_bytes(store: Store, arrivals: Arrivals) -> None:
    """Whatever bytes come, the engine stores the spans that the protobuf library reads, or none."""

    @settings(max_examples=8, deadline=None, phases=PHASES)
    @given(st.data())
    def change(data: st.DataObject) -> None:
        body = bytearray(request(spans=2).SerializeToString())
        for _ in range(data.draw(st.integers(1, 3))):
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
        tenant = next(_tenants)
        [outcome] = arrivals.add([Arrival(tenant, bytes(body))], OLDEST, NEWEST)
        if isinstance(outcome, Stored) and outcome.spans:
            # The engine is laxer with what no encoder writes, such as a field of number 0.
            with contextlib.suppress(UndecodableError):
                assert outcome.spans == len(decode_traces(bytes(body), "protobuf", tenant, NOW, LIMITS).rows)
            assert len(stored(store, tenant)) == outcome.spans
        else:
            assert stored(store, tenant) == []

    change()


def test_parts_of_nothing(store: Store, tenants: tuple[str, str]) -> None:
    """A request of very many empty spans is refused before it takes the memory; its neighbour is stored."""
    place = Arrivals(store, 2, LIMITS.attributes, max_memory_bytes=64 * 2**20)
    spans = b"\x12\x00" * 300_000
    made = ExportTraceServiceRequest()
    made.resource_spans.add().scope_spans.add().MergeFromString(spans[:20])
    assert len(made.resource_spans[0].scope_spans[0].spans) == 10
    scope = b"\x12" + _length(len(spans)) + spans
    bomb = b"\x0a" + _length(len(scope)) + scope
    group = [Arrival(tenants[0], request().SerializeToString()), Arrival(tenants[1], bomb)]
    outcomes = place.add(group, OLDEST, NEWEST)
    assert outcomes[0] == Stored(1, {})
    assert isinstance(outcomes[1], TooMuchError)


def _length(value: int) -> bytes:
    found = []
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def test_same_span_once(store: Store, add: Add, tenants: tuple[str, str]) -> None:
    """A span that comes twice, in one group or in two, is stored once; another tenant's of the same ids is another."""
    one, other = tenants
    body = request(spans=2).SerializeToString()
    assert add((one, body), (one, body), (other, body)) == [Stored(2, {})] * 3
    assert add((one, body)) == [Stored(2, {})]
    assert [len(stored(store, tenant)) for tenant in tenants] == [2, 2]
    # Twice in one request: the engine leaves it to Python, which keeps one.
    assert add((one, body + body)) == [None]


def test_counted_once(store: Store, add: Add, tenants: tuple[str, str]) -> None:
    """The roll-up holds what the spans hold, retries or not."""
    body = request(lambda span: setattr(span.attributes.add(key="mfu.model.flop").value, "double_value", 2.0), 3)
    for _ in range(2):
        add((tenants[0], body.SerializeToString()))
    [row] = store.query(
        "SELECT sum(spans) AS spans FROM otel.mfu_sums_5m WHERE tenant = {tenant:String}", tenant=tenants[0]
    )
    assert row == {"spans": 3}


def test_more_flops_than_available(store: Store, add: Add, tenants: tuple[str, str]) -> None:
    """A span that claims an MFU above 1 is stored as it was claimed, and noted."""

    def claim(flops: float) -> bytes:
        def change(span: Span) -> None:
            span.attributes.add(key="mfu.model.flop").value.double_value = flops
            span.attributes.add(key="mfu.available.flop").value.double_value = 2.0

        return request(change).SerializeToString()

    noted = {"spans that claim more FLOPs than were available": 1}
    assert add((tenants[0], claim(3.0)), (tenants[0], claim(2.0))) == [Stored(1, {}, noted), Stored(1, {})]
    assert len(stored(store, tenants[0])) == 2
    assert decode_traces(claim(3.0), "protobuf", "acme", NOW, LIMITS).notes == noted


def test_a_span_without_a_resource(store: Store, arrivals: Arrivals, add: Add, tenants: tuple[str, str]) -> None:
    """A span of nobody's process is its token's: stored and counted without a name; its neighbours stay as they are."""
    bare = request(spans=2)
    bare.resource_spans[0].ClearField("resource")
    assert same(store, arrivals, bare.SerializeToString())
    one, other = tenants
    bare = request(lambda span: span.attributes.add(key="mfu.available.flop").value.__setattr__("double_value", 2.0))
    bare.resource_spans[0].ClearField("resource")
    assert add((one, bare.SerializeToString()), (other, request().SerializeToString())) == [
        Stored(1, {}),
        Stored(1, {}),
    ]
    [row] = stored(store, one)
    assert (row["ServiceName"], row["ResourceAttributes"]) == ("", {})
    (usage,) = rollup.usages(store, Range(NOW - 3600 * 10**9, NOW + 1), one)
    assert (usage.workload, usage.gpu_type, usage.host, usage.sums.steps) == (None, None, None, 1)


def test_workloads_are_asked_for(store: Store, tenants: tuple[str, str]) -> None:
    """A request with a workload that its tenant may not have is left to Python, the others of its group are not."""
    asked: list[tuple[str, Sequence[str]]] = []

    def admits(tenant: str, names: Sequence[str]) -> bool:
        asked.append((tenant, sorted(names)))
        return "beyond" not in names

    place = Arrivals(store, 1, LIMITS.attributes, admits)
    bodies = []
    for name in ("within", "beyond"):
        made = request()
        made.resource_spans[0].resource.attributes.add(key="mfu.workload.name").value.string_value = name
        bodies.append(made.SerializeToString())
    outcomes = place.add([Arrival(tenants[0], body) for body in bodies], OLDEST, NEWEST)
    assert outcomes == [Stored(1, {}), None]
    assert asked == [(tenants[0], ["within"]), (tenants[0], ["beyond"])]
    assert len(stored(store, tenants[0])) == 1


@settings(max_examples=300)
@given(st.floats())
def test_double_text(number: float) -> None:
    """A double's text reads back as that double, in at most 24 characters."""
    text = double_text(number)
    assert repr(float(text)) == repr(number)
    assert len(text) <= 24
