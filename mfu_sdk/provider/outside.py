"""Steps outside of the time in which their tenant held anything on their host: what no record of the provider's covers.

An hour's steps are held against the part of that hour that the tenant held, on any GPU of the host, so that what is
found outside was outside for certain. Tenants that held a host all the time cannot be outside of it, and are not looked
at; steps of one that never held anything there are told by the economics, which find no allocation for them.
"""

from collections.abc import Mapping

from mfu_sdk.provider.books import Holdings
from mfu_sdk.provider.rollup import Range
from mfu_sdk.provider.store import Store

Key = tuple[str, str, str]
"""Tenant, host, device, as spans tell them."""


def outside(store: Store, span: Range, holdings: Holdings) -> dict[Key, float]:
    """Seconds of steps outside of the time held, by device; those without any are not in it."""
    spans = {key: found for key, found in _held(span, holdings).items() if not _is_whole(found, span)}
    if not spans:
        return {}
    tenants, hosts, since_s, until_s = [], [], [], []
    for (tenant, host), found in spans.items():
        for since, until in found:
            tenants.append(tenant)
            hosts.append(host)
            since_s.append(str(since // 10**9))
            until_s.append(str(-(-until // 10**9)))
    rows = store.read(
        "outside", since=span.since_unix_ns, until=span.until_unix_ns, tenants=tenants, hosts=hosts, since_s=since_s,
        until_s=until_s,
    )  # fmt: skip
    return {(row["tenant"], row["host"], row["device"]): row["outside_s"] for row in rows}


_Span = tuple[int, int]


def _held(span: Range, holdings: Holdings) -> Mapping[tuple[str, str], list[_Span]]:
    """When each tenant held anything on each host, in the hours that `span` touches: stretches that do not overlap."""
    hour_ns = 3600 * 10**9
    since, until = span.since_unix_ns // hour_ns * hour_ns, -(-span.until_unix_ns // hour_ns) * hour_ns
    found: dict[tuple[str, str], list[_Span]] = {}
    for allocation in holdings.inventory.allocations:
        begin = max(since, allocation.since_unix_ns or since)
        end = until if allocation.until_unix_ns is None else min(until, allocation.until_unix_ns)
        if begin < end:
            found.setdefault((allocation.tenant, allocation.host), []).append((begin, end))
    return {key: _merged(spans) for key, spans in found.items()}


def _merged(spans: list[_Span]) -> list[_Span]:
    merged: list[_Span] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((begin, end))
    return merged


def _is_whole(spans: list[_Span], span: Range) -> bool:
    return spans[0][0] <= span.since_unix_ns and span.until_unix_ns <= spans[0][1]
