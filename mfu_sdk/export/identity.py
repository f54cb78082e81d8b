"""Trace and span ids: hashes of who a span is, so that every rank and every retry finds the same ones.

BLAKE2b (RFC 7693) over the parts, separated by a byte that none of them can hold. The user's generators are never
drawn from: ids of spans that nobody has to find again come from the operating system.
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

from mfu_sdk.records import DriftEvent, RunIdentity, StepRecord

WINDOW_NS = 30_000_000_000
"""Length of a window: 30 s of wall clock, aligned to the Unix epoch."""


def window_slot(start_unix_ns: int) -> int:
    """The number of the window that a step which started at `start_unix_ns` belongs to."""
    return start_unix_ns // WINDOW_NS


def random_trace_id() -> int:
    """128 bits from the operating system, never zero, which the W3C trace context calls invalid."""
    return int.from_bytes(os.urandom(16), "big") or 1


def random_span_id() -> int:
    """64 bits from the operating system, never zero."""
    return int.from_bytes(os.urandom(8), "big") or 1


@dataclass(frozen=True, slots=True)
class Ids:
    """One process's ids. `rank` enters span ids only, so the ranks of a run share their traces with no collective."""

    run_id: str
    attempt: int
    rank: int

    @classmethod
    def of(cls, identity: RunIdentity) -> "Ids":
        """The ids of `identity`."""
        return cls(identity.run_id, identity.attempt, identity.rank)

    def run_trace(self) -> int:
        """The trace of the run span and the calibrations, one over all ranks and attempts."""
        return _hash(16, "run", self.run_id)

    def run_span(self) -> int:
        """The run span of this rank, known to its children before it is sent."""
        return _hash(8, "run", self.run_id, self.attempt, self.rank)

    def window_trace(self, slot: int) -> int:
        """The trace of all ranks' windows and steps in `slot`."""
        return _hash(16, "window", self.run_id, self.attempt, slot)

    def window_span(self, slot: int, first: StepRecord) -> int:
        """The window of this rank that `first` opened; several share a slot when a phase or a denominator changes."""
        return _hash(8, "window", self.run_id, self.attempt, self.rank, slot, first.phase, first.index)

    def step_span(self, record: StepRecord) -> int:
        """One step of this rank."""
        found = _step_begun(self, record.phase).copy()
        found.update(b"%d" % record.index)
        return int.from_bytes(found.digest(), "big") or 1

    def drift_span(self, event: DriftEvent) -> int:
        """One excursion of this rank."""
        return _hash(8, "drift", self.run_id, self.attempt, self.rank, event.phase, event.onset_step)

    def calibration_span(self, dtype: str | None, start_unix_ns: int) -> int:
        """One measured peak of this rank."""
        return _hash(8, "calibration", self.run_id, self.attempt, self.rank, dtype, start_unix_ns)


@lru_cache(64)
def _step_begun(of: Ids, phase: str) -> blake2b:
    """What `_hash` of a step begins with."""
    return _begun(8, ("step", of.run_id, of.attempt, of.rank, phase)).copy()


def _hash(size: int, *parts: object) -> int:
    found = _begun(size, parts[:-1]).copy()
    found.update(str(parts[-1]).encode())
    return int.from_bytes(found.digest(), "big") or 1


@lru_cache(16)
def _begun(size: int, parts: tuple[object, ...]) -> blake2b:
    """The hash of all but the last part, which is what differs from step to step."""
    return blake2b("".join([f"{part}\0" for part in parts]).encode(), digest_size=size)
