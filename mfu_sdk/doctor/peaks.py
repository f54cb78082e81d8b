"""What an MFU would be divided by: which peak there is, how old it is, and whether it can be relied on."""

from __future__ import annotations

from collections.abc import Iterator

from mfu_sdk.doctor.finding import Finding
from mfu_sdk.doctor.gpu import View
from mfu_sdk.peak.results import STALE_S
from mfu_sdk.records import Peaks
from mfu_sdk.settings import Settings


def divisor(known: Peaks, settings: Settings) -> str:
    """The peak that a run would be held against, in words: the next best where the best is missing."""
    found = known.headline("bfloat16")
    if found is None:
        forbidden = settings.calibrate == "off"
        return "no peak, and is None" if forbidden else "a peak that the run measures at its start"
    dtype, rate = found
    return f"the {dtype} peak of {rate.flops_per_s / 1e12:.1f} TFLOP/s, {rate.source}"


def peak_findings(known: Peaks, settings: Settings, view: View | str | None) -> Iterator[Finding]:
    """On paper, measured, and what speaks against it; `view` is the driver's, None for a processor."""
    # Before Ampere there is no bf16.
    dtype = "bfloat16" if "bfloat16" in known.theoretical else "float16"
    if dtype in known.theoretical:
        rate = known.theoretical[dtype]
        at_max = known.state.get(f"{dtype}_at_max_clock_flops_per_s")
        yield Finding(
            "on paper", "good",
            f"{dtype} {rate.flops_per_s / 1e12:.1f} TFLOP/s, {rate.source}"
            + ("" if at_max is None else f"; {float(at_max) / 1e12:.1f} at the maximum clock"),
        )  # fmt: skip
    if "theory_missing" in known.state:
        # What NVML says of itself has a line of its own.
        reason = str(known.state["theory_missing"])
        yield Finding("on paper", "note", reason.removesuffix(f"; {view}") if isinstance(view, str) else reason)
    if "missing" in known.state:
        # A sister's rate is no measurement of this device.
        yield _unmeasured(known, settings)
        return
    for dtype, rate in known.achievable.items():
        stale = rate.age_s > STALE_S
        yield Finding(
            "peak", "note" if stale else "good",
            f"{dtype} {rate.flops_per_s / 1e12:.3f} TFLOP/s [{rate.low / 1e12:.3f} .. {rate.high / 1e12:.3f}], "
            f"{rate.source} {_age(rate.age_s)} ago" + ("; due again, run `mfu calibrate`" if stale else ""),
        )  # fmt: skip
    if known.memory is not None:
        yield Finding("memory", "good", f"{known.memory.bytes_per_s / 1e9:.1f} GB/s, read + written")
    if known.state.get("contended"):
        yield Finding("peak", "bad", "measured while others had the processor; run `mfu calibrate` on a quiet machine")
    if "degraded" in known.state:
        yield Finding(
            "peak", "note",
            f"measured while the clock was held down by {known.state['degraded']}; run `mfu calibrate` when it is cool",
        )  # fmt: skip
    if "suspect" in known.state:
        yield Finding("peak", "note", f"too low: {known.state['suspect']}; the next run measures it again")


def _unmeasured(known: Peaks, settings: Settings) -> Finding:
    if settings.calibrate == "off" and known.headline("bfloat16") is None:
        return Finding(
            "peak", "bad",
            "none is known, and MFU_CALIBRATE=off forbids a run to measure one: every MFU would be None; run "
            "`mfu calibrate`",
        )  # fmt: skip
    return Finding("peak", "note", str(known.state["missing"]))


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
