"""A device on the bench: its products and its memory measured by the protocol, within a budget.

What is a GPU's alone (events, the driver's memory, clocks) comes in through `Bench`, so that the code that measures a
GPU runs on a processor too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Final, Literal

import torch

from mfu_sdk.errors import CalibrationError
from mfu_sdk.peak import products
from mfu_sdk.peak.buffers import Buffers, OutOfRoomError
from mfu_sdk.peak.protocol import (
    IN_SITU,
    QUICK,
    SUSTAINED,
    Batch,
    Candidate,
    Now,
    Progress,
    Series,
    Sustain,
    clock_of,
    measure,
    sustain,
)
from mfu_sdk.peak.shapes import Shape, shapes
from mfu_sdk.peak.statistics import estimate, spread
from mfu_sdk.peak.stopwatch import Stopwatch
from mfu_sdk.peak.streams import Memory
from mfu_sdk.records import Rate

Tier = Literal["burst", "sustained", "in situ"]
"""Burst: within seconds, from whatever state the device was in. Sustained: after a minute under load. In situ: between
two steps of a training run, at its heat and its clocks."""

CALL_S: Final = 1.5e-3
"""What one product should take: long beside its launch, short beside a batch."""
COMPILE_S: Final = 3.0
"""What a kernel takes that was not compiled before, at most: 0.9 to 2.7 s on two cores."""
_STREAMS: Final = "streams float32"
_PREPARING: Final = 0.5
"""The share of a measurement's time in which candidates may be made ready."""
COPY_BYTES: Final = 1 << 30
_KEPT_HOT_S: Final = 10.0
_LEAST_BATCHES: Final = 4
"""With fewer, a rate between two steps of a run is no rate."""
_RESERVE_BYTES: Final = 512 << 20
"""What is left free for workspaces, modules that are loaded late and other processes; a tenth where that is more."""

CLOCK: Final = "clock"
"""The kernel that counts the clock, among those that were compiled."""
_COUNTED: Final = 3
"""Batches beside which the clock is counted, where there is time for them."""
_SAID: Final = 400
"""Characters of a reason that are kept: what to do stands at its end, and compilers say pages."""

State = dict[str, str | float | bool]


