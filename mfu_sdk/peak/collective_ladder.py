"""One collective over one span of ranks, from the smallest message to the largest that its budget allows.

Messages grow by eight, from one that is all latency to one that is all bandwidth. All ranks take the same path, those
that have no part in a span too: whatever decides how it goes on is the maximum over all ranks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from mfu_sdk.counting.collective_time import bus_factor
from mfu_sdk.errors import CalibrationError
from mfu_sdk.peak.collective_parts import Part, part_of
from mfu_sdk.peak.placing import Span
from mfu_sdk.peak.rollcall import RollCall, line_of
from mfu_sdk.peak.statistics import Spread, rate_of, spread
from mfu_sdk.records import CollectiveRate, CollectiveTime

SIZES = tuple(1 << power for power in range(10, 29, 3))
"""Message sizes S: 1 KiB to 256 MiB."""
BATCH_S = 0.002
FEWEST_BATCHES, MOST_BATCHES, MOST_CALLS = 7, 25, 1000
# Batches and the meetings before them, three calls, and a check.
ROUNDS_OF_A_SIZE = 2 * FEWEST_BATCHES + 4
# What runs differ by at the least. Six of two ranks over gloo on a shared machine of two cores lay within −38 % and
# +34 % of their median; all-gather within −64 %, where the budget had ended some of them at 4 MiB and some at 32 MiB.
# Between GPUs it is as in `cuda`: no repeated runs have been measured.
FLOORS = {"cpu": 0.5, "cuda": 0.01}


@dataclass(frozen=True, slots=True)
class Everyone:
    """All ranks that measure: this one's number, their group, where its tensors lie, and the roll."""

    rank: int
    group: dist.ProcessGroup
    device: torch.device
    backend: str
    roll: RollCall

    def agree(self, *values: float) -> list[float]:
        """The maximum of each value over all ranks, the same on each of them."""
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=self.group)
        return [float(value) for value in shared.tolist()]

    def check(self) -> None:
        """Before anything rests on a maximum over the ranks, hold one against what it must be."""
        right = self.agree(float(self.rank), float(-self.rank)) == [float(self.group.size() - 1), 0.0]
        all_right(self.roll.exchange(right), "the maximum over the ranks' numbers")


def climb(
    everyone: Everyone, span: Span, group: dist.ProcessGroup | None, collective: str, budget_s: float, most_bytes: int
) -> CollectiveRate | str:
    """The times and the rate of `collective` over `span`, or why the backend does not have it.

    `group` is this rank's group of the span, None where it is in none. Two sizes are measured at the least, whatever
    the budget. Raises `CalibrationError` for a result that is wrong.
    """
    began = time.perf_counter()
    where = f"{collective} over {span.ranks} ranks ({span.over})"
    floor = FLOORS[everyone.device.type]
    times: list[CollectiveTime] = []
    seconds: list[float] = []
    sizes = [size for size in SIZES if size <= most_bytes]
    for position, smallest in enumerate(sizes):
        # Every rank has as many elements, of four bytes.
        elements = math.ceil(smallest / 4 / span.ranks) * span.ranks
        part = None if group is None else _part(everyone, span, group, collective, elements)
        if position == 0:
            told = everyone.roll.exchange(_tried(part))
            if unsupported := _unsupported(told, span):
                return f"{where}: {unsupported}"
            all_right(told, where)
        once_s, wrong = everyone.agree(*_first(part))
        if wrong:
            raise CalibrationError(f"{where} of {4 * elements} bytes is wrong: not a usable rate; check the backend")
        calls = min(max(1, math.ceil(BATCH_S / max(once_s, 1e-9))), MOST_CALLS)
        *seconds, spent_s = everyone.agree(*_batches(part, calls, FEWEST_BATCHES), time.perf_counter() - began)
        next_s = _next_s([*(each.seconds for each in times), spread(seconds).median])
        last = smallest == sizes[-1] or (position > 0 and spent_s + ROUNDS_OF_A_SIZE * next_s > budget_s)
        if last:
            # What is left of the budget goes to the largest size.
            more = int((budget_s - spent_s) / (calls * spread(seconds).median))
            more = min(max(more, 0), MOST_BATCHES - FEWEST_BATCHES)
            seconds += everyone.agree(*_batches(part, calls, more)) if more else []
        times.append(_time(4 * elements, spread(seconds), floor))
        if last:
            break
    rates = spread([bus_factor(collective, span.ranks) * times[-1].size_bytes / each for each in seconds])
    return CollectiveRate(
        collective=collective,
        over=span.over,
        link=span.link,
        ranks=span.ranks,
        groups=len(span.groups),
        backend=everyone.backend,
        bus=rate_of(rates.median, rates, floor),
        times=tuple(times),
    )


