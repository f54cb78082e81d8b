"""The provider's store: ClickHouse SQL run in this process by chDB, one writer, one reader, one owner of the files.

A row is stored once. A client retries what it believes lost, so spans are told apart by (tenant, trace id, span id)
under the writer's lock before they are inserted: the roll-up, which ClickHouse feeds from every insert, then counts
each span once too. Raw spans and roll-ups are files of their own; a process killed between two writes leaves a day in
which their numbers of spans differ, and such a day is summed again from its spans when the store is next opened.
"""

import fcntl
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Literal

from mfu_sdk.errors import MissingDependencyError, StoreError
from mfu_sdk.provider import schema
from mfu_sdk.provider.schema import Retention

Parameter = str | int | float | None | Sequence[str] | Sequence[int]
Row = dict[str, Any]
Reading = Literal[
    "levels", "trend", "quality", "uncounted", "inference", "baseline", "signs", "history", "drifts", "answers",
    "heard", "unused", "windows", "window_counts", "findings", "finding_states", "judged_days",
    "low_workloads", "by_gpu_type", "by_scale", "under_batching_tenants", "change", "new_hardware",
    "choices", "node", "run_trend", "run_ranks", "run_parts", "run_steps", "run_events",
    "gpus", "gpu_errors", "failures", "watched", "witnessed", "attempts", "redone", "total_flop", "outside",
]  # fmt: skip
"""The names of the queries in sql/read."""
Table = Literal["mfu_findings", "mfu_judged_days", "mfu_finding_states"]
"""Tables that `Store.insert` writes."""

# Spans of one request may start on as many days as the receiver lets through, and each day is a partition.
_SETTINGS: Final = {
    "session_timezone": "'UTC'",
    "date_time_input_format": "'best_effort'",
    "output_format_json_quote_64bit_integers": "0",
    "max_partitions_per_insert_block": "1000",
    # Compiling a wide query to machine code takes longer (0.4 s) than running it over sums.
    "compile_expressions": "0",
    "compile_aggregate_expressions": "0",
}


_REMEDY: Final = "name another directory or restore it"
# What a store's directory holds: the engine's files, and the lock that says which process owns them.
_ENGINE: Final = "clickhouse"
_LOCK: Final = "owner.lock"


