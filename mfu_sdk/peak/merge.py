"""A new measurement of a device put over what was known of it, and what an earlier one is good for."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mfu_sdk.peak.results import STALE_S, History
from mfu_sdk.records import Peaks, Rate

if TYPE_CHECKING:
    from mfu_sdk.peak.bench import Tier

# What heat and use bring a device to is nearer to a training run than a first look is.
_STANDING = {"burst": 0, "in situ": 1, "sustained": 2}
_OF_TIERS = ("_burst_flops_per_s", "_in_situ_flops_per_s", "_sustained_flops_per_s")


def merged(earlier: Peaks, found: Peaks) -> Peaks:
    """What was measured now over what was known; a rate at working heat outlives a first look for a week."""
    achievable = dict(earlier.achievable)
    for dtype, rate in found.achievable.items():
        old = achievable.get(dtype)
        if old is None or "suspect" in earlier.state or not _outranks(old, rate):
            achievable[dtype] = rate
    state = lasting(earlier.state)
    for quantity in (*found.achievable, "memory") if found.memory is not None else found.achievable:
        # What was said of the last measurement of this is not true of the new one.
        gone = [name for name in state if name.startswith(f"{quantity}_") and not name.endswith(_OF_TIERS)]
        for name in gone:
            del state[name]
    if found.collectives or "collectives_missing" in found.state:
        state.pop("collectives_missing", None)
    kernels = {
        name: ", ".join(sorted({*str(value).split(", "), *str(found.state[name]).split(", ")}))
        for name, value in earlier.state.items()
        if name.endswith("_kernels") and name in found.state and _on_this_host(earlier)
    }
    return replace(
        found,
        achievable=achievable,
        memory=found.memory or earlier.memory,
        collectives=found.collectives or earlier.collectives,
        state={**state, **found.state, **kernels},
    )


def lasting(state: Mapping[str, str | float | bool]) -> dict[str, str | float | bool]:
    """What stays true of a calibration when another is made: not what was seen meanwhile, nor what theory says."""
    from mfu_sdk.peak.watch import SEEN

    gone = {"suspect", "missing", "theory_missing", *SEEN}
    return {
        name: value
        for name, value in state.items()
        if name not in gone and not name.endswith("_at_max_clock_flops_per_s")
    }


def _outranks(old: Rate, new: Rate) -> bool:
    """Whether `old` is kept: younger than a week, nearer to a run at work, and of the same kernel on the same shape.

    Between two steps there may be room for smaller operands only: such a rate is no better than a first look.
    """
    if old.age_s > STALE_S or _standing(old) <= _standing(new):
        return False
    return _tier(old) != "in situ" or old.source.partition(", ")[2] == new.source.partition(", ")[2]


def _standing(rate: Rate) -> int:
    return _STANDING.get(_tier(rate), 0)


def _tier(rate: Rate) -> str:
    return rate.source.removeprefix("calibrated: ").partition(",")[0]


def longer(history: History, found: Peaks, tier: Tier) -> History:
    """`history` with what was found now at its end, under the tier's name."""
    new = {dtype: rate.flops_per_s for dtype, rate in found.achievable.items()}
    if found.memory is not None:
        new["memory"] = found.memory.bytes_per_s
    return {**history, **{f"{name} {tier}": (*history.get(f"{name} {tier}", ()), value) for name, value in new.items()}}


def of_tier(history: History, tier: Tier) -> Mapping[str, Sequence[float]]:
    """What earlier runs of `tier` found, by quantity."""
    ending = f" {tier}"
    return {name.removesuffix(ending): values for name, values in history.items() if name.endswith(ending)}


def compiled(earlier: Peaks | None) -> frozenset[str]:
    """Kernels that an earlier run under the same key has compiled on this host: Triton's cache has them still."""
    if earlier is None or not _on_this_host(earlier):
        return frozenset()
    names = (str(value).split(", ") for name, value in earlier.state.items() if name.endswith("_kernels"))
    return frozenset(name for each in names for name in each)


def _on_this_host(peaks: Peaks) -> bool:
    # A container keeps the cache of calibrations more often than Triton's, and has a name of its own each time.
    return peaks.state.get("measured_on") == platform.node()


def winners(earlier: Peaks | None) -> dict[str, str]:
    """The fastest kernel and shape of each dtype, as the last measurement that compared them found."""
    state: Mapping[str, Any] = {} if earlier is None else earlier.state
    return {name.removesuffix("_winner"): str(value) for name, value in state.items() if name.endswith("_winner")}
