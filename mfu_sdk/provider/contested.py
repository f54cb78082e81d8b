"""Steps on GPUs that are somebody else's: by the provider's records, or because two tenants tell of one GPU at once.

A UUID that the records know, in a node's list or in any allocation, is held against them: a tenant may have worked on
it while an allocation of its own names it, or, as long as no other tenant's does, while it holds GPUs of that node that
its allocation does not name. A MIG slice is known by its own UUID, else by that of its GPU. Hours are held against the
part of them that the tenant held, so that what is found was outside for certain.

Of a UUID that two tenants tell of at once nobody knows whose it is, unless the records name it: both are contested. An
allocation that changes hands touches two stretches of five minutes where the clocks of two hosts differ, so that three
in a row are asked for.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from mfu_sdk.provider.books import Allocation, Holdings
from mfu_sdk.provider.rollup import Range, Usage
from mfu_sdk.provider.store import Row, Store

Why = Literal["held_by_another", "not_held", "claimed_twice"]
"""Another tenant's allocation names the GPU; no allocation of the tenant's can mean it; two tenants tell of it."""

Pair = tuple[str, str]
"""Tenant and device."""

IN_A_ROW: Final = 3
"""Stretches of five minutes in which two tenants tell of a device, from which on it is no change of hands."""
LEAST_SHARE: Final = 0.005
"""The share of a tenant's steps on a device below which the records' times are a little off."""

_FIVE_S: Final = 300
_UUIDS: Final = ("GPU-", "MIG-")
"""How NVIDIA's UUIDs begin. What else spans name a device by, two tenants' hosts may well have in common."""
_Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Contested:
    """A tenant's steps on one device that are contested: `hours` of the `of_hours` that it tells of there.

    `host` is the node by the records, else as the run tells it. `others` are the tenants that hold or claim it too: for
    who sees the whole fleet.
    """

    tenant: str
    host: str | None
    device: str
    why: Why
    hours: float
    of_hours: float
    others: tuple[str, ...] = ()


def contested(store: Store, span: Range, holdings: Holdings | None, usages: Sequence[Usage]) -> tuple[Contested, ...]:
    """What is contested over `span`, most hours first; `usages` are the sums of all tenants."""
    records = None if holdings is None else _Records(holdings, span)
    told: dict[Pair, list[Usage]] = {}
    for usage in usages:
        told.setdefault((usage.tenant, usage.device), []).append(usage)
    found = {} if records is None else _astray(store, span, records, told)
    tenants: dict[str, set[str]] = {}
    for tenant, device in told:
        tenants.setdefault(device, set()).add(tenant)
    # Where the records name everybody's time, they have said all that there is to say.
    open_ones = sorted(
        device
        for device, of in tenants.items()
        if len(of) > 1
        and device.startswith(_UUIDS)
        and (records is None or any(not records.names(told[tenant, device][0]) for tenant in of))
    )
    for pair, (seconds, others) in _twice(store, span, open_ones).items():
        if pair not in found and not (records is not None and records.names(told[pair][0])):
            found[pair] = _one(told[pair], "claimed_twice", seconds, others, records)
    rows = (row for row in found.values() if row.hours > LEAST_SHARE * row.of_hours)
    return tuple(sorted(rows, key=lambda row: (-row.hours, row.tenant, row.device)))


class _Records:
    """What the inventory says of the devices that spans tell of."""

    def __init__(self, holdings: Holdings, span: Range) -> None:
        self._holdings = holdings
        # Hours are the finest that is looked at.
        hour_ns = 3600 * 10**9
        self._since, self._until = span.since_unix_ns // hour_ns * hour_ns, -(-span.until_unix_ns // hour_ns) * hour_ns
        self._asked = span
        self._by_uuid: dict[str, list[Allocation]] = {}
        self._unnamed: dict[Pair, list[Allocation]] = {}
        for allocation in holdings.inventory.allocations:
            for uuid in allocation.gpu_uuids:
                self._by_uuid.setdefault(uuid, []).append(allocation)
            if len(allocation.gpu_uuids) < allocation.gpus:
                self._unnamed.setdefault((allocation.tenant, allocation.host), []).append(allocation)

    def host(self, usage: Usage) -> str | None:
        """The node that has the device; None where no record knows its UUID."""
        for uuid in (usage.device, usage.parent or ""):
            if (node := self._holdings.node_of(uuid)) is not None:
                return node.host
            if rows := self._by_uuid.get(uuid):
                return rows[0].host
        return None

    def names(self, usage: Usage) -> bool:
        """Whether an allocation of the tenant's names the device at any time of the range."""
        return any(True for row in self._naming(usage) if row.tenant == usage.tenant)

    def others(self, usage: Usage) -> tuple[str, ...]:
        """The other tenants whose allocations name it in the range."""
        return tuple(sorted({row.tenant for row in self._naming(usage)} - {usage.tenant}))

    def held(self, usage: Usage) -> list[_Span]:
        """When the tenant may have worked on the device, in order and apart."""
        own = [self._span(row) for row in self._naming(usage) if row.tenant == usage.tenant]
        theirs = _joined(self._span(row) for row in self._naming(usage) if row.tenant != usage.tenant)
        on_node = self._unnamed.get((usage.tenant, self.host(usage) or ""), ())
        for row in on_node:
            own += _without(self._span(row), theirs)
        return _joined(own)

    def covers_all(self, spans: Sequence[_Span]) -> bool:
        """Whether one of `spans` is all of the range that was asked for."""
        return any(since <= self._asked.since_unix_ns and self._asked.until_unix_ns <= until for since, until in spans)

    def _naming(self, usage: Usage) -> Iterator[Allocation]:
        rows = self._by_uuid.get(usage.device) or self._by_uuid.get(usage.parent or "") or ()
        return (row for row in rows if self._span(row)[0] < self._span(row)[1])

    def _span(self, row: Allocation) -> _Span:
        until = self._until if row.until_unix_ns is None else min(self._until, row.until_unix_ns)
        return max(self._since, row.since_unix_ns), until


