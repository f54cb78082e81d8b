"""The store: what it keeps once, what it keeps after a kill, and how it refuses."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mfu_sdk import semconv
from mfu_sdk.errors import StoreError
from mfu_sdk.provider import store as store_module
from mfu_sdk.provider.rollup import Range, level, usages
from mfu_sdk.provider.store import PointRow, SpanEvent, SpanLink, SpanRow, Store, timestamp

Make = Callable[..., SpanRow]

EXPORTER_TRACE_COLUMNS = {
    "Timestamp": "DateTime64(9)",
    "TraceId": "String",
    "SpanId": "String",
    "ParentSpanId": "String",
    "TraceState": "String",
    "SpanName": "LowCardinality(String)",
    "SpanKind": "LowCardinality(String)",
    "ServiceName": "LowCardinality(String)",
    "ResourceAttributes": "Map(LowCardinality(String), String)",
    "ScopeName": "String",
    "ScopeVersion": "String",
    "SpanAttributes": "Map(LowCardinality(String), String)",
    "Duration": "UInt64",
    "StatusCode": "LowCardinality(String)",
    "StatusMessage": "String",
    "Events.Timestamp": "Array(DateTime64(9))",
    "Events.Name": "Array(LowCardinality(String))",
    "Events.Attributes": "Array(Map(LowCardinality(String), String))",
    "Links.TraceId": "Array(String)",
    "Links.SpanId": "Array(String)",
    "Links.TraceState": "Array(String)",
    "Links.Attributes": "Array(Map(LowCardinality(String), String))",
}
EXPORTER_METRIC_COLUMNS = {
    *("ResourceAttributes", "ResourceSchemaUrl", "ServiceName"),
    *("ScopeName", "ScopeVersion", "ScopeAttributes", "ScopeDroppedAttrCount", "ScopeSchemaUrl"),
    *("MetricName", "MetricDescription", "MetricUnit", "Attributes", "StartTimeUnix", "TimeUnix", "Flags"),
    *("Exemplars.FilteredAttributes", "Exemplars.TimeUnix", "Exemplars.Value", "Exemplars.SpanId", "Exemplars.TraceId"),
}
EXPORTER_LOG_COLUMNS = {
    "Timestamp": "DateTime64(9)",
    "TraceId": "String",
    "SpanId": "String",
    "TraceFlags": "UInt8",
    "SeverityText": "LowCardinality(String)",
    "SeverityNumber": "UInt8",
    "ServiceName": "LowCardinality(String)",
    "Body": "String",
    "ResourceSchemaUrl": "LowCardinality(String)",
    "ResourceAttributes": "Map(LowCardinality(String), String)",
    "ScopeSchemaUrl": "LowCardinality(String)",
    "ScopeName": "String",
    "ScopeVersion": "LowCardinality(String)",
    "ScopeAttributes": "Map(LowCardinality(String), String)",
    "LogAttributes": "Map(LowCardinality(String), String)",
    "EventName": "String",
}
SQL = Path(store_module.__file__).parent / "sql"
TYPES = {"int": "Nullable(Int64)", "double": "Nullable(Float64)", "string": "LowCardinality(String)"}


def columns(store: Store, table: str) -> dict[str, tuple[str, str, str]]:
    rows = store.query(
        "SELECT name, type, default_kind, default_expression FROM system.columns"
        " WHERE database = 'otel' AND table = {table:String}",
        table=table,
    )
    return {row["name"]: (row["type"], row["default_kind"], row["default_expression"]) for row in rows}


def test_exporter_columns(store: Store) -> None:
    """Plain columns of otel_traces are those that the Collector's exporter inserts, by name and type."""
    plain = {name: kind for name, (kind, default, _) in columns(store, "otel_traces").items() if not default}
    assert plain == EXPORTER_TRACE_COLUMNS


def test_exporter_metric_columns(store: Store) -> None:
    """The metric tables have the columns that the exporter inserts, by name."""
    of_number = {"Value"}
    of_histogram = {"Count", "Sum", "BucketCounts", "ExplicitBounds", "Min", "Max", "AggregationTemporality"}
    for table, own in (
        ("gauge", of_number),
        ("sum", of_number | {"AggregationTemporality", "IsMonotonic"}),
        ("histogram", of_histogram),
    ):
        assert set(columns(store, f"otel_metrics_{table}")) == EXPORTER_METRIC_COLUMNS | own


