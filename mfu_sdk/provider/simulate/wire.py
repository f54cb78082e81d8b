"""OTLP's bytes, from pieces that are encoded once: a fleet sends millions of spans that are alike.

Field numbers: opentelemetry/proto/{trace,metrics,common,resource}/v1/*.proto. Wire types: protobuf.dev,
programming-guides/encoding. A test reads every kind of message back with the messages of opentelemetry-proto.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from mfu_sdk import semconv

Value = str | int | float | Sequence[str]
_FIXED64 = struct.Struct("<Q").pack
_DOUBLE = struct.Struct("<d").pack


def varint(value: int) -> bytes:
    """A whole number, a negative one as its two's complement in 64 bits."""
    if 0 <= value < 0x80:
        return bytes((value,))
    value &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def message(field: int, body: bytes) -> bytes:
    """A text, bytes or a message as `field`."""
    return varint(field << 3 | 2) + varint(len(body)) + body


# --- attributes ----------------------------------------------------------------------------------------------------


@lru_cache(512)
def _double_head(name: str, field: int) -> bytes:
    return _pair(name, b"\x21" + _DOUBLE(0.0), field)[:-8]


def double(name: str, value: float, field: int = 9) -> bytes:
    """A double attribute of a span (field 9) or of a point (field 7)."""
    return _double_head(name, field) + _DOUBLE(value)


@lru_cache(1024)
def _whole_head(name: str, length: int, field: int) -> bytes:
    return _pair(name, b"\x18" + bytes(length), field)[:-length]


def whole(name: str, value: int, field: int = 9) -> bytes:
    """An int attribute."""
    digits = varint(value)
    return _whole_head(name, len(digits), field) + digits


@lru_cache(8192)
def text(name: str, value: str, field: int = 9) -> bytes:
    """A string attribute."""
    return _pair(name, message(1, value.encode()), field)


def wholes(name: str, values: Iterable[int]) -> bytes:
    """An int array attribute of a span."""
    return _pair(name, message(5, b"".join([_entry(value) for value in values])), 9)


def texts(name: str, values: Sequence[str]) -> bytes:
    """A string array attribute of a span."""
    return _pair(name, message(5, b"".join(message(1, message(1, value.encode())) for value in values)), 9)


def attributes(values: Mapping[str, Value | None], field: int = 9) -> bytes:
    """Attributes of any of these types; what is None is left out."""
    found = []
    for name, value in values.items():
        if isinstance(value, str):
            found.append(text(name, value, field))
        elif isinstance(value, int):
            found.append(whole(name, value, field))
        elif isinstance(value, float):
            found.append(double(name, value, field))
        elif value is not None:
            found.append(texts(name, value))
    return b"".join(found)


def _pair(name: str, any_value: bytes, field: int) -> bytes:
    return message(field, message(1, name.encode()) + message(2, any_value))


@lru_cache(65536)
def _entry(value: int) -> bytes:
    return message(1, b"\x18" + varint(value))


# --- spans ---------------------------------------------------------------------------------------------------------

# Kind internal, status unset, and that it is known whether a parent is remote: as the SDK's spans have them.
_TAIL = message(15, b"") + varint(16 << 3 | 5) + (0x100).to_bytes(4, "little")


@lru_cache(64)
def _span_head(name: str) -> bytes:
    return message(5, name.encode()) + b"\x30\x01\x39"


def span(name: str, ids: tuple[bytes, bytes], start_ns: int, end_ns: int, body: bytes, parent: bytes = b"") -> bytes:
    """One span: `ids` are trace and span id, `body` its attributes and links."""
    above = message(4, parent) if parent else b""
    return b"".join((
        b"\x0a\x10", ids[0], b"\x12\x08", ids[1], above, _span_head(name), _FIXED64(start_ns),
        b"\x41", _FIXED64(end_ns), body, _TAIL,
    ))  # fmt: skip


def link(trace_id: bytes, span_id: bytes) -> bytes:
    """A link of a span."""
    return message(
        13, b"\x0a\x10" + trace_id + b"\x12\x08" + span_id + varint(6 << 3 | 5) + (0x100).to_bytes(4, "little")
    )


# --- envelopes -----------------------------------------------------------------------------------------------------

_SCOPE = message(1, message(1, semconv.SCOPE.encode()) + message(2, b"simulated"))


def resource(values: Mapping[str, Value | None]) -> bytes:
    """A Resource, as the first field of what it is the resource of."""
    return message(1, attributes(values, field=1))


def group(resource_field: bytes, items: Iterable[bytes]) -> bytes:
    """ResourceSpans or ResourceMetrics with one scope; requests are such groups, one after the other."""
    scope = _SCOPE + b"".join([message(2, item) for item in items])
    return message(1, resource_field + message(2, scope))


def gauge(name: str, unit: str, points: Iterable[bytes]) -> bytes:
    """A Metric that is a gauge."""
    body = b"".join([message(1, point) for point in points])
    return message(1, name.encode()) + message(3, unit.encode()) + message(5, body)


def point(time_ns: int, value: float, point_attributes: bytes) -> bytes:
    """One point of a gauge."""
    return b"\x19" + _FIXED64(time_ns) + b"\x21" + _DOUBLE(value) + point_attributes