def _astray(
    store: Store, span: Range, records: _Records, told: Mapping[Pair, Sequence[Usage]]
) -> dict[Pair, Contested]:
    """Steps on devices that the records know, at times when their tenant cannot have held them."""
    asked: list[tuple[str, str, str, str]] = []
    seconds: dict[Pair, float] = {}
    for (tenant, device), usages in told.items():
        if records.host(usages[0]) is None or records.covers_all(spans := records.held(usages[0])):
            continue
        if not spans:
            seconds[tenant, device] = sum(usage.sums.device_s or 0.0 for usage in usages)
        asked += [(tenant, device, str(since // 10**9), str(-(-until // 10**9))) for since, until in spans]
    for row in _read(store, span, asked):
        pair = row["tenant"], row["device"]
        seconds[pair] = seconds.get(pair, 0.0) + row["astray_s"]
    found = {}
    for pair, astray_s in seconds.items():
        others = records.others(told[pair][0])
        found[pair] = _one(told[pair], "held_by_another" if others else "not_held", astray_s, others, records)
    return found


def _read(store: Store, span: Range, asked: Sequence[tuple[str, str, str, str]]) -> list[Row]:
    if not asked:
        return []
    tenants, devices, since_s, until_s = (list(column) for column in zip(*asked, strict=True))
    return store.read(
        "astray", since=span.since_unix_ns, until=span.until_unix_ns, tenants=tenants, keys=devices, since_s=since_s,
        until_s=until_s,
    )  # fmt: skip


def _twice(store: Store, span: Range, devices: Sequence[str]) -> dict[Pair, tuple[float, tuple[str, ...]]]:
    if not devices:
        return {}
    rows = store.read("claimed_twice", since=span.since_unix_ns, until=span.until_unix_ns, keys=list(devices))
    stretches: dict[str, dict[int, dict[str, float]]] = {}
    for row in rows:
        told = dict(zip(row["tenants"], row["tenant_s"], strict=True))
        stretches.setdefault(row["device"], {})[row["start_s"]] = told
    return {
        (tenant, device): known for device, at in stretches.items() for tenant, known in at_once(at).items()
    }  # fmt: skip


def at_once(told: Mapping[int, Mapping[str, float]]) -> dict[str, tuple[float, tuple[str, ...]]]:
    """Seconds of steps of each tenant at the same time as another's, and whose, on one device.

    `told` are seconds by the start of a stretch of five minutes (seconds since 1970) and tenant.
    """
    seconds: dict[str, float] = {}
    others: dict[str, set[str]] = {}
    for run in _runs(sorted(start for start, of in told.items() if len(of) > 1)):
        for start in run if len(run) >= IN_A_ROW else ():
            for tenant, of in told[start].items():
                seconds[tenant] = seconds.get(tenant, 0.0) + of
                others.setdefault(tenant, set()).update(told[start].keys() - {tenant})
    return {tenant: (of, tuple(sorted(others[tenant]))) for tenant, of in seconds.items()}


def _runs(starts: Iterable[int]) -> Iterator[list[int]]:
    """`starts`, in order, parted where more than five minutes lie between."""
    run: list[int] = []
    for start in starts:
        if run and start - run[-1] > _FIVE_S:
            yield run
            run = []
        run.append(start)
    if run:
        yield run


def _one(
    usages: Sequence[Usage], why: Why, seconds: float, others: tuple[str, ...], records: _Records | None
) -> Contested:
    usage = usages[0]
    whole_s = sum(each.sums.device_s or 0.0 for each in usages)
    host = None if records is None else records.host(usage)
    return Contested(
        usage.tenant, host or usage.host, usage.device, why, min(seconds, whole_s) / 3600, whole_s / 3600, others
    )


def _joined(spans: Iterable[_Span]) -> list[_Span]:
    joined: list[_Span] = []
    for since, until in sorted(spans):
        if joined and since <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(until, joined[-1][1])
        else:
            joined.append((since, until))
    return joined


def _without(span: _Span, taken: Iterable[_Span]) -> list[_Span]:
    """`span` less what is `taken`, in order."""
    left, (since, until) = [], span
    for begin, end in taken:
        if begin >= until:
            break
        if since < begin:
            left.append((since, begin))
        since = max(since, end)
    return [*left, (since, until)] if since < until else left