def test_exporter_log_columns(store: Store) -> None:
    """Plain columns of otel_logs are those that the exporter inserts, by name and type; it leaves out the second."""
    found = columns(store, "otel_logs")
    assert found.pop("TimestampTime") == ("DateTime", "DEFAULT", "toDateTime(Timestamp)")
    assert {name: kind for name, (kind, default, _) in found.items() if not default} == EXPORTER_LOG_COLUMNS
    assert len(found) == len(EXPORTER_LOG_COLUMNS)


def test_every_attribute_has_its_column(store: Store) -> None:
    """Each scalar mfu.* attribute of a resource or span has a typed column of its name, NULL where it is absent."""
    found = columns(store, "otel_traces")
    expected = {
        attribute.name.replace(".", "_"): TYPES[attribute.type]
        for attribute in semconv.ATTRIBUTES.values()
        if attribute.name.startswith("mfu.") and attribute.on != ("metric",) and not attribute.type.endswith("[]")
    }
    expected["mfu_run_id"] = "String"
    materialized = {name: kind for name, (kind, default, _) in found.items() if default == "MATERIALIZED"}
    ours = ("hw_id", "hw_name", "hw_parent", "node_name", "error_type")
    assert materialized == expected | dict.fromkeys(ours, "LowCardinality(String)")
    for name, (_, default, expression) in found.items():
        if default == "MATERIALIZED" and name not in ours:
            attribute = semconv.ATTRIBUTES[re.search(r"\['([^']+)'\]", expression)[1]]  # type: ignore[index]
            assert attribute.name.replace(".", "_") == name
            assert ("ResourceAttributes" in expression) == ("resource" in attribute.on)
            assert "OrZero" not in expression


def test_absent_is_null(store: Store, tenant: str, span: Make) -> None:
    """An attribute that is absent, or that is no number, is NULL and not zero."""
    store.insert_spans(tenant, [span(semconv.SPAN_STEP, mfu__model__flop="many")])
    row = store.query(
        "SELECT mfu_model_flop, mfu_available_flop, mfu_token_count FROM otel.otel_traces"
        " WHERE mfu_tenant_id = {tenant:String}",
        tenant=tenant,
    )
    assert row == [{"mfu_model_flop": None, "mfu_available_flop": None, "mfu_token_count": None}]


def test_whole_span_comes_back(store: Store, tenant: str, span: Make) -> None:
    """Every field of a span is read back as it was stored, nanoseconds, quotes and line breaks included."""
    awkward = 'it\'s \\ a "line"\n\tand → another'
    made = replace(
        span(semconv.SPAN_RUN, at_s=0.123456789, duration_s=1.5, odd=awkward),
        parent_span_id="ab" * 8,
        trace_state="a=1",
        status_code="Error",
        status_message=awkward,
        events=(SpanEvent(1_780_000_200_123_456_789, "e", {"k": awkward}),),
        links=(SpanLink("cd" * 16, "ef" * 8, "", {"l": "1"}),),
    )
    store.insert_spans(tenant, [made])
    [row] = store.query(
        "SELECT *, toUnixTimestamp64Nano(Timestamp) AS ns, toUnixTimestamp64Nano(Events.Timestamp[1]) AS event_ns"
        " FROM otel.otel_traces WHERE mfu_tenant_id = {tenant:String}",
        tenant=tenant,
    )
    assert row["ns"] == made.start_unix_ns
    assert row["event_ns"] == 1_780_000_200_123_456_789
    assert (row["TraceId"], row["SpanId"], row["ParentSpanId"]) == (made.trace_id, made.span_id, "ab" * 8)
    assert (row["Duration"], row["StatusCode"], row["StatusMessage"]) == (1_500_000_000, "Error", awkward)
    assert row["SpanAttributes"] == {"odd": awkward}
    assert row["Events.Attributes"] == [{"k": awkward}]
    assert (row["Links.TraceId"], row["Links.Attributes"]) == (["cd" * 16], [{"l": "1"}])


