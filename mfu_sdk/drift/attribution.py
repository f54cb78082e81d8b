"""Why MFU changed: an exact split of the change, and the cause that it and the configuration's change point to.

*The split.* MFU = F / (P · T), so Δlog MFU = Δlog F − Δlog P − Δlog T, of one step's FLOPs, peak and time. The time is
the sum of its parts, and a part's share of Δlog T is exactly Δt / L(T₁, T₀), where L(a, b) = (a − b) / (log a − log b)
is the logarithmic mean: the additive LMDI-I (Ang, "The LMDI approach to decomposition analysis", Energy Policy, 2005).
Nothing is left over and no order of the parts is assumed; a part may be zero. Where the clock k is known, the busy time
is cycles / k, and its share splits once more by the same rule.

*The cause.* The clock, late ranks, the loader and the load are looked at first, because each of them can change MFU in
a run whose configuration is what it was; then the configuration; and what nothing explains is said to be unknown. A
rise that nothing explains is a matter of accounting: work that is counted and no longer done, or a peak that is wrong.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from mfu_sdk.drift.account import Account
from mfu_sdk.records import DriftCause

MAIN_SHARE: Final = 0.5
"""The share of a change that its main cause must explain."""
DATA_SHARE: Final = 0.15
"""Above this share of a step's time waiting for data binds it."""
SKEW_SHARE: Final = 0.06
"""Above this share late ranks do."""
CLOCK_RATIO: Final = 0.88
"""Below this ratio to its clock before a device is slowed by heat or power."""
LOAD_RATIO: Final = 1.25
"""By which factor the batch of requests must change to be another load."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """`parts` of the change of log MFU, which they sum to; the cause, and why it is that one, in words."""

    parts: Mapping[str, float]
    cause: DriftCause
    evidence: tuple[str, ...]


def split(before: Account, after: Account) -> dict[str, float]:
    """The change of log MFU by part: `flops`, `peak`, `data`, `communication`, `skew`, `host`, `clock`, `compute`.

    Parts whose time is not known on both sides are in `compute`, the rest of the time. Without peaks the sum is the
    change of log FLOP/s. Raises ValueError where FLOPs or time are not above 0.
    """
    for account in (before, after):
        if account.steps < 1 or account.model_flops <= 0 or not account.time_s > 0:
            raise ValueError(f"{account}: steps, FLOPs and time must be above 0, or there is no MFU to split")
    time0, time1 = before.time_s / before.steps, after.time_s / after.steps
    mean = _log_mean(time1, time0)
    parts = {"flops": math.log(after.model_flops / after.steps) - math.log(before.model_flops / before.steps)}
    if before.available_flops and after.available_flops:
        parts["peak"] = math.log(before.available_flops / before.time_s) - math.log(
            after.available_flops / after.time_s
        )
    rest0, rest1 = time0, time1
    for name, old, new in (
        ("data", before.data_s, after.data_s),
        ("communication", before.comm_s, after.comm_s),
        ("skew", before.skew_s, after.skew_s),
        ("host", before.host_s, after.host_s),
    ):
        if old is None or new is None:
            continue
        old, new = old / before.steps, new / after.steps
        parts[name] = (old - new) / mean
        rest0, rest1 = rest0 - old, rest1 - new
    parts["compute"] = (rest0 - rest1) / mean
    if before.clock and after.clock and rest0 > 0 and rest1 > 0:
        parts["clock"] = _log_mean(rest1, rest0) / mean * math.log(after.clock / before.clock)
        parts["compute"] -= parts["clock"]
    return parts


def attribute(
    before: Account,
    after: Account,
    *,
    kind: Literal["drop", "rise"],
    phase: str = "train",
    diff: Sequence[str] = (),
    throttled: Sequence[str] = (),
) -> Attribution:
    """Why steps of `phase` are slower, or faster, than `before`. `diff`: what changed of the configuration, in words.

    `throttled`: what the device says that holds its clock down, in words. Raises ValueError as `split` does.
    """
    parts = split(before, after)
    cause, why = _cause(before, after, parts, kind == "drop", phase, diff, throttled)
    return Attribution(parts, cause, (*why, _in_words(parts)))


def _cause(
    before: Account,
    after: Account,
    parts: Mapping[str, float],
    falls: bool,
    phase: str,
    diff: Sequence[str],
    throttled: Sequence[str],
) -> tuple[DriftCause, tuple[str, ...]]:
    # Another denominator makes no step slower: what is to be explained is the change of FLOP/s.
    change = math.fsum(part for name, part in parts.items() if name != "peak")

    def mainly(name: str) -> bool:
        part = parts.get(name, 0.0)
        return abs(part) >= MAIN_SHARE * abs(change) and (part < 0 if falls else part > 0)

    slower = after if falls else before
    clock = after.clock / before.clock if before.clock and after.clock else None
    if clock is not None and (mainly("clock") or (falls and clock < CLOCK_RATIO)):
        return "thermal_or_power", (f"the clock went to {clock:.0%} of what it was", *throttled)
    if throttled and falls and not diff:
        return "thermal_or_power", tuple(throttled)
    if mainly("skew") and (slower.share(slower.skew_s) or 0.0) > SKEW_SHARE:
        return "straggler", (_of_step("waiting for late ranks", before, after, before.skew_s, after.skew_s),)
    if mainly("data") and (slower.share(slower.data_s) or 0.0) > DATA_SHARE:
        return "input_bound", (_of_step("waiting for data", before, after, before.data_s, after.data_s),)
    if phase not in ("train", "eval") and before.batch and after.batch:
        ratio = after.batch / before.batch
        if max(ratio, 1 / ratio) >= LOAD_RATIO:
            return "load", (f"the batch of a call went from {before.batch:.3g} to {after.batch:.3g}",)
    if diff:
        return "configuration_drift", tuple(diff)
    if not falls:
        return "accounting", ("nothing that is known explains it: is all of the work still done, is the peak right?",)
    return "unknown", ("nothing that is known of the run changed with it",)


def _of_step(what: str, before: Account, after: Account, old: float | None, new: float | None) -> str:
    return f"{what} went from {before.share(old) or 0.0:.1%} to {after.share(new) or 0.0:.1%} of a step"


def _in_words(parts: Mapping[str, float]) -> str:
    largest = sorted(parts.items(), key=lambda item: -abs(item[1]))
    said = ", ".join(f"{name} {part:+.3f}" for name, part in largest if abs(part) >= 5e-4)
    return f"log MFU changed by {math.fsum(parts.values()):+.3f}" + (f": {said}" if said else "")


def _log_mean(one: float, other: float) -> float:
    """(a − b) / (log a − log b), and a where both are the same."""
    difference = math.log(one) - math.log(other)
    # Near equality the quotient loses its digits; the mean of both is exact to the square of their distance.
    return (one + other) / 2 if abs(difference) < 1e-7 else (one - other) / difference
