"""What a collective of a given size takes, from what was measured at other sizes; and the bus rate that a time means.

The size S of a collective is that of nccl-tests: what each rank has before an all-reduce, a reduce-scatter and an
all-to-all, and what each rank has after an all-gather.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence

from mfu_sdk.records import CollectiveRate

_TIMES_ROUND = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "all_to_all": 1}
COLLECTIVES = tuple(_TIMES_ROUND)


def bus_factor(collective: str, ranks: int) -> float:
    """Bytes through each rank's link per byte of S: (n−1)/n, and twice that for an all-reduce.

    Source: NVIDIA, nccl-tests, doc/PERFORMANCE.md, "Bus bandwidth".
    """
    return _TIMES_ROUND[collective] * (ranks - 1) / ranks


def seconds(rate: CollectiveRate, size_bytes: float) -> float:
    """The time of one call with a message of `size_bytes` between as many ranks as `rate` was measured with.

    Between two measured sizes the logarithm of the time is linear in that of the size. Below the smallest, its time
    holds: it is the latency α. Above the largest, α + β·S with the β that gives the largest its time (Hockney, "The
    communication challenge for MPP", Parallel Computing 20 (3), 1994). A larger message never takes less: where noise
    has measured that, the neighbours share their geometric mean. Raises ValueError for a negative size.
    """
    if not size_bytes >= 0:
        raise ValueError(f"size_bytes={size_bytes}: a message has 0 bytes or more; give its size")
    sizes = [each.size_bytes for each in rate.times]
    times = _rising([each.seconds for each in rate.times])
    if size_bytes <= sizes[0]:
        return times[0]
    if size_bytes > sizes[-1]:
        # One size, or a flat ladder, tells no α from β: its rate then holds on.
        beta = (times[-1] - times[0] if times[-1] > times[0] else times[-1]) / sizes[-1]
        return times[-1] + beta * (size_bytes - sizes[-1])
    above = bisect_left(sizes, size_bytes)
    share: float = math.log(size_bytes / sizes[above - 1]) / math.log(sizes[above] / sizes[above - 1])
    # Rounding must not carry it beyond the next size's.
    between: float = times[above - 1] * (times[above] / times[above - 1]) ** share
    return min(times[above], between)


def _rising(times: Sequence[float]) -> list[float]:
    """The non-decreasing series nearest to `times` in the squares of logarithms: neighbours that fall are pooled.

    Source: Barlow, Bartholomew, Bremner and Brunk, "Statistical Inference under Order Restrictions", 1972 (pool
    adjacent violators).
    """
    pools: list[tuple[float, int]] = []
    for time in times:
        mean, size = math.log(time), 1
        while pools and pools[-1][0] > mean:
            earlier, count = pools.pop()
            mean, size = (earlier * count + mean * size) / (count + size), size + count
        pools.append((mean, size))
    # A time that was pooled with no other is passed on as it is, not through its logarithm and back.
    rising: list[float] = []
    for mean, size in pools:
        rising += [times[len(rising)] if size == 1 else math.exp(mean)] * size
    return rising
