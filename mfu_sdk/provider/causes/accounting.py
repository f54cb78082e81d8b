"""Figures that cannot be right together: the count, the peak, the time, or the ranks.

*The witness.* The device counts how long its tensor pipes were busy. In a busy cycle they do what the peak says and no
more, so that no count of products can lie above it, whatever runs: only the counter's own error is let through, two
points by the one study of such a counter (OFU, arXiv 2605.20799: within two points of MFU on plain products). The other
side is wide: recomputation inside kernels, padding and tiles that are not full keep pipes busy without model FLOPs (the
study's 0.78 of correlation with real jobs' MFU is mostly that), so a factor of 2 is let through, and batches that
fill no tile say nothing. Counts are brought to the peak on paper first, each dtype's by its own peak, and only dtypes
that run on the pipes are compared.

The provider's own exporter, where it watched the GPUs, goes before what the tenant's process says of its device: then
both are over the wall time of whole hours in which the workload had them to itself (`provider.fleet.witness`).

*The rest* needs no band beyond what clocks and rounding may do: no more than the peak, no more time than has passed.
"""

from typing import Final

from mfu_sdk.peak.published import TENSOR
from mfu_sdk.provider.causes.evidence import Evidence
from mfu_sdk.provider.causes.finding import MATERIAL_LOSS, Verdict, confidence

POINTS: Final = 0.02
UNDER: Final = 2.0
TILE_ROWS: Final = 16
"""Rows of the smallest product that tensor pipes do (PTX ISA, mma.m16n8k16)."""
MIXED: Final = 1.02
"""From here on some FLOPs are of dtypes with a lower peak than the one that is told."""
PEAK_BAND: Final = (0.5, 1.05)
"""A claimed peak over the one on paper at the highest clock: measured peaks lie below it, down to about 0.6."""
USER_LOW: Final = 0.9
"""The same for a peak that somebody wrote down, of which no measurement is the excuse: datasheets rate at clocks that
lie up to 8 % below the highest (H100 SXM: 1,830 of 1,980 MHz)."""
WALL: Final = 1.02
RANK_SPREAD: Final = 1.05


def accounting(e: Evidence) -> Verdict | None:
    """The first of what cannot be, the gravest first."""
    found = [each for each in (_witness(e), _whole(e), _peak(e), _time(e), _ranks(e)) if each is not None]
    if not found:
        return None
    loss, sure, shown, remedy = max(found, key=lambda each: (each[1], each[0]))
    return Verdict("accounting", loss, sure, shown, remedy)


_Found = tuple[float, float, dict[str, float | str], str]


def compared(e: Evidence) -> tuple[float, float] | None:
    """What was counted and what the counters saw, as shares of the peak on paper; None where either is unknown."""
    # Pipes are busy with products in some dtypes only, and know nothing of a peak that was measured lower.
    if e.witnessed_mfu is None or e.witness is None or e.claimed_peak is None or e.peak_dtype not in TENSOR:
        return None
    counted = e.witnessed_mfu * e.claimed_peak * min(1.0 if e.dtype_mix is None else e.dtype_mix, 1.0)
    return (counted, e.witness) if max(counted, e.witness) > 0 else None


def borne_out(e: Evidence) -> bool | None:
    """Whether the provider's own counters bear out what was counted: no more than they saw, and half of it at least.

    None where no exporter of the provider's watched, where FLOPs of slower dtypes may have run elsewhere, or where
    tiles are too empty for pipes to tell.
    """
    both = compared(e)
    if both is None or e.watched_gpu_hours is None or e.dtype_mix is None or e.dtype_mix > MIXED or _fills_no_tile(e):
        return None
    counted, witness = both
    is_over = counted > witness + max(POINTS, MATERIAL_LOSS * counted)
    return not is_over and witness <= max(UNDER * counted, counted + POINTS)


def _witness(e: Evidence) -> _Found | None:
    both = compared(e)
    if both is None:
        return None
    counted, witness = both
    mix = 1.0 if e.dtype_mix is None else e.dtype_mix
    if e.dtype_mix is not None and counted > witness + POINTS and mix <= MIXED:
        loss = 1 - witness / counted
        remedy = (
            f"The count says {counted:.1%} of the peak, the device's own counter {witness:.1%}: check registered "
            "formulas, sparsity and `mfu verify`, and whether the peak is this device's."
        )
    elif witness > UNDER * counted and witness > counted + POINTS and not _fills_no_tile(e):
        loss = 1 - counted / witness
        remedy = (
            f"The device's own counter says {witness:.1%} of the peak, the count {counted:.1%}: look for operators "
            "without a formula (`uncounted`), another process on the device, or padding."
        )
    else:
        return None
    if loss < MATERIAL_LOSS:
        return None
    shown: dict[str, float | str] = {"counted_hardware_mfu_on_paper": counted, "witness_utilization": witness}
    if e.watched_gpu_hours is not None:
        shown |= {"witness": "the provider's exporter", "watched_gpu_hours": e.watched_gpu_hours}
    return loss, 0.95, shown, remedy


def _fills_no_tile(e: Evidence) -> bool:
    """Whether answers come in batches with fewer rows than a tile has, which the pipes fill up: by how much is unknown.

    A mean of batches hides calls of one.
    """
    return e.phase in ("decode", "inference") and (e.batch is None or e.batch < TILE_ROWS)


def _whole(e: Evidence) -> _Found | None:
    if e.mfu is None or 1 - 1 / max(e.mfu, 1e-9) < MATERIAL_LOSS:
        return None
    remedy = f"An MFU of {e.mfu:.0%} is none: check the peak's dtype and device, and steps that end before their work."
    return 1 - 1 / e.mfu, 0.95, {"mfu": e.mfu}, remedy


def _peak(e: Evidence) -> _Found | None:
    low, high = PEAK_BAND
    if e.peak_source == "user":
        low = USER_LOW
    if e.claimed_peak is None or e.claimed_peak <= 0 or low <= e.claimed_peak <= high:
        return None
    loss = 1 - min(e.claimed_peak, 1 / e.claimed_peak)
    remedy = (
        f"Its peak is {e.claimed_peak:.2f} of this GPU type's on paper: calibrate on a device of its own, or "
        "drop `peaks=`."
    )
    return loss, confidence(e.witness is not None), {"claimed_peak_over_theory": e.claimed_peak}, remedy


def _time(e: Evidence) -> _Found | None:
    if e.wall is None or e.wall <= WALL or 1 - 1 / e.wall < MATERIAL_LOSS:
        return None
    remedy = f"Its steps take {e.wall:.2f} times the time that passed: two monitors must be telling of the same work."
    return 1 - 1 / e.wall, 0.95, {"step_time_over_wall_time": e.wall}, remedy


def _ranks(e: Evidence) -> _Found | None:
    if e.rank_spread is None or e.rank_spread <= RANK_SPREAD or 1 - 1 / e.rank_spread < MATERIAL_LOSS:
        return None
    remedy = (
        f"Data-parallel ranks differ by {e.rank_spread - 1:.0%} in FLOPs per token: part of what one runs is not "
        "counted (`uncounted`), or tokens are told wrongly."
    )
    return (
        1 - 1 / e.rank_spread,
        confidence(e.rank_tokens is not None),
        {"most_over_least_flops_per_token": e.rank_spread},
        remedy,
    )
