"""Did new hardware raise effective MFU: the same configurations, before and after?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from mfu_sdk.provider.questions.by_gpu_type import compare, crude, works
from mfu_sdk.provider.questions.cells import Cell
from mfu_sdk.provider.questions.picture import Picture, Point, Series
from mfu_sdk.provider.questions.statistics import Estimate
from mfu_sdk.provider.rollup import Sums, ratio

APART_S: Final = 86_400
"""A type is newer than another where it was first seen a day later: types of one start came together."""

Verdict = Literal["raised", "lowered", "not shown"]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A newer GPU type against an older one over the `intents` configurations that ran on both.

    `mfu_ratio` is MFU on the new / MFU on the old, configuration by configuration, `rate_ratio` useful FLOP/s a
    device likewise: a chip may be faster and yet lower in MFU. `peak_ratio` is of available FLOP/s, what the price
    list says; `verdict` is on MFU: the 95 % interval lies above 1, below 1, or neither. `new_share` is the share of
    the new type's GPU-hours that those configurations are.
    """

    gpu_type: str
    first_seen_unix_s: int
    base: str
    intents: int
    mfu_ratio: Estimate
    rate_ratio: Estimate | None
    peak_ratio: float | None
    crude_mfu_ratio: float | None
    new_share: float | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class NewHardware:
    """Each GPU type that came after another, since `since_unix_s`."""

    arrivals: tuple[Arrival, ...] = ()
    since_unix_s: int | None = None
    missing: tuple[str, ...] = ()
    picture: Picture | None = None


def answer(cells: Sequence[Cell], since_unix_s: int) -> NewHardware:
    """From sums by GPU type, intent and phase since `since_unix_s`, with when each was first seen."""
    first: dict[str, int] = {}
    for cell in cells:
        if cell.gpu_type is not None and cell.first_unix_s is not None:
            first[cell.gpu_type] = min(first.get(cell.gpu_type, cell.first_unix_s), cell.first_unix_s)
    by_age = sorted(first, key=lambda name: (first[name], name))
    by_work = works(cells)
    arrivals, missing = [], []
    for new in by_age:
        older = [name for name in by_age if first[name] + APART_S <= first[new]]
        found = [arrival for base in older if (arrival := _arrival(cells, by_work, new, base, first[new])) is not None]
        if older and not found:
            missing.append(
                f"{new}: none of its work names a configuration (mfu.config.intent) that ran on an older type"
            )
        arrivals += found
    if not any(first[name] + APART_S <= first[new] for new in by_age for name in by_age):
        missing.append("no GPU type was first seen a day or more after another: nothing here is new")
    return NewHardware(tuple(arrivals), since_unix_s, tuple(missing), _picture(arrivals))


def _arrival(
    cells: Sequence[Cell], by_work: dict[tuple[str, str | None], dict[str, Sums]], new: str, base: str, first: int
) -> Arrival | None:
    found = compare(by_work, new, base, crude(cells, new, base))
    if found is None:
        return None
    matched = sum(on[new].device_s or 0.0 for on in by_work.values() if new in on and base in on)
    whole = sum(cell.sums.device_s or 0.0 for cell in cells if cell.gpu_type == new)
    low, high = found.mfu_ratio.low, found.mfu_ratio.high
    verdict: Verdict = (
        "raised" if low is not None and low > 1 else "lowered" if high is not None and high < 1 else "not shown"
    )
    # Useful FLOP/s is MFU × peak, so the ratio of peaks is what is left of the one without the other.
    peak = None if found.rate_ratio is None else found.rate_ratio.value / found.mfu_ratio.value
    return Arrival(
        new, first, base, found.intents, found.mfu_ratio, found.rate_ratio, peak, found.crude_mfu_ratio,
        ratio(matched, whole), verdict,
    )  # fmt: skip


def _picture(arrivals: Sequence[Arrival]) -> Picture | None:
    if not arrivals:
        return None
    mfu = tuple(
        Point(f"{a.gpu_type} / {a.base}", a.mfu_ratio.value, None, a.mfu_ratio.low, a.mfu_ratio.high) for a in arrivals
    )
    rate = tuple(
        Point(f"{a.gpu_type} / {a.base}", a.rate_ratio.value, None, a.rate_ratio.low, a.rate_ratio.high)
        for a in arrivals
        if a.rate_ratio is not None
    )
    series = (Series("MFU", mfu), Series("useful FLOP/s a device", rate))
    return Picture("points", "The same work on new and on older hardware", "GPU types", "new / old", series, 1.0)
