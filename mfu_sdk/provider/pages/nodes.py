"""Nodes: the heat map of all of them in at most a few hundred cells, and one node over its devices and time."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mfu_sdk.provider import rollup
from mfu_sdk.provider.pages import charts
from mfu_sdk.provider.report import words
from mfu_sdk.provider.report.build import bucket_seconds
from mfu_sdk.provider.report.model import Node
from mfu_sdk.provider.report.window import iso
from mfu_sdk.provider.rollup import Job, Level, Range, Usage
from mfu_sdk.provider.store import Store

_NUMBER: Final = re.compile(r"([0-9]{1,18})")
MOST_CELLS: Final = 240
_COLUMNS: Final = 30
_MOST_TIMES: Final = 30
_MOST_DEVICES: Final = 32


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes that are neighbours by name, as one cell of the map; `lowest` is the one of the least MFU."""

    first: str | None
    last: str | None
    nodes: int
    mfu: float | None
    lowest: Node | None


@dataclass(frozen=True, slots=True)
class Device:
    """What one device of a node did, over all that ran on it."""

    device: str
    gpu_type: str | None
    level: Level
    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class NodeDetail:
    """One node: as a whole, by device, and by workload."""

    host: str
    level: Level
    devices: tuple[Device, ...]
    jobs: tuple[tuple[Job, Level], ...]
    heat: charts.Chart | None
    heat_of: str
    top: float


def by_name(node: Node) -> tuple[tuple[int, int, str], ...]:
    """A key that puts node-9 before node-10; nodes without a name come first."""
    parts = _NUMBER.split(node.host or "")
    # Every second part is a number, by the pattern's group.
    return tuple((place % 2, int(part) if place % 2 else 0, part) for place, part in enumerate(parts))


def groups(nodes: Sequence[Node], most: int = MOST_CELLS) -> tuple[Group, ...]:
    """`nodes` in the order of their names, in at most `most` groups of neighbours, each as large as the others."""
    ordered = sorted(nodes, key=by_name)
    size = max(1, -(-len(ordered) // most))
    return tuple(_group(ordered[start : start + size]) for start in range(0, len(ordered), size))


def heat_map(found: Sequence[Group], end: float) -> charts.Chart | None:
    """The map of all nodes, in reading order; `end` is the MFU from which on a cell has the last colour."""
    cells = [
        charts.Cell(number % _COLUMNS, number // _COLUMNS, group.mfu, _tip(group)) for number, group in enumerate(found)
    ]
    size = found[0].nodes if found else 1
    each = "node" if size == 1 else f"{size} neighbouring nodes"
    label = f"MFU of every node as a colour, in the order of their names; {len(found)} cells, each {each}"
    return charts.heat(cells, charts.thresholds(end), label=label)


def detail(store: Store, span: Range, tenant: str | None, host: str, usages: Sequence[Usage]) -> NodeDetail | None:
    """The node `host` in what `tenant`, or all, did on it; None where that is nothing."""
    here = [usage for usage in usages if usage.host == host]
    if not here:
        return None
    by_device = rollup.by(here, lambda usage: usage.device)
    devices = tuple(
        Device(
            name,
            next((usage.gpu_type for usage in here if usage.device == name and usage.gpu_type), None),
            level,
            tuple({usage.job: None for usage in here if usage.device == name}),
        )
        for name, level in sorted(by_device.items())
    )
    jobs = sorted(rollup.by(here, lambda usage: usage.job).items(), key=lambda item: -(item[1].sums.device_s or 0.0))
    shares = [level.sums.mfu for level in by_device.values()]
    end = charts.top(shares)
    heat, times = _device_heat(store, span, tenant, host, [device.device for device in devices], end)
    return NodeDetail(host, rollup.level(here), devices, tuple(jobs), heat, times, end)


def _device_heat(
    store: Store, span: Range, tenant: str | None, host: str, devices: Sequence[str], end: float
) -> tuple[charts.Chart | None, str]:
    bucket_s = bucket_seconds(span, _MOST_TIMES)
    rows = store.read("node", **rollup.scope(span, tenant), host=host, bucket_s=bucket_s)
    if not rows:
        return None, ""
    first, last = (most(row["bucket_unix_s"] for row in rows) for most in (min, max))
    place = {device: number for number, device in enumerate(devices[:_MOST_DEVICES])}
    cells = [
        charts.Cell(
            (row["bucket_unix_s"] - first) // bucket_s,
            place[row["device"]],
            mfu := rollup.ratio(row["model_flop"], row["available_flop"]),
            f"device {place[row['device']] + 1} from {words.moment(iso(row['bucket_unix_s'] * 10**9))}: "
            f"MFU {words.percent(mfu)}",
        )
        for row in rows
        if row["device"] in place
    ]
    each = words.hours(bucket_s / 3600)
    label = f"MFU of each device, a row each as in the table, over time in columns of {each}"
    times = f"{words.moment(iso(first * 10**9))} to {words.moment(iso((last + bucket_s) * 10**9))} UTC, {each} a column"
    return charts.heat(cells, charts.thresholds(end), label=label), times


def _group(nodes: Sequence[Node]) -> Group:
    def total(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if known else None

    model = total([node.model_flop for node in nodes])
    available = total([node.available_flop for node in nodes])
    known = [node for node in nodes if node.mfu is not None]
    lowest = min(known, key=lambda node: node.mfu or 0.0, default=None)
    return Group(nodes[0].host, nodes[-1].host, len(nodes), rollup.ratio(model, available), lowest)


def _tip(group: Group) -> str:
    if group.nodes == 1:
        return f"{words.name(group.first)}: MFU {words.percent(group.mfu)}"
    names = f"{words.name(group.first)} to {words.name(group.last)}, {group.nodes} nodes"
    if group.lowest is None:
        return f"{names}: MFU unknown"
    lowest = f"lowest {words.name(group.lowest.host)}: {words.percent(group.lowest.mfu)}"
    return f"{names}: MFU {words.percent(group.mfu)}; {lowest}"