@dataclass(frozen=True, slots=True)
class Bench:
    """A device as the protocol sees it.

    `units` are SMs or CUs, `cache_bytes` the last cache's, `free_bytes` tells what is free now. `expected` gives FLOP/s
    by dtype as far as theory knows, from which shapes are chosen. `compiled` names kernels with dtypes
    ("gemm bfloat16") that this machine has compiled before.
    """

    device: str
    units: int
    cache_bytes: int
    free_bytes: Callable[[], int]
    buffers: Callable[[], Buffers]
    stopwatch: Stopwatch
    now: Now
    expected: Mapping[str, float] = field(default_factory=dict)
    compiled: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure and how: the tier, its times, the interval's floor, and what earlier runs found by quantity.

    `winners` names the fastest candidate of each dtype as far as earlier runs know. With `only_winners` nothing else is
    tried, and no memory: for a probe, and between two steps of a run, where there is time for nothing else.
    """

    tier: Tier
    floor: float
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)
    sustained: Sustain = SUSTAINED
    winners: Mapping[str, str] = field(default_factory=dict)
    only_winners: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """FLOP/s by dtype, bytes/s of the memory, and the series behind them by dtype; `state` says what went on.

    `counted` has batches of each dtype's winner beside which a kernel counted the clock, where one could.
    """

    rates: Mapping[str, Rate]
    memory: Rate | None
    series: Mapping[str, Series]
    state: State
    counted: Mapping[str, Sequence[Batch]] = field(default_factory=dict)


def run(bench: Bench, dtypes: Iterable[str], budget_s: float, plan: Plan, progress: Progress) -> Measured:
    """Measure products in each of `dtypes`, then the memory, in equal shares of `budget_s` seconds.

    With the sustained tier, the time that it takes comes on top for each dtype; only the first one has to heat the
    device up. A dtype that cannot be measured has its reason in `state` ("float8_e5m2_missing"). Raises
    `CalibrationError` where none can.
    """
    wanted = tuple(dtypes)
    began = bench.now()
    rates: dict[str, Rate] = {}
    found: dict[str, Series] = {}
    counted: dict[str, Sequence[Batch]] = {}
    state: State = {}
    generator = torch.Generator(bench.device).manual_seed(0)
    end = began + budget_s
    for position, dtype in enumerate(wanted):
        # What one leaves over is the next one's.
        share_s = max(end - bench.now(), 0.0) / (len(wanted) - position + 1)
        at, of = position / (len(wanted) + 1), 1 / (len(wanted) + 1)
        label = f"{dtype} matrix product"
        try:
            series, counted[dtype], said = _product(
                bench,
                dtype,
                share_s,
                plan,
                generator,
                lambda share: progress(label, at + of * share),  # noqa: B023
            )
        except Exception as error:  # noqa: BLE001 - a driver's, a compiler's: it costs this dtype and no other
            state[f"{dtype}_missing"] = _first_line(error)
            continue
        if plan.tier == "sustained":
            end += plan.sustained.total_s
            plan = replace(
                plan, sustained=replace(plan.sustained, preheat_s=min(plan.sustained.preheat_s, _KEPT_HOT_S))
            )
        found[dtype] = series
        rates[dtype] = _rate(series, dtype, plan)
        state |= said | _words(dtype, "flops_per_s", series)
    if wanted and not found:
        raise CalibrationError("; ".join(str(state[f"{dtype}_missing"]) for dtype in wanted))
    memory = None
    if not plan.only_winners:
        try:
            left_s = max(end - bench.now(), 0.1 * budget_s)
            of = 1 / (len(wanted) + 1)
            series, said = _memory(bench, left_s, generator, lambda share: progress("memory", 1 - of + of * share))
            memory = _rate(series, "memory", plan)
            state |= said | _words("memory", "bytes_per_s", series)
        except Exception as error:  # noqa: BLE001 - likewise
            state["memory_missing"] = _first_line(error)
    return Measured(rates, memory, found, state, counted)


def _rate(series: Series, quantity: str, plan: Plan) -> Rate:
    source = f"calibrated: {plan.tier}, {series.winner}"
    return estimate(series.rates, plan.floor, history=plan.history.get(quantity, ()), source=source)


def _words(quantity: str, unit: str, series: Series) -> State:
    rates = spread([batch.rate for batch in series.batches])
    state: State = {
        f"{quantity}_batches": float(rates.samples),
        f"{quantity}_dropped": float(series.dropped),
        f"{quantity}_median_{unit}": rates.median,
        f"{quantity}_spread": round(rates.relative, 4),
        f"{quantity}_winner": series.winner,
    }
    if (clock_mhz := series.clock_mhz) is not None:
        state[f"{quantity}_clock_mhz"] = clock_mhz
    return state


def _product(
    bench: Bench, dtype: str, budget_s: float, plan: Plan, generator: torch.Generator, told: Callable[[float], None]
) -> tuple[Series, Sequence[Batch], State]:
    began = bench.now()
    with products.precision_of(dtype), bench.buffers() as buffers:
        ready = _Candidates(bench, dtype, plan, buffers, generator, began + _PREPARING * budget_s)
        candidates = ready.prepare()
        if not candidates:
            why = "; ".join(dict.fromkeys(ready.refused)) or "none is known"
            raise CalibrationError(f"{bench.device}: no product of {dtype} can be measured ({why})")
        counts = 0
        if _counts(bench) and not plan.only_winners:
            # A tenth of the time, and one in any case.
            counts = min(_COUNTED, max(1, int(0.1 * budget_s / QUICK.batch_s)))
        left_s = budget_s - (bench.now() - began) - counts * QUICK.batch_s
        series = _series(bench, candidates, max(left_s, 0.25 * budget_s), plan, told)
        counted = _counted(bench, candidates, series.winner, counts)
    if plan.tier == "in situ" and len(series.batches) < _LEAST_BATCHES:
        raise CalibrationError(
            f"{bench.device}: only {len(series.batches)} batches of {dtype} fit into {budget_s:.2g} s, and "
            f"{_LEAST_BATCHES} are needed; give run.calibrate more seconds"
        )
    state: State = {f"{dtype}_kernels": ", ".join(sorted(ready.compiled))}
    if (clock_mhz := clock_of(counted)) is not None:
        state |= {f"{dtype}_counted_clock_mhz": round(clock_mhz, 1), "clock_kernels": CLOCK}
    if ready.refused:
        state[f"{dtype}_refused"] = "; ".join(dict.fromkeys(ready.refused))
    if ready.late:
        state[f"{dtype}_not_tried"] = ", ".join(dict.fromkeys(ready.late))
    own, vendors = (
        [rate for name, rate in series.chosen_by.items() if name.startswith("triton ") is mine]
        for mine in (True, False)
    )
    if own and vendors:
        state[f"{dtype}_triton_over_vendor"] = round(max(own) / max(vendors), 4)
    return series, counted, state


def _counted(bench: Bench, candidates: Sequence[Candidate], winner: str, batches: int) -> Sequence[Batch]:
    """Batches of the winner whose clock a kernel counts beside them. They take something from it and are in no rate."""
    if not batches:
        return ()
    found = next(each for each in candidates if each.name == winner)
    with bench.stopwatch.counting():
        return [found.run(QUICK.batch_s) for _ in range(batches)]


def _counts(bench: Bench) -> bool:
    with bench.stopwatch.counting() as counts:
        return counts


class _Candidates:
    """Makes the candidates for a dtype ready: operands, a check of each kernel's result, and what came in between."""

    def __init__(
        self,
        bench: Bench,
        dtype: str,
        plan: Plan,
        buffers: Buffers,
        generator: torch.Generator,
        deadline: float,
    ) -> None:
        self._bench = bench
        self._dtype = dtype
        self._buffers = buffers
        self._generator = generator
        self._deadline = deadline
        self._wanted = plan.winners.get(dtype) if plan.only_winners else None
        self._theirs = products.vendor(dtype, buffers)
        self._kernels = ([self._theirs] if self._theirs else []) + list(
            products.ours(dtype, torch.device(bench.device))
        )
        self.compiled: set[str] = set()
        self.refused: list[str] = []
        self.late: list[str] = []

    def prepare(self) -> list[Candidate]:
        """Those that there is time for until the deadline, the vendor's on the first shape before all others."""
        bench, found = self._bench, list[Candidate]()
        # Without a winner of an earlier day, what stands first stands for all.
        wanted = self._wanted
        fit = _shapes(bench, self._dtype, self._theirs, self._buffers, self._generator)
        free = bench.free_bytes()
        room = max(free - max(_RESERVE_BYTES, free / 10), 0.0) / len(fit)
        least = 0.1 * bench.expected.get(self._dtype, 0.0) * CALL_S
        for shape in fit:
            operands = None
            for name, call in self._kernels:
                label = f"{name} {shape}"
                if wanted is not None and label != wanted:
                    continue
                if found and self._is_late(name):
                    self.late.append(name)
                    continue
                try:
                    operands = operands or products.allocate(
                        shape, products.NUMBERS[self._dtype], self._buffers, bench.cache_bytes, self._generator,
                        room_bytes=room, least_flops=least,
                    )  # fmt: skip
                    products.check(operands, call, products.NUMBERS[self._dtype], name)
                except OutOfRoomError as error:
                    # What was allocated before is measured all the same; alone, it is the reason why nothing is.
                    self.refused.append(_first_line(error))
                    break
                except Exception as error:  # noqa: BLE001 - whatever a kernel raises, it is no candidate
                    self.refused.append(f"{name}: {_first_line(error)}")
                    continue
                self.compiled.add(self._key(name))
                found.append(products.Product(name, operands, call, bench.stopwatch))
        if not found and wanted is not None:
            self._wanted = None
            return self.prepare()
        return found

    def _key(self, name: str) -> str:
        return f"{name.removeprefix('triton ')} {self._dtype}"

    def _is_late(self, name: str) -> bool:
        known = not name.startswith("triton ") or self._key(name) in self._bench.compiled | self.compiled
        return self._bench.now() + (0.0 if known else COMPILE_S) > self._deadline


