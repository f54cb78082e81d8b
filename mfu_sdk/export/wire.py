"""Protobuf's wire format, as much of it as spans need.

https://protobuf.dev/programming-guides/encoding/: a message is a row of fields, each a tag (number and wire type) and
a value. Values come as varints (7 bits a byte, the lowest first), as 4 or 8 bytes of fixed length, or as bytes with
their length before them, which is what texts and messages within messages are.
"""

import struct
from typing import Final

FIXED64: Final = struct.Struct("<Q").pack
DOUBLE: Final = struct.Struct("<d").pack

_VARINT, _I64, _DELIMITED, _I32 = 0, 1, 2, 5
_SMALL: Final = tuple(bytes((value,)) for value in range(0x80))


def varint(value: int) -> bytes:
    """`value`, which is below 2^64; a negative one, above -2^63, as its two's complement in 64 bits."""
    if 0 <= value < 0x80:
        return _SMALL[value]
    if 0 <= value < 0x4000:
        # Most lengths and indices: without the loop.
        return bytes((value & 0x7F | 0x80, value >> 7))
    if 0 <= value < 0x20_0000:
        return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14))
    value &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def integer(field: int, value: int) -> bytes:
    """An int64, an enum or a bool."""
    return varint(field << 3 | _VARINT) + varint(value)


def delimited(field: int, body: bytes) -> bytes:
    """A text in UTF-8, bytes, or a message."""
    return varint(field << 3 | _DELIMITED) + varint(len(body)) + body


def fixed64_tag(field: int) -> bytes:
    """What comes before the 8 bytes of a fixed64 or a double."""
    return varint(field << 3 | _I64)


def fixed32(field: int, value: int) -> bytes:
    """A fixed32."""
    return varint(field << 3 | _I32) + value.to_bytes(4, "little")
