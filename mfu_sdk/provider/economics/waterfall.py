"""From owned hours to useful hours: every GPU-nanosecond of the window in one stage, in the order of `STAGES`.

What inventory and allocations say comes first: down, unsold, lost between MIG slices. Of what is held, the devices
that sent nothing are unobserved, never idle; of the others' time, what no step covers is idle. Steps whose FLOPs are
unknown are unobserved as well.

A step's time T is split so:

- lost work: the time of steps that a later attempt did again. The rest keeps its proportions.
- useful: F / P, the time that its model FLOPs take at the peak. It is set aside first, so that no claim eats it.
- input, skew, communication: measured waits, disjoint by definition. Of the communication as much is topology as a
  finding claims, the rest is scale.
- under-batch, clock, drift: what findings claim, in this order, of what is left. Drift comes last of the causes: a
  changed configuration often shows as a wait or a clock, and then that is its name.
- unattainable: of the time that the work done would take without any loss, F / (P · e), the share 1 − e that the
  expected MFU e leaves. Kernel gap: the rest; all of it where nothing is expected of the work. Both are intervals where
  the expectation is one.

Each stage takes at most what those before it left, so claims that overlap, or contradict a claimed MFU, are cut and
the whole stays the whole. Named losses are of time: an hour of waiting removed is an hour at the expected MFU.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from mfu_sdk.provider.economics.inputs import Held, Ledger, Used

STAGES: Final[tuple[str, ...]] = (
    "unavailable", "unsold", "mig_stranded", "unobserved", "idle", "lost_work", "input", "skew", "comm_topology",
    "comm_scale", "under_batch", "clock", "drift", "kernel_gap", "unattainable", "useful",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """The GPU-nanoseconds and the cost of one stage of one workload on one host; what nobody holds has no tenant."""

    stage: str
    tenant: str | None
    workload: str | None
    contract: str | None
    host: str
    gpu_type: str
    gpu_ns: int
    cost: Fraction | None
    list_value: Fraction | None
    held: int | None


@dataclass(frozen=True, slots=True)
class Split:
    """One row's time by stage; `expected` is whether its unattainable part is known.

    `step_ns` are its steps of known FLOPs. `claimed_flops` are its model FLOPs less those of time that does not fit;
    `useful_flops` less those of lost work too, and at most what the peak can do. `unattainable_ns` are the least and
    the most of its unattainable time, at the ends of the expected MFU's interval.
    """

    used: Used
    gpu_ns: Mapping[str, int]
    expected: bool
    step_ns: int
    claimed_flops: float
    useful_flops: float
    unattainable_ns: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Bounds:
    """The least and the most of a stage: GPU-nanoseconds, and their cost where it is known."""

    least_ns: int
    most_ns: int
    least_cost: Fraction | None
    most_cost: Fraction | None


@dataclass(frozen=True, slots=True)
class Waterfall:
    """All cells; the split of each row; how many GPU-nanoseconds of steps did not fit into the time that is held.

    `unattainable` is None where no expectation came with an interval. What it takes more or less, the kernel gap has
    less or more; no other stage hangs on the expected MFU.
    """

    cells: tuple[Cell, ...]
    splits: tuple[Split, ...]
    excess_ns: int
    unattainable: Bounds | None = None

    def by_stage(self, cells: Iterable[Cell] | None = None) -> dict[str, tuple[int, Fraction | None]]:
        """Time and cost of every stage, of all cells unless some are given."""
        found: dict[str, tuple[int, Fraction | None]] = dict.fromkeys(STAGES, (0, Fraction(0)))
        for cell in self.cells if cells is None else cells:
            ns, cost = found[cell.stage]
            found[cell.stage] = (ns + cell.gpu_ns, None if cost is None or cell.cost is None else cost + cell.cost)
        return found


def waterfall(ledger: Ledger, used: Sequence[Used]) -> Waterfall:
    """Every owned GPU-nanosecond of `ledger` in a stage, by what ran in it."""
    cells: list[Cell] = []
    for node in ledger.owned:
        for stage, ns, cost in (
            ("unavailable", node.unavailable_ns, node.unavailable_cost),
            ("unsold", node.unsold_ns, node.unsold_cost),
            ("mig_stranded", node.stranded_ns, node.stranded_cost),
        ):
            if ns:
                cells.append(Cell(stage, None, None, None, node.host, node.gpu_type, ns, cost, None, None))
    of_held: dict[int, list[Used]] = {}
    for row in used:
        of_held.setdefault(row.held, []).append(row)
    splits: list[Split] = []
    excess_ns = 0
    for index, held in enumerate(ledger.held):
        found, idle_ns, unobserved_ns, over_ns = _of_held(held, of_held.get(index, []))
        excess_ns += over_ns
        splits += found
        cells += _cells(index, held, found, {"idle": idle_ns, "unobserved": unobserved_ns})
    return Waterfall(tuple(cells), tuple(splits), excess_ns, _bounds(ledger, splits))


def _of_held(held: Held, rows: Sequence[Used]) -> tuple[list[Split], int, int, int]:
    """The splits of what ran under an allocation; its idle, its unobserved time; what did not fit."""
    devices: dict[str, float] = {}
    for row in rows:
        devices[row.device] = max(devices.get(row.device, 0.0), row.weight)
    seen = min(1.0, sum(devices.values()) / held.gpus)
    observed_ns = min(held.gpu_ns, round(held.gpu_ns * seen))
    known = [_ns(row.device_s * row.sm_share) for row in rows]
    unknown = [_ns(row.unknown_s * row.sm_share) for row in rows]
    total = sum(known) + sum(unknown)
    over_ns = max(0, total - observed_ns)
    if over_ns:
        # Steps outside of the allocation's time, or two that share a device: nobody can say which, so all give way.
        known = [ns * observed_ns // total for ns in known]
        unknown = [ns * observed_ns // total for ns in unknown]
    splits = [split(row, ns, other) for row, ns, other in zip(rows, known, unknown, strict=True)]
    idle_ns = observed_ns - sum(known) - sum(unknown)
    return splits, idle_ns, held.gpu_ns - observed_ns, over_ns


def split(row: Used, step_ns: int, unknown_ns: int = 0) -> Split:
    """The time of a row's steps by stage, `step_ns` in all; see the module's text."""
    seconds = row.device_s or 1.0
    taken: dict[str, int] = dict.fromkeys(STAGES[STAGES.index("unobserved") :], 0)
    taken["unobserved"] = unknown_ns
    taken["lost_work"] = _part(step_ns, (row.lost_s or 0.0) / seconds, step_ns)
    rest = step_ns - taken["lost_work"]
    peak_s = row.model_flops / row.peak_flops_per_s / float(row.sm_share) if row.peak_flops_per_s > 0 else 0.0
    taken["useful"] = _part(rest, peak_s / seconds, rest)
    left = rest - taken["useful"]
    comm = _share(row.comm_s, seconds)
    topology = min(row.losses.topology, comm)
    for stage, share in (
        ("input", _share(row.data_s, seconds)),
        ("skew", _share(row.skew_s, seconds)),
        ("comm_topology", topology),
        ("comm_scale", comm - topology),
        ("under_batch", row.losses.under_batch),
        ("clock", row.losses.clock),
        ("drift", row.losses.drift),
    ):
        taken[stage] = _part(rest, share, left)
        left -= taken[stage]
    reachable, ends = row.reachable, (0, 0)
    if reachable is not None:
        # The less could be reached, the more is out of reach.
        most, mid, least = (_part(taken["useful"], max(0.0, 1 / mfu - 1), left) for mfu in reachable)
        taken["unattainable"], ends = mid, (least, most)
        left -= mid
    taken["kernel_gap"] = left
    whole_s = row.device_s * float(row.sm_share)
    rate = row.model_flops / whole_s if whole_s else 0.0
    useful_flops = min(rate, row.peak_flops_per_s) * rest / 1e9
    return Split(row, taken, reachable is not None, step_ns, rate * step_ns / 1e9, useful_flops, ends)


def _bounds(ledger: Ledger, splits: Iterable[Split]) -> Bounds | None:
    ends: dict[int, tuple[int, int]] = {}
    has_interval = False
    for one in splits:
        has_interval = has_interval or one.used.has_interval
        low, high = ends.get(one.used.held, (0, 0))
        ends[one.used.held] = low + one.unattainable_ns[0], high + one.unattainable_ns[1]
    if not has_interval:
        return None
    costs: list[tuple[Fraction, Fraction]] | None = []
    for index, (low, high) in ends.items():
        held = ledger.held[index]
        if not high or costs is None:
            continue
        if held.cost is None:
            costs = None
        else:
            rate = held.cost / held.gpu_ns
            costs.append((rate * low, rate * high))
    return Bounds(
        sum(low for low, _ in ends.values()),
        sum(high for _, high in ends.values()),
        None if costs is None else sum((low for low, _ in costs), Fraction(0)),
        None if costs is None else sum((high for _, high in costs), Fraction(0)),
    )


def _cells(index: int, held: Held, splits: Sequence[Split], rest: Mapping[str, int]) -> list[Cell]:
    """Cells of one allocation, by workload; what no step covers is the workload's that the allocation is for."""
    sums: dict[tuple[str, str | None], int] = {}
    for stage, ns in rest.items():
        sums[stage, held.workload] = ns
    for one in splits:
        for stage, ns in one.gpu_ns.items():
            key = (stage, one.used.workload)
            sums[key] = sums.get(key, 0) + ns

    # A nanosecond's, once: a fraction is reduced every time that it is divided.
    cost = None if held.cost is None or not held.gpu_ns else held.cost / held.gpu_ns
    list_value = None if held.list_value is None or not held.gpu_ns else held.list_value / held.gpu_ns

    return [
        Cell(
            stage,
            held.tenant,
            workload,
            held.contract,
            held.host,
            held.gpu_type,
            ns,
            None if cost is None else cost * ns,
            None if list_value is None else list_value * ns,
            index,
        )
        for (stage, workload), ns in sums.items()
        if ns
    ]


def _part(of_ns: int, share: float, most_ns: int) -> int:
    """`share` of a time, between nothing and `most_ns`; a share that is no number is nothing."""
    if of_ns == 0 or not share > 0:
        return 0
    return min(most_ns, round(of_ns * share)) if of_ns * share < most_ns else most_ns


def _share(seconds: float | None, of_s: float) -> float:
    return 0.0 if seconds is None or not seconds > 0 else seconds / of_s


def _ns(seconds: float | Fraction) -> int:
    return round(seconds * 10**9) if 0 < seconds < 10**12 else 0
