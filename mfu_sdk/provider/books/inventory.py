"""What the provider owns and who holds it: nodes, allocations, MIG layouts, the queue. Looked up in `holdings`."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.provider.books import cells, mig, table
from mfu_sdk.provider.books.prices import CONTRACTS
from mfu_sdk.provider.books.spans import Span, covers, overlap
from mfu_sdk.provider.books.table import Entry

TABLES: Final = frozenset({"nodes", "allocations", "mig", "queue"})


@dataclass(frozen=True, slots=True)
class Node:
    """GPUs of one type in one host, owned in [since, until); down in each of `downtime`.

    `gpu_uuids` may be fewer than `gpus`. `link` is the path between its GPUs, `fabric` that between nodes.
    """

    host: str
    gpu_type: str
    gpus: int
    region: str | None
    gpu_uuids: tuple[str, ...]
    link: str | None
    fabric: str | None
    since_unix_ns: int | None
    until_unix_ns: int | None
    downtime: tuple[tuple[int, int | None], ...]

    @property
    def span(self) -> Span:
        """When it is owned."""
        return self.since_unix_ns, self.until_unix_ns


@dataclass(frozen=True, slots=True)
class Allocation:
    """GPUs of one host that a tenant holds in [since, until), whether they work or not; no end: held still.

    With `profile` each of the `gpus` is a MIG slice of that profile, and `gpu_uuids` are of slices. An allocation over
    several hosts is a row for each, with one `allocation_id`.
    """

    tenant: str
    workload: str | None
    allocation_id: str | None
    host: str
    gpus: int
    gpu_uuids: tuple[str, ...]
    profile: str | None
    contract: str
    since_unix_ns: int
    until_unix_ns: int | None

    @property
    def span(self) -> Span:
        """When it is held."""
        return self.since_unix_ns, self.until_unix_ns


@dataclass(frozen=True, slots=True)
class MigLayout:
    """The slices that GPU number `gpu` of `host` is cut into in [since, until); until the next layout where None."""

    host: str
    gpu: int
    layout: tuple[str, ...]
    since_unix_ns: int | None
    until_unix_ns: int | None

    @property
    def span(self) -> Span:
        """When it holds."""
        return self.since_unix_ns, self.until_unix_ns


@dataclass(frozen=True, slots=True)
class QueueSample:
    """How many requests for `profile` (a MIG profile, or a GPU type for whole GPUs) waited at one moment."""

    profile: str
    waiting: int
    at_unix_ns: int


@dataclass(frozen=True, slots=True)
class Inventory:
    """All four tables; their rows keep each other's rules."""

    nodes: tuple[Node, ...]
    allocations: tuple[Allocation, ...] = ()
    mig: tuple[MigLayout, ...] = ()
    queue: tuple[QueueSample, ...] = ()


def load_inventory(paths: Iterable[Path]) -> Inventory:
    """The inventory in all of `paths`. Raises `ConfigurationError` for what breaks its form or its own rules."""
    paths = tuple(paths)
    rows = table.read(paths, TABLES).rows
    nodes = [(entry, _node(entry)) for entry in rows.get("nodes", ())]
    if not nodes:
        named = " and ".join(str(path) for path in paths)
        raise ConfigurationError(f"{named}: no nodes are listed; what is owned must be known, {table.FORM}")
    _own_apart(nodes)
    by_host: dict[str, list[Node]] = {}
    for _, node in nodes:
        by_host.setdefault(node.host, []).append(node)
    layouts = _until_next([(entry, _layout(entry, by_host)) for entry in rows.get("mig", ())])
    allocations = [(entry, _allocation(entry, by_host)) for entry in rows.get("allocations", ())]
    _held_once(allocations)
    _within_nodes(allocations, by_host)
    return Inventory(
        tuple(node for _, node in nodes),
        tuple(allocation for _, allocation in allocations),
        layouts,
        tuple(_sample(entry) for entry in rows.get("queue", ())),
    )


# --- rows ----------------------------------------------------------------------------------------------------------


