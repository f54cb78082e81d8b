"""Requests' bytes to stored spans, all of it in the engine: Python touches no span.

The engine reads a group of requests, as messages of protobuf that are made of their bytes, into a table in memory; it
is asked what came; and it moves what is good and new into `otel_traces`, where the roll-ups take it up. Its rows are
those that `receive.otlp` makes. What it cannot say in a row (events, links, values inside of values, texts that are not
UTF-8, more than the limits allow, bytes that are no request) it does not store: the caller decodes that request itself.

It reads what an encoder of protobuf writes. A singular field that comes twice, which none writes, may be read
otherwise than a protobuf library would; it is the sender's own span that is odd then.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Final

from mfu_sdk.errors import StoreError
from mfu_sdk.provider.engine import Move, Row
from mfu_sdk.provider.store import Store

_SQL: Final = resources.files("mfu_sdk.provider") / "sql" / "arrivals"

# The members of an attribute's value, by the names they have in SQL and their paths and types in traces.proto.
_VALUE: Final = (
    ("key", "key", "String"),
    ("text", "value.text", "Nullable(String)"),
    ("truth", "value.truth", "Nullable(Bool)"),
    ("whole", "value.whole", "Nullable(Int64)"),
    ("real", "value.real", "Nullable(Float64)"),
    ("map", "value.map", "Nullable(String)"),
    ("raw", "value.raw", "Nullable(String)"),
    ("item_text", "value.list.values.text", "Array(Nullable(String))"),
    ("item_whole", "value.list.values.whole", "Array(Nullable(Int64))"),
)
# Strings that JSON writes as they are, as the engine writes an array of them.
_SAFE: Final = r"'^\\[\'[ !#-&(-\\[\\]-~]*\'(,\'[ !#-&(-\\[\\]-~]*\')*\\]$'"
_SPAN: Final = (
    ("trace_id", "trace_id", "String"),
    ("span_id", "span_id", "String"),
    ("parent_id", "parent_span_id", "String"),
    ("state", "trace_state", "String"),
    ("name", "name", "String"),
    ("kind", "kind", "Int32"),
    ("start", "start_unix_ns", "UInt64"),
    ("end", "end_unix_ns", "UInt64"),
    ("events", "events", "Array(String)"),
    ("links", "links", "Array(String)"),
    ("message", "status.message", "String"),
    ("code", "status.code", "Int32"),
)

IMPLAUSIBLE: Final = "spans that claim more FLOPs than were available"
"""What is noted of a span whose MFU is above 1; it is stored as it was claimed."""

FLAWS: Final = (
    "a span without a trace id of 16 bytes",
    "a span without a span id of 8 bytes",
    "a span that ends before it starts",
)
"""Why a span is rejected, by the number that the engine gives it, counted from 1; the next is its time."""

OLDEST_DAYS: Final = 366
"""Every day is a partition of the store, so times are bounded: a year back for what is replayed."""

MAX_MEMORY_BYTES: Final = 2**30
"""What the engine may take to read a group. Two bytes can be a span of nothing: what 20 MiB of these would take is not
there to be had."""


class TooMuchError(StoreError):
    """A request of so many parts that reading it would take more memory than one may."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request as it came: the tenant of its credential and an ExportTraceServiceRequest in protobuf."""

    tenant: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """A request whose spans are on disk: how many were good; how many were rejected, and what is odd, by reason."""

    spans: int
    rejected: Mapping[str, int]
    notes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AttributeLimits:
    """How many attributes a span or a resource may have, and how long their names and values may be, in characters."""

    count: int
    name: int
    value: int


Outcome = Stored | StoreError | None
"""What became of a request; None: the engine does not read it whole, and nothing of it was stored."""


