"""Spans into OTLP, from pieces that are encoded once: names, repeated texts, the resource.

Not the SDK's encoder (1.45.2): it makes a message object of each attribute, which takes ten times as long, and all of
that time a loop that is bound by its host waits for the interpreter's lock. What comes out is the same to whoever
reads it (opentelemetry/proto/trace/v1/trace.proto); a test holds every kind of span against the SDK's encoder.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import INVALID_SPAN_CONTEXT

from mfu_sdk.export.resource import SCOPE
from mfu_sdk.export.wire import DOUBLE, FIXED64, delimited, fixed32, fixed64_tag, integer, varint

Value = str | bool | int | float | list[int] | list[str]


class Common:
    """Attributes that neighbouring spans have alike, encoded once: those of steps of the same work, most of all."""

    __slots__ = ("attributes", "encoded")

    def __init__(self, attributes: Mapping[str, Value]) -> None:
        self.attributes = attributes
        self.encoded = b"".join(_fields(attributes))


class Layered(Mapping[str, Value]):
    """The attributes of a span that has some in common with others, and some of its own."""

    __slots__ = ("common", "own")

    def __init__(self, common: Common, own: Mapping[str, Value]) -> None:
        self.common = common
        self.own = own

    def __getitem__(self, name: str) -> Value:
        return self.own[name] if name in self.own else self.common.attributes[name]

    def __iter__(self) -> Iterator[str]:
        yield from self.common.attributes
        yield from self.own

    def __len__(self) -> int:
        return len(self.common.attributes) + len(self.own)


class Span(NamedTuple):
    """A span that is over: plain data, as `Spans` makes them.

    Ids are whole numbers, `links` are (trace id, span id). `failed`: whether its status is an error.
    """

    name: str
    trace_id: int
    span_id: int
    parent_id: int | None
    start_unix_ns: int
    end_unix_ns: int
    attributes: Mapping[str, Value]
    links: tuple[tuple[int, int], ...] = ()
    failed: bool = False


class Envelope:
    """What is around the spans of one sender: its resource and its scope. Log records have the same around them.

    For ResourceLogs and ScopeLogs have the fields of ResourceSpans and ScopeSpans, under the same numbers
    (opentelemetry/proto/logs/v1/logs.proto).
    """

    def __init__(self, resource: Resource) -> None:
        # Once a run, so the SDK may do it: what a user has put into the resource can be of any type.
        empty = ReadableSpan("", context=INVALID_SPAN_CONTEXT, resource=resource, instrumentation_scope=SCOPE)
        (sender,) = encode_spans([empty]).resource_spans
        (scope,) = sender.scope_spans
        del scope.spans[:]
        self._scope: bytes = scope.SerializeToString()
        del sender.scope_spans[:]
        self._sender: bytes = sender.SerializeToString()

    def request(self, spans: Sequence[bytes]) -> bytes:
        """An ExportTraceServiceRequest of spans that `encode` made; two of them, one after the other, are one too.

        Of log records that `logs.encode` made, an ExportLogsServiceRequest.
        """
        # ScopeSpans.spans and ResourceSpans.scope_spans are both field 2, as ExportTraceServiceRequest's is 1.
        scope = b"".join([self._scope, *[b"%b%b%b" % (_SPAN, varint(len(span)), span) for span in spans]])
        return delimited(1, self._sender + delimited(2, scope))


def head(span: Span) -> list[bytes]:
    """What comes before the start of a span, in three pieces: its trace up to its own id, that id, and the rest."""
    parent = b"" if span.parent_id is None else _PARENT_ID + span.parent_id.to_bytes(8, "big")
    return [_TRACE_ID + span.trace_id.to_bytes(16, "big") + _SPAN_ID, span_id(span.span_id), parent + _named(span.name)]


def span_id(of: int) -> bytes:
    """The bytes of a span's id."""
    return of.to_bytes(8, "big")


def encode(span: Span) -> bytes:
    """The bytes of one Span message.

    Raises `OverflowError` or `struct.error` for ids and times that no OTLP field can hold.
    """
    attributes = span.attributes
    common = b""
    if type(attributes) is Layered:
        common, attributes = attributes.common.encoded, attributes.own
    parts = [
        *head(span),
        FIXED64(span.start_unix_ns),
        END,
        FIXED64(span.end_unix_ns),
        common,
        *_fields(attributes),
    ]
    for trace_id, span_id in span.links:
        parts.append(
            delimited(13, _TRACE_ID + trace_id.to_bytes(16, "big") + _SPAN_ID + span_id.to_bytes(8, "big") + _LINK)
        )
    parts.append(_FAILED if span.failed else UNSET)
    return b"".join(parts)