def test_parameters_are_values(store: Store) -> None:
    """Whatever a parameter holds is a value: it ends no string and starts no statement."""
    hostile = "'; DROP TABLE otel.otel_traces; -- \\ \n\t\0"
    [row] = store.query(
        "SELECT {text:String} AS text, {many:Array(String)} AS many, {none:Nullable(String)} AS none, {n:Int64} AS n",
        text=hostile,
        many=[hostile, ""],
        none=None,
        n=-(2**62),
    )
    assert row == {"text": hostile, "many": [hostile, ""], "none": None, "n": -(2**62)}


def test_retry_counts_once(store: Store, tenant: str, window: Make, hour: Range) -> None:
    """A request that is sent again adds nothing, to the spans or to the roll-up; what is new in it is added."""
    first = [window(0), window(30), window(60)]
    assert store.insert_spans(tenant, first) == 3
    assert store.insert_spans(tenant, first) == 0
    assert store.insert_spans(tenant, [*first, first[0], window(90)]) == 1
    [row] = store.query(
        "SELECT sum(spans) AS spans, sum(model_flop) AS flop FROM otel.mfu_sums_5m WHERE tenant = {tenant:String}",
        tenant=tenant,
    )
    assert row == {"spans": 4, "flop": 4e15}
    assert level(usages(store, hour, tenant)).sums.model_flops == 4e15


def test_late_spans_count_once(store: Store, tenant: str, window: Make, hour: Range) -> None:
    """A span of three days ago that comes after today's is in its own day's sums, and in them once."""
    days = 3 * 86_400
    late = [window(-days), window(-days + 30)]
    store.insert_spans(tenant, [window(0)])
    assert (store.insert_spans(tenant, late), store.insert_spans(tenant, late)) == (2, 0)
    earlier = Range(hour.since_unix_ns - days * 10**9, hour.until_unix_ns - days * 10**9)
    found = [level(usages(store, span, tenant)).sums.model_flops for span in (earlier, hour)]
    assert found == [2e15, 1e15]


def test_tenants_may_share_ids(store: Store, tenant: str, window: Make) -> None:
    """Nobody can keep another tenant's span out by sending its ids first."""
    mine = window(0)
    other = replace(mine, resource={**mine.resource, semconv.TENANT_ID: f"{tenant}-other"})
    assert store.insert_spans(f"{tenant}-other", [other]) == 1
    assert store.insert_spans(tenant, [mine]) == 1


def test_rollup_equals_spans(store: Store, tenant: str, window: Make, span: Make) -> None:
    """The roll-up and the view that rebuilds it hold the same sums, whatever the spans lack."""
    rows = [
        window(0),
        window(1, mfu__model__flop=None, mfu__step__comm_time=3.0, mfu__clock__ratio=0.9),
        window(2, mfu__expected__flop=2e15, mfu__expected__available__flop=4e15, mfu__batch__running=8.0),
        span(semconv.SPAN_STEP, 3, 0.5, mfu__model__flop=1e12, mfu__sample__ratio=0.25, mfu__token__count=7),
        span(semconv.SPAN_STEP, 4, 0.5, mfu__count__source="measured", mfu__token__count=7),
    ]
    store.insert_spans(tenant, rows)
    names = [name for name, (kind, _, _) in columns(store, "mfu_sums_5m").items() if kind.startswith("SimpleAgg")]
    select = ", ".join(f"sum(t.{name}) AS {name}" for name in names)
    read = [
        store.query(
            f"SELECT is_window, {select} FROM otel.{table} AS t WHERE tenant = {{tenant:String}}"
            " GROUP BY is_window ORDER BY is_window",
            tenant=tenant,
        )
        for table in ("mfu_sums_5m", "mfu_sums_1h", "mfu_span_sums")
    ]
    assert read[0] == read[1] == read[2]
    assert [row["spans"] for row in read[0]] == [2, 3]


