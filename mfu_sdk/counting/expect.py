"""The least time that counted work can take on given peaks, and the MFU that this allows: a roofline per operator."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mfu_sdk.counting.exchanges import NO_TIME, Exchange, Seconds, counted_exchanges
from mfu_sdk.records import Bound, Count, Expectation, OpCost, OpTime, Peaks


@dataclass(frozen=True, slots=True)
class Roofline:
    """What operators take on a device: the parts bound by either resource, in all, and each kind of operator."""

    compute_s: float
    memory_s: float
    total: Seconds
    ops: tuple[OpTime, ...]
    bytes_moved: int
    theory: tuple[str, ...]


def expect(count: Count, peaks: Peaks, *, peak_dtype: str | None = None) -> Expectation | None:
    """The roofline of `count` on `peaks`, or None where a rate that its operators need is unknown.

    time = Σ over operators of max(FLOPs / achievable rate of the dtype, bytes / memory rate), the memory rate being
    that of the operator's working set, so that what fits a cache is not held to the memory beyond it. Operators do
    not overlap with each other. To it comes what `Count.comm_bytes` takes at the calibrated bus rates, as far as it is
    not hidden (`counting.exchanges`); what has no known rate is named in `missing`, and its time is in no figure.

    mfu = model FLOPs / (headline peak × time); `peak_dtype` sets the headline's dtype, which else is `main_dtype`. An
    operator with FLOPs in a dtype that was not measured is held to theory; without either the answer is None. Source:
    Williams, Waterman and Patterson, "Roofline", CACM 52 (4), 2009.
    """
    headline = peaks.headline(peak_dtype or main_dtype(count.by_dtype))
    found = None if headline is None else roofline(count.ops, peaks)
    if found is None or found.total.value == 0.0:
        return None
    exchanges, missing = counted_exchanges(count, peaks)
    return assembled(
        count.model_flops,
        found,
        exchanges,
        peaks,
        peak_dtype=peak_dtype or main_dtype(count.by_dtype),
        backward_share=_backward_share(count),
        missing=missing,
    )


def roofline(ops: Iterable[OpCost], peaks: Peaks) -> Roofline | None:
    """Every operator at the larger of its two times, or None where a rate is unknown.

    The interval takes every rate at its upper end at once, and every one at its lower: the widest that they allow.
    """
    rates: dict[str, tuple[float, float, float] | None] = {}
    theory: list[str] = []
    memory_s = _memory_seconds(peaks)
    times: list[OpTime] = []
    parts = {"compute": 0.0, "memory": 0.0}
    value = low = high = 0.0
    moved = 0
    for op in ops:
        flops = op.flops
        if flops and op.dtype not in rates:
            rates[op.dtype] = _rate(peaks, op.dtype)
            if op.dtype not in peaks.achievable:
                theory.append(op.dtype)
        rate = rates[op.dtype] if flops else (1.0, 1.0, 1.0)
        bytes_s = memory_s(op.bytes_moved)
        if rate is None or bytes_s is None:
            return None
        flops_s = flops / rate[0]
        bound: Bound = "compute" if flops_s >= bytes_s.value else "memory"
        one = max(flops_s, bytes_s.value) * op.calls
        value += one
        parts[bound] += one
        low += max(flops / rate[2], bytes_s.low) * op.calls
        high += max(flops / rate[1], bytes_s.high) * op.calls
        moved += op.bytes_moved * op.calls
        if one:
            times.append(OpTime(op.op, op.dtype, op.calls, one, bound))
    times.sort(key=lambda each: -each.seconds)
    return Roofline(parts["compute"], parts["memory"], Seconds(value, low, high), tuple(times), moved, tuple(theory))


def assembled(
    model_flops: float,
    work: Roofline,
    exchanges: Sequence[Exchange],
    peaks: Peaks,
    *,
    peak_dtype: str,
    backward_share: float,
    bubble: float = 0.0,
    missing: tuple[str, ...] = (),
    assumptions: tuple[str, ...] = (),
) -> Expectation | None:
    """One device's expectation: its operators, what it exchanges, and the pipeline's bubble as a share of both.

    Exchanges that run beside the backward hide behind `backward_share` of the operators' time, those that run beside
    all of it behind what is then left; exposed = max(0, exchange − what hides it). The rest waits for them. The lower
    end of the interval hides whatever there is to hide behind, the upper end nothing. None without a headline peak.
    """
    headline = peaks.headline(peak_dtype)
    if headline is None:
        return None
    exposed, hidden = _exposed(work.total, exchanges, backward_share)
    idle = (work.total + exposed) * bubble
    total = work.total + exposed + idle
    dtype, peak = headline
    available = peak.flops_per_s
    if work.theory:
        assumptions = (*assumptions, f"held to theory, since not measured: {', '.join(work.theory)}")
    if exchanges:
        assumptions = (*assumptions, *dict.fromkeys(each.why for each in exchanges))
    memory = None if peaks.memory is None else peaks.memory.bytes_per_s
    return Expectation(
        time_s=total.value,
        mfu=model_flops / (available * total.value),
        compute_s=work.compute_s,
        memory_s=work.memory_s,
        communication_s=exposed.value,
        hidden_s=hidden,
        bubble_s=idle.value,
        low_s=total.low,
        high_s=None if missing else total.high,
        low_mfu=None if missing else model_flops / (available * total.high),
        high_mfu=model_flops / (available * total.low),
        mbu=None if memory is None else work.bytes_moved / total.value / memory,
        bytes_moved=work.bytes_moved,
        ops=(*work.ops, *(_exchange_time(each) for each in exchanges)),
        missing=missing,
        assumptions=assumptions,
        device=str(peaks.state.get("name", peaks.device)),
        peak_flops_per_s=available,
        peak_dtype=dtype,
    )


def products_excess_s(count: Count, peaks: Peaks) -> float | None:
    """Σ over operators with FLOPs of what their bytes take longer than these; None where a rate is not known."""
    excess_s = 0.0
    for op in count.ops:
        if not op.flops:
            continue
        rate = peaks.achievable.get(op.dtype) or peaks.theoretical.get(op.dtype)
        memory = memory_bytes_per_s(peaks, op.bytes_moved)
        if rate is None or memory is None:
            return None
        excess_s += op.calls * max(0.0, op.bytes_moved / memory - op.flops / rate.flops_per_s)
    return excess_s


def main_dtype(by_dtype: Mapping[str, int]) -> str:
    """The dtype in which most of the FLOPs are, "float32" where there are none."""
    return max(by_dtype, key=by_dtype.__getitem__, default="float32")


def memory_bytes_per_s(peaks: Peaks, working_set_bytes: int) -> float | None:
    """The memory rate at a working set, in bytes/s: between two measured sizes linear in the size's logarithm.

    Below the smallest size that size's rate holds; above the largest, `Peaks.memory`, or where that is unknown the
    largest size's. None where nothing is known.
    """
    table = peaks.memory_by_size
    far = None if peaks.memory is None else peaks.memory.bytes_per_s
    if not table:
        return far
    if working_set_bytes > table[-1][0]:
        return table[-1][1] if far is None else far
    return _interpolated(table, working_set_bytes)


def _interpolated(table: Sequence[tuple[int, float]], size_bytes: int) -> float:
    above = bisect_left([size for size, _ in table], size_bytes)
    if above == 0:
        return table[0][1]
    (low, low_rate), (high, high_rate) = table[above - 1], table[above]
    share = math.log(size_bytes / low) / math.log(high / low)
    return low_rate + share * (high_rate - low_rate)


def _rate(peaks: Peaks, dtype: str) -> tuple[float, float, float] | None:
    rate = peaks.achievable.get(dtype) or peaks.theoretical.get(dtype)
    return None if rate is None else (rate.flops_per_s, rate.low, rate.high)


def _memory_seconds(peaks: Peaks) -> Callable[[int], Seconds | None]:
    """The time of moving bytes. Rates by size have no interval of their own: they are as sure as memory's rate is."""
    memory = peaks.memory
    slow = 1.0 if memory is None else memory.bytes_per_s / memory.low
    fast = 1.0 if memory is None else memory.bytes_per_s / memory.high

    def seconds(moved: int) -> Seconds | None:
        if moved == 0:
            return NO_TIME
        rate = memory_bytes_per_s(peaks, moved)
        if rate is None:
            return None
        value = moved / rate
        return Seconds(value, value * fast, value * slow)

    return seconds


