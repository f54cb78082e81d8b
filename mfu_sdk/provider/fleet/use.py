"""What was allocated, what was busy and what was useful, in one view: where they lie apart nothing looks wrong from
outside, because a GPU that is held and shows 100 % utilization may do next to nothing. Pure.

GPU utilization (`DCGM_FI_DEV_GPU_UTIL`) is the share of time in which *any* kernel ran, one warp on one SM included
(NVIDIA, nvidia-smi documentation, "Utilization"). Each figure comes with the GPU-hours that it is over, and with their
share of what is owned. Means are over GPU-hours, a MIG slice counting by its share of the SMs; no ratio is averaged.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mfu_sdk.provider.books import Holdings
from mfu_sdk.provider.fleet.gpu import ESTIMATE_ERROR, Estimate, Gpu, estimate
from mfu_sdk.provider.fleet.health import STATES, Failures, Health, XidSeen
from mfu_sdk.provider.rollup import Level, Range, ratio

_ORDER: Final[dict[str, int]] = {state: place for place, state in enumerate(STATES)}


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure, the GPU-hours that it is over, and their share of the owned ones; None where it is not known."""

    value: float | None
    gpu_hours: float | None
    owned_share: float | None


@dataclass(frozen=True, slots=True)
class TypeEstimate:
    """GPUs of one type in hours without steps of their own, by the provider's counters: an estimate, no MFU."""

    gpu_type: str | None
    gpus: int
    estimated_gpu_hours: float
    estimated_mfu: float | None
    estimated_flop: float
    estimated_available_flop: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeUse:
    """One node: what of it was held, busy and useful, and how it is; unhealthy ones come first, with `advice`.

    `state` is unhealthy, watch, unknown or healthy. `mfu` and `gpu_hours` are of steps that were sent; `estimated_*` of
    hours without any. `gpu_utilization` and `tensor_activity` are over the hours held, over all where no inventory is
    known; `watched_gpu_hours` are those that an exporter told of. `power_w` is the mean of a GPU. Failures are None
    where clients send no spans of steps.
    """

    host: str
    gpu_types: tuple[str, ...]
    gpus: int
    allocation: float | None
    gpu_utilization: float | None
    tensor_activity: float | None
    mfu: float | None
    expected_mfu: float | None
    gpu_hours: float | None
    estimated_mfu: float | None
    estimated_gpu_hours: float
    watched_gpu_hours: float
    power_w: float | None
    state: str
    advice: str | None
    xids: tuple[XidSeen, ...]
    double_bit_errors: int | None
    single_bit_errors: int | None
    clock_ratio: float | None
    slow_gpus: tuple[str, ...]
    steps: float | None
    failed_steps: int | None
    step_error_rate: float | None
    runs: int | None
    failed_runs: int | None
    run_error_rate: float | None


@dataclass(frozen=True, slots=True)
class WorkloadWitness:
    """What a workload counted beside the counters of its GPUs, both as shares of the peak on paper, and their ratio.

    `by` says whose counters: "provider", its exporter's over whole hours, `gpu_hours` of them; "tenant", its own word.
    """

    tenant: str
    workload: str | None
    gpu_type: str | None
    world_size: int | None
    phase: str | None
    counted: float
    witnessed: float
    ratio: float | None
    gpu_hours: float | None
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetUse:
    """Allocated, busy, useful: the fleet's figures beside each other, for those who see the whole fleet.

    `gpu_utilization` is the share of time in which any kernel ran, `engine_activity` and `tensor_activity` those of the
    compute engine and of the tensor pipes: by the provider's exporters, over the hours `over`, "allocated" or "all".
    `estimated_mfu` is of hours without steps (`estimate_error` says how good that is); no `mfu` has any of it. The
    hours of `mfu` are those of steps, a slice's as a device's; its share is `fleet.observed_share`, of hours held.
    """

    over: str
    allocation: Figure
    gpu_utilization: Figure
    engine_activity: Figure
    tensor_activity: Figure
    mfu: Figure
    expected_mfu: Figure
    owned_mfu: Figure
    estimated_mfu: Figure
    estimate_error: str
    estimated_flop: float | None
    estimated_available_flop: float | None
    estimates: tuple[TypeEstimate, ...]
    nodes: tuple[NodeUse, ...]
    witnesses: tuple[WorkloadWitness, ...]


@dataclass(frozen=True, slots=True)
class Useful:
    """What the roll-up and the books say of the fleet: MFU over observed hours, owned MFU, expected MFU."""

    mfu: float | None
    expected_mfu: float | None
    owned_mfu: float | None
    observed_share: float | None
    gpu_hours: float | None


