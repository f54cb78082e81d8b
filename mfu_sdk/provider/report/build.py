"""A store's sums to a report: the levels, and the questions that observed spans alone can answer."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from mfu_sdk.provider import attempts, economics, findings, fleet, rollup
from mfu_sdk.provider.books import Holdings, Snapshot
from mfu_sdk.provider.causes import systemic, testimony
from mfu_sdk.provider.contested import Contested, contested
from mfu_sdk.provider.economics import Assessment
from mfu_sdk.provider.fleet import Gpu
from mfu_sdk.provider.outside import outside
from mfu_sdk.provider.questions import Questions, Scaling, ask
from mfu_sdk.provider.questions.answers import Doubted
from mfu_sdk.provider.report import use
from mfu_sdk.provider.report.model import (
    Cause,
    Factors,
    Fleet,
    GpuType,
    Node,
    Report,
    SharedCause,
    TrendPoint,
    Window,
    Workload,
)
from mfu_sdk.provider.report.window import iso
from mfu_sdk.provider.rollup import Job, Level, Quality, Range, Requests, Sums, Usage
from mfu_sdk.provider.shared import Levels
from mfu_sdk.provider.store import Row, Store

_BUCKETS_S: Final = (300, 900, 3600, 10_800, 21_600, 86_400, 604_800)
_MOST_POINTS: Final = 96


_ALL_TYPES_ONLY: Final = "No money: it is reckoned for the whole fleet; ask without a GPU type."
_FLEET_ONLY: Final = "No money: it is reckoned for the whole fleet; ask as an operator, without a tenant."


Judge = Callable[[Sequence[Usage], Sequence[Contested]], findings.Judged]
"""What is wrong in the range, of all tenants, given their sums where they have been read."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What a store holds over a range, read once: a report is made of it, and so is whatever else is reckoned."""

    span: Range
    tenant: str | None
    usages: tuple[Usage, ...]
    buckets: Mapping[int, Sums]
    bucket_s: int
    qualities: dict[Job, Quality]
    uncounted: dict[tuple[str, str | None], tuple[str, ...]]
    requests: tuple[Requests, ...]
    questions: Questions
    curves: tuple[Scaling, ...]
    previous_flops: float | None


def build(
    store: Store,
    span: Range,
    tenant: str | None,
    books: Snapshot | None = None,
    holdings: Holdings | None = None,
    drifts: Sequence[Row] = (),
    *,
    gpu_type: str | None = None,
    levels: Levels | None = None,
    now_unix_ns: int | None = None,
    judge: Judge | None = None,
    gpus: Callable[[], tuple[Gpu, ...]] | None = None,
) -> Report:
    """The report on `span` of `tenant` alone, or of the whole fleet where it is None; of one `gpu_type` where given.

    `books` are for whom the whole fleet is theirs to see: with them what they allow is reckoned over all tenants, where
    no GPU type is asked for. `holdings` are what causes of any tenant are held against, `drifts` what the provider
    found itself. `judge` and `gpus` tell what both take long to find, where somebody keeps it. `levels` are what a
    tenant is held against beside its own, as of `now_unix_ns`, the range's end where that is None.
    """
    # Of all tenants, whoever asks: what a GPU type reaches is not known from one of them.
    everyone = rollup.usages(store, span, None)
    if holdings is None and books is not None and books.inventory is not None:
        holdings = Holdings(books.inventory)
    contests = contested(store, span, holdings, everyone)
    if judge is None:
        judged = findings.judge(store, span, holdings, drifts, everyone, contests)
    else:
        judged = judge(everyone, contests)
    # A tenant's own figures are its own to compare.
    doubted = _doubted(judged, contests, everyone) if tenant is None else ()
    observed = observe(store, span, tenant, gpu_type, everyone, doubted)
    if gpu_type is None:
        money = assessment(store, span, books, judged, everyone, contests, observed if tenant is None else None)
    else:
        money = Assessment(None, (), None, _ALL_TYPES_ONLY)
    told = report_of(observed, money)
    # What exporters tell is of all tenants' GPUs: for who sees the whole fleet, and asks for no part of it.
    whole = books is not None and tenant is None and gpu_type is None
    seen = () if not whole else fleet.gpus(store, span, holdings) if gpus is None else gpus()
    now = span.until_unix_ns if now_unix_ns is None else now_unix_ns
    others = None if levels is None or tenant is None else levels.against(tenant, observed.usages, span, now)
    return replace(
        told,
        contested=_contested(contests, observed.usages, tenant),
        against_fleet=others,
        causes=tuple(c for c in _causes(store, judged, tenant) if gpu_type in (None, c.gpu_type)),
        causes_left_out=judged.left_out,
        shared_causes=() if tenant is not None or gpu_type is not None else _shared(judged),
        fleet_use=use.fleet_use(store, span, seen, observed.usages, holdings, told.fleet, judged.evidence)
        if whole
        else None,
    )


