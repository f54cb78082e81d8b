"""The six questions of a fleet, each one query; those on the same range are read in one pass (sql/read/works)."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, Final, TypeVar

from mfu_sdk.provider.questions import by_gpu_type, by_scale, low_workloads, new_hardware, trend, under_batching
from mfu_sdk.provider.questions.by_gpu_type import ByGpuType
from mfu_sdk.provider.questions.by_scale import ByScale, Scaling
from mfu_sdk.provider.questions.cells import Cell
from mfu_sdk.provider.questions.low_workloads import LowWorkloads
from mfu_sdk.provider.questions.new_hardware import NewHardware
from mfu_sdk.provider.questions.trend import Change
from mfu_sdk.provider.questions.under_batching import UnderBatching
from mfu_sdk.provider.rollup import Range, Sums, scope, sums_of_each, total
from mfu_sdk.provider.store import Parameter, Reading, Row, Store

LOOKBACK_DAYS: Final = 180
"""How far back the question for new hardware looks for the same work on older devices."""

A = TypeVar("A", ByGpuType, NewHardware)

_DAY_NS: Final = 86_400 * 10**9
_BUCKETS_S: Final = (604_800, 86_400, 21_600, 10_800, 3600, 900, 300)
_LEAST_BUCKETS: Final = 20
_HOUR_S: Final = 3600
_ORDERS: Final[dict[str, Callable[[Row], Any]]] = {
    "low_workloads": itemgetter("start_unix_s", "tenant", "workload", "gpu_type", "world_size"),
    "change": itemgetter("start_unix_s", "gpu_type", "intent", "phase", "tenant", "workload", "family", "world_size"),
    "by_gpu_type": itemgetter("gpu_type", "family", "intent", "phase", "tenant", "workload"),
    "by_scale": itemgetter("tenant", "workload", "family", "gpu_type", "phase", "world_size", "run_id"),
    "under_batching_tenants": itemgetter("tenant", "workload", "gpu_type", "phase"),
}
"""The questions on one range, and the order of each one's rows: as their own queries have them."""


@dataclass(frozen=True, slots=True)
class Questions:
    """The six questions. An answer's `missing` says what nobody sent that it would need; `picture` is what to draw."""

    low_workloads: LowWorkloads
    by_gpu_type: ByGpuType
    by_scale: ByScale
    under_batching_tenants: UnderBatching
    trend: Change
    new_hardware: NewHardware


Doubted = tuple[str | None, str | None, str | None]
"""Tenant, workload and GPU type."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The answers, and what was read for them that a report tells as well.

    `curves` are all curves with scale, those of one size too; `buckets` sums of the range by their start in seconds
    since 1970, None where its buckets are shorter than the hours that were read; `previous_flops` the model FLOPs of
    the range before, None where nothing is before.
    """

    questions: Questions
    curves: tuple[Scaling, ...]
    buckets: dict[int, Sums] | None
    previous_flops: float | None