def test_points(store: Store, tenant: str) -> None:
    """A metric point is stored in the table of its kind."""
    named = {"ResourceAttributes": {semconv.TENANT_ID: tenant}, "MetricName": "mfu.utilization", "Value": 0.25}
    store.insert_points([PointRow("gauge", {**named, "TimeUnix": timestamp(1_780_000_200_000_000_001)})])
    rows = store.query(
        "SELECT Value, toUnixTimestamp64Nano(TimeUnix) AS ns FROM otel.otel_metrics_gauge"
        " WHERE ResourceAttributes['mfu.tenant.id'] = {tenant:String}",
        tenant=tenant,
    )
    assert rows == [{"Value": 0.25, "ns": 1_780_000_200_000_000_001}]


def test_bad_query_is_one_line(store: Store) -> None:
    """An error of the engine becomes one line of ours."""
    with pytest.raises(StoreError, match=r"^the store refused a query \(.*nowhere.*\); check") as caught:
        store.query("SELECT * FROM otel.nowhere")
    assert "\n" not in str(caught.value)


def test_held_by_this_process(store: Store) -> None:
    """A directory has one owner, even within a process."""
    with pytest.raises(StoreError, match=r"held by another process; stop its `mfu serve`"):
        Store(store.name)


def test_one_store_a_process(store: Store, data_dir: Path) -> None:
    """The engine holds one directory in a process, and says so."""
    with pytest.raises(StoreError, match="this process has another store open; close that one first"):
        Store(data_dir)
    # A refusal leaves no lock behind.
    with (data_dir / "owner.lock").open() as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_path_is_a_file(tmp_path: Path) -> None:
    """A path that is a file is refused."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="must be a directory, this is a file; name a directory"):
        Store(tmp_path / "file")


def test_path_with_a_question_mark(tmp_path: Path) -> None:
    """The engine would read options after a question mark."""
    with pytest.raises(StoreError, match=r"must not hold '\?'"):
        Store(tmp_path / "a?b")


# --- lives of their own: each is a process, because a process holds one store ---------------------------------------

AHEAD = "Asia/Kolkata"
"""Where it is two in the morning of the next day at T0."""

BEGIN = """
import os, signal, sys
from mfu_sdk.errors import StoreError
from mfu_sdk.provider.store import SpanRow, Store
T0 = 1_780_000_200 * 10**9
def row(number):
    return SpanRow(T0 + number * 10**9, 30 * 10**9, f"{number:032x}", f"{number:016x}", "", "", "mfu.window",
        "Internal", "gpt", {"mfu.tenant.id": "acme", "mfu.run.id": "r"}, "", "",
        {"mfu.model.flop": "1.0", "mfu.available.flop": "4.0"}, "Unset", "")
def flop(store, table):
    return store.query(f"SELECT sum(t.model_flop) AS flop FROM otel.{table} AS t")[0]["flop"]
"""


def run(body: str, *arguments: object, zone: str = "UTC") -> subprocess.CompletedProcess[str]:
    """Run BEGIN and `body` to its end, on a machine in this time zone."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", BEGIN + textwrap.dedent(body), *map(str, arguments)],
        env=os.environ | {"TZ": zone},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_disk_that_fills(data_dir: Path) -> None:
    """What a full disk does not take is not acknowledged, and one line says why; with room a retry stores it once.

    The engine is told to keep more free than any disk has, which its next write finds as it would find none.
    """
    done = run(
        """
        from mfu_sdk.provider.arrivals import Arrival, Arrivals, AttributeLimits
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
        def request(numbers):
            made = ExportTraceServiceRequest()
            spans = made.resource_spans.add().scope_spans.add().spans
            for n in numbers:
                span = spans.add(name="mfu.window", trace_id=n.to_bytes(16, "big"), span_id=n.to_bytes(8, "big"))
                span.start_time_unix_nano, span.end_time_unix_nano = T0 + n * 10**9, T0 + (n + 30) * 10**9
                for name, flop in (("mfu.model.flop", 1.0), ("mfu.available.flop", 4.0)):
                    span.attributes.add(key=name).value.double_value = flop
            return [Arrival("acme", made.SerializeToString())]
        def sums(store):
            print(flop(store, "mfu_span_sums"), flop(store, "mfu_sums_5m"), flush=True)
        def keep_free(bytes):
            for table in ("otel_traces", "mfu_sums_5m", "mfu_sums_1h", "mfu_counting_1h"):
                setting = f"min_free_disk_bytes_to_perform_insert = {bytes}"
                store._writer.query(f"ALTER TABLE otel.{table} MODIFY SETTING {setting}")
        with Store(sys.argv[1]) as store:
            arrivals = Arrivals(store, 0, AttributeLimits(64, 64, 2000))
            print(store.insert_spans("acme", [row(n) for n in range(1, 11)]), flush=True)
            keep_free(2**62)
            try:
                print(store.insert_spans("acme", [row(n) for n in range(11, 21)]))
            except StoreError as error:
                print(error)
            [outcome] = arrivals.add(request(range(101, 111)), 0, 2**62)
            print(outcome)
            sums(store)
            keep_free(0)
            print(store.insert_spans("acme", [row(n) for n in range(1, 21)]))
            print(arrivals.add(request(range(101, 111)), 0, 2**62)[0].spans)
            sums(store)
        """,
        data_dir,
    )
    first, refused, outcome, before, again, arrived, after = done.stdout.splitlines() or [done.stderr]
    assert (first, before, again, arrived, after) == ("10", "10 10", "10", "10", "30 30")
    assert re.fullmatch(r".*: otel_traces took no rows \(.*free space.*\); check the disk", refused), refused
    assert re.fullmatch(r"the store refused a query \(.*free space.*\); check the disk and the query", outcome), outcome