def _shapes(
    bench: Bench,
    dtype: str,
    theirs: tuple[str, products.Call] | None,
    buffers: Buffers,
    generator: torch.Generator,
) -> tuple[Shape, ...]:
    expected = bench.expected.get(dtype)
    if expected is None:
        # Nothing is known of this device: one small product tells its order of magnitude.
        probe = Shape(1024, 1024, 1024)
        try:
            operands = products.allocate(probe, products.NUMBERS[dtype], buffers, 0, generator)
            call = theirs[1] if theirs else next(iter(products.ours(dtype, torch.device(bench.device))))[1]
            first = products.Product("", operands, call, bench.stopwatch)
            first.run(0.0)
            expected = first.run(0.0).rate
        except Exception:  # noqa: BLE001 - whatever it is, the candidates will say it
            expected = 1e13
    return shapes(bench.units, expected * CALL_S)


def _series(
    bench: Bench, candidates: Sequence[Candidate], budget_s: float, plan: Plan, told: Callable[[float], None]
) -> Series:
    schedule = IN_SITU if plan.tier == "in situ" else QUICK
    found = measure(candidates, schedule, budget_s, bench.now, told)
    if plan.tier != "sustained":
        return found
    winner = next(each for each in candidates if each.name == found.winner)
    hot = sustain(winner, plan.sustained, bench.now, told)
    return Series(hot.winner, hot.groups, found.chosen_by, hot.dropped)


def _memory(
    bench: Bench, budget_s: float, generator: torch.Generator, told: Callable[[float], None]
) -> tuple[Series, State]:
    began = bench.now()
    # Our kernels take part where they are compiled already, or there is time for it.
    ours = _STREAMS in bench.compiled or budget_s > 2 * COMPILE_S
    size = min(COPY_BYTES, bench.free_bytes() // 10) // 4096 * 4096
    state: State = {}
    with bench.buffers() as buffers:
        memory = Memory(size, buffers, generator, bench.stopwatch)
        candidates: list[Candidate] = [memory.copy()]
        read = None
        if ours:
            try:
                candidates += memory.ours()
                read = memory.read(bench.units)
            except Exception as error:  # noqa: BLE001 - no compiler, as in many containers: the driver's copy is left
                state["memory_refused"] = _first_line(error)
        if len(candidates) > 1:
            state["memory_kernels"] = _STREAMS
        left_s = max(budget_s - (bench.now() - began), 0.25 * budget_s)
        series = measure(candidates, QUICK, left_s if read is None else 0.7 * left_s, bench.now, told)
        state["memory_buffer_bytes"] = float(memory.size)
        if read is not None:
            # What is left over is its own; it comes last, and has the least where the others took more than theirs.
            last_s = max(budget_s - (bench.now() - began), 0.1 * left_s)
            batches = measure([read], QUICK, last_s, bench.now, told)
            state["memory_read_bytes_per_s"] = median(batch.rate for batch in batches.batches)
    return series, state


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:_SAID]
