"""A run's books: what was asked for + when it ran + what the device can do → `StepRecord`s and a `RunSummary`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mfu_sdk.counting.batched import batched
from mfu_sdk.counting.expect import expect, products_excess_s
from mfu_sdk.guard import shield, warn_once
from mfu_sdk.ranks import Counted, RankTotals
from mfu_sdk.records import (
    Convention,
    Count,
    CountSource,
    Expectation,
    Peaks,
    Phase,
    RunIdentity,
    RunSummary,
    StepRecord,
    Uncounted,
    step_record,
)
from mfu_sdk.run.clock import Clock, Mark
from mfu_sdk.run.demand import Demand
from mfu_sdk.run.evidence import Gathered
from mfu_sdk.run.held import Held, hold
from mfu_sdk.run.kinds import Kind
from mfu_sdk.run.rows import rows_for
from mfu_sdk.run.totals import Totals
from mfu_sdk.run.waterfall import together, waterfall
from mfu_sdk.run.work import Work

if TYPE_CHECKING:
    from mfu_sdk.export.telemetry import Telemetry
    from mfu_sdk.run.drifting import Drifting
    from mfu_sdk.run.driver_idle import DriverIdle
    from mfu_sdk.run.live import LiveLine


MOST_KINDS = 4096
"""Kinds of steps that are summed up apart before they are entered into the totals."""
SETTLE_EVERY_NS = 20_000_000
"""Of steps that are shorter, several are entered at once. Each of the lines of code and of data on the way is cold
where a step has run in between. Of steps of 0.28 ms in a run with a collector, the SDK takes 41 µs on the thread that
trains with 5 ms here, 23 with 20, and 21 with 50. (AMD EPYC, torch 2.13, Python 3.11, November 2026.)"""
SETTLE_STEPS = 64
"""No more are entered at once: by then nothing is cold any more, and the step that does it waits a third of a
millisecond."""
REPORT_OVERHEAD_EVERY = 64
"""Steps between two reports of the SDK's own time."""
DOUBTED_SHARE = 0.05
"""The share of steps that may be faster than a measured peak before it is the peak that is doubted."""


