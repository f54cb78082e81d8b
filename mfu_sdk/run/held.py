"""A demand held against the peaks: all of a step's record that does not hang on time, worked out once a demand."""

from __future__ import annotations

from dataclasses import dataclass

from mfu_sdk.counting.expect import main_dtype
from mfu_sdk.records import Peaks, Rate
from mfu_sdk.run.demand import Demand


@dataclass(frozen=True, slots=True)
class Held:
    """Where a demand stands against the peaks of the devices that share it.

    `achievable_high_flops_per_s` is the upper end of the measured rate's interval: nothing should be faster.
    `expected_low_mfu` and `expected_high_mfu` are the ends of the expected MFU's interval, by that of the peaks.
    `by_dtype_s` is Σ FLOPs_d / peak_d in seconds, None where the peak of a dtype that was used is not known.
    `extra_s` are the seconds of the FLOPs that ran beyond the model's, at the measured rate of the peak's dtype.
    `memory_s` is how much longer the roofline takes than all FLOPs do at measured rates. `clock_ratio` is the clock at
    which the rate was measured over that of the peak, known where a calibration told both.
    """

    demand: Demand
    peak_dtype: str | None = None
    peak_source: str | None = None
    peak_flops_per_s: float | None = None
    achievable_flops_per_s: float | None = None
    achievable_high_flops_per_s: float | None = None
    by_dtype_s: float | None = None
    expected_mfu: float | None = None
    coverage: float | None = None
    arithmetic_intensity: float | None = None
    extra_s: float | None = None
    memory_s: float | None = None
    clock_ratio: float | None = None
    expected_low_mfu: float | None = None
    expected_high_mfu: float | None = None


def hold(demand: Demand, peaks: Peaks, devices: int) -> Held:
    """`demand` on so many devices that each have `peaks`."""
    headline = peaks.headline(main_dtype(demand.by_dtype))
    coverage = demand.priced_bytes / demand.bytes_moved if demand.bytes_moved else None
    intensity = demand.hardware_flops / demand.bytes_moved if demand.bytes_moved else None
    by_dtype_s = _by_dtype_s(demand, peaks, devices)
    if headline is None:
        return Held(demand, by_dtype_s=by_dtype_s, coverage=coverage, arithmetic_intensity=intensity)
    dtype, rate = headline
    peak = rate.flops_per_s * devices
    achievable = peaks.achievable.get(dtype)
    reached = (achievable or rate).flops_per_s * devices or None
    extra = demand.hardware_flops - demand.model_flops
    ends, low, high = demand.interval_s, None, None
    if ends is not None and ends[0] > 0 and peak:
        low, high = demand.model_flops / (peak * ends[1]), demand.model_flops / (peak * ends[0])
    return Held(
        demand,
        peak_dtype=dtype,
        peak_source=rate.source,
        peak_flops_per_s=peak,
        achievable_flops_per_s=None if achievable is None else achievable.flops_per_s * devices,
        achievable_high_flops_per_s=None if achievable is None else achievable.high * devices,
        by_dtype_s=by_dtype_s,
        expected_mfu=demand.model_flops / (peak * demand.expected_s) if peak and demand.expected_s else None,
        coverage=coverage,
        arithmetic_intensity=intensity,
        extra_s=None if reached is None else extra / reached,
        memory_s=_memory_s(demand, peaks, devices, reached),
        clock_ratio=_clock_ratio(dtype, rate, peaks),
        expected_low_mfu=low,
        expected_high_mfu=high,
    )


def _memory_s(demand: Demand, peaks: Peaks, devices: int, reached: float | None) -> float | None:
    if demand.expected_s is None or reached is None:
        return None
    flops_s = (demand.hardware_flops - demand.model_flops) / reached
    for dtype, flops in demand.by_dtype.items():
        rate = peaks.achievable.get(dtype) or peaks.theoretical.get(dtype)
        if rate is None:
            return None
        flops_s += flops / (rate.flops_per_s * devices)
    return max(0.0, demand.expected_s - flops_s)


def _clock_ratio(dtype: str, peak: Rate, peaks: Peaks) -> float | None:
    """The rate that was measured, over what this clock allows of it, over the peak: what remains is the clock's."""
    measured, share = peaks.achievable.get(dtype), peaks.state.get(f"{dtype}_efficiency")
    if measured is None or not isinstance(share, float) or not share > 0 or measured is peak:
        return None
    return measured.flops_per_s / (share * peak.flops_per_s) or None


def clock_of_peak_mhz(dtype: str, peaks: Peaks) -> float | None:
    """The clock at which the device would reach the headline peak in `dtype`, in MHz; None where no calibration told.

    Of a measured peak it is the clock that ran then. Of one on paper it follows from what was measured: the share of
    what the clock allowed is rate / (work a cycle × clock), and the peak is the same work at the clock that is asked
    for.
    """
    found = peaks.headline(dtype)
    clock_mhz, share = peaks.state.get(f"{dtype}_clock_mhz"), peaks.state.get(f"{dtype}_efficiency")
    measured = peaks.achievable.get(dtype)
    if found is None or measured is None or not isinstance(clock_mhz, float) or not clock_mhz > 0:
        return None
    if found[1] is measured:
        return clock_mhz
    if not isinstance(share, float) or not measured.flops_per_s > 0:
        return None
    return clock_mhz * share * found[1].flops_per_s / measured.flops_per_s or None


def _by_dtype_s(demand: Demand, peaks: Peaks, devices: int) -> float | None:
    seconds = 0.0
    for dtype, flops in demand.by_dtype.items():
        rate = peaks.theoretical.get(dtype) or peaks.achievable.get(dtype)
        if rate is None:
            return None
        seconds += flops / (rate.flops_per_s * devices)
    return seconds
