"""One run: over time, step by step, where its time went, what it told, and its ranks."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from mfu_sdk.provider import rollup
from mfu_sdk.provider.pages import charts
from mfu_sdk.provider.report import words
from mfu_sdk.provider.report.build import bucket_seconds
from mfu_sdk.provider.report.window import iso
from mfu_sdk.provider.rollup import Range, Sums, ratio
from mfu_sdk.provider.store import Row, Store

_MOST_POINTS: Final = 200
_UNKNOWN_STEP: Final = -1
_PARTS: Final = {
    "data": "waiting for data",
    "comm": "exposed communication",
    "skew": "waiting for late ranks",
    "host": "device without work",
}


@dataclass(frozen=True, slots=True)
class Rank:
    """What one rank did on one device; None where the client did not say."""

    rank: int | None
    host: str | None
    device: str
    gpu_type: str | None
    attempt: int | None
    sums: Sums


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the steps' time as a share of it; None where no step told it."""

    name: str
    share: float | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """A measured peak: FLOP/s with its interval, and how it was taken."""

    at: str
    rank: int | None
    dtype: str
    source: str
    tier: str
    degraded: str
    flop_per_s: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Drift:
    """An excursion from the run's own baseline; steps are None where the client did not say or it did not recover."""

    at: str
    rank: int | None
    kind: str
    cause: str
    change: float | None
    onset_step: int | None
    found_step: int | None
    recovered_step: int | None
    evidence: tuple[str, ...]
    difference: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class End:
    """A process's end as it told it: how long it ran, and the class of the error that ended it."""

    at: str
    rank: int | None
    duration_s: float
    steps: int | None
    overhead_s: float | None
    error: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Run:
    """A run of one tenant in a range."""

    tenant: str
    run_id: str
    workload: str | None
    world_size: int | None
    sums: Sums
    ranks: tuple[Rank, ...]
    parts: tuple[Part, ...]
    calibrations: tuple[Calibration, ...]
    drifts: tuple[Drift, ...]
    ends: tuple[End, ...]
    trend: charts.Chart | None
    steps: charts.Chart | None
    steps_of: str
    waterfall: charts.Chart | None


def tenants(store: Store, span: Range, tenant: str | None, run_id: str) -> tuple[str, ...]:
    """Whose run `run_id` is, in `span` and among what `tenant`, or everyone, may see: an id is a client's choice."""
    return tuple(dict.fromkeys(row["tenant"] for row in _ranks(store, span, tenant, run_id)))


def read(store: Store, span: Range, tenant: str, run_id: str) -> Run | None:
    """`tenant`'s run of that id; None where it has none in `span`."""
    rows = _ranks(store, span, tenant, run_id)
    if not rows:
        return None
    ranks = tuple(
        Rank(
            _said(r["rank"]),
            r["host"] or None,
            r["device"],
            r["gpu_type"] or None,
            _said(r["attempt"]),
            rollup.sums_of(r),
        )
        for r in rows
    )
    total = sum((rank.sums for rank in ranks), Sums())
    scope = {**rollup.scope(span, tenant), "run_id": run_id}
    parts = _parts(store.read("run_parts", **scope))
    events = store.read("run_events", **scope)
    drifts = tuple(_drift(row) for row in events if row["name"] == "mfu.drift")
    chart, of = _steps(store.read("run_steps", **scope), drifts, total.expected_mfu)
    sizes = {row["world_size"] for row in rows}
    return Run(
        tenant=tenant,
        run_id=run_id,
        workload=next((row["workload"] for row in rows if row["workload"]), None),
        world_size=_said(max(sizes)),
        sums=total,
        ranks=ranks,
        parts=parts,
        calibrations=tuple(_calibration(row) for row in events if row["name"] == "mfu.calibration"),
        drifts=drifts,
        ends=tuple(_end(row) for row in events if row["name"] == "mfu.run"),
        trend=_trend(store, span, scope, total.expected_mfu),
        steps=chart,
        steps_of=of,
        waterfall=waterfall(total.mfu, parts),
    )


