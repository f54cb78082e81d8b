"""Is MFU moving, and is it the work or only the mix of work?"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import expm1, log
from typing import Final, Literal, TypeVar

from mfu_sdk.provider.questions import statistics
from mfu_sdk.provider.questions.cells import Cell
from mfu_sdk.provider.questions.picture import Picture, Point, Series
from mfu_sdk.provider.questions.statistics import Estimate, Judged, judge
from mfu_sdk.provider.rollup import Sums, ratio, total

MOST_SERIES: Final = 100
"""The works with the most available FLOPs are matched, this many: comparing all pairs of buckets has a price."""

ALPHA: Final = 0.05

Verdict = Literal["rising", "falling", "no trend shown"]
_Key = tuple[Hashable, ...]
_Flops = tuple[float, float]
"""Model and available FLOPs."""

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Tested:
    """A test of MFU for a trend: its relative change over the range, as if it were steady, and a two-sided p.

    `inflation` is by what dependence in time widened the variance of the test; `series` are the works compared, each
    with itself only.
    """

    change: Estimate
    p_value: float
    inflation: float
    series: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class TypeTrend:
    """One GPU type: `crude` is its MFU whatever ran, `matched` that of each work by itself."""

    gpu_type: str | None
    crude: Tested | None
    matched: Tested | None


@dataclass(frozen=True, slots=True)
class Change:
    """MFU of the range and of the equally long one before it; `ratio` is the one over the other.

    `mix` + `within` = `mfu` − `previous_mfu`, exactly: `within` is work whose own MFU changed, at its mean share of
    the available FLOPs; `mix` is that shares moved, with work that came or went. `crude` tests the fleet's MFU over
    buckets of `bucket_s` seconds, `matched` each work by itself, so that a changed mix is no trend.
    """

    mfu: float | None
    previous_mfu: float | None
    ratio: float | None
    mix: float | None = None
    within: float | None = None
    bucket_s: int | None = None
    crude: Tested | None = None
    matched: Tested | None = None
    gpu_types: tuple[TypeTrend, ...] = ()
    missing: tuple[str, ...] = ()
    picture: Picture | None = None


def answer(cells: Sequence[Cell], previous: Sequence[Cell], bucket_s: int) -> Change:
    """From sums by bucket, work and GPU type, and those of the range before."""
    now, before = total(cell.sums for cell in cells), total(cell.sums for cell in previous)
    mix, within = split(previous, cells)
    starts = [cell.start_unix_s for cell in cells if cell.start_unix_s is not None]
    buckets = (max(starts) - min(starts)) // bucket_s + 1 if starts else 0
    types = sorted({cell.gpu_type for cell in cells}, key=lambda name: name or "")
    works = _works(cells, bucket_s)
    by_type = tuple(
        TypeTrend(
            name,
            _tested([judge(_series((c for c in cells if c.gpu_type == name), bucket_s))], buckets),
            _tested((judged for gpu_type, judged in works if gpu_type == name), buckets),
        )
        for name in types
    )
    crude = _tested([judge(_series(cells, bucket_s))], buckets)
    matched = _tested((judged for _, judged in works), buckets)
    missing = []
    if crude is None:
        missing.append(
            f"a test needs {statistics.LEAST_POINTS} buckets with a known MFU; there are fewer: ask for a longer range"
        )
    elif matched is None:
        missing.append("no work ran long enough to be compared with itself: what moved may be the mix")
    if cells and not any(cell.intent for cell in cells):
        missing.append("no work names its configuration (mfu.config.intent): work is told apart by tenant and name")
    return Change(
        now.mfu, before.mfu, ratio(now.mfu, before.mfu), mix, within, bucket_s if cells else None, crude,
        matched, by_type, tuple(missing), _picture(cells, types),
    )  # fmt: skip


def split(before: Iterable[Cell], after: Iterable[Cell]) -> tuple[float | None, float | None]:
    """How the change of MFU parts into mix and within, by midpoints; None where either MFU is unknown.

    MFU is Σ share × own MFU over works, so Δ = Σ Δshare × mean own MFU + Σ mean share × Δ own MFU. A work that is in
    one of the two only has no change of its own, and all of it is mix.
    """
    old, new = _by_work(before), _by_work(after)
    all_old, all_new = (sum(available for _, available in works.values()) for works in (old, new))
    if not all_old or not all_new:
        return None, None
    mix = within = 0.0
    for work in old.keys() | new.keys():
        (model_then, then), (model_now, now) = old.get(work, (0.0, 0.0)), new.get(work, (0.0, 0.0))
        mfu_now = model_now / now if now else model_then / then
        mfu_then = model_then / then if then else mfu_now
        mix += (now / all_new - then / all_old) * (mfu_now + mfu_then) / 2
        within += (now / all_new + then / all_old) / 2 * (mfu_now - mfu_then)
    return mix, within


def _by_work(cells: Iterable[Cell]) -> dict[_Key, _Flops]:
    parts: dict[_Key, _Flops] = {}
    for cell in cells:
        _add(parts, (cell.gpu_type, *cell.work), cell.sums)
    return {work: flops for work, flops in parts.items() if flops[1]}


def _add(parts: dict[K, _Flops], key: K, sums: Sums) -> None:
    # Two of fifty sums: a year of a fleet has many cells.
    model, available = parts.get(key, (0.0, 0.0))
    parts[key] = (model + (sums.model_flops or 0.0), available + (sums.available_flops or 0.0))


def _works(cells: Iterable[Cell], bucket_s: int) -> list[tuple[str | None, Judged | None]]:
    """The GPU type of each of the largest works, and its series compared with itself."""
    works: dict[_Key, list[Cell]] = {}
    for cell in cells:
        works.setdefault((cell.gpu_type, *cell.work), []).append(cell)
    largest = sorted(works.values(), key=lambda of: -sum(cell.sums.available_flops or 0.0 for cell in of))
    return [(of[0].gpu_type, judge(_series(of, bucket_s))) for of in largest[:MOST_SERIES]]


def _series(cells: Iterable[Cell], bucket_s: int) -> list[tuple[float, float]]:
    """(bucket, log MFU) in order of time, where MFU is known and above nothing."""
    return [(float(at // bucket_s), log(mfu)) for at, mfu in _levels(cells) if mfu]


def _levels(cells: Iterable[Cell]) -> list[tuple[int, float | None]]:
    """MFU at the start of each bucket, in order of time."""
    parts: dict[int, _Flops] = {}
    for cell in cells:
        if cell.start_unix_s is not None:
            _add(parts, cell.start_unix_s, cell.sums)
    return [(at, ratio(model, available)) for at, (model, available) in sorted(parts.items())]


def _tested(series: Iterable[Judged | None], buckets: int) -> Tested | None:
    found = statistics.trend(series)
    if found is None:
        return None
    slope = found.slope
    ends = [None if end is None else expm1(end * buckets) for end in (slope.low, slope.high)]
    shown = found.p_value < ALPHA and slope.value != 0
    verdict: Verdict = "no trend shown" if not shown else "rising" if slope.value > 0 else "falling"
    return Tested(Estimate(expm1(slope.value * buckets), *ends), found.p_value, found.inflation, found.series, verdict)


def _picture(cells: Sequence[Cell], types: Sequence[str | None]) -> Picture | None:
    if not cells:
        return None

    def line(name: str, of: Iterable[Cell]) -> Series:
        return Series(name, tuple(Point("", mfu, float(at)) for at, mfu in _levels(of)))

    lines = [line("fleet", cells)]
    if len(types) > 1:
        lines += [line(name or "?", (cell for cell in cells if cell.gpu_type == name)) for name in types]
    return Picture("lines", "MFU over time", "seconds since 1970", "MFU", tuple(lines))