def _node(entry: Entry) -> Node:
    cells.keys(
        entry,
        ("host", "gpu_type", "gpus"),
        ("region", "gpu_uuids", "link", "fabric", "from", "until", "downtime"),
    )
    host, gpu_type, gpus = cells.text(entry, "host"), cells.text(entry, "gpu_type"), cells.whole(entry, "gpus", 1)
    assert host is not None
    assert gpu_type is not None
    assert gpus is not None
    uuids = _uuids(entry, gpus)
    return Node(
        host,
        gpu_type,
        gpus,
        cells.text(entry, "region"),
        uuids,
        cells.text(entry, "link"),
        cells.text(entry, "fabric"),
        *cells.span(entry),
        cells.spans(entry, "downtime"),
    )


def _allocation(entry: Entry, by_host: dict[str, list[Node]]) -> Allocation:
    cells.keys(
        entry,
        ("tenant", "host", "gpus", "contract", "from"),
        ("workload", "allocation_id", "gpu_uuids", "profile", "until"),
    )
    tenant, host, gpus = cells.text(entry, "tenant"), cells.text(entry, "host"), cells.whole(entry, "gpus", 1)
    contract, (since, until) = cells.text(entry, "contract"), cells.span(entry)
    assert tenant is not None
    assert host is not None
    assert gpus is not None
    assert since is not None
    if contract not in CONTRACTS:
        raise cells.wrong(entry, "contract", f"must be one of {', '.join(CONTRACTS)}")
    assert contract is not None
    node = _node_of(entry, host, since, by_host)
    profile = cells.text(entry, "profile")
    uuids = _uuids(entry, gpus)
    if profile is not None:
        _checked(entry, "profile", node, (profile,))
    elif node.gpu_uuids and len(node.gpu_uuids) == node.gpus:
        for uuid in uuids:
            if not any(uuid in known.gpu_uuids for known in by_host[host]):
                raise ConfigurationError(
                    f"{entry.where}: {uuid} is none of the gpu_uuids of node {host}; correct it, or add it to the node,"
                    " or give `profile` if it is a MIG slice"
                )
    return Allocation(
        tenant,
        cells.text(entry, "workload"),
        cells.text(entry, "allocation_id"),
        host,
        gpus,
        uuids,
        profile,
        contract,
        since,
        until,
    )


def _layout(entry: Entry, by_host: dict[str, list[Node]]) -> MigLayout:
    cells.keys(entry, ("host", "gpu", "layout"), ("from", "until"))
    host, gpu, layout = cells.text(entry, "host"), cells.whole(entry, "gpu", 0), cells.texts(entry, "layout")
    assert host is not None
    assert gpu is not None
    since, until = cells.span(entry)
    node = _node_of(entry, host, since, by_host)
    if gpu >= node.gpus:
        raise cells.wrong(entry, "gpu", f"must be the number of a GPU of node {host}, 0 to {node.gpus - 1}")
    if not layout:
        raise cells.wrong(entry, "layout", "must list at least one profile; end the row before with `until` instead")
    _checked(entry, "layout", node, layout)
    return MigLayout(host, gpu, layout, since, until)


def _sample(entry: Entry) -> QueueSample:
    cells.keys(entry, ("profile", "waiting", "at"), ())
    profile, waiting, at = cells.text(entry, "profile"), cells.whole(entry, "waiting", 0), cells.moment(entry, "at")
    assert profile is not None
    assert waiting is not None
    assert at is not None
    return QueueSample(profile, waiting, at)


# --- rules between rows --------------------------------------------------------------------------------------------


def _uuids(entry: Entry, gpus: int) -> tuple[str, ...]:
    uuids = cells.texts(entry, "gpu_uuids")
    if len(uuids) > gpus:
        raise ConfigurationError(
            f"{entry.where}: gpu_uuids names {len(uuids)} where gpus={gpus}; correct the one or the other"
        )
    return uuids


def _node_of(entry: Entry, host: str, at_unix_ns: int | None, by_host: dict[str, list[Node]]) -> Node:
    """The node on `host` at that moment; its first one where there is no moment to go by."""
    known = by_host.get(host, [])
    found = [node for node in known if at_unix_ns is None or covers(node.span, at_unix_ns)]
    if not known:
        raise ConfigurationError(f"{entry.where}: host={host!r} is none of the nodes; add it to `nodes`, or correct it")
    if not found:
        raise ConfigurationError(f"{entry.where}: node {host} is not owned then; correct `from` here or there")
    return found[0]


