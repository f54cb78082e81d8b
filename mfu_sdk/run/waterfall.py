"""Where the missing MFU went: evidence of a run in, parts of one out.

    1 = MFU + data wait + host gap + exposed communication + rank skew + recomputation + memory-bound operators
          + kernel inefficiency + clock and power + unexplained

*What is divided.* The time of the timed steps, T. Each part is a number of seconds of it, and its share is that over
T: since available FLOPs are peak × T, shares of time and shares of available FLOPs are the same.

*Time in which the device does not work for this rank.* Waiting for data, for the transfer of what no work hid
(exposed communication), for ranks that come late to it (skew), and what is left of idleness (host gap). These are
measured, and do not overlap.

*A run of several phases* (training with evaluations; prompts and answers) has an account for each, since what was
timed of one says nothing of another; its bars are their sums (`together`).

*Time in which it works* is that of the operators. Products (all that has FLOPs) and the rest are told apart.

- MFU: the seconds that the model's FLOPs F take at the peak P, F/P.
- clock and power: what they take longer at the clock that ran, F/P · (1/k − 1), k being that clock over the peak's.
- recomputation: FLOPs that ran beyond those of the model (recomputed activations, the optimizer's own products, masked
  pairs), at the rate that the device was measured to reach.
- memory-bound operators: of operators without FLOPs, all their time; of products whose bytes take longer than their
  FLOPs, the excess, by a roofline. Where no operator was timed, the roofline's excess of all operators.
- kernel inefficiency: what the products took beyond all of these. It holds two things that a user may want apart:
  the distance of the best kernels from the peak, which is in the calibration, and that of these kernels from the best.

*What cannot be known is not shown*, and its loss is part of `unexplained`: without operator times there is no kernel
inefficiency, and no host gap but what a GPU's driver tells: the time in which it saw no kernel run. What operators'
times leave is no host gap where waiting for data or for peers is not known, because it would hold them; what the
driver tells holds no exchange, whose kernels run, and says so where it may hold a wait for data.

*What contradicts itself is cut, and says so.* Measured waits longer than the steps are cut to them; operator times
longer than what the waits leave are scaled to that; modelled parts that do not fit are scaled to what does. A part
that is negative for a reason stays: a clock above the peak's, a convention that charges more pairs than ran, products
faster than the peak. The bars always add up to one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mfu_sdk.bars import Bar, Known

_WORTH_SAYING = 0.05
"""By how much operators must have been timed too long for the reader to be told: less is what timings differ by."""
_SURENESS: tuple[Known, ...] = ("measured", "sampled", "modelled", "rest")
_ORDER = (
    "mfu", "data_wait", "host_gap", "exposed_communication", "rank_skew", "recomputation", "memory_bound",
    "kernel_inefficiency", "clock_and_power",
)  # fmt: skip
_SECONDS = (
    "useful_s", "data_wait_s", "communication_s", "skew_s", "memory_s", "products_s", "streaming_s",
    "products_memory_s", "driver_idle_s",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of the timed steps: seconds of their time, summed, None where unknown.

    `step_s` is their duration, above 0; `useful_s` the seconds that their model FLOPs take at the peak, so that MFU is
    `useful_s` / `step_s`. Of the waits, `communication_s` is without `skew_s`; a run of one rank has 0.0 of both.
    `extra_s` is what ran beyond the model's FLOPs, at measured rates; below zero where the convention charges pairs
    that did not run. `memory_s` is a roofline's excess of bytes over FLOPs, over all operators. `products_s` and
    `streaming_s` are operators' own times, with and without FLOPs, and `products_memory_s` that excess over products
    alone, 0.0 where it is not known: all three are given or none. `clock_ratio` is the clock that ran over the clock
    of the peak. `idle_s` is the time in which nothing was asked of the device: steps that wrote a checkpoint, what a
    handler of requests did between two calls of the model; `idle_sampled` where some of it was not measured each time.
    `driver_idle_s` is the time in which a GPU's driver saw no kernel run, any wait for data and `idle_s` in it.
    """

    step_s: float
    useful_s: float
    data_wait_s: float | None = None
    communication_s: float | None = None
    skew_s: float | None = None
    extra_s: float | None = None
    memory_s: float | None = None
    products_s: float | None = None
    streaming_s: float | None = None
    products_memory_s: float | None = None
    clock_ratio: float | None = None
    idle_s: float = 0.0
    idle_sampled: bool = False
    driver_idle_s: float | None = None


