"""Sums of what was asked for and what was available, on every level: workload, node, GPU type, fleet.

A level's MFU is Σ model FLOPs / Σ available FLOPs over its rows, so a level is the sum of any split of it, and no
ratio is ever averaged. Which rows count, and with what weight, is decided in sql/0002, sql/0010 and sql/0011.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Final, NamedTuple, TypeVar

from mfu_sdk.provider.store import Parameter, Row, Store

K = TypeVar("K", bound=Hashable)

_UNSAID: Final = -1
"""What the roll-up's key holds where a client sent no world size."""


@dataclass(frozen=True, slots=True)
class Range:
    """The time [since, until), in nanoseconds since 1970."""

    since_unix_ns: int
    until_unix_ns: int

    @property
    def previous(self) -> "Range":
        """The range of the same length that ends where this one begins."""
        return Range(2 * self.since_unix_ns - self.until_unix_ns, self.since_unix_ns)


class Sums(NamedTuple):
    """Additive quantities; None where nothing that was summed knew its part.

    A tuple because a page of a large fleet makes tens of thousands: a frozen dataclass of fifty fields takes nine times
    as long to make.

    `model_flops` and `available_flops` are over the same steps: timed, and with both known; `unknown_steps` are the
    timed ones left out. `expected_flops` over `expected_available_flops` is the expected MFU. `expected_interval_flops`
    are those of the steps that tell the interval of theirs, `expected_low_flops` and `expected_high_flops` the same at
    its ends. `device_s` is the Σ duration of timed steps over devices; `batch_s` is Σ batch × duration over
    `batch_device_s`. `tokens` are those of all steps that did not fail, timed or not. `hardware_flops` are over the
    steps of `model_flops` that know them.

    For each component of a step (data, comm, skew, host), `x_s` is Σ of its seconds, over steps of `x_known_s` seconds
    in all. For each load or quality, `x_weighted` is Σ value × step seconds over `x_s`, the seconds of the steps that
    know it; the property `x` is the mean over their time.
    """

    steps: float | None = None
    timed_steps: float | None = None
    unknown_steps: float | None = None
    model_flops: float | None = None
    available_flops: float | None = None
    expected_flops: float | None = None
    expected_available_flops: float | None = None
    device_s: float | None = None
    tokens: float | None = None
    batch_s: float | None = None
    batch_device_s: float | None = None
    hardware_flops: float | None = None
    data_s: float | None = None
    data_known_s: float | None = None
    comm_s: float | None = None
    comm_known_s: float | None = None
    skew_s: float | None = None
    skew_known_s: float | None = None
    host_s: float | None = None
    host_known_s: float | None = None
    bus_rate_weighted: float | None = None
    bus_rate_s: float | None = None
    bus_peak_weighted: float | None = None
    bus_peak_s: float | None = None
    ideal_ratio_weighted: float | None = None
    ideal_ratio_s: float | None = None
    clock_weighted: float | None = None
    clock_s: float | None = None
    witness_weighted: float | None = None
    witness_s: float | None = None
    batch_feasible_weighted: float | None = None
    batch_feasible_s: float | None = None
    queue_weighted: float | None = None
    queue_s: float | None = None
    kv_free_weighted: float | None = None
    kv_free_s: float | None = None
    intensity_weighted: float | None = None
    intensity_s: float | None = None
    memory_rate_weighted: float | None = None
    memory_rate_s: float | None = None
    feasible_mfu_weighted: float | None = None
    feasible_mfu_s: float | None = None
    latency_target_weighted: float | None = None
    latency_target_s: float | None = None
    expected_low_flops: float | None = None
    expected_high_flops: float | None = None
    expected_interval_flops: float | None = None

    def __add__(self, other: "Sums") -> "Sums":  # type: ignore[override]
        return total((self, other))

    @property
    def mfu(self) -> float | None:
        """Σ model FLOPs / Σ available FLOPs."""
        return ratio(self.model_flops, self.available_flops)

    @property
    def expected_mfu(self) -> float | None:
        """Σ expected FLOPs / Σ available FLOPs, over the steps that have an expectation."""
        return ratio(self.expected_flops, self.expected_available_flops)

    @property
    def expected_low_mfu(self) -> float | None:
        """The lower end of the expected MFU's interval: as far below it as in the steps that tell theirs."""
        return _scaled(self.expected_mfu, ratio(self.expected_low_flops, self.expected_interval_flops))

    @property
    def expected_high_mfu(self) -> float | None:
        """The upper end, likewise."""
        return _scaled(self.expected_mfu, ratio(self.expected_high_flops, self.expected_interval_flops))

    @property
    def device_hours(self) -> float | None:
        """Hours of timed steps, each device on its own."""
        return None if self.device_s is None else self.device_s / 3600

    @property
    def batch_running(self) -> float | None:
        """Mean batch over time."""
        return ratio(self.batch_s, self.batch_device_s)

    @property
    def bus_rate(self) -> float | None:
        """Mean over time: bytes/s that collectives moved."""
        return ratio(self.bus_rate_weighted, self.bus_rate_s)

    @property
    def bus_peak(self) -> float | None:
        """Mean over time: bytes/s that these links were measured to move."""
        return ratio(self.bus_peak_weighted, self.bus_peak_s)

    @property
    def ideal_ratio(self) -> float | None:
        """Mean over time: communication / computation on ideal links."""
        return ratio(self.ideal_ratio_weighted, self.ideal_ratio_s)

    @property
    def clock(self) -> float | None:
        """Mean over time: clock / clock of the peak."""
        return ratio(self.clock_weighted, self.clock_s)

    @property
    def witness(self) -> float | None:
        """Mean over time: tensor pipes busy × clock ratio, by the device's own counters."""
        return ratio(self.witness_weighted, self.witness_s)

    @property
    def batch_feasible(self) -> float | None:
        """Mean over time: the batch that would fit."""
        return ratio(self.batch_feasible_weighted, self.batch_feasible_s)

    @property
    def queue(self) -> float | None:
        """Mean over time: requests that wait."""
        return ratio(self.queue_weighted, self.queue_s)

    @property
    def kv_free(self) -> float | None:
        """Mean over time: free share of the key-value cache."""
        return ratio(self.kv_free_weighted, self.kv_free_s)

    @property
    def intensity(self) -> float | None:
        """Mean over time: FLOPs per byte moved."""
        return ratio(self.intensity_weighted, self.intensity_s)

    @property
    def memory_rate(self) -> float | None:
        """Mean over time: bytes/s that the device's memory was measured to move."""
        return ratio(self.memory_rate_weighted, self.memory_rate_s)

    @property
    def feasible_mfu(self) -> float | None:
        """Mean over time: expected MFU at the batch that would fit."""
        return ratio(self.feasible_mfu_weighted, self.feasible_mfu_s)

    @property
    def latency_target(self) -> float | None:
        """Mean over time: seconds per output token that are promised."""
        return ratio(self.latency_target_weighted, self.latency_target_s)


