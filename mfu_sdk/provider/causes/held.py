"""What the books add to evidence: slices that nothing fits on, and allocations that have nothing to do. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.provider.books import Allocation, Holdings, QueueSample, mig
from mfu_sdk.provider.causes.evidence import Evidence
from mfu_sdk.provider.rollup import Range, Usage

Name = tuple[str, str | None, str | None]
"""Tenant, workload and GPU type."""
SPARE: Final = 0.5
"""A device with less than half of its hours unused has headroom."""
_NOT_SEEN: Final[Mapping[str, float]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Heard:
    """For how long, in steps of five minutes, the processes of a workload on one device were heard of."""

    tenant: str
    workload: str | None
    host: str | None
    device: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Cut:
    """The GPUs of a host that are cut into slices: the share of one that is stranded, and what waits in vain."""

    stranded: float
    unplaceable: float
    wanted: str | None


@dataclass(frozen=True, slots=True)
class Idle:
    """The share of a workload's allocated hours on devices with nothing to do; its `devices`, and those at work."""

    share: float
    devices: int
    working: int


def held(
    evidence: Sequence[Evidence],
    usages: Sequence[Usage],
    holdings: Holdings,
    heard: Iterable[Heard],
    span: Range,
    unused: Mapping[str, float] = _NOT_SEEN,
) -> list[Evidence]:
    """`evidence` with what `holdings` know of its slices and allocations over `span`.

    `unused` are seconds in which the provider's exporter saw a device without work, by its UUID.
    """
    cuts = {host: cut for host in {host for e in evidence for host in e.hosts} if (cut := cut_of(holdings, host, span))}
    idle = idle_of(holdings, usages, heard, span, unused)
    found = []
    for e in evidence:
        of_host = [cuts[host] for host in e.hosts if host in cuts] if e.mig_profile is not None else []
        if of_host:
            worst = max(of_host, key=lambda cut: cut.stranded * cut.unplaceable)
            e = replace(e, stranded=worst.stranded, unplaceable=worst.unplaceable, wanted=worst.wanted)
        if (known := idle.get((e.tenant, e.workload, e.gpu_type))) is not None:
            e = replace(e, idle=known.share, replicas=known.devices, working=known.working)
        found.append(e)
    told = {(e.tenant, e.workload, e.gpu_type) for e in found}
    day = evidence[0].day if evidence else f"{datetime.fromtimestamp(span.since_unix_ns / 1e9, UTC):%Y-%m-%d}"
    for (tenant, workload, gpu_type), known in idle.items():
        if (tenant, workload, gpu_type) not in told:
            # It took no step, so that nobody could tell of its queue.
            bare = Evidence(tenant=tenant, workload=workload, day=day, gpu_type=gpu_type, untold=frozenset({"queue"}))
            found.append(replace(bare, idle=known.share, replicas=known.devices, working=known.working))
    return found


def cut_of(holdings: Holdings, host: str, span: Range) -> Cut | None:
    """How the GPUs of `host` were cut in the middle of `span`; None without a layout or without a queue.

    Stranded is what no slice covers, and slices that nobody holds and nothing in the queue asks for. A queued profile
    has room where some GPU can still be cut so, or where a slice of its kind is free.
    """
    at = (span.since_unix_ns + span.until_unix_ns) // 2
    layouts = holdings.layouts(at, host)
    queued = [each for each in holdings.inventory.queue if span.since_unix_ns <= each.at_unix_ns < span.until_unix_ns]
    node = holdings.node(host, at)
    if not layouts or node is None or not queued:
        return None
    waiting = [each for each in queued if each.waiting and _is_profile(node.gpu_type, each.profile)]
    wanted: Counter[str] = Counter()
    for each in waiting:
        if _has_no_room(holdings, each):
            wanted[each.profile] += each.waiting
    asked = {each.profile for each in waiting}
    stranded = sum((holdings.stranded_share(row) for row in layouts), start=holdings.stranded_share(layouts[0]) * 0)
    for profile, free in free_slices(holdings, host, at).items():
        if profile not in asked:
            stranded += free * mig.profile(node.gpu_type, profile).sm_share
    total = sum(each.waiting for each in waiting)
    return Cut(
        float(stranded) / len(layouts),
        sum(wanted.values()) / total if total else 0.0,
        wanted.most_common(1)[0][0] if wanted else None,
    )