def fleet_use(
    span: Range,
    gpus: Sequence[Gpu],
    health: Mapping[str, Health],
    failures: Mapping[str, Failures],
    levels: Mapping[str, Level],
    holdings: Holdings | None,
    useful: Useful,
    witnesses: Iterable[WorkloadWitness] = (),
) -> FleetUse:
    """All of it over `span`. `levels` are the sums of steps by host, `failures` what of them failed."""
    bounds = span.since_unix_ns, span.until_unix_ns
    owned = None if holdings is None else float(holdings.hours(*bounds).owned)
    held = None if holdings is None else float(holdings.allocated_hours(*bounds))
    by_type: dict[str | None, list[Gpu]] = {}
    by_host: dict[str, list[Gpu]] = {}
    for each in gpus:
        by_type.setdefault(each.gpu_type, []).append(each)
        by_host.setdefault(each.host, []).append(each)
    whole = estimate(gpus)
    over = "_held" if holdings is not None else ""
    hosts = {*by_host, *levels} | (set() if holdings is None else _hosts(span, holdings))
    nodes = [
        _node(span, host, by_host.get(host, ()), health.get(host), failures.get(host), levels.get(host), holdings)
        for host in hosts
    ]
    return FleetUse(
        over="all" if holdings is None else "allocated",
        allocation=Figure(ratio(held, owned), owned, None if not owned else 1.0),
        gpu_utilization=_over(gpus, f"util{over}", owned),
        engine_activity=_over(gpus, f"engine{over}", owned),
        tensor_activity=_over(gpus, f"tensor{over}", owned),
        mfu=Figure(useful.mfu, useful.gpu_hours, useful.observed_share),
        expected_mfu=Figure(useful.expected_mfu, useful.gpu_hours, useful.observed_share),
        owned_mfu=Figure(useful.owned_mfu, owned, None if not owned else 1.0),
        estimated_mfu=Figure(whole.mfu, whole.gpu_hours, ratio(whole.gpu_hours, owned)),
        estimate_error=ESTIMATE_ERROR,
        estimated_flop=whole.flops if whole.gpus else None,
        estimated_available_flop=whole.available_flops if whole.gpus else None,
        estimates=tuple(
            _type(gpu_type, found)
            for gpu_type, of in sorted(by_type.items(), key=lambda item: item[0] or "")
            if (found := estimate(of)).gpus
        ),
        nodes=tuple(sorted(nodes, key=lambda node: (_ORDER[node.state], node.host))),
        witnesses=tuple(sorted(witnesses, key=_furthest_first)),
    )


def _hosts(span: Range, holdings: Holdings) -> set[str]:
    return {
        node.host
        for node in holdings.inventory.nodes
        if holdings.hours(span.since_unix_ns, span.until_unix_ns, host=node.host).owned
    }


def _type(gpu_type: str | None, found: Estimate) -> TypeEstimate:
    return TypeEstimate(gpu_type, found.gpus, found.gpu_hours, found.mfu, found.flops, found.available_flops)


def _over(gpus: Iterable[Gpu], name: str, owned: float | None) -> Figure:
    """Σ weighted / Σ seconds over GPUs, and those hours."""
    weighted = seconds = 0.0
    for each in gpus:
        if each.share is not None:
            weighted += each.share * getattr(each, f"{name}_weighted")
            seconds += each.share * getattr(each, f"{name}_s")
    hours = seconds / 3600
    return Figure(ratio(weighted, seconds), hours, ratio(hours, owned))


def _node(
    span: Range,
    host: str,
    gpus: Sequence[Gpu],
    health: Health | None,
    failed: Failures | None,
    level: Level | None,
    holdings: Holdings | None,
) -> NodeUse:
    bounds = span.since_unix_ns, span.until_unix_ns
    owned = None if holdings is None else float(holdings.hours(*bounds, host=host).owned)
    held = None if holdings is None else float(holdings.allocated_hours(*bounds, host=host))
    over = "_held" if holdings is not None else ""
    types = {each.gpu_type for each in gpus if each.gpu_type is not None}
    devices = {each.gpu for each in gpus}
    count = len(devices)
    if holdings is not None:
        owned_nodes = holdings.nodes_of(host)
        types |= {node.gpu_type for node in owned_nodes}
        count = max(count, sum(node.gpus for node in owned_nodes))
    count = max(count, 0 if level is None else level.devices)
    guess = estimate(gpus)
    sums = None if level is None else level.sums
    failed = failed or Failures()
    steps = None if sums is None else sums.steps
    return NodeUse(
        host=host,
        gpu_types=tuple(sorted(types)),
        gpus=count,
        allocation=ratio(held, owned),
        gpu_utilization=_over(gpus, f"util{over}", None).value,
        tensor_activity=_over(gpus, f"tensor{over}", None).value,
        mfu=None if sums is None else sums.mfu,
        expected_mfu=None if sums is None else sums.expected_mfu,
        gpu_hours=None if sums is None else sums.device_hours,
        estimated_mfu=guess.mfu,
        estimated_gpu_hours=guess.gpu_hours,
        watched_gpu_hours=sum((each.share or 0.0) * each.seconds for each in gpus) / 3600,
        power_w=ratio(sum(each.power_j for each in gpus), sum(each.power_s for each in gpus)),
        state="unknown" if health is None else health.state,
        advice=None if health is None else health.advice,
        xids=() if health is None else health.xids,
        double_bit_errors=None if health is None else health.double_bit_errors,
        single_bit_errors=None if health is None else health.single_bit_errors,
        clock_ratio=None if health is None else health.clock_ratio,
        slow_gpus=() if health is None else health.slow_gpus,
        steps=steps,
        failed_steps=failed.failed_steps,
        step_error_rate=ratio(failed.failed_steps, steps),
        runs=failed.runs,
        failed_runs=failed.failed_runs,
        run_error_rate=ratio(failed.failed_runs, failed.runs),
    )


def _furthest_first(row: WorkloadWitness) -> tuple[float, str, str]:
    """The provider's before a tenant's word, ratios far from 1 before near ones."""
    far = 0.0 if not row.ratio else max(row.ratio, 1 / row.ratio)
    return (-far - (1e9 if row.by == "provider" else 0.0), row.tenant, row.workload or "")