class Arrivals:
    """A table in memory of `store`, where one group at a time is taken apart; `slot` tells several from each other.

    `admits` says whether a tenant may have workloads of these names; a request with others is left to Python. Spans of
    more than `oldest_days` ago are rejected in these words; `add` is told when that is.
    """

    def __init__(
        self,
        store: Store,
        slot: int,
        limits: AttributeLimits,
        admits: Callable[[str, Sequence[str]], bool] | None = None,
        max_memory_bytes: int = MAX_MEMORY_BYTES,
        oldest_days: int = OLDEST_DAYS,
    ) -> None:
        self._store = store
        self._admits = admits
        self._flaws = flaws(oldest_days)
        self._max_memory_bytes = max_memory_bytes
        self._engine = store.apart()
        names = {"wire": f"arrivals.wire_{slot}", "spans": f"arrivals.spans_{slot}", "view": f"arrivals.view_{slot}"}
        names |= _columns() | {"safe": _SAFE}
        names |= {"count": str(limits.count), "name": str(limits.name), "value": str(limits.value)}
        # What is known, and of which traces, is the engine's to ask for: it may lie elsewhere.
        names |= {"known": "$known", "traces": "$traces"}
        self._told = _text("told", names)
        self._move = Move(*(_text(name, names) for name in ("into", "rows", "known", "traces")))
        self._spans = names["spans"]
        for statement in _text("tables", names).split(";\n"):
            if statement.strip():
                self._engine.query(statement)
        # Several places work at once, on as many cores as there are; threads within one are only switched between.
        self._engine.query("SET max_threads = 1")
        self._engine.query(f"SET max_memory_usage = {max_memory_bytes}")
        self._into = f"INSERT INTO {names['wire']}"
        # By its path: of a schema given as text the engine keeps a copy in whatever directory the process is in.
        schema = str(_SQL / "traces.proto").replace("\\", "\\\\").replace("'", "\\'")
        self._engine.query(f"SET format_schema = '{schema}:Arrival'")

    def add(
        self,
        arrivals: Sequence[Arrival],
        oldest_unix_ns: int,
        newest_unix_ns: int,
        after_reading: Callable[[], None] = lambda: None,
    ) -> list[Outcome]:
        """Store the spans of `arrivals` that start between the two times. What is `Stored` is on disk.

        `after_reading` is called when they are read and about to be written.
        """
        try:
            return self._add(arrivals, oldest_unix_ns, newest_unix_ns, after_reading)
        except _ReadingError as error:
            if len(arrivals) == 1:
                return [error.outcome]
        # One bad request must not cost the others of its group anything: each is read alone.
        return [self.add([arrival], oldest_unix_ns, newest_unix_ns)[0] for arrival in arrivals]

    def _add(
        self, arrivals: Sequence[Arrival], oldest: int, newest: int, after_reading: Callable[[], None]
    ) -> list[Outcome]:
        taken_apart = [arrival_rows(number, arrival) for number, arrival in enumerate(arrivals, 1)]
        if None in taken_apart:
            raise _ReadingError(None)
        data = b"".join(found for found in taken_apart if found)
        if not data:
            return [Stored(0, {})] * len(arrivals)
        self._engine.query(f"TRUNCATE TABLE {self._spans}")
        try:
            self._engine.insert(self._into, "Protobuf", data)
        except StoreError as error:
            too_much = TooMuchError(f"takes more than {self._max_memory_bytes} bytes to read; send smaller batches")
            raise _ReadingError(too_much if "MEMORY_LIMIT_EXCEEDED" in str(error.__cause__) else None) from error
        bounds = {"oldest": max(oldest, 0), "newest": newest}
        told = {row["number"] - 1: row for row in self._engine.query(self._told, bounds)}
        for index, row in told.items():
            if row["tenant"] != arrivals[index].tenant:
                raise _ReadingError(StoreError(f"request {index} of a group was read as {row['tenant']!r}'s"))
        if told and sum(row["kept"] for row in told.values()) != next(iter(told.values()))["distinct_spans"]:
            raise _ReadingError(None)
        for row in told.values():
            if self._admits is not None:
                row["fits"] = row["fits"] and self._admits(row["tenant"], row["workloads"])
        kept = [row for row in told.values() if row["fits"] and row["kept"]]
        after_reading()
        if kept:
            numbers = [row["number"] for row in kept]
            first, last = min(row["first"] for row in kept), max(row["last"] for row in kept)
            try:
                with self._store.writing():
                    self._engine.store(self._move, {**bounds, "numbers": numbers, "first": first, "last": last})
            except StoreError as error:
                return [error] * len(arrivals)
        return [_outcome(told.get(index), self._flaws) for index in range(len(arrivals))]


