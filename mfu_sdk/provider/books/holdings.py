"""What an inventory answers: hours owned, available and held, who holds a GPU at a moment, what MIG leaves over.

Hours are exact fractions of GPU-hours: of the GPUs' number times the time, a MIG slice counting by its share of the
SMs. In a node's downtime nothing of it is available or held.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from mfu_sdk.provider.books import mig
from mfu_sdk.provider.books.inventory import Allocation, Inventory, MigLayout, Node
from mfu_sdk.provider.books.spans import Span, clipped_ns, covers, overlap

_HOUR_NS: Final = 3600 * 10**9


@dataclass(frozen=True, slots=True)
class Hours:
    """GPU-hours: `owned`, of which `unavailable` in downtime, of what is available `stranded` by MIG layouts."""

    owned: Fraction
    unavailable: Fraction
    stranded: Fraction

    @property
    def available(self) -> Fraction:
        """Owned less downtime; what MIG strands is in it."""
        return self.owned - self.unavailable


@dataclass(frozen=True, slots=True)
class Held:
    """The part of an allocation on a node's available time: `gpu_hours` on [since, until), one row for each stretch."""

    allocation: Allocation
    gpu_type: str
    gpus: Fraction
    since_unix_ns: int
    until_unix_ns: int

    @property
    def gpu_hours(self) -> Fraction:
        """GPUs × hours."""
        return self.gpus * Fraction(self.until_unix_ns - self.since_unix_ns, _HOUR_NS)


