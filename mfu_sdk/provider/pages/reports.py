"""Reports that are shown for a few seconds: what one page was made of, the next is made of too."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from mfu_sdk.provider.pages.view import View
from mfu_sdk.provider.report import Report
from mfu_sdk.provider.rollup import Range

Build = Callable[[Range, str | None, str | None, bool], Report]
"""The report on a range, of one tenant or all, on one GPU type or all; with the provider's books or without."""

LEAST_FRESH_NS: Final = 10 * 10**9
MOST_FRESH_NS: Final = 60 * 10**9
"""How old a report may be when it is shown, a 2,000th of its range in between; its own window says until when it is."""
_MOST: Final = 16

_Key = tuple[str, str | None, str | None, str | None, bool]


class Reports:
    """Builds a report once for all who ask for the same while it is fresh, by the clock that ranges are of."""

    def __init__(self, build: Build, now_unix_ns: Callable[[], int]) -> None:
        self._build = build
        self._now_unix_ns = now_unix_ns
        self._lock = threading.Lock()
        self._locks: OrderedDict[_Key, threading.Lock] = OrderedDict()
        self._kept: dict[_Key, tuple[int, Report]] = {}

    def get(self, view: View, span: Range, tenant: str | None, has_books: bool) -> Report:
        """The report of `tenant`, or of all where it is None, on what `view` names; `span` is its range as of now."""
        key = (view.since, view.until, tenant, view.gpu_type, has_books)
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
            self._locks.move_to_end(key)
            while len(self._locks) > _MOST:
                oldest, _ = self._locks.popitem(last=False)
                self._kept.pop(oldest, None)
        fresh_ns = min(max(LEAST_FRESH_NS, (span.until_unix_ns - span.since_unix_ns) // 2000), MOST_FRESH_NS)
        with lock:
            kept = self._kept.get(key)
            if kept is None or not 0 <= self._now_unix_ns() - kept[0] <= fresh_ns:
                found = self._build(span, tenant, view.gpu_type, has_books)
                # As of its end: what takes long to make would else be old when it is.
                kept = self._now_unix_ns(), found
                with self._lock:
                    if key in self._locks:
                        self._kept[key] = kept
            return kept[1]