_NAMES: Final = Sums._fields


def total(parts: Iterable[Sums]) -> Sums:
    """All of `parts` as one; by column, because a fleet has thousands of parts of fifty columns."""
    known = (tuple(value for value in column if value is not None) for column in zip(*parts, strict=True))
    return Sums(*(sum(column) if column else None for column in known))


@dataclass(frozen=True, slots=True)
class Usage:
    """What one device did for one workload; `world_size`, `host` and the names are None where nobody said.

    `parent` is the UUID of the GPU that a MIG slice is of; `link` and `link_best` are the paths of semconv.
    """

    tenant: str
    workload: str | None
    family: str | None
    gpu_type: str | None
    world_size: int | None
    host: str | None
    device: str
    run_ids: tuple[str, ...]
    sums: Sums
    phase: str | None = None
    intent: str | None = None
    fingerprint: str | None = None
    link: str | None = None
    link_best: str | None = None
    mig_profile: str | None = None
    parent: str | None = None
    allocation_id: str | None = None

    @property
    def identity(self) -> tuple[object, ...]:
        """All but its runs and sums, which no other row of the same range has."""
        return (
            self.tenant, self.workload, self.family, self.gpu_type, self.world_size, self.host, self.device, self.phase,
            self.intent, self.fingerprint, self.link, self.link_best, self.mig_profile, self.parent, self.allocation_id,
        )  # fmt: skip

    @property
    def job(self) -> "Job":
        """The workload this is a part of."""
        return Job(self.tenant, self.workload, self.gpu_type, self.world_size)


