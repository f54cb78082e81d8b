"""A run's books: what was asked for + when it ran + what the device can do → `StepRecord`s and a `RunSummary`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from mfu_sdk.counting.expect import expect
from mfu_sdk.guard import shield, warn_once
from mfu_sdk.records import (
    Convention,
    Count,
    CountSource,
    Peaks,
    RunIdentity,
    RunSummary,
    StepRecord,
    Uncounted,
)
from mfu_sdk.run.clock import Clock
from mfu_sdk.run.demand import Demand
from mfu_sdk.run.evidence import Gathered
from mfu_sdk.run.held import Held, hold
from mfu_sdk.run.rows import rows_for
from mfu_sdk.run.totals import Totals
from mfu_sdk.run.waterfall import waterfall
from mfu_sdk.run.work import Timed, Work

if TYPE_CHECKING:
    from mfu_sdk.export.telemetry import Telemetry


MOST_HELD = 4096
"""Demands whose standing against the peaks is remembered."""
REPORT_OVERHEAD_EVERY = 64
"""Steps between two reports of the SDK's own time."""
DOUBTED_SHARE = 0.05
"""The share of steps that may be faster than a measured peak before it is the peak that is doubted."""


class Ledger:
    """The books of one run. `add` and `price` sit on the step path; `settle` resolves what the device has passed."""

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
        self._devices = devices
        self._convention: Convention = convention
        self._expected = expected
        self._on_step = on_step
        self._distrust = distrust
        self._pending: deque[Work] = deque()
        self._held: dict[int, Held] = {}
        self._totals = Totals()
        self.gathered = Gathered(ranks=identity.world_size)
        self._overhead_ns = 0
        self._reported_ns = 0
        self._notes: dict[str, None] = {}
        if telemetry is not None:
            telemetry.on_termination(partial(self.close, error_type="SIGTERM"))
        self._rows = rows_for(telemetry, convention, self._expected_mfu)

    def price(self, count: Count, source: CountSource) -> Demand:
        """`count` as a demand, with its roofline time, and its uncounted operators entered into the books."""
        for entry in count.uncounted:
            key = (entry.op, entry.module)
            self._totals.uncounted[key] = max(entry.calls, self._totals.uncounted.get(key, 0))
        expectation = expect(count, self.peaks)
        for what in () if expectation is None else expectation.missing:
            self.note(f"the expectation leaves out {what.partition(' of ')[0]}: no rate of it was measured here")
        return Demand(
            count.model_flops,
            count.hardware_flops,
            count.by_dtype,
            count.attention_flops_exact,
            count.attention_flops_full,
            count.bytes_moved,
            count.coverage * count.bytes_moved,
            None if expectation is None else expectation.time_s / self._devices,
            source,
        )

    def counted(self, count: Count) -> Demand:
        """What a step that was counted while it ran cost: its own count, not the mean of all that look like it."""
        self.gathered.counted(count, self.peaks)
        return self.price(count, "cached")

    def spent(self, nanoseconds: int) -> None:
        """Enter time that the SDK took on the step path."""
        self._overhead_ns += nanoseconds

    def note(self, text: str) -> None:
        """Enter something that a reader of the summary should know; once is enough."""
        self._notes[text] = None

    def add(self, work: Work) -> None:
        """Enter a step that has ended on the host."""
        self._pending.append(work)
        self.settle()

    def settle(self, *, wait: bool = False) -> None:
        """Turn the steps that the device has passed into records; with `wait`, all of them (the end of a run)."""
        while self._pending:
            work = self._pending[0]
            if wait:
                work.drain(self.clock)
            duration_s = work.duration_s(self.clock)
            if duration_s is None:
                return
            self._pending.popleft()
            timed = Timed(work, self._held_against_peaks(work.demand), duration_s, self._waited_s(work))
            self._enter(timed)
            record = None if self._on_step is None else self._record(timed)
            if self.telemetry is not None:
                # Built where it is read, off the path of the step.
                self.telemetry.step(
                    record or partial(self._record, timed), None if self._rows is None else self._rows(timed)
                )
                if self._totals.steps % REPORT_OVERHEAD_EVERY == 0:
                    self._report_overhead(self.telemetry)
            if self._on_step is not None and record is not None:
                with shield("the on_step callback"):
                    self._on_step(record)

    def _report_overhead(self, telemetry: Telemetry) -> None:
        telemetry.overhead((self._overhead_ns - self._reported_ns) / 1e9)
        self._reported_ns = self._overhead_ns

    def _record(self, timed: Timed) -> StepRecord:
        work, held, duration_s = timed.work, timed.held, timed.duration_s
        demand = work.demand
        available = timed.available_flops
        achievable = None if held is None or duration_s <= 0 else held.achievable_flops_per_s
        by_dtype_s = None if held is None or duration_s <= 0 else held.by_dtype_s
        return StepRecord(
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
            self._expected_mfu(held),
            demand.model_flops / (achievable * duration_s) if demand is not None and achievable else None,
            timed.source,
            None if held is None else held.coverage,
            work.tokens,
            timed.waited_s,
            None,
            None,
            self._convention,
            start_unix_ns=work.start_unix_ns,
            peak_dtype=None if held is None else held.peak_dtype,
            samples=work.samples,
            attention_flops_exact=None if demand is None else demand.attention_flops_exact,
            attention_flops_full=None if demand is None else demand.attention_flops_full,
            batch_running=work.batch_running,
            arithmetic_intensity=None if held is None else held.arithmetic_intensity,
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
        )

    def _held_against_peaks(self, demand: Demand | None) -> Held | None:
        if demand is None:
            return None
        held = self._held.get(id(demand))
        if held is None or held.demand is not demand:
            if len(self._held) >= MOST_HELD:
                self._held.clear()
            held = self._held[id(demand)] = hold(demand, self.peaks, self._devices)
        return held

    def _waited_s(self, work: Work) -> float | None:
        """Seconds that the device stood waiting for data; a wait that its queued work hid is none."""
        if work.waits is None:
            return None
        return sum(self.clock.elapsed_s(begin, end) or 0.0 for begin, end in work.waits)

    def _expected_mfu(self, held: Held | None) -> float | None:
        return self._expected if held is None or self._expected is not None else held.expected_mfu

    def _enter(self, timed: Timed) -> None:
        totals, work, held, duration_s = self._totals, timed.work, timed.held, timed.duration_s
        totals.steps += 1
        if work.error_type is not None:
            return
        if work.tokens is not None:
            totals.tokens = (totals.tokens or 0) + work.tokens
        if timed.source == "measured":
            # The first step also warms up kernels and caches, which cannot be told from the counting's own time.
            if totals.steps > 1:
                totals.counted += 1
                totals.counted_s += duration_s
            return
        if work.profiled:
            return
        totals.timed += 1
        totals.time_s += duration_s
        if work.tokens is not None:
            totals.timed_tokens += work.tokens
            totals.token_time_s += duration_s
        if held is None or held.peak_flops_per_s is None:
            totals.unknown += 1
            return
        demand, peak = held.demand, held.peak_flops_per_s
        available = peak * duration_s
        totals.model_flops += demand.model_flops
        totals.hardware_flops += demand.hardware_flops
        totals.available_flops += available
        kind = (held.peak_dtype, held.peak_source, peak)
        totals.peaks[kind] = totals.peaks.get(kind, 0.0) + available
        totals.bytes_moved += demand.bytes_moved
        totals.priced_bytes += demand.priced_bytes
        expected = self._expected_mfu(held)
        if expected is not None:
            totals.expected_flops += expected * available
            totals.expected_available_flops += available
        self.gathered.add(held, duration_s, timed.waited_s)
        fastest = held.achievable_high_flops_per_s
        if fastest is not None and demand.model_flops > fastest * duration_s:
            totals.beyond += 1
        if demand.model_flops > available > 0:
            self.note(
                f"some steps have an MFU above 1: their {held.peak_dtype} peak ({held.peak_source}) or their count "
                "is wrong; measure again with `mfu calibrate` on a quiet machine"
            )
            warn_once("MFU", f"above 1 in {self.identity.workload} (see the summary's notes)")

    def summary(self) -> RunSummary:
        """The totals so far: sums over sums, never a mean of ratios."""
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
        parts = None if mfu is None or evidence is None else waterfall(evidence)
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
            overhead_s=self._overhead_ns / 1e9 + counting_s,
            uncounted=tuple(Uncounted(op, calls, module) for (op, module), calls in totals.uncounted.items()),
            coverage=totals.priced_bytes / totals.bytes_moved if totals.bytes_moved else None,
            model_flops=totals.model_flops if known else None,
            duration_s=totals.time_s,
            peak_flops_per_s=flops_per_s,
            peak_dtype=dtype,
            peak_source=source,
            device=self.identity.device_name,
            convention=self._convention,
            peak_memory_bytes_per_s=None if self.peaks.memory is None else self.peaks.memory.bytes_per_s,
            calibration_id=self.peaks.calibration_id,
            notes=tuple(notes),
        )

    def _why_unknown(self) -> list[str]:
        totals = self._totals
        if totals.steps == 0:
            return ["no step was seen: was the loader empty, or did no optimizer step?"]
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
        self._held.clear()

    def _doubt(self) -> None:
        """Where one timed step in twenty beat the measured peak's interval, it is the measurement that is wrong."""
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
        summary = self.summary()
        if self.telemetry is not None:
            self._report_overhead(self.telemetry)
            self.telemetry.close(summary, error_type=error_type)
        return summary
