"""Encoded span requests that wait for their collector, bounded in bytes, the least valuable shed first."""

from collections import deque
from dataclasses import dataclass
from typing import Final

MAX_BYTES: Final = 4 * 1024 * 1024
"""What may wait, compressed as it will be sent. Hours of windows, or some ten thousand steps' spans."""


@dataclass(frozen=True, slots=True)
class Request:
    """The body of one request and how many spans are in it."""

    body: bytes
    spans: int


class Outbox:
    """Two queues: details (steps and requests) go after, and are shed before, what sums are made of.

    A request is encoded once: a retry sends the same bytes, so the same ids.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._essential: deque[Request] = deque()
        self._detail: deque[Request] = deque()

    def put(self, request: Request, *, essential: bool) -> int:
        """Add `request` and shed until it fits: how many spans were lost, the oldest first."""
        (self._essential if essential else self._detail).append(request)
        self._bytes += len(request.body)
        lost = 0
        while self._bytes > self._max_bytes:
            lost += self._take(self._detail or self._essential)
        return lost

    def peek(self) -> Request | None:
        """The request to send next."""
        lane = self._essential or self._detail
        return lane[0] if lane else None

    def pop(self) -> int:
        """Remove the request that `peek` gave: its spans."""
        return self._take(self._essential or self._detail)

    def clear(self) -> int:
        """Give up everything: how many spans that loses."""
        lost = sum(request.spans for lane in (self._essential, self._detail) for request in lane)
        self._essential.clear()
        self._detail.clear()
        self._bytes = 0
        return lost

    def _take(self, lane: deque[Request]) -> int:
        request = lane.popleft()
        self._bytes -= len(request.body)
        return request.spans