class _QueryError(StoreError):
    """The engine refused a query, which means something else while the store is being opened than later."""


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
    """The store under `path`, a directory that is made if need be; safe to use from several threads.

    Raises `StoreError` when the directory cannot be used or is held by another process, and
    `MissingDependencyError` without the extra `provider`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock_file = _own(self.path)
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._sessions: list[Any] = []
        self._stages: set[str] = set()
        try:
            self._writer = _session(self.path / _ENGINE)
            try:
                self._reader = _session(self.path / _ENGINE)
                self._migrate()
                self._reconcile()
            except BaseException:
                self._writer.close()
                raise
        except _QueryError as error:
            self._lock_file.close()
            raise StoreError(f"{self.path}: not a readable store ({error}); {_REMEDY}") from error
        except BaseException:
            self._lock_file.close()
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
                self._reconcile()
                raise

    def open_session(self) -> "Session":
        """Another session with the engine, which ends with the store; each serves one thread at a time."""
        opened = _session(self.path / _ENGINE)
        self._sessions.append(opened)
        return Session(opened)

    def read(self, reading: Reading, **parameters: Parameter) -> list[Row]:
        """The rows of one of the queries in sql/read. Values travel as parameters, never inside the text."""
        return self.query((schema.SQL / "read" / f"{reading}.sql").read_text("utf-8"), **parameters)

    def query(self, sql: str, **parameters: Parameter) -> list[Row]:
        """The rows of any read-only SQL with ``{name:Type}`` parameters. Raises `StoreError`."""
        with self._read_lock:
            return _run(self._reader, sql, parameters)

    def retain(self, retention: Retention) -> None:
        """Keep rows for as long as `retention` says from now on; the engine drops older ones in its own time."""
        engines = {
            row["name"]: row["engine_full"]
            for row in self.query("SELECT name, engine_full FROM system.tables WHERE database = 'otel'")
        }
        with self._write_lock:
            for table, expression in schema.time_to_live(retention).items():
                # Saying it again would have the engine look through every part again.
                if f"TTL {expression} " not in engines[table] + " ":
                    _run(self._writer, f"ALTER TABLE otel.{table} MODIFY TTL {expression}", {})

    def close(self) -> None:
        """Close the files and give up the directory; a second call does nothing."""
        if self._lock_file.closed:
            return
        with self._write_lock, self._read_lock:
            for session in (*self._sessions, self._reader, self._writer):
                session.close()
            self._lock_file.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _known(self, tenant: str, rows: Iterable[SpanRow]) -> set[tuple[str, str]]:
        rows = list(rows)
        # A retry repeats the span's start as well as its ids, and the start finds the few granules to look at.
        found = _run(
            self._writer,
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
        # In two steps: what is streamed in is acknowledged by the engine even where its disk takes none of it, what is
        # selected is not.
        try:
            _run(self._writer, self._staged(table), {})
            with self._writer.send_insert(f"INSERT INTO staged.{table} ({names})", "JSONEachRow") as inserter:
                inserter.append("\n".join(lines) + "\n")
                inserter.finish()
            _run(self._writer, f"INSERT INTO otel.{table} ({names}) SELECT {names} FROM staged.{table}", {})  # noqa: S608 - our own names
        except (RuntimeError, StoreError) as error:
            why = _one_line(error.__cause__ or error)
            raise StoreError(f"{self.path}: {table} took no rows ({why}); check the disk") from error

    def _staged(self, table: str) -> str:
        """The statement that makes or empties the table in memory through which rows of `table` go."""
        if table in self._stages:
            return f"TRUNCATE TABLE staged.{table}"
        rows = _run(
            self._writer,
            "SELECT name, type FROM system.columns WHERE database = 'otel' AND table = {table:String}"
            " AND default_kind NOT IN ('MATERIALIZED', 'ALIAS') ORDER BY position",
            {"table": table},
        )
        _run(self._writer, "CREATE DATABASE IF NOT EXISTS staged ENGINE = Memory", {})
        self._stages.add(table)
        columns = ", ".join(f"`{row['name']}` {row['type']}" for row in rows)
        return f"CREATE TABLE staged.{table} ({columns}) ENGINE = Memory"

    def _migrate(self) -> None:
        _run(self._writer, "CREATE DATABASE IF NOT EXISTS otel", {})
        _run(
            self._writer,
            "CREATE TABLE IF NOT EXISTS otel.mfu_migrations (version UInt32, name String, applied DateTime('UTC'))"
            " ENGINE = MergeTree ORDER BY version",
            {},
        )
        rows = _run(self._writer, "SELECT max(version) AS version FROM otel.mfu_migrations", {})
        applied = int(rows[0]["version"])
        ours = schema.migrations()
        newest = int(ours[-1][:4])
        if applied > newest:
            raise StoreError(
                f"{self.path}: written by a newer mfu-sdk (schema {applied}, this one knows {newest}); upgrade it"
            )
        for name in (name for name in ours if int(name[:4]) > applied):
            for statement in schema.statements(name):
                _run(self._writer, statement, {})
            _run(
                self._writer,
                "INSERT INTO otel.mfu_migrations SELECT {version:UInt32}, {name:String}, now()",
                {"version": int(name[:4]), "name": name},
            )

    def _reconcile(self) -> None:
        """Sum again the days of which spans, five minutes and hours tell different numbers of spans.

        A day whose spans are gone, or are going since its time is up, keeps the sums that it has.
        """
        days = _run(
            self._writer,
            "WITH (SELECT toInt64OrNull(extract(engine_full, 'TTL .*toIntervalDay\\((\\d+)\\)')) FROM system.tables"
            " WHERE database = 'otel' AND name = 'otel_traces') AS kept_days"
            " SELECT day, sum(n * (source = '')) AS spans, sum(n * (source = '5m')) AS fives,"
            " sum(n * (source = '1h')) AS hours, sum(n * (source = 'counting')) AS counting FROM ("
            " SELECT toDate(Timestamp, 'UTC') AS day, count() AS n, '' AS source FROM otel.otel_traces"
            " WHERE SpanName IN ('mfu.step', 'mfu.window') GROUP BY day"
            " UNION ALL SELECT toDate(ts), sum(t.spans), '5m' FROM otel.mfu_sums_5m AS t GROUP BY toDate(ts)"
            " UNION ALL SELECT toDate(ts), sum(t.spans), '1h' FROM otel.mfu_sums_1h AS t GROUP BY toDate(ts)"
            " UNION ALL SELECT toDate(ts), sum(t.spans), 'counting' FROM otel.mfu_counting_1h AS t GROUP BY toDate(ts))"
            " WHERE isNull(kept_days) OR day > toDate(now('UTC')) - kept_days"
            " GROUP BY day HAVING spans > 0 AND (spans != fives OR spans != hours OR spans != counting) ORDER BY day",
            {},
        )
        for row in days:
            if row["spans"] != row["fives"]:
                # What is inserted into the five minutes is fed on into the hours.
                self._sum_again(row["day"], ("mfu_sums_1h", "mfu_sums_5m"), "five_minutes")
            elif row["spans"] != row["hours"]:
                self._sum_again(row["day"], ("mfu_sums_1h",), "hours")
            if row["spans"] != row["counting"]:
                self._sum_again(row["day"], ("mfu_counting_1h",), "counting")

    def _sum_again(self, day: str, tables: Iterable[str], fill: str) -> None:
        for table in tables:
            # ALTER takes no parameters; a date of the engine's own making is safe in the text.
            _run(self._writer, f"ALTER TABLE otel.{table} DROP PARTITION '{day}'", {})
        _run(self._writer, schema.fill(fill), {"first": day, "last": day})


class Session:
    """A session with the engine that `Store.open_session` opened."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened

    def run(self, sql: str, **parameters: Parameter) -> list[Row]:
        """The rows of any statement with ``{name:Type}`` parameters. Raises `StoreError`."""
        return _run(self._opened, sql, parameters)

    def insert(self, into: str, form: str, data: bytes) -> None:
        """Insert `data`, in one of the engine's formats. Raises `StoreError` when the engine takes none of it."""
        try:
            with self._opened.send_insert(into, form) as inserter:
                inserter.append(data)
                inserter.finish()
        except (RuntimeError, UnicodeDecodeError) as error:
            raise StoreError(f"the engine took no rows ({_one_line(error)})") from error


