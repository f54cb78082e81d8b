"""A calibration in words, and as plain data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mfu_sdk.records import CollectiveRate, Peaks, Rate


def describe(peaks: Peaks) -> str:
    """Every rate with its interval and spread, one a line, what the device could do, and what disturbed it."""
    lines = [f"  {peaks.state.get('name', peaks.device)}"]
    for dtype, rate in peaks.achievable.items():
        if rate.source.startswith("prior"):
            lines.append(f"  {dtype:<9} {rate.flops_per_s / 1e9:10,.1f} GFLOP/s  {rate.source}")
            continue
        spread = float(peaks.state.get(f"{dtype}_spread", 0.0))
        batches = peaks.state.get(f"{dtype}_batches")
        # On a processor the rate is the 90th percentile of its batches; elsewhere it is their median.
        median = float(peaks.state.get(f"{dtype}_median_flops_per_s", rate.flops_per_s))
        middle = "" if batches is None else f"  {batches:.0f} batches, median {median / 1e9:,.1f}, spread {spread:.1%}"
        lines.append(
            f"  {dtype:<9} {rate.flops_per_s / 1e9:10,.1f} GFLOP/s  [{rate.low / 1e9:,.1f} .. {rate.high / 1e9:,.1f}]"
            f"{middle}"
        )
        lines += _how(peaks, dtype, rate)
    if peaks.memory is not None:
        lines.append(
            f"  {'memory':<9} {peaks.memory.bytes_per_s / 1e9:10,.1f} GB/s     "
            f"[{peaks.memory.low / 1e9:,.1f} .. {peaks.memory.high / 1e9:,.1f}]"
            f"  copies, bytes read + written, spread {float(peaks.state.get('memory_spread', 0.0)):.1%}"
        )
    for dtype, rate in peaks.theoretical.items():
        if dtype in peaks.achievable or not peaks.achievable:
            share = peaks.achievable[dtype].flops_per_s / rate.flops_per_s if dtype in peaks.achievable else None
            lines.append(
                f"  {dtype:<9} {rate.flops_per_s / 1e9:10,.1f} GFLOP/s  on paper"
                + ("" if share is None else f", {share:.1%} measured")
                + f"; {rate.source}"
            )
    if "theory_missing" in peaks.state:
        lines.append(f"  on paper: {peaks.state['theory_missing']}")
    for name, value in peaks.state.items():
        if name.endswith("_missing") and name not in ("theory_missing", "collectives_missing"):
            lines.append(f"  {name.removesuffix('_missing'):<9} not measured: {value}")
    if "degraded" in peaks.state:
        lines.append(f"  degraded: the clock was held down by {peaks.state['degraded']}; this is no baseline")
    lines += [_collective(rate) for rate in peaks.collectives.values()]
    if "collectives_missing" in peaks.state:
        lines.append(f"  collectives: {peaks.state['collectives_missing']}")
    if peaks.state.get("contended"):
        lines.append("  contended: something else had the processor meanwhile; measure again on a quiet machine")
    return "\n".join(lines)


def _how(peaks: Peaks, dtype: str, rate: Rate) -> list[str]:
    """How a rate of a GPU was measured, what share of the clock's it is, and what was left out; empty elsewhere."""
    if dtype not in peaks.theoretical and f"{dtype}_winner" not in peaks.state:
        return []
    said = [rate.source.removeprefix("calibrated: ")]
    if (clock_mhz := peaks.state.get(f"{dtype}_clock_mhz")) is not None:
        share, counted = (peaks.state.get(f"{dtype}_{name}") for name in ("efficiency", "counted_clock_mhz"))
        told = f"at {clock_mhz:.0f} MHz" + ("" if counted is None else f" by the driver, {counted:.0f} counted")
        said.append(told + ("" if share is None else f", {float(share):.1%} of what that allows"))
    if (ratio := peaks.state.get(f"{dtype}_triton_over_vendor")) is not None:
        said.append(f"Triton over vendor {float(ratio):.3f}")
    lines = ["            " + "; ".join(said)]
    for name, word in (("refused", "refused"), ("not_tried", "no time for")):
        if f"{dtype}_{name}" in peaks.state:
            lines.append(f"            {word}: {peaks.state[f'{dtype}_{name}']}")
    return lines


def _collective(rate: CollectiveRate) -> str:
    at, low = rate.times[-1], rate.latency
    groups = f"{rate.groups} × " if rate.groups > 1 else ""
    size = at.size_bytes / 2**20
    largest = f"{size:,.0f} MiB" if size >= 1 else f"{size * 2**10:,.0f} KiB"
    bound = "; still bound by latency, give it a larger budget" if rate.latency_bound else ""
    return (
        f"  {rate.collective:<14} {rate.bus.bytes_per_s / 1e9:10,.3f} GB/s on the bus  "
        f"[{rate.bus.low / 1e9:,.3f} .. {rate.bus.high / 1e9:,.3f}]  at {largest}, "
        f"{at.batches} batches; latency {low.seconds * 1e6:,.0f} µs [{low.low_s * 1e6:,.0f} .. {low.high_s * 1e6:,.0f}]"
        f", {low.batches} batches; {groups}{rate.ranks} ranks, {rate.over}, link {rate.link}, {rate.backend}{bound}"
    )


def _bytes_per_s(rate: Rate) -> dict[str, Any]:
    plain = asdict(rate)
    return {"bytes_per_s": plain.pop("flops_per_s"), **plain}


def as_json(peaks: Peaks) -> dict[str, Any]:
    """Everything that is known, in plain data; rates in FLOP/s, memory in bytes/s."""
    return {
        "device": peaks.device,
        "calibration_id": peaks.calibration_id,
        "achievable": {dtype: asdict(rate) for dtype, rate in peaks.achievable.items()},
        "theoretical": {dtype: asdict(rate) for dtype, rate in peaks.theoretical.items()},
        "memory": None if peaks.memory is None else _bytes_per_s(peaks.memory),
        "memory_by_size": [{"bytes": size, "bytes_per_s": rate} for size, rate in peaks.memory_by_size],
        "collectives": {
            name: {**asdict(each), "bus": _bytes_per_s(each.bus)} for name, each in peaks.collectives.items()
        },
        "state": dict(peaks.state),
    }
