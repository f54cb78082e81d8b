"""Devices whose clocks are held down by heat or power, against others of their kind.

The counterfactual is the cohort's clock for the time that devices compute; what they wait does not get shorter.
"""

from typing import Final

from mfu_sdk.provider.causes.evidence import Evidence
from mfu_sdk.provider.causes.finding import MATERIAL_LOSS, Verdict, confidence

CLOCK_RATIO: Final = 0.88
HEAT_SHARE: Final = 0.10
"""Windows in which heat or the power brake is named hold at least this share of the time."""


def clock_ratio(e: Evidence) -> float | None:
    """Its clock over its cohort's: of the slowest device, where the others go at its pace."""
    clock = _pace(e)
    return clock / e.cohort_clock if clock is not None and e.cohort_clock else None


def _pace(e: Evidence) -> float | None:
    return e.clock if e.slowest_clock is None else e.slowest_clock


def thermal_or_power(e: Evidence) -> Verdict | None:
    """The clock below 0.88 of the cohort's, or heat or the power brake named by the driver."""
    (busy, waits_known), clock = _busy(e), _pace(e)
    if clock is None or busy is None:
        return None
    ratio = clock_ratio(e)
    low = 0.0 if ratio is None or ratio >= CLOCK_RATIO else busy * (1 - ratio)
    hot = 0.0
    if e.heat is not None and e.heat >= HEAT_SHARE:
        # A mean clock holds the cool hours too. Without a cohort the share that heat has of the deficit is unknown.
        hot = busy * (e.heat * max(0.0, 1 - clock) if ratio is None else max(0.0, 1 - ratio))
    # The same devices at the same work know no other spread than their own.
    before = None if e.rest is None else e.rest.clock
    fell = 0.0 if before is None or clock >= (1 - MATERIAL_LOSS) * before else busy * (1 - clock / before)
    loss = max(low, hot, fell)
    if loss < MATERIAL_LOSS:
        return None
    shown: dict[str, float | str] = {"clock_ratio": clock}
    if ratio is not None and e.cohort_clock is not None:
        shown |= {"cohort_clock_ratio": e.cohort_clock, "clock_over_cohort": ratio}
    for name, value in (
        ("clock_ratio_in_other_hours", before),
        ("heat_or_brake_time_share", e.heat),
        ("power_cap_time_share", e.cap),
    ):
        if value is not None:
            shown[name] = value
    against = f"{ratio:.0%} of its kind's" if ratio is not None else f"{clock:.0%} of the peak's"
    if before is not None and max(low, hot) < MATERIAL_LOSS:
        against = f"{clock / before:.0%} of what it was in other hours"
    return Verdict(
        "thermal_or_power",
        loss,
        confidence(low > 0 or fell > 0, hot > 0, *(() if waits_known else (False,))),
        shown,
        f"The clock is {against}: have {_where(e)} checked for cooling, power limit and power brake (`nvidia-smi -q -d "
        "PERFORMANCE,POWER`), and move the work to another node until then.",
    )


def _where(e: Evidence) -> str:
    return ", ".join(e.hosts[:4]) + (f" and {len(e.hosts) - 4} more" if len(e.hosts) > 4 else "") or "the node"


def _busy(e: Evidence) -> tuple[float | None, bool]:
    """The share of the time that is not waited, and whether waits are known; else at least what its products took.

    No product is faster than the peak at the clock that there was. The slowest device waits for nobody: the others'
    waits for it are what its clock costs.
    """
    clock = _pace(e)
    computed = min(1.0, e.mfu / clock) if e.mfu is not None and clock else None
    waits = 0.0
    for name, share in (("data", e.data), ("comm", e.comm), ("skew", e.skew if e.slowest_clock is None else 0.0)):
        if share is not None:
            waits += share
        elif name not in e.untold:
            return computed, False
    return max(0.0, 1 - waits, computed or 0.0), True