def waterfall(mfu: float | None, parts: Sequence[Part]) -> charts.Chart | None:
    """From all of the steps' time to the part that was useful at the peak; None where MFU is unknown.

    What no part accounts for is the kernels' own: slower than the peak, or of other work than the model's FLOPs.
    """
    if mfu is None:
        return None
    known = [(part.name, part.share) for part in parts if part.share is not None]
    rest = max(1 - mfu - sum(share for _, share in known), 0.0)
    stages = [
        charts.Stage(name, share, f"{name}: {words.percent(share)} of the steps' time", is_left=name == "useful")
        for name, share in (*known, ("in kernels, not useful", rest), ("useful", mfu))
    ]
    return charts.waterfall(stages, whole="all of the steps' time", unit=None)


def binned(utilizations: Sequence[tuple[int, float]], most: int) -> tuple[tuple[int, float, float, float], ...]:
    """(step, MFU) pairs as at most `most` of (first step, least, median, most), each over equally many steps."""
    size = max(1, -(-len(utilizations) // most))
    found = []
    for start in range(0, len(utilizations), size):
        part = utilizations[start : start + size]
        values = [value for _, value in part]
        found.append((part[0][0], min(values), statistics.median(values), max(values)))
    return tuple(found)


def _ranks(store: Store, span: Range, tenant: str | None, run_id: str) -> list[Row]:
    return store.read("run_ranks", **rollup.scope(span, tenant), run_id=run_id)


def _trend(store: Store, span: Range, scope: dict[str, Any], expected: float | None) -> charts.Chart | None:
    bucket_s = bucket_seconds(span)
    rows = store.read("run_trend", **scope, bucket_s=bucket_s)
    shares = {row["bucket_unix_s"]: ratio(row["model_flop"], row["available_flop"]) for row in rows}
    if not shares:
        return None
    times = range(min(shares), max(shares) + 1, bucket_s)
    return charts.trend([_point(at, shares.get(at)) for at in times], expected, what="MFU of all ranks")


def _point(unix_s: int, share: float | None) -> charts.Point:
    at = iso(unix_s * 10**9)
    return charts.Point(at, share, f"{words.moment(at)}: {words.percent(share)}")


def _parts(rows: Sequence[Row]) -> tuple[Part, ...]:
    if not rows or not rows[0]["step_s"]:
        return ()
    return tuple(Part(name, ratio(rows[0][f"{key}_s"], rows[0][f"{key}_known_s"])) for key, name in _PARTS.items())


def _steps(rows: Sequence[Row], drifts: Sequence[Drift], expected: float | None) -> tuple[charts.Chart | None, str]:
    if not rows:
        return None, ""
    phase, _ = Counter(row["phase"] for row in rows).most_common(1)[0]
    rank = _said(rows[0]["rank"])
    known = [
        (row["first_step"] + offset, basis_points / 1e4)
        for row in reversed(rows)
        if row["phase"] == phase and row["first_step"] is not None
        for offset, basis_points in enumerate(row["utilizations"])
        if basis_points != _UNKNOWN_STEP
    ]
    # A restarted run counts its steps again; a line that goes back would say nothing.
    ordered = sorted(dict(known).items())
    marks = [
        (drift.onset_step, f"{words.name(drift.kind)} of {words.percent(drift.change)} from step {drift.onset_step:,}")
        for drift in drifts
        if drift.onset_step is not None
    ]
    of = f"phase {words.name(phase)}" if phase else "every phase"
    return charts.steps(binned(ordered, _MOST_POINTS), marks, expected), f"{of}, " + (
        "the only rank" if rank is None else f"rank {rank}"
    )


def _calibration(row: Row) -> Calibration:
    return Calibration(
        iso(row["start_unix_ns"]),
        _said(row["rank"]),
        row["peak_dtype"],
        row["peak_source"],
        row["tier"],
        row["degraded"],
        row["peak_flop_per_s"],
        row["peak_low"],
        row["peak_high"],
    )


def _drift(row: Row) -> Drift:
    return Drift(
        iso(row["start_unix_ns"]),
        _said(row["rank"]),
        row["kind"],
        row["cause"],
        row["change"],
        row["onset_step"],
        row["found_step"],
        row["recovered_step"],
        tuple(row["evidence"]),
        tuple(row["difference"]),
    )


def _end(row: Row) -> End:
    return End(
        iso(row["start_unix_ns"] + row["duration_ns"]),
        _said(row["rank"]),
        row["duration_ns"] / 1e9,
        row["steps"],
        row["overhead_s"],
        row["error"],
        row["fingerprint"],
    )


def _said(number: int) -> int | None:
    return None if number == -1 else number