class _ReadingError(Exception):
    """A group that cannot be read as one, and what becomes of it where it is one request only."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__()
        self.outcome = outcome


def flaws(oldest_days: int) -> tuple[str, ...]:
    """Why a span is rejected where more than `oldest_days` is too long ago."""
    return (*FLAWS, f"a span that starts more than {oldest_days} days ago or a day ahead")


def _outcome(row: Row | None, flaws: Sequence[str]) -> Outcome:
    if row is None:
        return Stored(0, {})
    if not row["fits"]:
        return None
    rejected = {flaw: n for flaw, n in zip(flaws, row["flaws"], strict=True) if n}
    return Stored(row["kept"], rejected, {IMPLAUSIBLE: row["implausible"]} if row["implausible"] else {})


# --- bytes ---------------------------------------------------------------------------------------------------------

# A request of more resources and scopes than this is left to the protobuf library, which splits it faster.
_MAX_SCOPES: Final = 4_096
_LENGTH_DELIMITED: Final = 2
_FIXED_BYTES: Final = {1: 8, 5: 4}


def arrival_rows(number: int, arrival: Arrival) -> bytes | None:
    """The rows of a request, each an Arrival of sql/arrivals/traces.proto; None for what protobuf does not write.

    The lengths around each part are checked here, so that whatever its bytes claim, the engine reads none of them into
    another request, or into the tenant that is named before it.
    """
    tenant = arrival.tenant.encode()
    head = b"\x08" + _varint(number) + b"\x12" + _varint(len(tenant)) + tenant
    parts: list[bytes] = []
    try:
        for field, sender in _fields(arrival.body):
            if field != 1:
                continue
            resource, scopes = b"", []
            for inner, value in _fields(sender):
                if inner == 1:
                    if resource:
                        return None
                    resource = b"\x1a" + _varint(len(value)) + value
                elif inner == 2:
                    scopes.append(value)
            if len(parts) + len(scopes) > _MAX_SCOPES:
                return None
            for scope in scopes:
                row = head + resource + b"\x22" + _varint(len(scope)) + scope
                parts.append(_varint(len(row)) + row)
    except (IndexError, ValueError):
        return None
    return b"".join(parts)


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a message (protobuf.dev/programming-guides/encoding), the others skipped."""
    at, end, seen = 0, len(message), 0
    while at < end:
        tag, at = _read_varint(message, at)
        kind, field = tag & 7, tag >> 3
        seen += 1
        if field == 0 or seen > _MAX_SCOPES:
            raise ValueError("no field of a request")
        if kind == 0:
            _, at = _read_varint(message, at)
        elif kind == _LENGTH_DELIMITED:
            length, at = _read_varint(message, at)
            if at + length > end:
                raise ValueError("a field that ends after its message")
            yield field, message[at : at + length]
            at += length
        else:
            at += _FIXED_BYTES.get(kind, end + 1)
    if at != end:
        raise ValueError("a message that ends within a field")


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = message[at]
    if value < 0x80:
        return value, at + 1
    value &= 0x7F
    for shift in range(7, 70, 7):
        at += 1
        byte = message[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
    raise ValueError("a number of more than ten bytes")


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


# --- SQL -----------------------------------------------------------------------------------------------------------


def _columns() -> dict[str, str]:
    """The columns of a wire table for its definition, and their names in SQL, of all and of those in a span."""
    of_spans = [(f"span_{name}", f"scoped.spans.{path}", f"Array({kind})") for name, path, kind in _SPAN]
    of_spans += _attributes("span", "scoped.spans", "Array(Array(", "))")
    fields = [
        ("number", "number", "UInt32"),
        ("tenant", "tenant", "String"),
        ("scope_name", "scoped.scope.name", "String"),
        ("scope_version", "scoped.scope.version", "String"),
        *_attributes("resource", "resource", "Array(", ")"),
        *of_spans,
    ]
    return {
        "columns": ", ".join(f"`{path}` {kind}" for _, path, kind in fields),
        "named": ", ".join(f"`{path}` AS {name}" for name, path, _ in fields),
        "in_span": ", ".join(name for name, _, _ in of_spans),
    }


def _attributes(owner: str, path: str, before: str, after: str) -> list[tuple[str, str, str]]:
    return [(f"{owner}_{name}", f"{path}.attributes.{below}", before + kind + after) for name, below, kind in _VALUE]


def _text(name: str, names: Mapping[str, str]) -> str:
    """The statements of sql/arrivals/`name`.sql with $names and $macros(argument) filled in."""

    def macro(found: re.Match[str]) -> str:
        return _code(found[1]).replace("$1", found[2])

    text = re.sub(r"\$(texts|fits)\(([\w.]+)\)", macro, _code(name))
    return re.sub(r"\$([a-z_]+)", lambda found: names[found[1]], text)


def _code(name: str) -> str:
    return re.sub(r"--[^\n]*", "", (_SQL / f"{name}.sql").read_text("utf-8"))