class Holdings:
    """Look-ups over one inventory. Pure: the same answers however often they are asked."""

    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory
        self._nodes: dict[str, list[Node]] = {}
        for node in inventory.nodes:
            self._nodes.setdefault(node.host, []).append(node)
        self._by_uuid: dict[str, list[Allocation]] = {}
        self._by_host: dict[str, list[Allocation]] = {}
        for held in inventory.allocations:
            self._by_host.setdefault(held.host, []).append(held)
            for uuid in held.gpu_uuids:
                self._by_uuid.setdefault(uuid, []).append(held)
        self._node_by_uuid = {uuid: node for node in inventory.nodes for uuid in node.gpu_uuids}
        self._layouts: dict[str, list[MigLayout]] = {}
        for layout in inventory.mig:
            self._layouts.setdefault(layout.host, []).append(layout)

    @property
    def gpu_types(self) -> tuple[str, ...]:
        """Every GPU type that is or was owned."""
        return tuple(sorted({node.gpu_type for node in self.inventory.nodes}))

    def node(self, host: str, at_unix_ns: int) -> Node | None:
        """The node that `host` is at that moment; the first where two types share a host."""
        return next((node for node in self._nodes.get(host, ()) if covers(node.span, at_unix_ns)), None)

    def nodes_of(self, host: str) -> tuple[Node, ...]:
        """The nodes that `host` is or was, in the inventory's order."""
        return tuple(self._nodes.get(host, ()))

    def node_of(self, gpu_uuid: str) -> Node | None:
        """The node that lists this GPU."""
        return self._node_by_uuid.get(gpu_uuid)

    def hours(
        self, since_unix_ns: int, until_unix_ns: int, *, gpu_type: str | None = None, host: str | None = None
    ) -> Hours:
        """Owned, unavailable and stranded hours of a type and a host (of all where None) in [since, until)."""
        # Nanoseconds first, hours once: a fraction is reduced at each step, and a fleet has thousands of nodes.
        owned_ns = unavailable_ns = 0
        stranded = Fraction(0)
        for node in self._selected(gpu_type, host):
            span = clipped_ns(node.span, since_unix_ns, until_unix_ns)
            if span is None:
                continue
            up = tuple(available(node, *span))
            up_ns = sum(until - since for since, until in up)
            owned_ns += node.gpus * (span[1] - span[0])
            unavailable_ns += node.gpus * (span[1] - span[0] - up_ns)
            if node.host in self._layouts:
                stranded += sum((self._stranded(node, *stretch) for stretch in up), Fraction(0))
        return Hours(Fraction(owned_ns, _HOUR_NS), Fraction(unavailable_ns, _HOUR_NS), stranded)

    def held(
        self, since_unix_ns: int, until_unix_ns: int, *, gpu_type: str | None = None, host: str | None = None
    ) -> tuple[Held, ...]:
        """Every allocation's stretches on available time in [since, until)."""
        found = []
        for allocation in self.inventory.allocations if host is None else self._by_host.get(host, ()):
            span = clipped_ns(allocation.span, since_unix_ns, until_unix_ns)
            first = None if span is None else self.node(allocation.host, allocation.since_unix_ns)
            if span is None or first is None or gpu_type not in (None, first.gpu_type):
                continue
            gpus = allocation.gpus * self.sm_share(first, allocation.profile)
            # A node that grew is a row for each size; the allocation goes on over them.
            for node in self._nodes[allocation.host]:
                owned = clipped_ns(node.span, *span) if node.gpu_type == first.gpu_type else None
                stretches = () if owned is None else available(node, *owned)
                found += [Held(allocation, node.gpu_type, gpus, *stretch) for stretch in stretches]
        return tuple(found)

    def allocated_hours(
        self, since_unix_ns: int, until_unix_ns: int, *, gpu_type: str | None = None, host: str | None = None
    ) -> Fraction:
        """GPU-hours that somebody holds, in available time."""
        gpu_ns: dict[Fraction, int] = {}
        for part in self.held(since_unix_ns, until_unix_ns, gpu_type=gpu_type, host=host):
            gpu_ns[part.gpus] = gpu_ns.get(part.gpus, 0) + part.until_unix_ns - part.since_unix_ns
        return sum((gpus * ns for gpus, ns in gpu_ns.items()), Fraction(0)) / _HOUR_NS

    def holders(
        self, at_unix_ns: int, *, gpu_uuid: str | None = None, host: str | None = None
    ) -> tuple[Allocation, ...]:
        """Who may hold a device at that moment: by its UUID if an allocation names it, else all on its node.

        A node's allocations that name all of their GPUs, and not this one, are out.
        """
        named = [a for a in self._by_uuid.get(gpu_uuid or "", ()) if covers(a.span, at_unix_ns)]
        if named:
            return tuple(named)
        on_host = (a for a in self._by_host.get(host or "", ()) if covers(a.span, at_unix_ns))
        return tuple(a for a in on_host if gpu_uuid is None or len(a.gpu_uuids) < a.gpus)

    def holder(self, at_unix_ns: int, *, gpu_uuid: str | None = None, host: str | None = None) -> Allocation | None:
        """Who holds a device at that moment; None where nobody does, or several on its node may."""
        found = self.holders(at_unix_ns, gpu_uuid=gpu_uuid, host=host)
        return found[0] if len(found) == 1 else None

    def layouts(self, at_unix_ns: int, host: str | None = None) -> tuple[MigLayout, ...]:
        """How GPUs are cut at that moment; a GPU without a layout is whole."""
        rows = self.inventory.mig if host is None else self._layouts.get(host, ())
        return tuple(row for row in rows if covers(row.span, at_unix_ns))

    def stranded_share(self, row: MigLayout) -> Fraction:
        """The share of a GPU's SMs that its layout leaves to nobody."""
        node = self._owner(row)
        return 1 - mig.sm_share(node.gpu_type, row.layout)

    def can_place(self, profile: str, at_unix_ns: int) -> bool | None:
        """Whether a slice fits beside those of some GPU that is cut already; None where that hangs on how they lie.

        GPUs of types that have no such profile are passed over.
        """
        answers = set()
        for row in self.layouts(at_unix_ns):
            gpu_type = self._owner(row).gpu_type
            try:
                mig.profile(gpu_type, profile)
            except ValueError:
                continue
            answers.add(mig.can_place(gpu_type, row.layout, profile))
        return True if True in answers else None if None in answers else False

    def sm_share(self, node: Node, profile: str | None) -> Fraction:
        """The share of one of the node's GPUs that a slice is; 1 for a whole GPU."""
        return Fraction(1) if profile is None else mig.profile(node.gpu_type, profile).sm_share

    def _selected(self, gpu_type: str | None, host: str | None) -> Iterable[Node]:
        nodes = self.inventory.nodes if host is None else self._nodes.get(host, ())
        return (node for node in nodes if gpu_type in (None, node.gpu_type))

    def _owner(self, row: MigLayout) -> Node:
        # Loading an inventory has made sure that there is one.
        return next(node for node in self._nodes[row.host] if overlap(node.span, row.span) and row.gpu < node.gpus)

    def _stranded(self, node: Node, since_unix_ns: int, until_unix_ns: int) -> Fraction:
        total = Fraction(0)
        for row in self._layouts.get(node.host, ()):
            span = clipped_ns(row.span, since_unix_ns, until_unix_ns)
            if span is not None and self._owner(row) is node:
                total += self.stranded_share(row) * _hours(*span)
        return total


def available(node: Node, since_unix_ns: int, until_unix_ns: int) -> Iterator[tuple[int, int]]:
    """The stretches of [since, until) in which the node is not down."""
    start = since_unix_ns
    down: Span
    for down in node.downtime:
        span = clipped_ns(down, since_unix_ns, until_unix_ns)
        if span is None:
            continue
        if start < span[0]:
            yield start, span[0]
        start = span[1]
    if start < until_unix_ns:
        yield start, until_unix_ns


def _hours(since_unix_ns: int, until_unix_ns: int) -> Fraction:
    return Fraction(until_unix_ns - since_unix_ns, _HOUR_NS)