@dataclass(frozen=True, slots=True)
class Waterfall:
    """The parts of one, in the order of this module's first formula; the last is always `unexplained`."""

    bars: tuple[Bar, ...]

    @property
    def shares(self) -> Mapping[str, float]:
        """Each bar's share by its name; they add up to 1."""
        return {bar.name: bar.share for bar in self.bars}


@dataclass(slots=True)
class _Part:
    name: str
    seconds: float | None
    known: Known
    reason: str | None = None

    def cut(self, seconds: float, reason: str) -> None:
        self.seconds, self.reason = seconds, reason


def waterfall(evidence: Evidence) -> Waterfall:
    """The bars of `evidence`. Raises ValueError where there is no time to divide, or a number is not finite."""
    _check(evidence)
    total_s = evidence.step_s
    mfu = _Part("mfu", evidence.useful_s, "measured")
    data = _Part("data_wait", evidence.data_wait_s, "measured")
    # Of one rank alone none was sampled: it has nobody to wait for.
    between: Known = "sampled" if evidence.communication_s or evidence.skew_s else "modelled"
    communication = _Part("exposed_communication", evidence.communication_s, between)
    skew = _Part("rank_skew", evidence.skew_s, between)
    active_s = _fit_waits(total_s, data, communication, skew)
    idle_s = min(evidence.idle_s, active_s)
    active_s -= idle_s
    gap = _Part("host_gap", idle_s or None, "sampled" if evidence.idle_sampled else "measured")
    products_s, streaming_s = evidence.products_s, evidence.streaming_s
    worked_s, shrunk = 0.0, 1.0
    if products_s is not None and streaming_s is not None:
        worked_s = products_s + streaming_s
        shrunk = active_s / worked_s if worked_s > active_s else 1.0
        products_s, streaming_s = products_s * shrunk, streaming_s * shrunk
        if None not in (data.seconds, communication.seconds, skew.seconds):
            gap.seconds = idle_s + max(0.0, active_s - worked_s)
            gap.known = "sampled"
    elif evidence.driver_idle_s is not None:
        # An exchange's kernels run, so it holds none of that. And the model's FLOPs took their time at least.
        rest_s = evidence.driver_idle_s - (data.seconds or 0.0) - idle_s
        rest_s = max(0.0, min(rest_s, active_s - evidence.useful_s))
        active_s -= rest_s
        gap.seconds, gap.known = idle_s + rest_s, "sampled"
        if data.seconds is None and rest_s:
            gap.reason = "any wait for data is in it: give the loader to run.batches(), and they are told apart"
    clock = _clock(evidence)
    recomputation = _Part("recomputation", evidence.extra_s, "modelled")
    if recomputation.seconds is not None and recomputation.seconds < 0:
        recomputation.reason = "the convention charges more pairs of scores than the kernels computed"
    # What the products could have spent beyond their useful time; without operator times, all that no wait took.
    room_s = (active_s if products_s is None else products_s) - evidence.useful_s - (clock.seconds or 0.0)
    streaming = streaming_s or 0.0
    memory = _Part("memory_bound", evidence.memory_s, "modelled")
    kernels = _Part("kernel_inefficiency", None, "sampled")
    if products_s is not None:
        memory = _Part("memory_bound", evidence.products_memory_s, "sampled")
    _fit_models(room_s, recomputation, memory)
    if products_s is not None:
        kernels.seconds = room_s - (recomputation.seconds or 0.0) - (memory.seconds or 0.0)
        memory.seconds = (memory.seconds or 0.0) + streaming
        if kernels.seconds < 0:
            kernels.reason = "the products were faster than the peak allows: the peak or the count is wrong"
        if shrunk < 1 - _WORTH_SAYING:
            kernels.reason = (
                f"operators were timed to take {worked_s:.3g} s, and the waits leave {active_s:.3g}: scaled to that"
            )
    parts = (mfu, data, gap, communication, skew, recomputation, memory, kernels, clock)
    bars = [
        Bar(part.name, part.seconds / total_s, part.seconds, part.known, part.reason)
        for part in parts
        if part.seconds is not None
    ]
    rest = math.fsum([1.0, *(-bar.share for bar in bars)])
    # What only rounding left over is nothing.
    if abs(rest) < 1e-12:
        rest = 0.0
    why = "the other bars are too long together: MFU above what was left of the steps" if rest < 0 else None
    bars.append(Bar("unexplained", rest, rest * total_s, "rest", why))
    return Waterfall(tuple(bars))


