"""The six questions of a fleet, each one query."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from mfu_sdk.provider.questions import by_gpu_type, by_scale, low_workloads, new_hardware, trend, under_batching
from mfu_sdk.provider.questions.by_gpu_type import ByGpuType
from mfu_sdk.provider.questions.by_scale import ByScale, Scaling
from mfu_sdk.provider.questions.cells import Cell
from mfu_sdk.provider.questions.low_workloads import LowWorkloads
from mfu_sdk.provider.questions.new_hardware import NewHardware
from mfu_sdk.provider.questions.trend import Change
from mfu_sdk.provider.questions.under_batching import UnderBatching
from mfu_sdk.provider.rollup import Range, scope, sums_of
from mfu_sdk.provider.store import Parameter, Reading, Row, Store

LOOKBACK_DAYS: Final = 180
"""How far back the question for new hardware looks for the same work on older devices."""

A = TypeVar("A", ByGpuType, NewHardware)

_DAY_NS: Final = 86_400 * 10**9
_BUCKETS_S: Final = (604_800, 86_400, 21_600, 10_800, 3600, 900, 300)
_LEAST_BUCKETS: Final = 20


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


def ask(
    store: Store,
    span: Range,
    tenant: str | None,
    gpu_type: str | None = None,
    doubted: Collection[Doubted] = (),
) -> tuple[Questions, tuple[Scaling, ...]]:
    """The answers over `span`, and every curve with scale, those of one size too.

    Of `tenant` alone or of all; of one `gpu_type` or of all. What is `doubted` is no measure of a GPU type.
    """

    def cells(reading: Reading, over: Range, **parameters: Parameter) -> tuple[Cell, ...]:
        return tuple(c for c in read(store, reading, over, tenant, **parameters) if gpu_type in (None, c.gpu_type))

    bucket_s = bucket_of(span)
    curves = by_scale.curves(cells("by_scale", span))
    before = cells("change", span.previous, bucket_s=604_800) if span.previous.since_unix_ns >= 0 else ()
    long = Range(max(0, min(span.since_unix_ns, span.until_unix_ns - LOOKBACK_DAYS * _DAY_NS)), span.until_unix_ns)
    types, arrived = cells("by_gpu_type", span), cells("new_hardware", long)
    answers = Questions(
        low_workloads.answer(cells("low_workloads", span, bucket_s=bucket_s)),
        _without(by_gpu_type.answer(_sound(types, doubted)), types, doubted),
        by_scale.answer(curves),
        under_batching.answer(cells("under_batching_tenants", span)),
        trend.answer(cells("change", span, bucket_s=bucket_s), before, bucket_s),
        _without(new_hardware.answer(_sound(arrived, doubted), long.since_unix_ns // 10**9), arrived, doubted),
    )
    return answers, curves


def _sound(cells: tuple[Cell, ...], doubted: Collection[Doubted]) -> tuple[Cell, ...]:
    return tuple(c for c in cells if (c.tenant, c.workload, c.gpu_type) not in doubted) if doubted else cells


def _without(answer: A, cells: Iterable[Cell], doubted: Collection[Doubted]) -> A:
    """The answer, saying what was left out of it."""
    out = {(c.tenant, c.workload, c.gpu_type) for c in cells} & set(doubted)
    if not out:
        return answer
    said = f"{len(out)} workloads' figures cannot be as they are told (accounting, contested GPUs): in no comparison"
    return replace(answer, missing=(*answer.missing, said))


def bucket_of(span: Range) -> int:
    """Seconds of the longest bucket of which the range holds twenty: enough to test, few enough to be even."""
    length_s = (span.until_unix_ns - span.since_unix_ns) / 1e9
    return next((size for size in _BUCKETS_S if length_s / size >= _LEAST_BUCKETS), _BUCKETS_S[-1])


def read(store: Store, reading: Reading, span: Range, tenant: str | None, **parameters: Parameter) -> tuple[Cell, ...]:
    """The cells of one question's query."""
    return tuple(_cell(row) for row in store.read(reading, **scope(span, tenant), **parameters))


def _cell(row: Row) -> Cell:
    return Cell(
        sums_of(row),
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
