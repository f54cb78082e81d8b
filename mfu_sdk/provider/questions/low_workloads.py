"""Which workloads are consistently low, against what their own operators allow?"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mfu_sdk.provider.questions.cells import Cell
from mfu_sdk.provider.questions.picture import Picture, Point, Series
from mfu_sdk.provider.questions.statistics import wilson_low
from mfu_sdk.provider.rollup import Job, Sums, ratio, total

MATERIAL_SHORTFALL: Final = 0.10
"""A workload is low where it misses its expectation by this share: smaller ones are within what a roofline can say."""

_MOST_DRAWN: Final = 20


@dataclass(frozen=True, slots=True)
class LowWorkload:
    """A workload at least 10 % below its expectation.

    `attained` = MFU / expected MFU; `shortfall_gpu_hours` = (1 − attained) × its GPU-hours; `low_share` is the share
    of its `buckets` of time in which it was that low as well: 1.0 is consistently, near 0 is an episode. `consistent`:
    the lower 95 % end of that share (Wilson's) is above one half, buckets taken as independent.
    """

    tenant: str
    workload: str | None
    gpu_type: str | None
    world_size: int | None
    mfu: float
    expected_mfu: float
    attained: float
    shortfall_gpu_hours: float | None
    low_share: float | None
    buckets: int | None
    consistent: bool | None


@dataclass(frozen=True, slots=True)
class LowWorkloads:
    """The low ones, most GPU-hours short first; `judged` had an expectation and `unjudged` had none."""

    workloads: tuple[LowWorkload, ...] = ()
    judged: int | None = None
    unjudged: int | None = None
    missing: tuple[str, ...] = ()
    picture: Picture | None = None


def answer(cells: Iterable[Cell]) -> LowWorkloads:
    """From sums of each workload in buckets of time."""
    buckets: dict[Job, list[Sums]] = {}
    for cell in cells:
        job = Job(cell.tenant or "", cell.workload, cell.gpu_type, cell.world_size)
        buckets.setdefault(job, []).append(cell.sums)
    found, unjudged = [], 0
    for job, parts in buckets.items():
        whole = total(parts)
        mfu, expected, attained = whole.mfu, whole.expected_mfu, ratio(whole.mfu, whole.expected_mfu)
        if mfu is None or expected is None or attained is None:
            unjudged += 1
        elif attained <= 1 - MATERIAL_SHORTFALL:
            found.append(_low(job, whole, mfu, expected, attained, parts))
    rows = tuple(sorted(found, key=lambda row: (-(row.shortfall_gpu_hours or 0.0), row.attained)))
    missing = (
        (f"{unjudged} of {len(buckets)} workloads have no expected MFU (mfu.expected.flop) to be low against",)
        if unjudged
        else ()
    )
    return LowWorkloads(rows, len(buckets) - unjudged, unjudged, missing, _picture(rows))


def _low(job: Job, whole: Sums, mfu: float, expected: float, attained: float, parts: Iterable[Sums]) -> LowWorkload:
    times = [share for part in parts if (share := ratio(part.mfu, part.expected_mfu)) is not None]
    low = sum(share <= 1 - MATERIAL_SHORTFALL for share in times)
    hours = whole.device_hours
    return LowWorkload(
        job.tenant,
        job.workload,
        job.gpu_type,
        job.world_size,
        mfu,
        expected,
        attained,
        None if hours is None else (1 - attained) * hours,
        ratio(low, len(times)),
        len(times),
        wilson_low(low, len(times)) > 0.5 if times else None,
    )


def _picture(rows: tuple[LowWorkload, ...]) -> Picture | None:
    if not rows:
        return None
    points = tuple(Point(row.workload or "?", row.attained) for row in rows[:_MOST_DRAWN])
    return Picture("bars", "MFU over what is expected", "workload", "attained", (Series("attained", points),), 1.0)
