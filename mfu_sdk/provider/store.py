"""The provider's store: ClickHouse SQL, run by chDB in this process or by a ClickHouse server; one writer, one reader.

A row is stored once. A client retries what it believes lost, so spans are told apart by (tenant, trace id, span id)
under the writer's lock before they are inserted: the roll-up, which ClickHouse feeds from every insert, then counts
each span once too. Raw spans and roll-ups are files of their own; a process killed between two writes leaves a day in
which their numbers of spans differ, and such a day is summed again from its spans when the store is next opened.
"""

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

from mfu_sdk.errors import StoreError
from mfu_sdk.guard import log
from mfu_sdk.provider import schema
from mfu_sdk.provider.embedded import Embedded, is_store
from mfu_sdk.provider.engine import Apart, Engine, Parameter, QueryError, Row
from mfu_sdk.provider.remote import Address, Remote
from mfu_sdk.provider.schema import Retention

__all__ = [
    "Address", "LogRow", "Parameter", "PointRow", "Reading", "Row", "SpanEvent", "SpanLink", "SpanRow", "Store",
    "Table", "is_store", "timestamp",
]  # fmt: skip

_LATE_DAYS: Final = 14
"""How late what exporters tell may come to be in the hours."""
_ALL_DAYS: Final = 20_000

Place = str | os.PathLike[str] | Address
"""Where a store lies: a directory, or a ClickHouse server."""

Reading = Literal[
    "levels", "trend", "fleet_trend", "works", "quality", "uncounted", "inference", "baseline", "signs", "history",
    "drifts", "answers",
    "hours", "clocks", "heard", "unused", "windows", "window_counts", "first_windows", "findings", "finding_states",
    "judged_days", "low_workloads", "by_gpu_type", "by_scale", "under_batching_tenants", "change", "new_hardware",
    "choices", "node", "run_trend", "run_ranks", "run_parts", "run_steps", "run_events",
    "gpus", "gpu_errors", "failures", "watched", "witnessed", "attempts", "redone", "total_flop", "outside",
    "astray", "claimed_twice",
]  # fmt: skip
"""The names of the queries in sql/read."""
Table = Literal["mfu_findings", "mfu_judged_days", "mfu_finding_states"]
"""Tables that `Store.insert` writes."""


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """An event of a span; `unix_ns` in nanoseconds since 1970."""

    unix_ns: int
    name: str
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SpanLink:
    """A link of a span; ids in lower-case hexadecimal."""

    trace_id: str
    span_id: str
    trace_state: str
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SpanRow:
    """One span as `otel_traces` holds it; ids in lower-case hexadecimal, times in nanoseconds since 1970."""

    start_unix_ns: int
    duration_ns: int
    trace_id: str
    span_id: str
    parent_span_id: str
    trace_state: str
    name: str
    kind: str
    service: str
    resource: Mapping[str, str]
    scope_name: str
    scope_version: str
    attributes: Mapping[str, str]
    status_code: str
    status_message: str
    events: tuple[SpanEvent, ...] = ()
    links: tuple[SpanLink, ...] = ()


@dataclass(frozen=True, slots=True)
class PointRow:
    """One metric point: which of the three tables holds it, and its columns by the exporter's names."""

    table: Literal["gauge", "sum", "histogram"]
    columns: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LogRow:
    """One log record as `otel_logs` holds it: its columns by the exporter's names."""

    columns: Mapping[str, Any]