def _checked(entry: Entry, key: str, node: Node, layout: Sequence[str]) -> None:
    try:
        fits = mig.arrangements(node.gpu_type, layout)
    except ConfigurationError as error:
        raise ConfigurationError(f"{entry.where}: {key} {error}") from None
    if not fits:
        raise cells.wrong(entry, key, f"does not fit on one {node.gpu_type}; see `nvidia-smi mig -lgipp`")


def _own_apart(nodes: Sequence[tuple[Entry, Node]]) -> None:
    hosts: dict[tuple[str, str], list[tuple[Entry, Node]]] = {}
    uuids: dict[str, list[tuple[Entry, Node]]] = {}
    for entry, node in nodes:
        same_host = hosts.setdefault((node.host, node.gpu_type), [])
        for what, same in ((node.host, same_host), *((uuid, uuids.setdefault(uuid, [])) for uuid in node.gpu_uuids)):
            for earlier, other in same:
                if overlap(node.span, other.span):
                    raise ConfigurationError(
                        f"{entry.where}: {what} is in {earlier.where.rpartition(': ')[2]} too, at the same time;"
                        " own each GPU once, or end the one row with `until` where the other begins"
                    )
            same.append((entry, node))


def _until_next(layouts: Sequence[tuple[Entry, MigLayout]]) -> tuple[MigLayout, ...]:
    """Layouts that end where the same GPU's next one begins."""
    of_gpu: dict[tuple[str, int], list[tuple[Entry, MigLayout]]] = {}
    for entry, layout in layouts:
        of_gpu.setdefault((layout.host, layout.gpu), []).append((entry, layout))
    found = []
    for rows in of_gpu.values():
        rows.sort(key=lambda row: row[1].since_unix_ns or 0)
        for (_, row), (entry, following) in itertools.pairwise(rows):
            start = following.since_unix_ns or 0
            if start <= (row.since_unix_ns or 0) or (row.until_unix_ns is not None and row.until_unix_ns > start):
                raise ConfigurationError(
                    f"{entry.where}: GPU {row.gpu} of {row.host} has two layouts at once; end the earlier with `until`"
                )
            end = start if row.until_unix_ns is None else row.until_unix_ns
            found.append(MigLayout(row.host, row.gpu, row.layout, row.since_unix_ns, end))
        found.append(rows[-1][1])
    return tuple(found)


def _held_once(allocations: Sequence[tuple[Entry, Allocation]]) -> None:
    holds: dict[str, list[tuple[int, float, Entry]]] = {}
    for entry, held in allocations:
        end = float("inf") if held.until_unix_ns is None else held.until_unix_ns
        for uuid in held.gpu_uuids:
            holds.setdefault(uuid, []).append((held.since_unix_ns, end, entry))
    for uuid, rows in holds.items():
        rows.sort(key=lambda row: row[0])
        for (_, end, earlier), (start, _, entry) in itertools.pairwise(rows):
            if start < end:
                raise ConfigurationError(
                    f"{entry.where}: {uuid} is held by {earlier.where.rpartition(': ')[2]} at the same time;"
                    " end that with `until`"
                )


def _within_nodes(allocations: Sequence[tuple[Entry, Allocation]], by_host: dict[str, list[Node]]) -> None:
    """Refuse more GPUs held on a host at a time than it has then, slices counted by their share of the SMs."""
    events: dict[str, list[tuple[int, int, Fraction, Entry]]] = {}
    for entry, held in allocations:
        node = _node_of(entry, held.host, held.since_unix_ns, by_host)
        share = Fraction(1) if held.profile is None else mig.profile(node.gpu_type, held.profile).sm_share
        of_host = events.setdefault(held.host, [])
        of_host.append((held.since_unix_ns, 1, held.gpus * share, entry))
        if held.until_unix_ns is not None:
            # Sorted before what begins at the same moment: `until` is exclusive.
            of_host.append((held.until_unix_ns, 0, -held.gpus * share, entry))
    for host, changes in events.items():
        total = Fraction(0)
        for at, begins, gpus, entry in sorted(changes, key=lambda change: change[:2]):
            total += gpus
            owned = sum(node.gpus for node in by_host[host] if covers(node.span, at))
            if begins and total > owned:
                raise ConfigurationError(
                    f"{entry.where}: with it {float(total):g} GPUs of {host} are held at {cells.shown(at)}, which has"
                    f" {owned}; end the allocations before it with `until`, or correct `gpus`"
                )
