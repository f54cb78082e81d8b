"""The running sums of a run, and the summary of one that summed nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from mfu_sdk.records import Convention, RunSummary


@dataclass(slots=True)
class Totals:
    """Running sums: the memory of a run does not grow with its length."""

    steps: int = 0
    timed: int = 0
    unknown: int = 0
    time_s: float = 0.0
    # Of all steps that the device has passed; and of those among them that are in no sum of times.
    passed_s: float = 0.0
    apart_s: float = 0.0
    model_flops: int = 0
    hardware_flops: int = 0
    available_flops: float = 0.0
    expected_flops: float = 0.0
    expected_available_flops: float = 0.0
    token_time_s: float = 0.0
    timed_tokens: int = 0
    tokens: int | None = None
    counted_s: float = 0.0
    counted: int = 0
    # Seconds of the timed steps that are in sums of FLOPs, and what these moved.
    known_s: float = 0.0
    bytes_moved: float = 0.0
    priced_bytes: float = 0.0
    uncounted: dict[tuple[str, str], int] = field(default_factory=dict)
    # Timed steps that were faster than the device was measured to be.
    beyond: int = 0
    # Available FLOPs by denominator: (dtype, source, FLOP/s).
    peaks: dict[tuple[str | None, str | None, float], float] = field(default_factory=dict)


def disabled_summary(name: str, convention: Convention) -> RunSummary:
    """The summary of a run under MFU_ENABLED=0: nothing was measured, nothing is known."""
    return RunSummary(
        name=name,
        steps=0,
        timed_steps=0,
        unknown_steps=0,
        mfu=None,
        hfu=None,
        expected_mfu=None,
        waterfall={},
        tokens=None,
        tokens_per_s=None,
        overhead_s=0.0,
        uncounted=(),
        coverage=None,
        model_flops=None,
        duration_s=0.0,
        peak_flops_per_s=None,
        peak_dtype=None,
        peak_source=None,
        device="no device",
        convention=convention,
        notes=("MFU_ENABLED=0: nothing is measured",),
    )