class Ledger:
    """The books of one run. `add` sits on the path of every step; `settle` resolves what the device has passed."""

    def __init__(
        self,
        identity: RunIdentity,
        peaks: Peaks,
        clock: Clock,
        *,
        devices: int = 1,
        convention: Convention = "exact",
        expected: float | None = None,
        telemetry: Telemetry | None = None,
        on_step: Callable[[StepRecord], None] | None = None,
        distrust: Callable[[str], None] | None = None,
    ) -> None:
        self.identity = identity
        self.peaks = peaks
        self.telemetry = telemetry
        self.clock = clock
        self.devices = devices
        self._convention: Convention = convention
        self._expected = expected
        self._on_step = on_step
        self._distrust = distrust
        self.live: LiveLine | None = None
        """Where the figures are shown while the run goes on."""
        self.drift: Drifting | None = None
        """Who watches whether steps are what they were."""
        self.driver_idle: DriverIdle | None = None
        """Who asks a GPU's driver whether it stands still."""
        self.on_profiled: Callable[[float], None] | None = None
        """Who is told by how many seconds a step that was profiled took longer than those like it."""
        self._pending: deque[Work] = deque()
        # When steps may wait for one another, and how many more may.
        self._waits_from_ns = self._waits_until_ns = self._room = 0
        # By the identity of their demand, None where that is not known.
        self._kinds: dict[int, Kind] = {}
        self._unknown = Kind(None)
        self._nothing: Demand | None = None
        self._totals = Totals()
        self.gathered = Gathered(ranks=identity.world_size)
        self.overhead_ns = 0
        """What the SDK took on the step path: whoever takes it adds it here."""
        self._reported_ns = 0
        self._report_at_step = REPORT_OVERHEAD_EVERY
        self._notes: dict[str, None] = {}
        if telemetry is not None:
            telemetry.on_termination(partial(self.close, error_type="SIGTERM"))
        self._records = self._record
        self._elapsed_s = clock.elapsed_s
        self._rows = rows_for(telemetry, convention, self._expectation)

    def price(self, count: Count, source: CountSource, *, at_other_batches: bool = False) -> Demand:
        """`count` as a demand, with its roofline time, and its uncounted operators entered into the books.

        `at_other_batches`: also what it would take with more sequences in it, where nothing is exchanged.
        """
        self._enter_uncounted(count)
        found = self._priced(count, source, expect(count, self.peaks))
        if not at_other_batches or found.expected_s is None or count.comm_bytes:
            return found
        return replace(found, batched=batched(count.ops, self.peaks, self.devices))

    def passed(self) -> tuple[float, float]:
        """Seconds of all steps that the device has passed, and of those that were counted, profiled or failed."""
        return self._totals.passed_s, self._totals.apart_s

    def rested(self, idle_s: float, step_s: float) -> None:
        """Enter that in `idle_s` of `step_s` seconds of steps a GPU's driver saw no kernel run."""
        self.gathered.rested(idle_s, step_s)
        if self.drift is not None:
            self.drift.rested(idle_s, step_s)

    def _enter_uncounted(self, count: Count) -> None:
        for entry in count.uncounted:
            key = (entry.op, entry.module)
            self._totals.uncounted[key] = max(entry.calls, self._totals.uncounted.get(key, 0))

    def _priced(self, count: Count, source: CountSource, expectation: Expectation | None) -> Demand:
        for what in () if expectation is None else expectation.missing:
            self.note(f"the expectation leaves out {what.partition(' of ')[0]}: no rate of it was measured here")
        excess_s = products_excess_s(count, self.peaks)
        return Demand(
            count.model_flops,
            count.hardware_flops,
            count.by_dtype,
            count.attention_flops_exact,
            count.attention_flops_full,
            count.bytes_moved,
            count.coverage * count.bytes_moved,
            None if expectation is None else expectation.time_s / self.devices,
            source,
            products_excess_s=None if excess_s is None else excess_s / self.devices,
            interval_s=_interval_s(expectation, self.devices),
        )

    def counted(self, count: Count, phase: Phase) -> Demand:
        """What a step that was counted while it ran cost: its own count, not the mean of all that look like it."""
        self._enter_uncounted(count)
        expectation = expect(count, self.peaks)
        self.gathered.counted(count, self.peaks, phase, expectation)
        return self._priced(count, "cached", expectation)

    def nothing(self) -> Demand | None:
        """No work, to be held against the peak that the run's other steps are; None as long as there is none."""
        for kind in reversed(self._kinds.values()):
            if kind.held is not None and kind.held.peak_dtype is not None:
                if self._nothing is None or kind.held.peak_dtype not in self._nothing.by_dtype:
                    self._nothing = Demand.nothing(kind.held.peak_dtype)
                return self._nothing
        return None

    def note(self, text: str) -> None:
        """Enter something that a reader of the summary should know; once is enough."""
        self._notes[text] = None

    def add(self, work: Work, now_unix_ns: int | None = None) -> None:
        """Enter a step that has ended on the host.

        With `now_unix_ns` it may wait for its successors, `SETTLE_EVERY_NS` and `SETTLE_STEPS` at most, unless
        `on_step` waits for it.
        """
        self._pending.append(work)
        # A clock that was set back must not keep anything waiting.
        if now_unix_ns is not None and self._waits_from_ns <= now_unix_ns < self._waits_until_ns and self._room:
            self._room -= 1
            return
        self.settle()
        if now_unix_ns is not None and self._on_step is None:
            self._waits_from_ns, self._waits_until_ns = now_unix_ns, now_unix_ns + SETTLE_EVERY_NS
            self._room = SETTLE_STEPS - 1

    def settle(self, *, wait: bool = False) -> None:
        """Turn the steps that the device has passed into records; with `wait`, all of them (the end of a run)."""
        pending, clock, totals, drift, elapsed_s = self._pending, self.clock, self._totals, self.drift, self._elapsed_s
        records = self._records
        passed: list[Work] | None = None if self.telemetry is None and self._on_step is None else []
        # Of the kind of the one before, most steps are.
        kind, demand, phase = self._unknown, None, None
        try:
            while pending:
                work = pending[0]
                if wait:
                    work.drain(clock)
                duration_s = elapsed_s(work.start, work.end) if work.slices is None else work.duration_s(clock)
                if duration_s is None:
                    break
                pending.popleft()
                waited_s = None if work.waits is None else self._waited_s(work.waits)
                if work.demand is not demand or work.phase != phase:
                    demand, phase = work.demand, work.phase
                    kind = self._kind(demand, work.phase)
                totals.steps += 1
                totals.passed_s += duration_s
                if passed is not None:
                    work.took_s, work.waited_s, work.held, work.records = duration_s, waited_s, kind.held, records
                    passed.append(work)
                if work.tokens is not None and work.error_type is None:
                    totals.tokens = (totals.tokens or 0) + work.tokens
                if not (work.counting or work.profiled or work.error_type is not None):
                    kind.add(duration_s, work.tokens, waited_s)
                    if work.between is not None:
                        self._handled(work, kind, duration_s)
                    if drift is not None:
                        drift.rest_s -= duration_s
                        # A time that is no number is looked at, and ignored there.
                        if not drift.rest_s > 0.0:
                            drift.add(work, kind, duration_s, waited_s)
                else:
                    totals.apart_s += duration_s
                    if work.profiled and not work.counting and self.on_profiled is not None and kind.usual_s:
                        self.on_profiled(duration_s - kind.usual_s)
                    # The first step also warms up kernels and caches, which cannot be told from the counting's time.
                    if work.counting and work.error_type is None and totals.steps > 1:
                        totals.counted += 1
                        totals.counted_s += duration_s
        finally:
            if passed:
                self._tell(passed)
        if self.live is not None and self.live.due:
            with shield("the live line"):
                self.live.show(self.summary())

    def _handled(self, work: Work, kind: Kind, duration_s: float) -> None:
        """Enter how much of a handler's time passed between the calls of its model."""
        held, gap_s = kind.held, min(work.between_s(self.clock), duration_s)
        peak = None if held is None else held.peak_flops_per_s
        # Time in which nothing was asked at all is entered as such with its kind.
        asked = held is not None and (held.demand.hardware_flops or held.demand.bytes_moved)
        self.gathered.handled(work.index, work.phase, gap_s, gap_s * peak if peak and asked else 0.0)

    def _tell(self, passed: Sequence[Work]) -> None:
        """Report steps; those that `on_step` does not wait for are built where they are read, off the path."""
        telemetry, on_step, rows = self.telemetry, self._on_step, self._rows
        if on_step is not None:
            for work in passed:
                record = work()
                if telemetry is not None:
                    telemetry.add_steps([record], None if rows is None else rows([work]))
                with shield("the on_step callback"):
                    on_step(record)
        elif telemetry is not None:
            telemetry.add_steps(passed, None if rows is None else rows(passed))
        if telemetry is not None and self._totals.steps >= self._report_at_step:
            self._report_overhead(telemetry)

    def _report_overhead(self, telemetry: Telemetry) -> None:
        telemetry.overhead((self.overhead_ns - self._reported_ns) / 1e9)
        self._reported_ns = self.overhead_ns
        self._report_at_step = self._totals.steps + REPORT_OVERHEAD_EVERY

    def _record(self, work: Work) -> StepRecord:
        held, duration_s = work.held, work.took_s
        demand = work.known_demand
        source = None if demand is None else demand.source
        if work.counting and work.error_type is None:
            source = "measured"
        available = work.available_flops
        achievable = held.achievable_flops_per_s if held is not None and duration_s > 0 else None
        by_dtype_s = held.by_dtype_s if held is not None and demand is not None and duration_s > 0 else None
        expected, expected_low, expected_high = self._expectation(held)
        return step_record(
            work.index,
            work.phase,
            duration_s,
            None if demand is None else demand.model_flops,
            None if demand is None else demand.hardware_flops,
            None if held is None else held.peak_flops_per_s,
            None if held is None else held.peak_source,
            demand.model_flops / available if demand is not None and available else None,
            demand.hardware_flops / available if demand is not None and available else None,
            None if by_dtype_s is None else by_dtype_s / duration_s,
            expected,
            demand.model_flops / (achievable * duration_s) if demand is not None and achievable else None,
            source,
            held.coverage if held is not None and demand is not None else None,
            work.tokens,
            work.waited_s,
            work.exchange_s,
            None,
            self._convention,
            start_unix_ns=work.start_unix_ns,
            peak_dtype=None if held is None else held.peak_dtype,
            samples=work.samples,
            attention_flops_exact=None if demand is None else demand.attention_flops_exact,
            attention_flops_full=None if demand is None else demand.attention_flops_full,
            batch_running=work.batch_running,
            arithmetic_intensity=held.arithmetic_intensity if held is not None and demand is not None else None,
            requests=work.requests,
            requests_failed=work.requests_failed,
            requests_s=work.requests_s,
            error_type=work.error_type,
            profiled=work.profiled,
            requests_running=work.requests_running,
            batch_feasible=None if work.load is None else work.load.batch_feasible,
            queue_waiting=None if work.load is None else work.load.queue_waiting,
            kv_cache_free_ratio=None if work.load is None else work.load.kv_cache_free_ratio,
            latency_target_s=None if work.load is None else work.load.latency_target_s,
            expected_feasible_mfu=work.expected_feasible_mfu,
            expected_low_mfu=expected_low,
            expected_high_mfu=expected_high,
        )

    def _kind(self, demand: Demand | None, phase: Phase) -> Kind:
        """What is summed up of the steps of `phase` that ask for `demand`; it keeps that alive, and so its identity."""
        if demand is None:
            return self._unknown
        kind = self._kinds.get(id(demand))
        if kind is None or kind.phase != phase:
            if kind is not None or len(self._kinds) >= MOST_KINDS:
                self._enter_kinds()
                self._kinds.clear()
            kind = self._kinds[id(demand)] = Kind(hold(demand, self.peaks, self.devices), phase)
        return kind

    def _waited_s(self, waits: Sequence[tuple[Mark, Mark]]) -> float:
        """Seconds that the device stood waiting for data; a wait that its queued work hid is none."""
        return sum([self.clock.elapsed_s(begin, end) or 0.0 for begin, end in waits])

    def _expectation(self, held: Held | None) -> tuple[float | None, float | None, float | None]:
        """The expected MFU and the ends of its interval: what somebody wrote down has none."""
        if held is None or self._expected is not None:
            return self._expected, None, None
        return held.expected_mfu, held.expected_low_mfu, held.expected_high_mfu

    def _enter_kinds(self) -> None:
        """Enter into the totals what was summed up by kinds."""
        for kind in (self._unknown, *self._kinds.values()):
            if kind.steps:
                self._enter(kind)
                kind.clear()

    def _enter(self, kind: Kind) -> None:
        totals, held = self._totals, kind.held
        totals.timed += kind.steps
        totals.time_s += kind.time_s
        totals.timed_tokens += kind.tokens
        totals.token_time_s += kind.token_time_s
        if held is None or held.peak_flops_per_s is None:
            totals.unknown += kind.steps
            return
        demand, peak = held.demand, held.peak_flops_per_s
        available = peak * kind.time_s
        totals.model_flops += kind.steps * demand.model_flops
        totals.hardware_flops += kind.steps * demand.hardware_flops
        totals.available_flops += available
        denominator = (held.peak_dtype, held.peak_source, peak)
        totals.peaks[denominator] = totals.peaks.get(denominator, 0.0) + available
        totals.known_s += kind.time_s
        totals.bytes_moved += kind.steps * demand.bytes_moved
        totals.priced_bytes += kind.steps * demand.priced_bytes
        expected = self._expectation(held)[0]
        if expected is not None:
            totals.expected_flops += expected * available
            totals.expected_available_flops += available
        self.gathered.add(kind)
        totals.beyond += kind.beyond
        if kind.above_one:
            self.note(
                f"some steps have an MFU above 1: their {held.peak_dtype} peak ({held.peak_source}) or their count "
                "is wrong; measure again with `mfu calibrate` on a quiet machine"
            )
            warn_once("MFU", f"above 1 in {self.identity.workload} (see the summary's notes)")

    def standing(self, step: int, counted: Counted | None, *, closed: bool = False) -> RankTotals:
        """What this rank tells the others: its totals up to `step`, and what it counted last."""
        self._enter_kinds()
        totals, exchange = self._totals, self.gathered.exchange
        return RankTotals(
            rank=self.identity.rank,
            step=step,
            steps=totals.steps,
            timed_steps=totals.timed,
            duration_s=totals.time_s,
            model_flops=totals.model_flops,
            hardware_flops=totals.hardware_flops,
            available_flops=totals.available_flops,
            tokens=totals.tokens,
            data_wait_s=self.gathered.data_wait_s,
            exchange_s=None if exchange is None else exchange[0],
            exchange_least_s=None if exchange is None else exchange[1],
            counted=counted,
            closed=closed,
        )

    def summary(self) -> RunSummary:
        """The totals so far: sums over sums, never a mean of ratios."""
        self._enter_kinds()
        totals = self._totals
        known = totals.available_flops > 0
        mfu = totals.model_flops / totals.available_flops if known else None
        notes = list(self._notes)
        if mfu is None:
            notes += self._why_unknown()
        elif totals.unknown:
            notes.append(
                f"{totals.unknown} of {totals.timed} timed steps are in no sum of FLOPs: steps of their shapes were "
                "never counted, or no peak is known for their dtype"
            )
        if mfu is not None and totals.priced_bytes < 0.9995 * totals.bytes_moved:
            notes.append("some operators have no price (not counted, above), so MFU is a lower bound")
        evidence = self.gathered.evidence()
        parts = None if mfu is None or not evidence else together([waterfall(each) for each in evidence])
        # A counted step costs its own duration less what a timed one takes.
        typical_s = totals.time_s / totals.timed if totals.timed else 0.0
        counting_s = max(0.0, totals.counted_s - totals.counted * typical_s) if totals.timed else 0.0
        # The denominator that most of the sum was held against.
        dtype, source, flops_per_s = max(totals.peaks, key=totals.peaks.__getitem__, default=(None, None, None))
        if len(totals.peaks) > 1:
            notes.append(f"steps were held against {len(totals.peaks)} different peaks; the one named had most of them")
        return RunSummary(
            name=self.identity.workload,
            steps=totals.steps,
            timed_steps=totals.timed,
            unknown_steps=totals.unknown,
            mfu=mfu,
            hfu=totals.hardware_flops / totals.available_flops if known else None,
            expected_mfu=(
                totals.expected_flops / totals.expected_available_flops if totals.expected_available_flops else None
            ),
            waterfall={} if parts is None else parts.shares,
            bars=() if parts is None else parts.bars,
            tokens=totals.tokens,
            tokens_per_s=totals.timed_tokens / totals.token_time_s if totals.token_time_s else None,
            overhead_s=self.overhead_ns / 1e9 + counting_s,
            uncounted=tuple(Uncounted(op, calls, module) for (op, module), calls in totals.uncounted.items()),
            coverage=totals.priced_bytes / totals.bytes_moved if totals.bytes_moved else None,
            model_flops=totals.model_flops if known else None,
            duration_s=totals.time_s,
            peak_flops_per_s=flops_per_s,
            peak_dtype=dtype,
            peak_source=source,
            device=self.identity.device_name,
            convention=self._convention,
            peak_memory_bytes_per_s=self._memory_bytes_per_s(),
            calibration_id=self.peaks.calibration_id,
            notes=tuple(notes) if self.drift is None else (*notes, *self.drift.notes()),
            drift=() if self.drift is None else self.drift.events,
            mbu=self._mbu(),
        )

    def _mbu(self) -> float | None:
        """What the operators moved, over what memory could have moved in the time."""
        rate, totals = self._memory_bytes_per_s(), self._totals
        if rate is None or not totals.bytes_moved or not totals.known_s:
            return None
        return totals.bytes_moved / (rate * totals.known_s)

    def _memory_bytes_per_s(self) -> float | None:
        memory = self.peaks.memory
        return None if memory is None else memory.bytes_per_s * self.devices

    def _why_unknown(self) -> list[str]:
        totals = self._totals
        if totals.steps == 0:
            return [
                "no step was seen: was the loader empty, or did no optimizer step in the thread that opened the run? "
                "`with run.step():` marks steps wherever they are"
            ]
        if totals.timed == 0:
            return [
                "every step was counted while it ran, or failed; a run needs steps of shapes that it has had before"
            ]
        if not self.peaks.achievable and not self.peaks.theoretical:
            return [str(self.peaks.state.get("missing", "no peak is known for this device"))]
        return ["no timed step had both its FLOPs and a peak for its dtype"]

    def recalibrated(self, peaks: Peaks) -> None:
        """Take over a calibration that was made in the middle of the run, unless it would move the denominator."""
        moved = any(peaks.headline(dtype) != self.peaks.headline(dtype) for dtype in ("bfloat16", "tf32", "float32"))
        if moved:
            self.note("the device was measured again; this run keeps its denominator, and the next one takes the new")
            return
        self.peaks = peaks
        self._enter_kinds()
        self._kinds.clear()

    def _doubt(self) -> None:
        """Where one timed step in twenty beat the measured peak's interval, it is the measurement that is wrong."""
        self._enter_kinds()
        totals = self._totals
        if self._distrust is not None and totals.beyond > DOUBTED_SHARE * totals.timed:
            why = f"{totals.beyond} of {totals.timed} steps of {self.identity.workload} were faster than its interval"
            self.note("the measured peak is too low, and is measured anew before the next run: " + why)
            self._distrust(why)

    def close(self, *, error_type: str | None = None) -> RunSummary:
        """Settle everything, hand the summary to the exporter, and return it."""
        with shield("closing a run"):
            self.settle(wait=True)
            self._doubt()
        if self.drift is not None:
            with shield("the watch for drift"):
                self.drift.close()
        if self.driver_idle is not None:
            self.driver_idle.close()
        summary = self.summary()
        if self.live is not None:
            with shield("the live line"):
                self.live.close(summary)
        if self.telemetry is not None:
            self._report_overhead(self.telemetry)
            self.telemetry.close(summary, error_type=error_type)
        return summary


def _interval_s(expectation: Expectation | None, devices: int) -> tuple[float, float] | None:
    if expectation is None or expectation.low_s is None or expectation.high_s is None:
        return None
    return expectation.low_s / devices, expectation.high_s / devices
