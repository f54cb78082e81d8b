"""A store's sums to a report: the levels, and the questions that observed spans alone can answer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from mfu_sdk.provider import rollup
from mfu_sdk.provider.questions import Questions, Scaling, ask
from mfu_sdk.provider.report.model import (
    Factors,
    Fleet,
    GpuType,
    Node,
    Report,
    TrendPoint,
    Window,
    Workload,
)
from mfu_sdk.provider.report.window import iso
from mfu_sdk.provider.rollup import Job, Level, Moment, Quality, Range, Requests, Sums, Usage
from mfu_sdk.provider.store import Store

_BUCKETS_S: Final = (300, 900, 3600, 10_800, 21_600, 86_400, 604_800)
_MOST_POINTS: Final = 96


@dataclass(frozen=True, slots=True)
class Observed:
    """What a store holds over a range, read once: a report is made of it, and so is whatever else is reckoned."""

    span: Range
    tenant: str | None
    usages: tuple[Usage, ...]
    moments: tuple[Moment, ...]
    bucket_s: int
    qualities: dict[Job, Quality]
    uncounted: dict[tuple[str, str | None], tuple[str, ...]]
    requests: tuple[Requests, ...]
    questions: Questions
    curves: tuple[Scaling, ...]


def build(store: Store, span: Range, tenant: str | None) -> Report:
    """The report on `span` of `tenant` alone, or of the whole fleet where it is None."""
    return report_of(observe(store, span, tenant))


def observe(store: Store, span: Range, tenant: str | None) -> Observed:
    """Read all that a report on `span` needs: of `tenant` alone, or of the whole fleet where it is None."""
    bucket_s = _bucket_s(span)
    answers, curves = ask(store, span, tenant)
    return Observed(
        span,
        tenant,
        rollup.usages(store, span, tenant),
        rollup.moments(store, span, tenant, bucket_s),
        bucket_s,
        rollup.qualities(store, span, tenant),
        rollup.uncounted(store, span, tenant),
        rollup.requests(store, span, tenant),
        answers,
        curves,
    )


def report_of(observed: Observed) -> Report:
    """The report: the levels, and the questions that observed spans alone can answer."""
    usages = observed.usages
    return Report(
        window=Window(iso(observed.span.since_unix_ns), iso(observed.span.until_unix_ns)),
        fleet=_fleet(observed),
        nodes=_nodes(usages),
        workloads=_workloads(observed),
        gpu_types=_gpu_types(usages),
        scaling=observed.curves,
        inference=observed.requests,
        questions=observed.questions,
    )


def _bucket_s(span: Range) -> int:
    length_s = (span.until_unix_ns - span.since_unix_ns) / 1e9
    return next((size for size in _BUCKETS_S if length_s / size <= _MOST_POINTS), _BUCKETS_S[-1])


def _figures(level: Level) -> dict[str, Any]:
    sums = level.sums
    return {
        "mfu": sums.mfu,
        "expected_mfu": sums.expected_mfu,
        "model_flop": sums.model_flops,
        "available_flop": sums.available_flops,
        "gpus": level.devices,
        "gpu_hours": sums.device_hours,
        "steps": sums.steps,
        "timed_steps": sums.timed_steps,
        "unknown_steps": sums.unknown_steps,
        "tokens": sums.tokens,
    }


def _fleet(observed: Observed) -> Fleet:
    fleet = rollup.level(observed.usages)
    sums = fleet.sums
    return Fleet(
        mfu=sums.mfu,
        owned_mfu=None,
        factors=Factors(allocation=None, runtime=None, step=sums.mfu),
        observed_share=None,
        model_flop=sums.model_flops,
        available_flop=sums.available_flops,
        gpus=fleet.devices,
        gpu_hours_observed=sums.device_hours,
        expected_mfu=sums.expected_mfu,
        steps=sums.steps,
        timed_steps=sums.timed_steps,
        unknown_steps=sums.unknown_steps,
        tokens=sums.tokens,
        trend=_trend(observed.moments, observed.bucket_s),
        previous_mfu=observed.questions.trend.previous_mfu,
    )


def _trend(moments: Sequence[Moment], bucket_s: int) -> tuple[TrendPoint, ...]:
    buckets: dict[int, Sums] = {}
    for moment in moments:
        buckets[moment.start_unix_s] = buckets.get(moment.start_unix_s, Sums()) + moment.sums
    if not buckets:
        return ()
    # Gaps are points without a value, so that nobody draws a line through time in which nothing was seen.
    starts = range(min(buckets), max(buckets) + 1, bucket_s)
    sums = [(start, buckets.get(start, Sums())) for start in starts]
    return tuple(TrendPoint(iso(start * 10**9), s.mfu, s.model_flops, s.available_flops) for start, s in sums)


def _nodes(usages: Sequence[Usage]) -> tuple[Node, ...]:
    types: dict[str | None, set[str]] = {}
    for usage in usages:
        types.setdefault(usage.host, set()).update({usage.gpu_type} - {None})  # type: ignore[arg-type]  # None is out
    levels = rollup.by(usages, lambda usage: usage.host)
    return tuple(
        Node(host=host, gpu_types=tuple(sorted(types[host])), **_figures(level))
        for host, level in sorted(levels.items(), key=lambda item: _least_first(item[1]))
    )


def _workloads(observed: Observed) -> tuple[Workload, ...]:
    usages = observed.usages
    families: dict[Job, set[str]] = {}
    for usage in usages:
        families.setdefault(usage.job, set()).update({usage.family} - {None})  # type: ignore[arg-type]  # None is out
    levels = rollup.by(usages, lambda usage: usage.job)
    return tuple(
        Workload(
            tenant=job.tenant,
            workload=job.workload,
            # One name may have meant two models in the range; then no single family describes it.
            workload_family=min(families[job]) if len(families[job]) == 1 else None,
            run_ids=level.run_ids,
            gpu_type=job.gpu_type,
            world_size=job.world_size,
            batch_running=level.sums.batch_running,
            uncounted=observed.uncounted.get((job.tenant, job.workload), ()),
            **_counted(observed.qualities.get(job)),
            **_figures(level),
        )
        for job, level in sorted(levels.items(), key=lambda item: _most_hours_first(item[1]))
    )


def _counted(quality: Quality | None) -> dict[str, Any]:
    quality = quality or Quality(None, (), (), ())
    return {field.name: getattr(quality, field.name) for field in fields(Quality)}


def _gpu_types(usages: Sequence[Usage]) -> tuple[GpuType, ...]:
    levels = rollup.by(usages, lambda usage: usage.gpu_type)
    return tuple(
        GpuType(gpu_type=name, **_figures(level))
        for name, level in sorted(levels.items(), key=lambda item: _most_hours_first(item[1]))
    )


def _most_hours_first(level: Level) -> float:
    return -(level.sums.device_hours or 0.0)


def _least_first(level: Level) -> float:
    # Nodes whose MFU is unknown come last, they are no finding.
    return math.inf if level.sums.mfu is None else level.sums.mfu