class Store:
    """The store at `place`, a directory that is made if need be or a ClickHouse server; used from several threads.

    With `writes` the schema is brought up to date; without, nothing is changed, and it has to be of this version.
    Raises `StoreError` when the place cannot be used or another process holds the directory, and
    `MissingDependencyError` without the extra `provider`.
    """

    def __init__(self, place: Place, *, writes: bool = True) -> None:
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._closed = False
        self._today = datetime.now(UTC).date()
        self._writer: Engine = Remote(place) if isinstance(place, Address) else Embedded.open(Path(place))
        self.name = self._writer.name
        """What messages call it: the directory, or the server's address without credentials."""
        try:
            self._reader = self._writer.another()
            if self._on_cluster():
                self._check_cluster()
            elif writes:
                self._migrate()
            else:
                self._check()
        except QueryError as error:
            self._writer.close()
            raise StoreError(f"{self.name}: not a readable store ({error}); {self._writer.remedy}") from error
        except BaseException:
            self._writer.close()
            raise

    def insert_spans(self, tenant: str, rows: Sequence[SpanRow]) -> int:
        """Store `tenant`'s spans; returns how many were new. When it returns they are on disk."""
        unique = {(row.trace_id, row.span_id): row for row in rows}
        if not unique:
            return 0
        with self.writing():
            for key in self._known(tenant, unique.values()):
                unique.pop(key, None)
            self._insert("otel_traces", (_span_columns(row) for row in unique.values()))
        return len(unique)

    def insert_points(self, rows: Iterable[PointRow]) -> None:
        """Store metric points. When it returns they are on disk."""
        tables: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            tables.setdefault(f"otel_metrics_{row.table}", []).append(row.columns)
        with self._write_lock:
            for table, columns in tables.items():
                self._insert(table, columns)
            self._when_a_day_is_over()

    def insert_logs(self, rows: Iterable[LogRow]) -> None:
        """Store log records. When it returns they are on disk."""
        with self._write_lock:
            self._insert("otel_logs", (row.columns for row in rows))

    def insert(self, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
        """Store rows of one of the tables of ours that hold no telemetry. When it returns they are on disk."""
        with self._write_lock:
            self._insert(table, rows)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The writer's lock, for whoever adds spans through a session of their own."""
        with self._write_lock:
            try:
                yield
            except StoreError:
                # The spans may be in while their sums are not, and a retry would then find them known.
                if not self._writer.shared:
                    self._reconcile()
                raise

    def apart(self) -> Apart:
        """A place in which requests are taken apart, which ends with the store; each serves one thread at a time."""
        return self._writer.apart()

    def read(self, reading: Reading, **parameters: Parameter) -> list[Row]:
        """The rows of one of the queries in sql/read. Values travel as parameters, never inside the text."""
        return self.query((schema.SQL / "read" / f"{reading}.sql").read_text("utf-8"), **parameters)

    def query(self, sql: str, **parameters: Parameter) -> list[Row]:
        """The rows of any read-only SQL with ``{name:Type}`` parameters. Raises `StoreError`."""
        with self._read_lock:
            return self._reader.query(sql, parameters)

    def retain(self, retention: Retention) -> None:
        """Keep rows for as long as `retention` says from now on; the engine drops older ones in its own time.

        A cluster's rows are kept for as long as its own tables say, which `mfu provider ddl --ttl` makes.
        """
        engines = {
            row["name"]: row["engine_full"]
            for row in self.query("SELECT name, engine_full FROM system.tables WHERE database = 'otel'")
        }
        with self._write_lock:
            for table, expression in schema.time_to_live(retention).items():
                # Saying it again would have the engine look through every part again.
                if not engines[table].startswith("Distributed") and f"TTL {expression} " not in engines[table] + " ":
                    self._writer.query(f"ALTER TABLE otel.{table} MODIFY TTL {expression}")

    @property
    def spans_kept_days(self) -> int | None:
        """For how many days spans are kept; None: for ever."""
        [row] = self.query(
            "SELECT toInt64OrNull(extract(engine_full, 'TTL .*toIntervalDay\\((\\d+)\\)')) AS days FROM system.tables"
            " WHERE database = 'otel' AND name IN ('otel_traces', 'otel_traces_local') ORDER BY name DESC LIMIT 1"
        )
        return None if row["days"] is None else int(row["days"])

    def close(self) -> None:
        """Give up the directory or the connections; a second call does nothing."""
        if self._closed:
            return
        with self._write_lock, self._read_lock:
            self._closed = True
            self._writer.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _known(self, tenant: str, rows: Iterable[SpanRow]) -> set[tuple[str, str]]:
        rows = list(rows)
        # A retry repeats the span's start as well as its ids, and the start finds the few granules to look at.
        found = self._writer.query(
            "SELECT TraceId, SpanId FROM otel.otel_traces"
            " WHERE Timestamp >= fromUnixTimestamp64Nano({first:Int64})"
            " AND Timestamp <= fromUnixTimestamp64Nano({last:Int64})"
            " AND TraceId IN {traces:Array(String)} AND mfu_tenant_id = {tenant:String}",
            {
                "first": min(row.start_unix_ns for row in rows),
                "last": max(row.start_unix_ns for row in rows),
                "traces": sorted({row.trace_id for row in rows}),
                "tenant": tenant,
            },
        )
        return {(row["TraceId"], row["SpanId"]) for row in found}

    def _insert(self, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
        lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
        if not lines:
            return
        names = ", ".join(f"`{name}`" for name in json.loads(lines[0]))
        self._writer.add(table, names, ("\n".join(lines) + "\n").encode())

    def _migrate(self) -> None:
        self._writer.query("CREATE DATABASE IF NOT EXISTS otel")
        with self._writer.alone():
            self._writer.query(schema.VERSIONS)
            applied, ours = self._applied(), schema.migrations()
            newer = [name for name in ours if int(name[:4]) > applied]
            for name in newer:
                for statement in schema.statements(name):
                    self._writer.query(statement)
                self._writer.query(
                    "INSERT INTO otel.mfu_migrations SELECT {version:UInt32}, {name:String}, now()",
                    {"version": int(name[:4]), "name": name},
                )
            # Whoever else writes to it is at today's sums meanwhile.
            self._reconcile(today=bool(newer) or not self._writer.shared)
            self._make_gpu_hours(days=_ALL_DAYS if newer else _LATE_DAYS)

    def _applied(self) -> int:
        [row] = self._writer.query("SELECT max(version) AS version FROM otel.mfu_migrations")
        applied, newest = int(row["version"]), schema.newest()
        if applied > newest:
            raise StoreError(
                f"{self.name}: written by a newer mfu-sdk (schema {applied}, this one knows {newest}); upgrade it"
            )
        return applied

    def _check(self) -> None:
        if (applied := self._applied()) < schema.newest():
            raise StoreError(
                f"{self.name}: its schema is {applied}, this mfu-sdk reads {schema.newest()};"
                " have its `mfu serve` upgraded, which migrates it"
            )

    def _on_cluster(self) -> bool:
        return bool(
            self._writer.query(
                "SELECT 1 AS found FROM system.tables"
                " WHERE database = 'otel' AND name = 'otel_traces' AND engine = 'Distributed'"
            )
        )

    def _check_cluster(self) -> None:
        found = {row["name"] for row in self._writer.query("SELECT name FROM system.tables WHERE database = 'otel'")}
        if missing := sorted(schema.tables() - found):
            raise StoreError(
                f"{self.name}: the cluster's schema is older than this mfu-sdk (it has no {missing[0]});"
                " run what `mfu provider ddl --cluster` prints"
            )

    def _reconcile(self, *, today: bool = True) -> None:
        """Sum again the days of which spans, five minutes and hours tell different numbers of spans."""
        for row in self._writer.query(schema.fill("differing_days"), {"today": int(today)}):
            if row["spans"] != row["fives"]:
                # What is inserted into the five minutes is fed on into the hours.
                self._sum_again(row["day"], ("mfu_sums_1h", "mfu_sums_5m"), "five_minutes")
            elif row["spans"] != row["hours"]:
                self._sum_again(row["day"], ("mfu_sums_1h",), "hours")
            if row["spans"] != row["counting"]:
                self._sum_again(row["day"], ("mfu_counting_1h",), "counting")

    def _when_a_day_is_over(self) -> None:
        today = datetime.now(UTC).date()
        if today == self._today:
            return
        self._today = today
        try:
            self._make_gpu_hours(days=_LATE_DAYS)
        except StoreError as error:
            # What was to be stored is; until the hours are made, the five minutes are read.
            log.error("mfu_sdk: hours of GPUs were not made: %s", error)

    def _make_gpu_hours(self, *, days: int) -> None:
        """Make the hours of exporters' GPUs of days that are over, where five minutes tell more than they."""
        for row in self._writer.query(schema.fill("open_gpu_days"), {"days": days}):
            self._writer.query(schema.fill("gpu_hours"), {"first": row["day"], "last": row["day"]})

    def _sum_again(self, day: str, tables: Iterable[str], fill: str) -> None:
        for table in tables:
            # ALTER takes no parameters; a date of the engine's own making is safe in the text.
            self._writer.query(f"ALTER TABLE otel.{table} DROP PARTITION '{day}'")
        self._writer.query(schema.fill(fill), {"first": day, "last": day})


def timestamp(unix_ns: int) -> str:
    """Nanoseconds since 1970 as ClickHouse reads them in JSON: ISO 8601 in UTC with nine digits."""
    seconds, nanoseconds = divmod(unix_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def _span_columns(row: SpanRow) -> dict[str, Any]:
    return {
        "Timestamp": timestamp(row.start_unix_ns),
        "TraceId": row.trace_id,
        "SpanId": row.span_id,
        "ParentSpanId": row.parent_span_id,
        "TraceState": row.trace_state,
        "SpanName": row.name,
        "SpanKind": row.kind,
        "ServiceName": row.service,
        "ResourceAttributes": row.resource,
        "ScopeName": row.scope_name,
        "ScopeVersion": row.scope_version,
        "SpanAttributes": row.attributes,
        "Duration": row.duration_ns,
        "StatusCode": row.status_code,
        "StatusMessage": row.status_message,
        "Events.Timestamp": [timestamp(event.unix_ns) for event in row.events],
        "Events.Name": [event.name for event in row.events],
        "Events.Attributes": [event.attributes for event in row.events],
        "Links.TraceId": [link.trace_id for link in row.links],
        "Links.SpanId": [link.span_id for link in row.links],
        "Links.TraceState": [link.trace_state for link in row.links],
        "Links.Attributes": [link.attributes for link in row.links],
    }
