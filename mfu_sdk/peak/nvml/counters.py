"""What a GPU counted since its driver was loaded: time for which each limit held its clock down, and energy.

An event reason (`State.events`) tells of one moment; the difference of two counters tells of everything between them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mfu_sdk.peak.nvml.gpu import Gpu

# nvmlPerfPolicyType_t. The thermal policy sums what software and hardware did against heat.
_POLICIES = {0: "power", 1: "thermal", 2: "sync boost", 3: "board limit", 5: "reliability"}
# NVML_FI_DEV_CLOCKS_EVENT_REASON_*, and the first driver branch that numbers them so. They were renumbered: the
# bindings 12.575 and 13.580 have 251 to 253, those since 13.590 have 269 to 271; in these, and in 12.570, 251 to 253
# are settings of power smoothing.
_COUNTED = ("software thermal slowdown", "hardware thermal slowdown", "power brake")
_FIRST_FIELD = ((590, 269), (575, 251))


@dataclass(frozen=True, slots=True)
class Held:
    """Seconds for which one limit held the clock down, up to `at_s`, seconds of the driver's own clock."""

    total_s: float
    at_s: float


@dataclass(frozen=True, slots=True)
class Counters:
    """One reading. `held` maps a limit to its time, and lacks those that the device does not count.

    `energy_j` is what the whole GPU drew since the driver was loaded, and `at_s` a monotonic clock's seconds then.
    """

    held: Mapping[str, Held]
    energy_j: float | None
    at_s: float

    def since(self, earlier: Counters) -> Interval:
        """What happened between two readings."""
        shares = {
            limit: share
            for limit, now in self.held.items()
            if (before := earlier.held.get(limit)) is not None and (share := _share(before, now)) is not None
        }
        duration_s = self.at_s - earlier.at_s
        if self.energy_j is None or earlier.energy_j is None or duration_s <= 0 or self.energy_j < earlier.energy_j:
            return Interval(duration_s, shares, None)
        return Interval(duration_s, shares, (self.energy_j - earlier.energy_j) / duration_s)


@dataclass(frozen=True, slots=True)
class Interval:
    """Between two readings `duration_s` apart: the share of time (0..1) for which each limit held, and the mean power.

    Limits hold at the same time, so the shares do not add up. A limit is absent where it is not known.
    """

    duration_s: float
    held_shares: Mapping[str, float]
    mean_power_w: float | None


def counters(gpu: Gpu, now_s: Callable[[], float] = time.monotonic) -> Counters:
    """The counters of `gpu`, or the one that it is a slice of: eight calls."""
    held = {}
    for policy, limit in _POLICIES.items():
        violation = gpu.ask_gpu("nvmlDeviceGetViolationStatus", policy)
        if violation is not None:
            # Nanoseconds of violation at a reference time in microseconds (nvmlViolationTime_t).
            held[limit] = Held(violation.violationTime / 1e9, violation.referenceTime / 1e6)
    first = _first_field(gpu.session.ask("nvmlSystemGetDriverVersion"))
    if first is not None:
        readings = gpu.fields(*range(first, first + len(_COUNTED)))
        for limit, reading in zip(_COUNTED, readings, strict=True):
            if reading is not None:
                held[limit] = Held(reading.value / 1e9, reading.at_us / 1e6)
    energy_mj = gpu.ask_gpu("nvmlDeviceGetTotalEnergyConsumption")
    return Counters(held, None if energy_mj is None else energy_mj / 1000, now_s())


def _first_field(driver: str | None) -> int | None:
    branch = "" if driver is None else driver.partition(".")[0]
    if not branch.isascii() or not branch.isdigit():
        return None
    return next((first for since, first in _FIRST_FIELD if int(branch) >= since), None)


def _share(before: Held, now: Held) -> float | None:
    """None where the driver's clock stood still, or its counter went back because the driver was loaded again."""
    if now.at_s <= before.at_s or now.total_s < before.total_s:
        return None
    # The counter and its clock are read one after the other, and may be apart by a moment.
    return min(1.0, (now.total_s - before.total_s) / (now.at_s - before.at_s))
