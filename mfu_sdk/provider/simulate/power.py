"""The clock that power and heat allow.

Dynamic power goes with activity and with about the 2.5th power of the clock (voltage rises with frequency); a GPU under
full tensor load asks for more than its limit at the reference clock, as H100s do (their clocks fall under large
products). Temperature follows power over a thermal resistance with a time constant of minutes; at the slowdown
temperature the clock is held where heat balances.
"""

from dataclasses import dataclass

from mfu_sdk.provider.simulate.silicon import Gpu

POWER_CAP, THERMAL = "software power cap", "software thermal slowdown"
WARMING_S = 240.0
"""The time constant of a heat sink and its air."""

_EXPONENT = 2.5
_DEMAND = 1.12
_AMBIENT_C, _FULL_C, _SLOWDOWN_C = 30.0, 68.0, 87.0


@dataclass(frozen=True, slots=True)
class Cooling:
    """What one GPU has: `limit` is its power limit over the board's, `lost` the share of its cooling that is gone."""

    limit: float = 1.0
    lost: float = 0.0


@dataclass(frozen=True, slots=True)
class Clock:
    """The SM clock over the reference clock, and what holds it."""

    ratio: float
    reasons: tuple[str, ...]


def clock(gpu: Gpu, activity: float, cooling: Cooling) -> Clock:
    """The steady clock at `activity`, the share of full tensor load (0..1)."""
    by_power = _ratio(gpu, activity, gpu.limit_w * cooling.limit)
    resistance_c_per_w = (_FULL_C - _AMBIENT_C) / gpu.limit_w / max(1e-3, 1 - cooling.lost)
    by_heat = _ratio(gpu, activity, (_SLOWDOWN_C - _AMBIENT_C) / resistance_c_per_w)
    found = min(by_power, by_heat, gpu.boost)
    # The lowest clock that the driver falls to, about a tenth of the highest.
    found = max(found, 0.12)
    if found >= gpu.boost:
        return Clock(found, ())
    return Clock(found, (THERMAL,) if by_heat < by_power else (POWER_CAP,))


def activity_of(tensor_s: float, memory_s: float, idle_s: float = 0.0) -> float:
    """The share of full tensor load that a mix of work is; memory traffic draws about half."""
    whole = tensor_s + memory_s + idle_s
    return 0.0 if whole <= 0 else (tensor_s + 0.55 * memory_s + 0.1 * idle_s) / whole


def _ratio(gpu: Gpu, activity: float, allowed_w: float) -> float:
    dynamic_w = (gpu.limit_w * _DEMAND - gpu.idle_w) * max(activity, 0.05)
    left_w: float = max(0.0, allowed_w - gpu.idle_w)
    return float((left_w / dynamic_w) ** (1 / _EXPONENT))