def observe(
    store: Store,
    span: Range,
    tenant: str | None,
    gpu_type: str | None = None,
    everyone: Sequence[Usage] | None = None,
    doubted: Collection[Doubted] = (),
) -> Observed:
    """Read all that a report on `span` needs: of `tenant` alone or of all, on `gpu_type` alone or on all.

    `everyone` are the sums of all tenants where they have been read, `doubted` what is no measure for others. Inference
    requests name no device, so those of one GPU type are not known.
    """
    bucket_s = bucket_seconds(span)
    asked = ask(store, span, tenant, gpu_type, bucket_s, doubted)
    buckets = asked.buckets
    mine = rollup.usages(store, span, tenant) if everyone is None else everyone
    return Observed(
        span,
        tenant,
        tuple(u for u in mine if tenant in (None, u.tenant) and gpu_type in (None, u.gpu_type)),
        rollup.buckets(store, span, tenant, bucket_s, gpu_type) if buckets is None else buckets,
        bucket_s,
        rollup.qualities(store, span, tenant),
        rollup.uncounted(store, span, tenant),
        rollup.requests(store, span, tenant) if gpu_type is None else (),
        asked.questions,
        asked.curves,
        asked.previous_flops,
    )


def report_of(observed: Observed, money: Assessment | None = None) -> Report:
    """The report: the levels, what observed spans alone can answer, and the money where it is reckoned."""
    usages = observed.usages
    money = money or Assessment(None, (), None, _FLEET_ONLY)
    return Report(
        window=Window(iso(observed.span.since_unix_ns), iso(observed.span.until_unix_ns)),
        fleet=_fleet(observed, money),
        nodes=_nodes(usages),
        workloads=_workloads(observed),
        gpu_types=_gpu_types(usages),
        scaling=observed.curves,
        inference=observed.requests,
        questions=observed.questions,
        economics=money.economics,
        economics_missing=money.missing,
        hours=money.hours,
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


def _doubted(judged: findings.Judged, contests: Sequence[Contested], usages: Sequence[Usage]) -> frozenset[Doubted]:
    """Workloads on a GPU type of which any row cannot be as it is told."""
    said = testimony(judged.evidence, usages)
    taken = {(each.tenant, each.device) for each in contests}
    return frozenset(
        (usage.tenant, usage.workload, usage.gpu_type)
        for usage in usages
        if said.get(usage.identity) == "contradicted" or (usage.tenant, usage.device) in taken
    )


def _contested(found: Sequence[Contested], usages: Sequence[Usage], tenant: str | None) -> tuple[Contested, ...]:
    """Of the rows that are shown; a tenant is told of its own, and not who else it is."""
    shown = {(usage.tenant, usage.device) for usage in usages}
    mine = (each for each in found if (each.tenant, each.device) in shown)
    return tuple(mine) if tenant is None else tuple(replace(each, others=()) for each in mine)


def assessment(
    store: Store,
    span: Range,
    books: Snapshot | None,
    judged: findings.Judged | None = None,
    usages: Sequence[Usage] | None = None,
    contests: Sequence[Contested] | None = None,
    observed: Observed | None = None,
) -> Assessment:
    """Capacity and money of the whole fleet over `span`, as far as `books` allow.

    `judged`, `usages`, `contests` and `observed` are those of all tenants.
    """
    if books is None:
        return Assessment(None, (), None, _FLEET_ONLY)
    if books.inventory is None:
        return economics.assess(books, (), span.since_unix_ns, span.until_unix_ns)
    if usages is None:
        usages = rollup.usages(store, span, None)
    if observed is not None:
        before = observed.previous_flops
    else:
        before = rollup.model_flops(store, span.previous, None) if span.previous.since_unix_ns >= 0 else None
    ratio = rollup.ratio(rollup.total(usage.sums for usage in usages).model_flops, before)
    growth = None if ratio is None else ratio - 1
    judged = judged or findings.Judged((), (), {})
    holdings = Holdings(books.inventory)
    return economics.assess(
        books,
        usages,
        span.since_unix_ns,
        span.until_unix_ns,
        map(asdict, judged.findings),
        growth,
        attempts.redone(store, span),
        testimony(judged.evidence, usages),
        outside(store, span, holdings),
        contested(store, span, holdings, usages) if contests is None else contests,
    )


def bucket_seconds(span: Range, most: int = _MOST_POINTS) -> int:
    """How long the buckets of a trend over `span` are, so that there are at most `most`; at least five minutes."""
    length_s = (span.until_unix_ns - span.since_unix_ns) / 1e9
    return next((size for size in _BUCKETS_S if length_s / size <= most), _BUCKETS_S[-1])


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


def _fleet(observed: Observed, money: Assessment) -> Fleet:
    fleet = rollup.level(observed.usages)
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
        trend=_trend(observed.buckets, observed.bucket_s),
        previous_mfu=observed.questions.trend.previous_mfu,
    )


def _trend(buckets: Mapping[int, Sums], bucket_s: int) -> tuple[TrendPoint, ...]:
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