def free_slices(holdings: Holdings, host: str, at_unix_ns: int) -> Counter[str]:
    """Slices of `host` that nobody holds, by profile; empty where no allocation names any of its slices' profiles."""
    cut = Counter(profile for row in holdings.layouts(at_unix_ns, host) for profile in row.layout)
    taken: Counter[str] = Counter()
    for allocation in holdings.holders(at_unix_ns, host=host):
        if allocation.profile is not None:
            taken[allocation.profile] += allocation.gpus
    return cut - taken if taken else Counter()


def _has_no_room(holdings: Holdings, queued: QueueSample) -> bool:
    if holdings.can_place(queued.profile, queued.at_unix_ns) is not False:
        return False
    hosts = {row.host for row in holdings.layouts(queued.at_unix_ns)}
    return not any(free_slices(holdings, host, queued.at_unix_ns)[queued.profile] for host in hosts)


def _is_profile(gpu_type: str, name: str) -> bool:
    try:
        mig.profile(gpu_type, name)
    except ConfigurationError:
        return False
    return True


_Device = tuple[Allocation, str]


def idle_of(
    holdings: Holdings,
    usages: Iterable[Usage],
    heard: Iterable[Heard],
    span: Range,
    unused: Mapping[str, float] = _NOT_SEEN,
) -> dict[Name, Idle]:
    """The idle share of allocated hours by tenant, workload and GPU type.

    Idle are devices that are so for half of their hours or more: a balancer spreads a service's headroom evenly, so
    that a device with less has headroom, and one with more has nothing to do, whatever the others do.

    Allocations and spans meet by the device's UUID, then by the node: a workload's name is the tenant's choice. Idle is
    the time in which processes on an allocation were heard and no step was under way; hours in which nobody was heard
    are unobserved and not idle. An allocation is the workload's that was heard on it the longest.
    """
    places: dict[str, list[Allocation]] = {}
    held_s: dict[Allocation, float] = {}
    types: dict[Allocation, str] = {}
    for part in holdings.held(span.since_unix_ns, span.until_unix_ns):
        row = part.allocation
        if row not in held_s:
            held_s[row], types[row] = 0.0, part.gpu_type
            for place in row.gpu_uuids or (row.host,):
                places.setdefault(place, []).append(row)
        held_s[row] += row.gpus * (part.until_unix_ns - part.since_unix_ns) / 1e9
    stepped_s: dict[_Device, float] = {}
    for usage in usages:
        for row in _on(places, usage.tenant, usage.device, usage.parent, usage.host):
            device = row, usage.device
            stepped_s[device] = stepped_s.get(device, 0.0) + (usage.sums.device_s or 0.0)
    heard_s: dict[_Device, float] = {}
    names: dict[Allocation, dict[str | None, float]] = {}
    for each in heard:
        for row in _on(places, each.tenant, each.device, None, each.host):
            device = row, each.device
            heard_s[device] = heard_s.get(device, 0.0) + each.seconds
            of_row = names.setdefault(row, {})
            of_row[each.workload] = of_row.get(each.workload, 0.0) + each.seconds
    idle_s: dict[Allocation, float] = {}
    working: Counter[Allocation] = Counter()
    for (row, uuid), seconds in heard_s.items():
        own_s = held_s[row] / row.gpus
        stepped = stepped_s.get((row, uuid), 0.0)
        # Heard without a step, or seen by an exporter without any work; steps that are told contradict either.
        unused_s = max(min(seconds, own_s) - stepped, min(unused.get(uuid, 0.0), own_s - stepped), 0.0)
        if own_s > 0 and unused_s >= SPARE * own_s:
            idle_s[row] = idle_s.get(row, 0.0) + unused_s
        elif stepped > SPARE * own_s:
            working[row] += 1
    totals: dict[Name, tuple[float, float, int, int]] = {}
    for row, workloads in names.items():
        key = row.tenant, max(workloads, key=lambda name: workloads[name]), types[row]
        idle, held, gpus, busy = totals.get(key, (0.0, 0.0, 0, 0))
        totals[key] = idle + idle_s.get(row, 0.0), held + held_s[row], gpus + row.gpus, busy + working[row]
    return {key: Idle(idle / held, gpus, busy) for key, (idle, held, gpus, busy) in totals.items() if held > 0}


def _on(
    places: Mapping[str, Sequence[Allocation]], tenant: str, device: str, parent: str | None, host: str | None
) -> list[Allocation]:
    """The allocation of a tenant that a device is of: by its UUID, else by its node where that leaves no choice."""
    for place in (device, parent, host):
        found = [row for row in places.get(place or "", ()) if row.tenant == tenant]
        if found:
            return found if len(found) == 1 else []
    return []
