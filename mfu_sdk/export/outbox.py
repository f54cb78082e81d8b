"""Encoded spans that wait for their collector, bounded in bytes, the least valuable shed first.

Log records wait in one of their own, and are spans to it.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MAX_BYTES: Final = 4 * 1024 * 1024
"""What may wait, before compression. Hours of windows, or the spans of some 4,500 steps (900 bytes each)."""

REQUEST_SPANS: Final = 512
"""Spans in one request: a request costs a receiver tens of milliseconds whatever is in it, and an exit has 2 s."""

REQUEST_BYTES: Final = 1024 * 1024
"""Bytes in one request, before compression: the least that a common proxy lets through (nginx's
`client_max_body_size` unless set, https://nginx.org/en/docs/http/ngx_http_core_module.html)."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Spans that were encoded together: the bytes of a whole message, how many spans are in it, and who wants to know
    that they have arrived.
    """

    body: bytes
    spans: int
    arrived: tuple[Callable[[], None], ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """The body of one request, not compressed, how many spans and chunks are in it, and whom to tell of its arrival."""

    body: bytes
    spans: int
    chunks: int
    arrived: tuple[Callable[[], None], ...] = ()


class Outbox:
    """Two queues: details (steps and requests) go after, and are shed before, what sums are made of.

    A span is encoded once: a retry sends the same bytes, so the same ids, and what has come to wait behind them.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._essential: deque[Chunk] = deque()
        self._detail: deque[Chunk] = deque()

    def put(self, chunk: Chunk, *, essential: bool) -> int:
        """Add `chunk` and shed until it fits: how many spans were lost, the oldest first."""
        (self._essential if essential else self._detail).append(chunk)
        self._bytes += len(chunk.body)
        lost = 0
        while self._bytes > self._max_bytes:
            lost += self._take(self._detail or self._essential)
        return lost

    def peek(self) -> Request | None:
        """The request to send next: as many chunks of one queue, the oldest first, as a request may hold.

        The encodings of two messages, one after the other, are that of the two merged, and merging appends the
        repeated field that is all there is in a request (https://protobuf.dev/programming-guides/encoding/#last-one-wins).
        """
        bodies: list[bytes] = []
        arrived: list[Callable[[], None]] = []
        spans = size = 0
        for chunk in self._essential or self._detail:
            spans += chunk.spans
            size += len(chunk.body)
            # The first goes whatever its size: it can be made no smaller.
            if bodies and (spans > REQUEST_SPANS or size > REQUEST_BYTES):
                spans -= chunk.spans
                break
            bodies.append(chunk.body)
            arrived += chunk.arrived
        return Request(b"".join(bodies), spans, len(bodies), tuple(arrived)) if bodies else None

    def pop(self, request: Request) -> None:
        """Remove `request`, which `peek` gave; nothing may have been put since."""
        lane = self._essential or self._detail
        for _ in range(request.chunks):
            self._take(lane)

    def clear(self) -> int:
        """Give up everything: how many spans that loses."""
        lost = sum(chunk.spans for lane in (self._essential, self._detail) for chunk in lane)
        self._essential.clear()
        self._detail.clear()
        self._bytes = 0
        return lost

    def _take(self, lane: deque[Chunk]) -> int:
        chunk = lane.popleft()
        self._bytes -= len(chunk.body)
        return chunk.spans
