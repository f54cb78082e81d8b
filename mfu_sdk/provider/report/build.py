"""A store's sums to a report: the levels, and the questions that observed spans alone can answer."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any, Final

from mfu_sdk.provider import economics, findings, rollup
from mfu_sdk.provider.books import Holdings, Snapshot
from mfu_sdk.provider.causes import Finding, systemic
from mfu_sdk.provider.economics import Assessment
from mfu_sdk.provider.report import use
from mfu_sdk.provider.report.model import (
    Cause,
    Change,
    Factors,
    FamilyByType,
    FamilyOnType,
    Fleet,
    GpuType,
    LowWorkload,
    Node,
    Questions,
    Report,
    ScalePoint,
    Scaling,
    SharedCause,
    TrendPoint,
    Window,
    Workload,
)
from mfu_sdk.provider.report.window import iso
from mfu_sdk.provider.rollup import Job, Level, Moment, Range, Sums, Usage
from mfu_sdk.provider.store import Store

MATERIAL_SHORTFALL: Final = 0.10
"""A workload is low where it misses its expectation by this share: smaller ones are within what a roofline can say."""

_BUCKETS_S: Final = (300, 900, 3600, 10_800, 21_600, 86_400, 604_800)
_MOST_POINTS: Final = 96


_FLEET_ONLY: Final = "No money: it is reckoned for the whole fleet; ask as an operator, without a tenant."


def build(
    store: Store,
    span: Range,
    tenant: str | None,
    books: Snapshot | None = None,
    holdings: Holdings | None = None,
) -> Report:
    """The report on `span` of `tenant` alone, or of the whole fleet where it is None.

    `books` are for whom the whole fleet is theirs to see: with them what they allow is reckoned over all tenants.
    `holdings` are what causes of any tenant are held against.
    """
    # Of all tenants, whoever asks: what a GPU type reaches is not known from one of them.
    everyone = rollup.usages(store, span, None)
    usages = tuple(usage for usage in everyone if tenant in (None, usage.tenant))
    previous = rollup.level(rollup.usages(store, span.previous, tenant)).sums if _has_previous(span) else Sums()
    bucket_s = _bucket_s(span)
    moments = rollup.moments(store, span, tenant, bucket_s)
    fleet = rollup.level(usages)
    workloads = _workloads(store, span, tenant, usages)
    scaling = _scaling(usages)
    if holdings is None and books is not None and books.inventory is not None:
        holdings = Holdings(books.inventory)
    judged = findings.judge(store, span, holdings, usages=everyone)
    money = assessment(store, span, books, judged.findings, everyone)
    told = _fleet(fleet, previous, moments, bucket_s, money)
    return Report(
        window=Window(iso(span.since_unix_ns), iso(span.until_unix_ns)),
        fleet=told,
        nodes=_nodes(usages),
        workloads=workloads,
        gpu_types=_gpu_types(usages),
        scaling=scaling,
        inference=rollup.requests(store, span, tenant),
        questions=Questions(
            low_workloads=_low(workloads, moments),
            by_gpu_type=_families_by_type(usages),
            by_scale=tuple(curve for curve in scaling if len(curve.points) > 1),
            trend=Change(fleet.sums.mfu, previous.mfu, rollup.ratio(fleet.sums.mfu, previous.mfu)),
        ),
        economics=money.economics,
        economics_missing=money.missing,
        hours=money.hours,
        causes=_causes(store, judged, tenant),
        causes_left_out=judged.left_out,
        shared_causes=() if tenant is not None else _shared(judged),
        fleet_use=None if books is None else use.fleet_use(store, span, everyone, holdings, told, judged.evidence),
    )


def _causes(store: Store, judged: findings.Judged, tenant: str | None) -> tuple[Cause, ...]:
    found = (each for each in judged.findings if tenant in (None, each.tenant))
    # A range is told with what is decided by now, not with what was on its first day.
    kept = findings.decided(store, found, latest=True)
    names = [field.name for field in fields(Cause) if field.name != "state"]
    return tuple(Cause(**{name: getattr(each.finding, name) for name in names}, state=each.state) for each in kept)


def _shared(judged: findings.Judged) -> tuple[SharedCause, ...]:
    return tuple(
        SharedCause(**{field.name: getattr(each, field.name) for field in fields(SharedCause)})
        for each in systemic(judged.evidence, judged.findings)
    )


def assessment(
    store: Store,
    span: Range,
    books: Snapshot | None,
    found: Iterable[Finding] = (),
    usages: Sequence[Usage] | None = None,
) -> Assessment:
    """Capacity and money of the whole fleet over `span`, as far as `books` allow; `usages` are those of all tenants."""
    if books is None:
        return Assessment(None, (), None, _FLEET_ONLY)
    if books.inventory is None:
        return economics.assess(books, (), span.since_unix_ns, span.until_unix_ns)
    if usages is None:
        usages = rollup.usages(store, span, None)
    before = rollup.level(rollup.usages(store, span.previous, None)).sums if _has_previous(span) else Sums()
    ratio = rollup.ratio(rollup.level(usages).sums.model_flops, before.model_flops)
    growth = None if ratio is None else ratio - 1
    return economics.assess(books, usages, span.since_unix_ns, span.until_unix_ns, map(asdict, found), growth)


def _has_previous(span: Range) -> bool:
    return span.previous.since_unix_ns >= 0


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


def _fleet(fleet: Level, previous: Sums, moments: Sequence[Moment], bucket_s: int, money: Assessment) -> Fleet:
    sums, owned = fleet.sums, money.capacity
    factors = Factors(None, None, sums.mfu)
    if owned is not None:
        factors = Factors(owned.allocation, owned.runtime, owned.step)
    return Fleet(
        mfu=sums.mfu,
        owned_mfu=None if owned is None else owned.owned_mfu,
        factors=factors,
        observed_share=None if owned is None else owned.observed_share,
        allocated_observed_share=None if owned is None else owned.allocated_observed_share,
        model_flop=sums.model_flops,
        available_flop=sums.available_flops,
        gpus=fleet.devices,
        gpu_hours_observed=sums.device_hours,
        expected_mfu=sums.expected_mfu,
        steps=sums.steps,
        timed_steps=sums.timed_steps,
        unknown_steps=sums.unknown_steps,
        tokens=sums.tokens,
        trend=_trend(moments, bucket_s),
        previous_mfu=previous.mfu,
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


def _workloads(store: Store, span: Range, tenant: str | None, usages: Sequence[Usage]) -> tuple[Workload, ...]:
    qualities = rollup.qualities(store, span, tenant)
    uncounted = rollup.uncounted(store, span, tenant)
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
            uncounted=uncounted.get((job.tenant, job.workload), ()),
            **_counted(qualities.get(job)),
            **_figures(level),
        )
        for job, level in sorted(levels.items(), key=lambda item: _most_hours_first(item[1]))
    )


def _counted(quality: rollup.Quality | None) -> dict[str, Any]:
    quality = quality or rollup.Quality(None, (), (), ())
    return {field.name: getattr(quality, field.name) for field in fields(rollup.Quality)}


def _gpu_types(usages: Sequence[Usage]) -> tuple[GpuType, ...]:
    levels = rollup.by(usages, lambda usage: usage.gpu_type)
    return tuple(
        GpuType(gpu_type=name, **_figures(level))
        for name, level in sorted(levels.items(), key=lambda item: _most_hours_first(item[1]))
    )


def _scaling(usages: Sequence[Usage]) -> tuple[Scaling, ...]:
    known = [u for u in usages if u.family is not None and u.world_size is not None]
    curves: dict[tuple[str, str | None], list[tuple[int, float | None]]] = {}
    for (family, gpu_type, world_size), level in sorted(
        rollup.by(known, lambda u: (u.family or "", u.gpu_type, u.world_size or 0)).items(),
        key=lambda item: (item[0][0], item[0][1] or "", item[0][2]),
    ):
        curves.setdefault((family, gpu_type), []).append((world_size, level.sums.mfu))
    return tuple(
        Scaling(
            family,
            gpu_type,
            tuple(ScalePoint(size, mfu, rollup.ratio(mfu, points[0][1])) for size, mfu in points),
        )
        for (family, gpu_type), points in curves.items()
    )


def _low(workloads: Iterable[Workload], moments: Sequence[Moment]) -> tuple[LowWorkload, ...]:
    attained_by_job: dict[Job, list[float]] = {}
    for moment in moments:
        attained = rollup.ratio(moment.sums.mfu, moment.sums.expected_mfu)
        if attained is not None:
            attained_by_job.setdefault(moment.job, []).append(attained)
    found = []
    for w in workloads:
        attained = rollup.ratio(w.mfu, w.expected_mfu)
        if w.mfu is None or w.expected_mfu is None or attained is None or attained > 1 - MATERIAL_SHORTFALL:
            continue
        times = attained_by_job.get(Job(w.tenant, w.workload, w.gpu_type, w.world_size), [])
        low = sum(1 for value in times if value <= 1 - MATERIAL_SHORTFALL)
        hours = None if w.gpu_hours is None else (1 - attained) * w.gpu_hours
        found.append(
            LowWorkload(
                w.tenant,
                w.workload,
                w.gpu_type,
                w.world_size,
                w.mfu,
                w.expected_mfu,
                attained,
                hours,
                rollup.ratio(low, len(times)),
            )
        )
    return tuple(sorted(found, key=lambda row: (-(row.shortfall_gpu_hours or 0.0), row.attained)))


def _families_by_type(usages: Sequence[Usage]) -> tuple[FamilyByType, ...]:
    known = [u for u in usages if u.family is not None]
    families: dict[str, list[FamilyOnType]] = {}
    for (family, gpu_type), level in rollup.by(known, lambda u: (u.family or "", u.gpu_type)).items():
        sums = level.sums
        families.setdefault(family, []).append(FamilyOnType(gpu_type, sums.mfu, sums.expected_mfu, sums.device_hours))
    return tuple(FamilyByType(family, tuple(types)) for family, types in sorted(families.items()) if len(types) > 1)


def _most_hours_first(level: Level) -> float:
    return -(level.sums.device_hours or 0.0)


def _least_first(level: Level) -> float:
    # Nodes whose MFU is unknown come last, they are no finding.
    return math.inf if level.sums.mfu is None else level.sums.mfu