def test_kill_after_acknowledgement(data_dir: Path) -> None:
    """What was acknowledged is there after kill -9, in the spans and in the roll-up, and a retry adds nothing.

    So it is where the machine's own day has begun before that of UTC, in which days are told apart, and local time, in
    which logs are written, stays the machine's.
    """
    killed = run(
        """
        import time
        store = Store(sys.argv[1])
        print(time.localtime().tm_gmtoff)
        print(store.insert_spans("acme", [row(n) for n in range(1, 101)]), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        data_dir,
        zone=AHEAD,
    )
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, "19800\n100\n")
    after = run(
        """
        with Store(sys.argv[1]) as store:
            print(flop(store, "mfu_span_sums"), flop(store, "mfu_sums_5m"))
            print(store.insert_spans("acme", [row(n) for n in range(1, 102)]), flop(store, "mfu_sums_5m"))
        """,
        data_dir,
        zone=AHEAD,
    )
    assert after.stdout == "100 100\n1 101\n", after.stderr


def test_kill_while_requests_come(data_dir: Path) -> None:
    """Killed while requests come: what was acknowledged is there, spans and sums agree, and a retry adds nothing."""
    body = """
        import threading, time
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
        from mfu_sdk.provider.arrivals import Arrival, Arrivals, AttributeLimits, Stored
        def request(number):
            made = ExportTraceServiceRequest()
            spans = made.resource_spans.add().scope_spans.add().spans
            for index in range(number * 50 + 1, number * 50 + 51):
                spans.add(name="mfu.window", trace_id=index.to_bytes(16, "big"), span_id=index.to_bytes(8, "big"),
                    start_time_unix_nano=T0 + index, end_time_unix_nano=T0 + 10**9)
            return Arrival("acme", made.SerializeToString())
        store = Store(sys.argv[1])
        places = [Arrivals(store, slot, AttributeLimits(128, 256, 4096)) for slot in range(2)]
        def send(place, first):
            for number in range(first, 1_000_000, 2):
                assert place.add([request(number)], 0, 2 * T0) == [Stored(50, {})]
                print(number, flush=True)
    """
    killed = subprocess.Popen(
        [
            sys.executable,
            "-c",
            BEGIN
            + textwrap.dedent(body)
            + "for n in range(2): threading.Thread(target=send, args=(places[n], n), daemon=True).start()\n"
            + "signal.pause()",
            data_dir,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert killed.stdout is not None
    acknowledged = [int(killed.stdout.readline()) for _ in range(5)]
    killed.kill()
    acknowledged += [int(line) for line in killed.stdout if line.endswith("\n")]
    killed.wait(120)
    killed.stdout.close()
    after = run(
        textwrap.dedent(body)
        + textwrap.dedent(
            """
            def counts():
                return store.query("SELECT (SELECT count() FROM otel.otel_traces) AS spans,"
                    " (SELECT sum(spans) FROM otel.mfu_sums_5m) AS counted")[0]
            before = counts()
            again = [int(number) for number in sys.argv[2:]]
            assert places[0].add([request(number) for number in again], 0, 2 * T0) == [Stored(50, {})] * len(again)
            print(before["spans"] == before["counted"], before["spans"] >= 50 * len(again), counts() == before)
            """
        ),
        data_dir,
        *acknowledged,
    )
    assert after.stdout == "True True True\n", after.stderr


@pytest.mark.parametrize(("table", "lost"), [("mfu_sums_5m", "None 10"), ("mfu_sums_1h", "10 None")])
def test_day_without_its_sums_is_summed_again(data_dir: Path, table: str, lost: str) -> None:
    """Spans whose roll-up was lost, as by a kill between the two writes, are in it again when the store is opened."""
    done = run(
        """
        with Store(sys.argv[1]) as store:
            store.insert_spans("acme", [row(n) for n in range(1, 11)])
        with Store(sys.argv[1]) as store:
            store._writer.query(f"TRUNCATE TABLE otel.{sys.argv[2]}")
            print(flop(store, "mfu_sums_5m"), flop(store, "mfu_sums_1h"))
        for _ in range(2):
            with Store(sys.argv[1]) as store:
                print(flop(store, "mfu_sums_5m"), flop(store, "mfu_sums_1h"))
        """,
        data_dir,
        table,
    )
    assert done.stdout == f"{lost}\n10 10\n10 10\n", done.stderr


def test_older_store_is_summed_anew(data_dir: Path) -> None:
    """A store of schema 9 gains hours and dimensions from its spans; a day whose spans are gone keeps its sums."""
    done = run(
        """
        import re
        from mfu_sdk.provider import schema
        newest, schema.MIGRATION = schema.MIGRATION, re.compile(r"(000\\d)_\\w+\\.sql")
        reconcile, Store._reconcile = Store._reconcile, lambda self, **_: None
        hours, Store._make_gpu_hours = Store._make_gpu_hours, lambda self, **_: None
        day = 86_400
        with Store(sys.argv[1]) as store:
            store.insert_spans("acme", [row(1), row(2), row(2 * day)])
            store._writer.query("ALTER TABLE otel.otel_traces DROP PARTITION '2026-05-30'")
            print(flop(store, "mfu_rollup_5m"), store.query("SELECT max(version) AS v FROM otel.mfu_migrations"))
        schema.MIGRATION = newest
        # Killed between a migration and its being written down, it is migrated again to the same.
        with Store(sys.argv[1]) as store:
            print(flop(store, "mfu_sums_5m"))
            store._writer.query("DELETE FROM otel.mfu_migrations WHERE version > 10")
        with Store(sys.argv[1]) as store:
            print(flop(store, "mfu_sums_5m"), flop(store, "mfu_sums_1h"))
        Store._reconcile, Store._make_gpu_hours = reconcile, hours
        with Store(sys.argv[1]) as store:
            print(flop(store, "mfu_sums_5m"), flop(store, "mfu_sums_1h"))
            print(store.query("SELECT toDate(ts) AS day, sum(spans) AS n FROM otel.mfu_sums_1h GROUP BY 1 ORDER BY 1"))
        """,
        data_dir,
    )
    assert done.stdout.splitlines() == [
        "3 [{'v': 9}]",
        "1",
        "1 1",
        "3 3",
        "[{'day': '2026-05-28', 'n': 2}, {'day': '2026-05-30', 'n': 1}]",
    ], done.stderr


def test_older_exporters_rows_are_kept(data_dir: Path) -> None:
    """A store of schema 20 keeps its sums of GPUs, without a sample of PCIe, and gains those that come in later."""
    done = run(
        """
        import re
        from mfu_sdk.provider import schema
        from mfu_sdk.provider.simulate import dcgm, wire
        from mfu_sdk.provider.receive.otlp import decode_metrics
        def scrape(store, minute):
            at_ns = (1_780_002_000 + 60 * minute) * 10**9
            values = {dcgm.TENSOR_ACTIVE: 0.5, dcgm.PCIE_TX: 10e9 + minute * 1e9, dcgm.PCIE_RX: 9.2e18}
            who = wire.text("UUID", "GPU-1", 7)
            body = [wire.gauge(name, "", [wire.point(at_ns, value, who)]) for name, value in values.items()]
            store.insert_points(
                decode_metrics(wire.group(dcgm.resource("node-1"), body), "protobuf", "provider:p", at_ns).rows
            )
        newest, schema.MIGRATION = schema.MIGRATION, re.compile(r"(00(?:[01]\\d|20))_\\w+\\.sql")
        with Store(sys.argv[1]) as store:
            scrape(store, 0)
            print(store.query("SELECT max(version) AS v FROM otel.mfu_migrations"))
        schema.MIGRATION = newest
        for minute in (1, 2):
            with Store(sys.argv[1]) as store:
                scrape(store, minute)
                # As if killed before the migration was written down.
                store._writer.query("DELETE FROM otel.mfu_migrations WHERE version > 20")
        with Store(sys.argv[1]) as store:
            names = ("tensor_n", "tensor", "pcie_tx_n", "pcie_tx", "pcie_rx_n")
            sums = ", ".join(f"sum(g.{name}) AS {name}" for name in names)
            print(list(store.query(f"SELECT {sums} FROM otel.mfu_gpus_5m AS g")[0].values()))
        """,
        data_dir,
    )
    assert done.stdout.splitlines() == ["[{'v': 20}]", "[3, 1.5, 2, 23000000000, 0]"], done.stderr


def test_held_by_another_process(data_dir: Path) -> None:
    """A directory that another process serves is refused in one line, and free again once that process is killed."""
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            BEGIN + "held = Store(sys.argv[1]); print('open', flush=True); signal.pause()",
            data_dir,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        body = """
            try:
                Store(sys.argv[1]).close()
                print("opened")
            except StoreError as error:
                print(error)
            """
        refused = run(body, data_dir)
        assert refused.stdout == (
            f"{data_dir}: held by another process; stop its `mfu serve`, or ask it with `mfu report --url`\n"
        )
        assert refused.stderr == ""
    finally:
        holder.kill()
        holder.wait(120)
        if holder.stdout is not None:
            holder.stdout.close()
    assert run(body, data_dir).stdout == "opened\n"


def test_migrations_run_once(data_dir: Path) -> None:
    """A store remembers its version: opening it again migrates nothing, and a newer one is refused."""
    done = run(
        """
        count = "SELECT count() AS n, max(version) AS last FROM otel.mfu_migrations"
        with Store(sys.argv[1]) as store:
            print(store.query(count))
        with Store(sys.argv[1]) as store:
            print(store.query(count))
            store._writer.query("INSERT INTO otel.mfu_migrations VALUES (99, 'later', now())")
        try:
            Store(sys.argv[1])
        except StoreError as error:
            print(error)
        """,
        data_dir,
    )
    ours = sorted(path.name for path in SQL.glob("[0-9]*.sql"))
    last = int(ours[-1][:4])
    first, second, refused = done.stdout.splitlines()
    assert first == second == f"[{{'n': {len(ours)}, 'last': {last}}}]"
    assert len({name[:4] for name in ours}) == len(ours)
    assert f"written by a newer mfu-sdk (schema 99, this one knows {last}); upgrade it" in refused


def test_unreadable_store(data_dir: Path) -> None:
    """A directory whose files are no store's is refused in one line of ours."""
    (data_dir / "clickhouse").mkdir(parents=True)
    (data_dir / "clickhouse" / "metadata").write_text("not a directory")
    done = run(
        """
        try:
            Store(sys.argv[1])
        except StoreError as error:
            print(error)
        """,
        data_dir,
    )
    assert re.fullmatch(r".*: not a readable store \(.*\); name another directory or restore it\n", done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc takes no directories, which Linux alone has")
def test_unwritable_directory() -> None:
    """A directory that cannot be made is refused."""
    with pytest.raises(StoreError, match=r"^/proc/data: cannot be written \(.+\); name a writable directory$"):
        Store("/proc/data")
