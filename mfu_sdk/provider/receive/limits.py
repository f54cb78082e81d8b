"""What one tenant may send: sizes of a request, attributes of a span, names of workloads, spans a second."""

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from mfu_sdk.provider.arrivals import OLDEST_DAYS, AttributeLimits

OTHER: Final = "other"
"""The workload that what is beyond a tenant's names is kept under, so that its sums stay in the tenant's."""

_FORGOTTEN_S: Final = 30 * 86_400


@dataclass(frozen=True, slots=True)
class Limits:
    """`body_bytes` holds as a request comes and once it is unpacked; `spans_per_s` None: no limit.

    Spans of more than `span_days` ago are refused, and of more than the store keeps spans: of those nothing would
    tell a retry from news.
    """

    body_bytes: int = 20 * 1024 * 1024
    attributes: AttributeLimits = field(default_factory=lambda: AttributeLimits(count=128, name=256, value=32_768))
    workloads: int = 1_000
    spans_per_s: float | None = None
    span_days: int = OLDEST_DAYS


class Cut:
    """Cuts what is longer than the limits, as OpenTelemetry's limits of attributes do, and counts what was cut."""

    def __init__(self, limits: AttributeLimits) -> None:
        self._limits = limits
        self.counts: Counter[str] = Counter()

    def attributes(self, found: Mapping[str, str]) -> dict[str, str]:
        """`found` with the first so many attributes, and their names and values up to their lengths."""
        if len(found) > self._limits.count:
            self.counts[f"attributes beyond {self._limits.count} left out"] += len(found) - self._limits.count
            found = dict(list(found.items())[: self._limits.count])
        return {self.name(key): self.value(value) for key, value in found.items()}

    def name(self, text: str) -> str:
        """A name up to its length."""
        if len(text) <= self._limits.name:
            return text
        self.counts[f"names cut to {self._limits.name} characters"] += 1
        return text[: self._limits.name]

    def value(self, text: str) -> str:
        """A value up to its length."""
        if len(text) <= self._limits.value:
            return text
        self.counts[f"values cut to {self._limits.value} characters"] += 1
        return text[: self._limits.value]


class Workloads:
    """The names of workloads that each tenant has: `limit` of them, one that was not seen for 30 days makes room.

    `known` are those that the store holds; `clock` gives seconds.
    """

    def __init__(self, limit: int, known: Iterable[tuple[str, str]], clock: Callable[[], float]) -> None:
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[str, dict[str, float]] = {}
        self._full: dict[str, float] = {}
        for tenant, name in known:
            self.admit(tenant, [name])

    def admit(self, tenant: str, names: Iterable[str]) -> frozenset[str]:
        """Those of `names` that are beyond the tenant's limit; the others count as its own from now on."""
        now = self._clock()
        beyond: set[str] = set()
        with self._lock:
            seen = self._seen.setdefault(tenant, {})
            for name in names:
                if name in ("", OTHER):
                    continue
                if name not in seen and len(seen) >= self._limit and now >= self._full.get(tenant, now):
                    self._seen[tenant] = seen = {n: at for n, at in seen.items() if now - at < _FORGOTTEN_S}
                    # Not for each name of a million: what is old is looked for once an hour.
                    self._full[tenant] = now + 3600.0
                if name in seen or len(seen) < self._limit:
                    seen[name] = now
                else:
                    beyond.add(name)
        return frozenset(beyond)


class Rate:
    """Spans a second for each tenant, by a bucket that holds ten seconds' worth; `clock` gives seconds.

    How many spans a request holds is known once it was read, so a request is let in while anything is left, and what it
    took beyond that is owed.
    """

    _BURST_S: Final = 10.0

    def __init__(self, spans_per_s: float | None, clock: Callable[[], float]) -> None:
        self._per_s = spans_per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait_s(self, tenant: str) -> int:
        """Whole seconds until `tenant` may send again; 0: now."""
        if self._per_s is None:
            return 0
        with self._lock:
            left = self._left(tenant)
        return 0 if left > 0 else max(1, math.ceil(-left / self._per_s))

    def spend(self, tenant: str, spans: int) -> None:
        """`tenant` sent `spans`; a request costs one at least."""
        if self._per_s is None:
            return
        with self._lock:
            self._buckets[tenant] = (self._left(tenant) - max(spans, 1), self._clock())

    def _left(self, tenant: str) -> float:
        assert self._per_s is not None
        full = self._per_s * self._BURST_S
        left, at = self._buckets.get(tenant, (full, self._clock()))
        return min(full, left + (self._clock() - at) * self._per_s)