def ask(
    store: Store,
    span: Range,
    tenant: str | None,
    gpu_type: str | None = None,
    fine_s: int = _HOUR_S,
    doubted: Collection[Doubted] = (),
) -> Asked:
    """The answers over `span`: of `tenant` alone or of all, of one `gpu_type` or of all.

    `fine_s` are the seconds of the buckets that are wanted beside them. What is `doubted` is no measure of a GPU type.
    """

    def cells(reading: Reading, over: Range, **parameters: Parameter) -> tuple[Cell, ...]:
        return tuple(c for c in read(store, reading, over, tenant, **parameters) if gpu_type in (None, c.gpu_type))

    bucket_s = bucket_of(span)
    # Whole hours are read as such; shorter buckets would have the other questions read five minutes too.
    is_told = fine_s >= _HOUR_S and bucket_s >= _HOUR_S
    of = _in_one_pass(store, span, tenant, gpu_type, bucket_s, fine_s if is_told else bucket_s)
    curves = by_scale.curves(of.cells["by_scale"])
    before = cells("change", span.previous, bucket_s=604_800) if span.previous.since_unix_ns >= 0 else ()
    long = Range(max(0, min(span.since_unix_ns, span.until_unix_ns - LOOKBACK_DAYS * _DAY_NS)), span.until_unix_ns)
    types, arrived = of.cells["by_gpu_type"], cells("new_hardware", long)
    answers = Questions(
        low_workloads.answer(of.cells["low_workloads"]),
        _without(by_gpu_type.answer(_sound(types, doubted)), types, doubted),
        by_scale.answer(curves),
        under_batching.answer(of.cells["under_batching_tenants"]),
        trend.answer(of.cells["change"], before, bucket_s),
        _without(new_hardware.answer(_sound(arrived, doubted), long.since_unix_ns // 10**9), arrived, doubted),
    )
    return Asked(answers, curves, of.buckets if is_told else None, _flops(before))


def _sound(cells: tuple[Cell, ...], doubted: Collection[Doubted]) -> tuple[Cell, ...]:
    return tuple(c for c in cells if (c.tenant, c.workload, c.gpu_type) not in doubted) if doubted else cells


def _without(answer: A, cells: Iterable[Cell], doubted: Collection[Doubted]) -> A:
    """The answer, saying what was left out of it."""
    out = {(c.tenant, c.workload, c.gpu_type) for c in cells} & set(doubted)
    if not out:
        return answer
    whose = f"{len(out)} workloads'" if len(out) > 1 else "a workload's"
    said = f"{whose} figures cannot be as they are told (accounting, contested GPUs): in no comparison"
    return replace(answer, missing=(*answer.missing, said))


def bucket_of(span: Range) -> int:
    """Seconds of the longest bucket of which the range holds twenty: enough to test, few enough to be even."""
    length_s = (span.until_unix_ns - span.since_unix_ns) / 1e9
    return next((size for size in _BUCKETS_S if length_s / size >= _LEAST_BUCKETS), _BUCKETS_S[-1])


def read(store: Store, reading: Reading, span: Range, tenant: str | None, **parameters: Parameter) -> tuple[Cell, ...]:
    """The cells of one question's query."""
    return _cells(store.read(reading, **scope(span, tenant), **parameters))


@dataclass(frozen=True, slots=True)
class _Read:
    cells: dict[str, tuple[Cell, ...]]
    buckets: dict[int, Sums]


def _in_one_pass(
    store: Store, span: Range, tenant: str | None, gpu_type: str | None, bucket_s: int, wanted_s: int
) -> _Read:
    """The cells of each question on `span` itself, in its order, and the sums of buckets of `wanted_s` seconds."""
    rows: dict[str, list[Row]] = {name: [] for name in (*_ORDERS, "trend")}
    fine_s = min(wanted_s, bucket_s)
    for row in store.read("works", **scope(span, tenant), bucket_s=bucket_s, fine_s=fine_s):
        if gpu_type in (None, row["gpu_type"]):
            rows[row["of"]].append(row)
    trend = rows.pop("trend")
    buckets: dict[int, list[Sums]] = {}
    for row, sums in zip(trend, sums_of_each(trend), strict=True):
        buckets.setdefault(row["fine_unix_s"] // wanted_s * wanted_s, []).append(sums)
    for name, order in _ORDERS.items():
        rows[name].sort(key=order)
    return _Read(
        {name: _cells(of) for name, of in rows.items()}, {start: total(of) for start, of in sorted(buckets.items())}
    )


def _flops(cells: Iterable[Cell]) -> float | None:
    known = [cell.sums.model_flops for cell in cells if cell.sums.model_flops is not None]
    return sum(known) if known else None


def _cells(rows: Sequence[Row]) -> tuple[Cell, ...]:
    return tuple(_cell(row, sums) for row, sums in zip(rows, sums_of_each(rows), strict=True))


def _cell(row: Row, sums: Sums) -> Cell:
    return Cell(
        sums,
        row.get("tenant") or None,
        row.get("workload") or None,
        row.get("family") or None,
        row.get("gpu_type") or None,
        size if (size := row.get("world_size", -1)) > 0 else None,
        row.get("phase") or None,
        row.get("intent") or None,
        row.get("run_id") or None,
        row.get("start_unix_s"),
        row.get("first_unix_s"),
    )
