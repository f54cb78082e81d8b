"""Steps that the device has passed into rows of the flight recorder, on the path of every step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from mfu_sdk.records import PHASES, Convention
from mfu_sdk.run.held import Held
from mfu_sdk.run.work import Work

if TYPE_CHECKING:
    from mfu_sdk.export.flight import Row
    from mfu_sdk.export.recorder import Recorder
    from mfu_sdk.export.telemetry import Telemetry

Expected = Callable[[Held | None], tuple[float | None, float | None, float | None]]
"""What is expected of a demand: the MFU, and the ends of its interval."""

MOST_TERMS = 4096
"""Demands whose packed terms are kept."""


def rows_for(telemetry: Telemetry | None, convention: Convention, expectation: Expected) -> Rows | None:
    """What makes the rows of a run, None where no recorder takes them."""
    if telemetry is None or telemetry.recorder is None:
        return None
    return Rows(telemetry.recorder, convention, expectation)


class Rows:
    """Makes rows: what a demand has in common with all steps like it is packed once, the rest are eleven numbers."""

    def __init__(self, recorder: Recorder, convention: Convention, expectation: Expected) -> None:
        # OpenTelemetry is loaded by now: there is a way out.
        from mfu_sdk.export import flight

        self._flight = flight
        self._row: type[Row] = flight.Row
        self._none = flight.NO_REQUESTS
        self._recorder = recorder
        self._convention: Convention = convention
        self._expectation = expectation
        # By the number of what is held, and whether the step failed.
        self._terms: dict[tuple[int, bool], tuple[Held | None, bytes]] = {}
        self._phases = {phase: number for number, phase in enumerate(PHASES)}

    def __call__(self, steps: Iterable[Work]) -> list[Row]:
        """The rows of steps that the device has passed.

        Times in seconds, -1 and NaN for what is not known (`export.flight`).
        """
        all_terms, phases, none, kind = self._terms, self._phases, self._none, self._row
        # A named tuple's own constructor is a function of Python's, and this is on the path of every step.
        make = tuple.__new__
        rows: list[Row] = []
        for work in steps:
            held = work.held
            failed = work.error_type is not None
            known = all_terms.get((id(held), failed))
            if known is None or known[0] is not held:
                known = self._keep(held, failed=failed)
            waited_s, tokens, samples = work.waited_s, work.tokens, work.samples
            batch, exchange_s = work.batch_running, work.exchange_s
            flags = 0
            if work.counting or work.profiled or failed:
                # Of one that failed no count says what ran.
                flags = self._flight.flags_of(
                    counted=work.counting and not failed, profiled=work.profiled, failed=failed
                )
            row = (
                work.index,
                work.start_unix_ns,
                work.took_s,
                _NAN if waited_s is None else waited_s,
                -1 if tokens is None else tokens,
                -1 if samples is None else samples,
                _NAN if batch is None else batch,
                _NAN if exchange_s is None else exchange_s,
                phases[work.phase],
                flags,
                none if work.requests is None and work.load is None else self._requests(work),
                known[1],
            )
            rows.append(make(kind, row))
        return rows

    def _keep(self, held: Held | None, *, failed: bool) -> tuple[Held | None, bytes]:
        demand = None if held is None or failed else held.demand
        expected, low, high = self._expectation(held)
        terms = self._flight.Terms(
            model_flops=None if demand is None else demand.model_flops,
            hardware_flops=None if demand is None else demand.hardware_flops,
            attention_flops_exact=None if demand is None else demand.attention_flops_exact,
            attention_flops_full=None if demand is None else demand.attention_flops_full,
            peak_flops_per_s=None if held is None else held.peak_flops_per_s,
            achievable_flops_per_s=None if held is None else held.achievable_flops_per_s,
            by_dtype_s=None if held is None or failed else held.by_dtype_s,
            expected_mfu=expected,
            coverage=None if held is None or failed else held.coverage,
            arithmetic_intensity=None if held is None or failed else held.arithmetic_intensity,
            count_source=None if demand is None else demand.source,
            convention=self._convention,
            expected_low_mfu=low,
            expected_high_mfu=high,
            name=None if held is None else self._recorder.name(held.peak_dtype, held.peak_source),
        )
        if len(self._terms) >= MOST_TERMS:
            self._terms.clear()
        # The demand is kept with it: the number of one that is gone may be given to another.
        self._terms[id(held), failed] = kept = (held, terms.pack())
        return kept

    def _requests(self, work: Work) -> bytes:
        load = work.load
        return self._flight.pack_requests(
            work.requests,
            work.requests_failed,
            work.requests_s,
            work.requests_running,
            None if load is None else load.batch_feasible,
            None if load is None else load.queue_waiting,
            None if load is None else load.kv_cache_free_ratio,
            None if load is None else load.latency_target_s,
            work.expected_feasible_mfu,
        )


_NAN = float("nan")