@dataclass(frozen=True, slots=True)
class Job:
    """What the lowest level is keyed by: a tenant's workload on one GPU type at one world size."""

    tenant: str
    workload: str | None
    gpu_type: str | None
    world_size: int | None


@dataclass(frozen=True, slots=True)
class Level:
    """One row of a level: its sums, and the distinct devices and runs in it."""

    sums: Sums
    devices: int
    run_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Moment:
    """What one job did in one bucket of time that starts at `start_unix_s`."""

    start_unix_s: int
    job: Job
    sums: Sums


@dataclass(frozen=True, slots=True)
class Quality:
    """How a job was counted: its least coverage, and the denominators and conventions that its spans named."""

    coverage: float | None
    peak_dtypes: tuple[str, ...]
    peak_sources: tuple[str, ...]
    conventions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Requests:
    """The inference requests of a workload: no part of any level, because requests overlap on a device.

    Exact totals of what ended in its windows; where no window holds any, the sum of its requests' spans. `sampled`
    says that those spans are a sample, so that `requests`, `mean_duration_s` and `tokens` are estimates.
    """

    tenant: str
    workload: str | None
    requests: float
    failed: int | None
    mean_duration_s: float | None
    tokens: float | None
    sampled: bool


def usages(store: Store, span: Range, tenant: str | None) -> tuple[Usage, ...]:
    """Sums by workload and device over `span`; of `tenant` alone, or of all where it is None."""
    rows = store.read("levels", **scope(span, tenant))
    return tuple(_usage(row, sums) for row, sums in zip(rows, sums_of_each(rows), strict=True))


def usage_of(row: Row) -> Usage:
    """The sums of a row, and whose they are; its runs are `run_ids`, or the one of `run_id`."""
    return _usage(row, sums_of(row))


def _usage(row: Row, sums: Sums) -> Usage:
    return Usage(
        tenant=row["tenant"],
        workload=row["workload"] or None,
        family=row["family"] or None,
        gpu_type=row["gpu_type"] or None,
        world_size=_said(row["world_size"]),
        host=row["host"] or None,
        device=row["device"],
        run_ids=tuple(sorted(run_id for run_id in row.get("run_ids") or [row.get("run_id")] if run_id)),
        sums=sums,
        phase=row["phase"] or None,
        intent=row["intent"] or None,
        fingerprint=row["fingerprint"] or None,
        link=row["link"] or None,
        link_best=row["link_best"] or None,
        mig_profile=row["mig_profile"] or None,
        parent=row["parent"] or None,
        allocation_id=row["allocation_id"] or None,
    )


def model_flops(store: Store, span: Range, tenant: str | None) -> float | None:
    """All model FLOPs over `span`."""
    (row,) = store.read("total_flop", **scope(span, tenant))
    found: float | None = row["model_flop"]
    return found


def level(parts: Iterable[Usage]) -> Level:
    """All of `parts` as one."""
    parts = tuple(parts)
    return Level(
        total(part.sums for part in parts),
        len({part.device for part in parts}),
        tuple(sorted({run_id for part in parts for run_id in part.run_ids})),
    )


def by(parts: Iterable[Usage], key: Callable[[Usage], K]) -> dict[K, Level]:
    """A level of `parts`, keyed by `key`, in the order of first appearance."""
    groups: dict[K, list[Usage]] = {}
    for part in parts:
        groups.setdefault(key(part), []).append(part)
    return {name: level(members) for name, members in groups.items()}


def moments(store: Store, span: Range, tenant: str | None, bucket_s: int) -> tuple[Moment, ...]:
    """Sums by job in buckets of `bucket_s` seconds, a multiple of the roll-up's 300."""
    rows = store.read("trend", **scope(span, tenant), bucket_s=bucket_s)
    return tuple(
        Moment(row["bucket_unix_s"], _job(row), sums) for row, sums in zip(rows, sums_of_each(rows), strict=True)
    )


def buckets(
    store: Store, span: Range, tenant: str | None, bucket_s: int, gpu_type: str | None = None
) -> dict[int, Sums]:
    """Model and available FLOPs in buckets of `bucket_s` seconds by their start, of one `gpu_type` or of all."""
    rows = store.read("fleet_trend", **scope(span, tenant), bucket_s=bucket_s)
    found: dict[int, list[Sums]] = {}
    for row, sums in zip(rows, sums_of_each(rows), strict=True):
        if gpu_type in (None, row["gpu_type"]):
            found.setdefault(row["bucket_unix_s"], []).append(sums)
    return {start: total(of) for start, of in found.items()}