def all_right(told: Sequence[object], what: str) -> None:
    """Raise `CalibrationError` where a rank has told that it got a wrong result."""
    if wrong := [rank for rank, each in enumerate(told) if each is False]:
        ranks = ", ".join(map(str, wrong))
        raise CalibrationError(f"{what} is wrong on rank {ranks}: not a usable rate; check the backend")


def _part(everyone: Everyone, span: Span, group: dist.ProcessGroup, collective: str, elements: int) -> Part:
    members = span.group_of(everyone.rank)
    assert members is not None
    return part_of(collective, group, members.index(everyone.rank), span.ranks, elements, everyone.device)


def _tried(part: Part | None) -> bool | str:
    """Whether the first call gave what it must, or the backend's own word for why it gave nothing."""
    try:
        return part is None or part.right()
    except (RuntimeError, NotImplementedError) as error:
        return line_of(error)


def _unsupported(told: Sequence[bool | str], span: Span) -> str | None:
    """Why a collective cannot be measured: what the backend says on every rank that tried. Raises if on some only."""
    said = {rank: told[rank] for group in span.groups for rank in group}
    refused = {rank: word for rank, word in said.items() if isinstance(word, str)}
    if not refused:
        return None
    rank, word = next(iter(refused.items()))
    if len(refused) < len(said):
        raise CalibrationError(f"rank {rank} fails where others do not: {word}")
    return word


def _first(part: Part | None) -> tuple[float, float]:
    """Seconds of one call, the fastest of three, which only decide how many are made; and 1 if its result is wrong."""
    if part is None:
        return 0.0, 0.0
    wrong = not part.right()
    return min(_seconds(part, 1) for _ in range(3)), float(wrong)


def _batches(part: Part | None, calls: int, batches: int) -> list[float]:
    """Seconds of a call in each of `batches` batches; zeros where this rank has no part in them."""
    return [0.0 if part is None else _seconds(part, calls) for _ in range(batches)]


def _seconds(part: Part, calls: int) -> float:
    """Seconds of one of `calls` calls in a row, from when all ranks of the group are here."""
    device = part.out.device
    dist.all_reduce(torch.zeros(1, dtype=torch.float32, device=device), group=part.group)
    if device.type == "cpu":
        begin = time.perf_counter()
        for _ in range(calls):
            part.call()
        return (time.perf_counter() - begin) / calls
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        part.call()
    end.record()
    # Calibration is not on a step path: waiting for the batch is what bounds the time.
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / calls


def _next_s(times: Sequence[float]) -> float:
    """What a call of the next size, eight times as large, may take: twice as steep as the last two sizes were.

    Times grow by 1 where all is latency, by 8 where all is bandwidth, and the way from one to the other is short.
    """
    steepness = times[-1] / times[-2] if len(times) > 1 else 1.0
    return times[-1] * min(max(2 * steepness, 2.0), 8.0)


def _time(size_bytes: int, over: Spread, floor: float) -> CollectiveTime:
    interval = rate_of(over.median, over, floor)
    return CollectiveTime(size_bytes, over.median, interval.low, interval.high, over.samples)
