"""How much of the capacity that is owned did model FLOPs: an exact product of three factors, weighted by peak.

    owned MFU = (Σ P·h_alloc / Σ P·h_owned) × (Σ P·h_step / Σ P·h_alloc) × (ΣF / 3600·Σ P·h_step)

P is each GPU type's dense bf16 peak on paper, F the model FLOPs of steps that know theirs, h hours. Time that nobody
observed counts as doing nothing here, so that the owned MFU is at least what is said.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mfu_sdk.provider.economics.inputs import Ledger
from mfu_sdk.provider.economics.waterfall import Waterfall

_OUTSIDE = frozenset({"unavailable", "unsold", "mig_stranded"})


@dataclass(frozen=True, slots=True)
class Capacity:
    """The factors and their product; None where nothing is owned, held or ran, or a peak is unknown.

    `observed_share` is the share of owned GPU-hours on devices that sent steps, `allocated_observed_share` that of the
    hours held. `*_gpu_hours` count a MIG slice by its share of the SMs.
    """

    owned_mfu: float | None
    allocation: float | None
    runtime: float | None
    step: float | None
    observed_share: float | None
    allocated_observed_share: float | None
    owned_gpu_hours: float
    allocated_gpu_hours: float
    observed_gpu_hours: float
    step_gpu_hours: float


def capacity(ledger: Ledger, found: Waterfall, peaks: Mapping[str, float]) -> Capacity:
    """The identity over a window. `peaks` are FLOP/s by GPU type; without one of an owned type it is not known."""
    owned: dict[str, int] = {}
    for node in ledger.owned:
        owned[node.gpu_type] = owned.get(node.gpu_type, 0) + node.owned_ns
    held: dict[str, int] = {}
    unobserved = step = 0
    for cell in found.cells:
        if cell.stage not in _OUTSIDE:
            held[cell.gpu_type] = held.get(cell.gpu_type, 0) + cell.gpu_ns
        if cell.stage == "unobserved":
            unobserved += cell.gpu_ns
    steps: dict[str, int] = {}
    flops = 0.0
    for one in found.splits:
        steps[one.used.gpu_type] = steps.get(one.used.gpu_type, 0) + one.step_ns
        step += one.step_ns
        flops += one.claimed_flops
    all_owned, all_held = sum(owned.values()), sum(held.values())
    known = all(gpu_type in peaks for gpu_type in owned)
    weighted = [
        sum(peaks[gpu_type] * ns / 1e9 for gpu_type, ns in hours.items()) if known else None
        for hours in (owned, held, steps)
    ]
    return Capacity(
        _ratio(flops, weighted[0]),
        _ratio(weighted[1], weighted[0]),
        _ratio(weighted[2], weighted[1]),
        _ratio(flops, weighted[2]),
        _ratio(all_held - unobserved, all_owned),
        _ratio(all_held - unobserved, all_held),
        _hours(all_owned),
        _hours(all_held),
        _hours(all_held - unobserved),
        _hours(step),
    )


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return numerator / denominator if numerator is not None and denominator else None


def _hours(gpu_ns: int) -> float:
    return gpu_ns / 3.6e12