def _backward_share(count: Count) -> float:
    """The share of the operators' time that is the backward's, as its share of model FLOPs is."""
    return count.backward_flops / count.model_flops if count.model_flops else 0.0


def _exposed(work: Seconds, exchanges: Sequence[Exchange], backward_share: float) -> tuple[Seconds, float]:
    """What of the exchanges computing does not hide, with its interval; and the seconds that it does hide."""
    by = {"backward": [0.0, 0.0], "all": [0.0, 0.0], "none": [0.0, 0.0]}
    high = 0.0
    for each in exchanges:
        sums = by[each.beside]
        sums[0] += each.time.value
        sums[1] += each.time.low
        high += each.time.high
    exposed = []
    for i, time in enumerate((work.value, work.low)):
        late, beside, blocking = by["backward"][i], by["all"][i], by["none"][i]
        if i == 1:
            # At best all of it hides.
            beside, blocking = beside + blocking, 0.0
        behind = min(late, backward_share * time)
        exposed.append((late - behind) + max(0.0, beside - (time - behind)) + blocking)
    total = sum(sums[0] for sums in by.values())
    return Seconds(exposed[0], exposed[1], high), total - exposed[0]


def _exchange_time(exchange: Exchange) -> OpTime:
    return OpTime(exchange.name, "none", exchange.calls, exchange.time.value, "communication")