def is_store(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a directory that a `Store` has been opened on; looks, and makes nothing."""
    found = Path(path)
    return (found / _LOCK).is_file() and (found / _ENGINE).is_dir()


def timestamp(unix_ns: int) -> str:
    """Nanoseconds since 1970 as ClickHouse reads them in JSON: ISO 8601 in UTC with nine digits."""
    seconds, nanoseconds = divmod(unix_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def _own(path: Path) -> IO[bytes]:
    """An exclusive lock on `path` for as long as the file is open; the kernel gives it up if this process dies."""
    if "?" in str(path):
        raise StoreError(f"{path}: the path of a store must not hold '?'; name another directory")
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock_file = (path / _LOCK).open("ab")
    except FileExistsError:
        raise StoreError(f"{path}: the store must be a directory, this is a file; name a directory") from None
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror}); name a writable directory") from error
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock_file.close()
        raise StoreError(
            f"{path}: held by another process; stop its `mfu serve`, or ask it with `mfu report --url`"
        ) from None
    return lock_file


def _session(path: Path) -> Any:
    try:
        from chdb.session import Session
    except ImportError as error:
        raise MissingDependencyError(
            "chdb: the provider's store needs it; install it with: pip install 'mfu-sdk[provider]'"
        ) from error
    try:
        session = Session(str(path))  # type: ignore[no-untyped-call]  # chDB ships no types
    except RuntimeError as error:
        if "already initialized with path" in str(error):
            raise StoreError(f"{path.parent}: this process has another store open; close that one first") from error
        raise StoreError(f"{path.parent}: not a readable store ({_one_line(error)}); {_REMEDY}") from error
    for name, value in _SETTINGS.items():
        _run(session, f"SET {name} = {value}", {})
    return session


def _run(session: Any, sql: str, parameters: Mapping[str, Parameter]) -> list[Row]:
    values = {name: _parameter(value) for name, value in parameters.items()}
    try:
        text = str(session.query(sql, "JSONCompactEachRowWithNames", params=values or None))
    except RuntimeError as error:
        raise _QueryError(f"the store refused a query ({_one_line(error)}); check the disk and the query") from error
    # Not splitlines(): a value may hold U+0085 or U+2028, which JSON leaves as they are. All at once, so that names are
    # read once and not in every row: a fleet's sums are ten thousand rows of seventy columns.
    lines = [line for line in text.split("\n") if line]
    if not lines:
        return []
    names, *rows = json.loads(f"[{','.join(lines)}]")
    return [dict(zip(names, row, strict=True)) for row in rows]


def _parameter(value: Parameter) -> str:
    """A value as ClickHouse reads a query parameter: escaped, an array's strings in quotes, NULL as \\N."""
    if value is None:
        return "\\N"
    if isinstance(value, str):
        return _escaped(value)
    if isinstance(value, Sequence):
        return "[" + ",".join(_item(item) for item in value) + "]"
    return str(value)


def _item(value: str | int) -> str:
    return "'" + _escaped(value).replace("'", "\\'") + "'" if isinstance(value, str) else str(value)


def _escaped(text: str) -> str:
    return (
        text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r").replace("\0", "\\0")
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split("Stack trace")[0].split())[:300]


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