def _fields(attributes: Mapping[str, Value]) -> list[bytes]:
    """The fields of a Span message that hold these attributes."""
    parts: list[bytes] = []
    add = parts.append
    for name, value in attributes.items():
        # The most frequent first; bool is an int, so no type is asked for by isinstance.
        kind = type(value)
        if kind is float:
            add(BEFORE_DOUBLE[name])
            add(DOUBLE(value))
        elif kind is str:
            add(_text(name, value))  # type: ignore[arg-type]  # kind says so
        elif kind is int:
            add(whole(name, value))  # type: ignore[arg-type]  # as above
        else:
            add(_attribute(name, _ANY[kind](value)))
    return parts


def whole(name: str, value: int) -> bytes:
    """An int attribute."""
    number = varint(value)
    before = _BEFORE_WHOLE.get((name, len(number)))
    if before is None:
        found = _attribute(name, b"\x18" + number)
        before = _BEFORE_WHOLE[name, len(number)] = found[: -len(number)]
    return before + number


# --- pieces --------------------------------------------------------------------------------------------------------

_SPAN: Final = b"\x12"
_TRACE_ID: Final = b"\x0a\x10"
_SPAN_ID: Final = b"\x12\x08"
_PARENT_ID: Final = b"\x22\x08"
END: Final = fixed64_tag(8)
"""What comes before the 8 bytes of a span's end."""
# Of the flags the SDK sets but one: that it is known whether the parent (of a link: the other span) is remote.
_HAS_IS_REMOTE: Final = 0x100
_LINK: Final = fixed32(6, _HAS_IS_REMOTE)
UNSET: Final = delimited(15, b"") + fixed32(16, _HAS_IS_REMOTE)
"""The end of a span without an error."""
_FAILED: Final = delimited(15, integer(3, 2)) + fixed32(16, _HAS_IS_REMOTE)


@lru_cache(64)
def _named(name: str) -> bytes:
    """Name and kind (internal) of a span, up to its start."""
    return delimited(5, name.encode()) + integer(6, 1) + fixed64_tag(7)


class _Doubles(dict[str, bytes]):
    """Double attributes by name, up to their 8 bytes; of names there are no more than the registry has."""

    def __missing__(self, name: str) -> bytes:
        zero = DOUBLE(0.0)
        found = self[name] = _attribute(name, fixed64_tag(4) + zero)[: -len(zero)]
        return found


BEFORE_DOUBLE: Final = _Doubles()
"""By name, all of a double attribute but its 8 bytes, which are its last."""


# The same of int attributes, by name and by how many bytes the number has.
_BEFORE_WHOLE: Final[dict[tuple[str, int], bytes]] = {}


class _Keys(dict[str, bytes]):
    """The keys of attributes, by name."""

    def __missing__(self, name: str) -> bytes:
        found = self[name] = delimited(1, name.encode())
        return found


_KEYS: Final = _Keys()


@lru_cache(1024)
def _text(name: str, text: str) -> bytes:
    """A string attribute: there are few, and they repeat."""
    return _attribute(name, _any_text(text))


def any_value(value: Value) -> bytes:
    """An AnyValue message."""
    kind = type(value)
    if kind is float:
        return fixed64_tag(4) + DOUBLE(value)
    if kind is str:
        return _any_text(value)  # type: ignore[arg-type]  # kind says so
    return b"\x18" + varint(value) if kind is int else _ANY[kind](value)  # type: ignore[arg-type]  # as above


def _attribute(name: str, encoded: bytes) -> bytes:
    return delimited(9, _KEYS[name] + delimited(2, encoded))


def _any_text(text: str) -> bytes:
    # A half of a surrogate pair is text to Python and to nobody else.
    return delimited(1, text.encode(errors="replace"))


def _any_array(values: list[int] | list[str]) -> bytes:
    return delimited(5, b"".join([_entry(value) for value in values]))


@lru_cache(4096)
def _entry(value: int | str) -> bytes:
    """One entry of an array. Steps are alike, so their durations and utilizations repeat."""
    return delimited(1, _any_text(value) if isinstance(value, str) else b"\x18" + varint(value))


_ANY: Final[Mapping[type, Callable[..., bytes]]] = {
    bool: lambda value: b"\x10\x01" if value else b"\x10\x00",
    list: _any_array,
}