def together(parts: Sequence[Waterfall]) -> Waterfall:
    """The bars of the parts of a run as one, above none: their seconds add up.

    What is not known of a part has no bar there, and is unexplained in the sum too. A bar is as sure as the least sure
    of those that it was made of.
    """
    if len(parts) == 1:
        return parts[0]
    total_s = math.fsum(bar.seconds for part in parts for bar in part.bars)
    named: dict[str, list[Bar]] = {}
    for part in parts:
        for bar in part.bars:
            named.setdefault(bar.name, []).append(bar)
    rest = named.pop("unexplained")
    bars = [_sum(named[name], total_s) for name in _ORDER if name in named]
    share = math.fsum([1.0, *(-bar.share for bar in bars)])
    if abs(share) < 1e-12:
        share = 0.0
    bars.append(replace(_sum(rest, total_s), share=share, seconds=share * total_s))
    return Waterfall(tuple(bars))


def _sum(bars: Sequence[Bar], total_s: float) -> Bar:
    seconds = math.fsum(bar.seconds for bar in bars)
    # What is nothing says nothing of how the others are known.
    weighty = [bar for bar in bars if bar.seconds] or bars
    known = max(weighty, key=lambda bar: _SURENESS.index(bar.known)).known
    reasons = dict.fromkeys(bar.reason for bar in bars if bar.reason)
    return Bar(bars[0].name, seconds / total_s, seconds, known, "; ".join(reasons) or None)


def _check(evidence: Evidence) -> None:
    if not 0 < evidence.step_s < math.inf:
        raise ValueError(f"step_s={evidence.step_s}: must be a number of seconds above 0")
    if evidence.clock_ratio is not None and not 0 < evidence.clock_ratio < math.inf:
        raise ValueError(f"clock_ratio={evidence.clock_ratio}: must be above 0")
    if evidence.extra_s is not None and not math.isfinite(evidence.extra_s):
        raise ValueError(f"extra_s={evidence.extra_s}: must be finite")
    for name in _SECONDS:
        value = getattr(evidence, name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name}={value}: must be a number of seconds of at least 0")
    timed = (evidence.products_s, evidence.streaming_s, evidence.products_memory_s)
    if None in timed and timed != (None, None, None):
        raise ValueError(f"products_s, streaming_s, products_memory_s={timed}: all are known or none is")


def _fit_waits(total_s: float, *waits: _Part) -> float:
    """Cut each wait to what the ones before it have left; returns what all of them leave."""
    left_s = total_s
    for wait in waits:
        if wait.seconds is None:
            continue
        if wait.seconds > left_s:
            wait.cut(left_s, f"{wait.seconds:.3g} s were measured, more than the steps had left: cut to that")
        left_s -= wait.seconds
    return left_s


def _clock(evidence: Evidence) -> _Part:
    """What the model's FLOPs take longer at the clock that ran than at the peak's."""
    if evidence.clock_ratio is None:
        return _Part("clock_and_power", None, "modelled")
    part = _Part("clock_and_power", evidence.useful_s * (1 / evidence.clock_ratio - 1), "modelled")
    if evidence.clock_ratio > 1:
        part.reason = "the device ran above the clock that its peak assumes"
    return part


def _fit_models(room_s: float, *models: _Part) -> None:
    """Scale what was reckoned, not measured, to the time there is for it; what is below zero gives room."""
    above = [part for part in models if part.seconds is not None and part.seconds > 0]
    wanted_s = math.fsum(part.seconds or 0.0 for part in above)
    room_s -= math.fsum(part.seconds for part in models if part.seconds is not None and part.seconds < 0)
    if not above or wanted_s <= room_s:
        return
    share = max(0.0, room_s) / wanted_s
    for part in above:
        part.cut((part.seconds or 0.0) * share, f"measured rates ask for {part.seconds:.3g} s, which were not there")
