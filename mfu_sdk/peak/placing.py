"""Which ranks share a link: the groups that collectives are measured over, from where each rank sits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from mfu_sdk.records import Over

HOST, NETWORK = "host", "network"
# NVML's levels of what PCIe traffic has to cross, from the weakest to the strongest, and NVLink.
_KNOWN = ("system", "numa-node", "host-bridge", "pcie-switches", "pcie-switch", "board", "nvlink")


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a rank sits: its rank in the group, its host, and its device's UUID (None for a processor)."""

    rank: int
    host: str
    device: str | None


@dataclass(frozen=True, slots=True)
class Span:
    """Groups of equally many ranks that run a collective at the same time, and the weakest edge within them."""

    over: Over
    groups: tuple[tuple[int, ...], ...]
    link: str

    @property
    def ranks(self) -> int:
        """Ranks in each group."""
        return len(self.groups[0])

    def group_of(self, rank: int) -> tuple[int, ...] | None:
        """The group that `rank` is in, if it is in one."""
        return next((group for group in self.groups if rank in group), None)


def by_host(seats: Iterable[Seat]) -> dict[str, list[Seat]]:
    """The seats of each host, hosts in the order of their first ranks."""
    hosts: defaultdict[str, list[Seat]] = defaultdict(list)
    for seat in sorted(seats, key=lambda seat: seat.rank):
        hosts[seat.host].append(seat)
    return dict(hosts)


def edges(seats: Iterable[Seat]) -> list[tuple[str, str] | None]:
    """The pairs of devices between the seats of one host; None for a pair of which one has no UUID."""
    pairs = combinations(seats, 2)
    return [None if a.device is None or b.device is None else (a.device, b.device) for a, b in pairs]


def weakest(kinds: Iterable[str | None]) -> str:
    """The weakest kind of edge within a host; "host" where one is not known, or where it cannot be told which is."""
    found = set(kinds)
    if len(found) == 1 and (only := found.pop()) is not None:
        return only
    return next((kind for kind in _KNOWN if kind in found), HOST) if found and found <= set(_KNOWN) else HOST


def spans(
    seats: Sequence[Seat], link_of: Mapping[str, str], *, apart: bool = True
) -> tuple[tuple[Span, ...], str | None]:
    """What to measure between `seats`, and what of it cannot be; `link_of` gives each host's weakest edge.

    The ranks of each host, all hosts at the same time; the first rank of each host; all ranks. Groups of one rank are
    none, and one group is measured once. Bus rates hold for a number of ranks: of hosts with unequally many, only
    those with the most are measured on their own. Where the ranks cannot be taken `apart`, only all of them are.
    """
    hosts = by_host(seats)
    if not apart and len(hosts) > 1:
        return (Span("all", (tuple(sorted(seat.rank for seat in seats)),), NETWORK),), None
    most = max(map(len, hosts.values()))
    full = [host for host in hosts if len(hosts[host]) == most]
    found: list[Span] = []
    missing: list[str] = []
    if most > 1:
        groups = tuple(tuple(seat.rank for seat in hosts[host]) for host in full)
        found.append(Span("host", groups, weakest(link_of[host] for host in full)))
        if fewer := sorted({len(of) for of in hosts.values() if 1 < len(of) < most}):
            told = " or ".join(map(str, fewer))
            missing.append(f"hosts with {told} ranks are not measured on their own: others have {most}")
    if len(hosts) > 1:
        found.append(Span("network", (tuple(of[0].rank for of in hosts.values()),), NETWORK))
        if most > 1:
            found.append(Span("all", (tuple(sorted(seat.rank for seat in seats)),), NETWORK))
    return tuple(found), "; ".join(missing) or None
