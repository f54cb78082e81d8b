"""Figures that cannot be right together: the count, the peak, the time, or the ranks.

*The witness.* The device counts how long its tensor pipes were busy. The paper on this figure (OFU, arXiv 2605.20799)
has it within two percentage points of MFU on plain products once tiles are accounted for, and correlated at 0.78 over
608 jobs: 1 − 0.78² = 39 % of the variance of a real job's MFU is not explained by it. So a count is doubted where it
lies two points *and* a factor of 1.5 above the witness: more was claimed than the pipes did, while work that does not
run on them (fp32, elementwise) is a small part of what is counted. Below, a factor of 2 is let through, because
recomputation inside kernels, padding and tiles that are not full keep pipes busy without model FLOPs. Counts are
brought to the peak on paper first, and only dtypes that run on the pipes are compared. The wrong formulas that the
paper found (experts counted as dense) were of that size and more.

The provider's own exporter, where it watched the GPUs, goes before what the tenant's process says of its device: then
both are over the wall time of whole hours in which the workload had them to itself (`provider.fleet.witness`).

*The rest* needs no band beyond what clocks and rounding may do: no more than the peak, no more time than has passed.
"""

from typing import Final

from mfu_sdk.peak.published import TENSOR
from mfu_sdk.provider.causes.evidence import Evidence
from mfu_sdk.provider.causes.finding import MATERIAL_LOSS, Verdict, confidence

POINTS: Final = 0.02
OVER: Final = 1.5
UNDER: Final = 2.0
PEAK_BAND: Final = (0.5, 1.05)
"""A claimed peak over the one on paper at the highest clock: measured peaks lie below it, down to about 0.6."""
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


def _witness(e: Evidence) -> _Found | None:
    # Pipes are busy with products in some dtypes only, and know nothing of a peak that was measured lower.
    if e.witnessed_mfu is None or e.claimed_peak is None or e.peak_dtype not in TENSOR:
        return None
    counted, witness = e.witnessed_mfu * e.claimed_peak, e.witness
    if witness is None or max(counted, witness) <= 0:
        return None
    if counted > OVER * witness and counted > witness + POINTS:
        loss = 1 - witness / counted
        remedy = (
            f"The count says {counted:.1%} of the peak, the device's own counter {witness:.1%}: check registered "
            "formulas, sparsity and `mfu verify`, and whether the peak is this device's."
        )
    elif witness > UNDER * counted and witness > counted + POINTS:
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


def _whole(e: Evidence) -> _Found | None:
    if e.mfu is None or 1 - 1 / max(e.mfu, 1e-9) < MATERIAL_LOSS:
        return None
    remedy = f"An MFU of {e.mfu:.0%} is none: check the peak's dtype and device, and steps that end before their work."
    return 1 - 1 / e.mfu, 0.95, {"mfu": e.mfu}, remedy


def _peak(e: Evidence) -> _Found | None:
    low, high = PEAK_BAND
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
