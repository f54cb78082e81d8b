"""What takes long and changes slowly, kept while its range moves on a little: causes, and what exporters told."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from mfu_sdk.provider.books import Holdings
from mfu_sdk.provider.findings import FRESH_NS
from mfu_sdk.provider.rollup import Range

T = TypeVar("T")

_DAY_NS: Final = 86_400 * 10**9
_MOST: Final = 16

_Key = tuple[str | None, int]


@dataclass(frozen=True, slots=True)
class _Made(Generic[T]):
    span: Range
    at_unix_ns: int
    holdings: Holdings | None
    value: T


class Slow(Generic[T]):
    """What was made of a range, until that has moved on by a 144th of itself, or by ten minutes.

    So what is told of a day is ten minutes old at most, and of an hour 25 seconds, by the clock that ranges are of; it
    is made anew where the inventory changed. Each reader's is kept apart. Safe to use from several threads: one that
    finds another at work on its range waits for it.
    """

    def __init__(self, now_unix_ns: Callable[[], int]) -> None:
        self._now_unix_ns = now_unix_ns
        self._lock = threading.Lock()
        self._locks: OrderedDict[_Key, threading.Lock] = OrderedDict()
        self._kept: dict[_Key, _Made[T]] = {}

    def get(self, reader: str | None, span: Range, holdings: Holdings | None, make: Callable[[], T]) -> T:
        """What `make` makes of `span` now, or made lately: for a tenant, or for who sees all where it is None."""
        key = reader, span.until_unix_ns - span.since_unix_ns
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
            self._locks.move_to_end(key)
            while len(self._locks) > _MOST:
                oldest, _ = self._locks.popitem(last=False)
                self._kept.pop(oldest, None)
        with lock:
            found = self._kept.get(key)
            if found is None or not self._holds(found, span, holdings):
                # As of its beginning: what comes while it is made may not be in it.
                began = self._now_unix_ns()
                found = _Made(span, began, holdings, make())
                with self._lock:
                    if key in self._locks:
                        self._kept[key] = found
            return found.value

    def _holds(self, found: _Made[T], span: Range, holdings: Holdings | None) -> bool:
        fresh_ns = min(FRESH_NS, (span.until_unix_ns - span.since_unix_ns) * FRESH_NS // _DAY_NS)
        moved_ns = span.until_unix_ns - found.span.until_unix_ns
        age_ns = self._now_unix_ns() - found.at_unix_ns
        return 0 <= moved_ns <= fresh_ns and 0 <= age_ns <= fresh_ns and found.holdings is holdings
