"""What an MFU would be divided by: which peak there is, how old it is, and whether it still is this device's."""

from __future__ import annotations

from collections.abc import Iterator

from mfu_sdk.doctor.finding import Finding
from mfu_sdk.doctor.gpu import View
from mfu_sdk.records import Peaks
from mfu_sdk.settings import Settings

STALE_S = 7 * 24 * 3600.0
"""After a week a calibration is due again: clocks, cooling and neighbours change."""


def divisor(known: Peaks, settings: Settings) -> str:
    """The peak that a run would be held against, in words: the next best where the best is missing."""
    found = known.headline("bfloat16")
    if found is None:
        forbidden = settings.calibrate == "off"
        return "no peak, and is None" if forbidden else "a peak that the run measures at its start"
    dtype, rate = found
    return f"the {dtype} peak of {rate.flops_per_s / 1e12:.1f} TFLOP/s, {rate.source}"


def peak_findings(known: Peaks, settings: Settings, view: View | str | None) -> Iterator[Finding]:
    """On paper, measured, and what has changed since; `view` is the driver's, None for a processor."""
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
    if not known.achievable:
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
    if isinstance(view, View):
        yield from _moved(known, view)


def _unmeasured(known: Peaks, settings: Settings) -> Finding:
    if settings.calibrate == "off" and known.headline("bfloat16") is None:
        return Finding(
            "peak", "bad",
            "none is known, and MFU_CALIBRATE=off forbids a run to measure one: every MFU would be None; run "
            "`mfu calibrate`",
        )  # fmt: skip
    return Finding("peak", "note", str(known.state["missing"]))


def _moved(known: Peaks, view: View) -> Iterator[Finding]:
    """What was otherwise when the peak was measured, where the calibration says how it was."""
    now = {
        "driver": ("driver", view.identity.driver, ""),
        "vbios": ("VBIOS", view.identity.vbios, ""),
        "ecc": ("ECC", view.identity.ecc, ""),
        "power_limit_w": ("power limit", view.state.power_limit_w, " W"),
        "application_clock_mhz": ("application clock", view.state.application_clock_mhz, " MHz"),
    }
    changed = [
        f"{name} {then}{unit}, now {value}{unit}"
        for key, (name, value, unit) in now.items()
        if value is not None and (then := known.state.get(key)) is not None and then != value
    ]
    if changed:
        yield Finding("peak", "note", f"measured with another {'; '.join(changed)}: run `mfu calibrate`")


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
