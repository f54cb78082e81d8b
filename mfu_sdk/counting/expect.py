"""The least time that counted work can take on given peaks, and the MFU that this allows: a roofline per operator."""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence

from mfu_sdk.records import Count, Expectation, OpCost, Peaks


def expect(count: Count, peaks: Peaks, *, peak_dtype: str | None = None) -> Expectation | None:
    """The roofline of `count` on `peaks`, or None where a rate that it needs is unknown.

    time = Σ over operators of max(FLOPs / achievable rate of the dtype, bytes / memory rate), the memory rate being
    that of the operator's working set, so that what fits a cache is not held to the memory beyond it. Operators do
    not overlap. mfu = model FLOPs / (headline peak × time); `peak_dtype` sets the headline's dtype, which else is
    `main_dtype`. An operator with FLOPs in a dtype that was not measured is held to theory; without either the
    answer is None. Source: Williams, Waterman and Patterson, "Roofline", CACM 52 (4), 2009.
    """
    headline = peaks.headline(peak_dtype or main_dtype(count.by_dtype))
    if headline is None:
        return None
    compute_s = memory_s = 0.0
    for op in count.ops:
        flops_s, bytes_s = _compute_s(op, peaks), _memory_s(op, peaks)
        if flops_s is None or bytes_s is None:
            return None
        if flops_s >= bytes_s:
            compute_s += op.calls * flops_s
        else:
            memory_s += op.calls * bytes_s
    time_s = compute_s + memory_s
    if time_s == 0.0:
        return None
    return Expectation(time_s, count.model_flops / (headline[1].flops_per_s * time_s), compute_s, memory_s)


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


def _compute_s(op: OpCost, peaks: Peaks) -> float | None:
    if op.flops == 0:
        return 0.0
    rate = peaks.achievable.get(op.dtype) or peaks.theoretical.get(op.dtype)
    return None if rate is None else op.flops / rate.flops_per_s


def _memory_s(op: OpCost, peaks: Peaks) -> float | None:
    if op.bytes_moved == 0:
        return 0.0
    rate = memory_bytes_per_s(peaks, op.bytes_moved)
    return None if rate is None else op.bytes_moved / rate