def qualities(store: Store, span: Range, tenant: str | None) -> dict[Job, Quality]:
    """How each job was counted."""
    return {
        _job(row): Quality(
            row["coverage"], tuple(row["peak_dtypes"]), tuple(row["peak_sources"]), tuple(row["conventions"])
        )
        for row in store.read("quality", **scope(span, tenant))
    }


def uncounted(store: Store, span: Range, tenant: str | None) -> dict[tuple[str, str | None], tuple[str, ...]]:
    """Operators without a formula by (tenant, workload), as the runs that overlap `span` reported at their end."""
    return {
        (row["tenant"], row["workload"] or None): tuple(row["operators"])
        for row in store.read("uncounted", **scope(span, tenant))
        if row["operators"]
    }


def requests(store: Store, span: Range, tenant: str | None) -> tuple[Requests, ...]:
    """Inference requests by workload."""
    return tuple(
        Requests(
            row["tenant"],
            row["workload"] or None,
            row["requests"],
            row["failed"],
            ratio(row["duration_s"], row["requests"]),
            row["tokens"],
            bool(row["sampled"]),
        )
        for row in store.read("inference", **scope(span, tenant))
    )


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """`numerator` / `denominator`; None where either is unknown or there is nothing to divide by."""
    return numerator / denominator if numerator is not None and denominator else None


def _scaled(value: float | None, factor: float | None) -> float | None:
    return None if value is None or factor is None else value * factor


def _said(world_size: int) -> int | None:
    return None if world_size == _UNSAID else world_size


def scope(span: Range, tenant: str | None) -> dict[str, Parameter]:
    """The parameters of every query: a range, and one tenant or everyone."""
    return {
        "since": span.since_unix_ns,
        "until": span.until_unix_ns,
        "everyone": int(tenant is None),
        "tenant": tenant or "",
    }


def _job(row: Row) -> Job:
    return Job(row["tenant"], row["workload"] or None, row["gpu_type"] or None, _said(row["world_size"]))


# Names of columns beside those of fields, where they differ: columns follow the attributes, fields the units.
_COLUMNS: Final = {
    "model_flops": "model_flop",
    "available_flops": "available_flop",
    "expected_flops": "expected_flop",
    "expected_available_flops": "expected_available_flop",
    "expected_low_flops": "expected_low_flop",
    "expected_high_flops": "expected_high_flop",
    "expected_interval_flops": "expected_interval_flop",
    "hardware_flops": "hardware_flop",
    "device_s": "step_time_s",
    "batch_device_s": "batch_time_s",
}
_PARTS: Final = tuple(
    (name, name.removesuffix("_known_s") + "_s") for name in _NAMES if name.endswith("_known_s")
) + tuple((name.removesuffix("_weighted") + "_s", name) for name in _NAMES if name.endswith("_weighted"))
"""Seconds in which a part is known, and the part: a table holds zero for both where nobody knew it."""


_SOURCES: Final = tuple(_COLUMNS.get(name, name) for name in _NAMES)
_PLACES: Final = tuple((_NAMES.index(known_s), _NAMES.index(part)) for known_s, part in _PARTS)


def sums_of(row: Row) -> Sums:
    """The sums of a query's row; what it did not ask for is None."""
    return _sums([row.get(column) for column in _SOURCES])


def sums_of_each(rows: Sequence[Row]) -> Iterator[Sums]:
    """`sums_of` each of the rows of one query, whose columns are looked up once: a fleet has tens of thousands."""
    if not rows:
        return
    asked = [place for place, column in enumerate(_SOURCES) if column in rows[0]]
    columns = [_SOURCES[place] for place in asked]
    nothing: list[float | None] = [None] * len(_SOURCES)
    for row in rows:
        if len(asked) == len(_SOURCES):
            yield _sums(list(_all_of(row)))
            continue
        values = nothing.copy()
        for place, column in zip(asked, columns, strict=True):
            values[place] = row[column]
        yield _sums(values)


_all_of: Final[Callable[[Row], tuple[float | None, ...]]] = itemgetter(*_SOURCES)


def _sums(values: list[float | None]) -> Sums:
    for known_s, part in _PLACES:
        if not values[known_s]:
            values[known_s] = values[part] = None
    return Sums(*values)
