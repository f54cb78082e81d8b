"""Steps into windows of one slot each, and windows into spans: sums that equal their arrays.

A step belongs to the slot in which it starts, and a window with its steps holds 1,024 at most, as the SDK has it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mfu_sdk import semconv
from mfu_sdk.provider.simulate import wire
from mfu_sdk.provider.simulate.noise import Floats
from mfu_sdk.provider.simulate.sender import Identity

MAX_STEPS = 1024
EXPECTED_WITHIN = 0.03
"""How far an expected MFU may lie beside what is told, as a share of it: a premise, as the intervals of peaks are."""

Whole = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Steps:
    """n steps of all ranks: when each starts (unix ns), how long it takes, the index of the first, and their phase."""

    start_ns: Whole
    duration_s: Floats
    first: int
    phase: str


@dataclass(frozen=True, slots=True)
class Denominator:
    """What a window's steps are measured against."""

    peak_flops_per_s: float
    source: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Form:
    """How long a window is, and whether it carries its steps one by one. A bulk of longer ones has the same sums."""

    length_ns: int = 30_000_000_000
    arrays: bool = True


AS_SENT = Form()
"""As the SDK sends them."""


class Windows:
    """The windows of some steps: where each begins, its times, its arrays. Sums of any column by `sums`."""

    def __init__(self, steps: Steps, form: Form = AS_SENT) -> None:
        self.steps = steps
        self._arrays = form.arrays
        slots = steps.start_ns // form.length_ns
        edges = [0, *(np.flatnonzero(np.diff(slots)) + 1).tolist()]
        bounds = [*edges, len(slots)]
        # A long slot of short steps is several windows, where each has to hold its steps.
        most = MAX_STEPS if form.arrays else max(1, len(slots))
        self.begins: list[int] = [
            each for at, end in zip(edges, bounds[1:], strict=True) for each in range(at, end, most)
        ]
        self.ends = [*self.begins[1:], len(slots)]
        self.slots: list[int] = [int(slots[at]) for at in self.begins]
        # Whole microseconds are what an array can hold; the sums are of the steps themselves.
        self.micros: list[int] = (
            np.maximum(1, np.rint(steps.duration_s * 1e6)).astype(np.int64).tolist() if form.arrays else []
        )
        self.seconds = self.sums(steps.duration_s)

    def __len__(self) -> int:
        return len(self.begins)

    def sums(self, column: Floats) -> Floats:
        """Sums of a column, of (steps,) or (steps, ranks), by window."""
        found: Floats = np.add.reduceat(column, self.begins, axis=0)
        return found

    def means(self, column: Floats) -> Floats:
        """Means of a column over time, by window."""
        weighed = column * (self.steps.duration_s if column.ndim == 1 else self.steps.duration_s[:, None])
        return self.sums(weighed) / (self.seconds if column.ndim == 1 else self.seconds[:, None])

    def shared(self, number: int, utilizations: list[int]) -> bytes:
        """What all ranks of window `number` have in common: counts of steps and the two arrays."""
        at, end = self.begins[number], self.ends[number]
        sums = b"".join((
            wire.whole(semconv.WINDOW_STEP_FIRST, self.steps.first + at),
            wire.whole(semconv.WINDOW_STEP_COUNT, end - at),
            wire.whole(semconv.WINDOW_STEP_TIMED, end - at),
            wire.whole(semconv.WINDOW_STEP_UNKNOWN, 0),
            wire.double(semconv.STEP_TIME, float(self.seconds[number])),
        ))  # fmt: skip
        if not self._arrays:
            return sums
        durations = wire.wholes(semconv.WINDOW_STEP_DURATIONS, self.micros[at:end])
        return sums + durations + wire.wholes(semconv.WINDOW_STEP_UTILIZATIONS, utilizations[at:end])

    def span(self, number: int, who: Identity, rank: int, body: bytes) -> bytes:
        """The span of window `number` of `rank`, with its attributes in `body`."""
        at, end = self.begins[number], self.ends[number]
        slot, steps = self.slots[number], self.steps
        ids = who.window_trace(slot), who.window_span(rank, slot, steps.phase, steps.first + at)
        last_ns = int(steps.start_ns[end - 1]) + round(float(steps.duration_s[end - 1]) * 1e9)
        return wire.span(semconv.SPAN_WINDOW, ids, int(steps.start_ns[at]), last_ns, body)


def constants(phase: str, over: Denominator) -> bytes:
    """The attributes that are the same on all windows of a run's phase."""
    return wire.attributes({
        semconv.PHASE: phase,
        semconv.CONVENTION: "exact",
        semconv.PEAK_FLOP_RATE: over.peak_flops_per_s,
        semconv.PEAK_SOURCE: over.source,
        semconv.PEAK_DTYPE: over.dtype,
        semconv.COUNT_COVERAGE: 1.0,
    })  # fmt: skip


def doubles(values: Mapping[str, float | None]) -> bytes:
    """Double attributes; what is None is left out."""
    return b"".join([wire.double(name, value) for name, value in values.items() if value is not None])


def expectation(mfu: float, available_flops: float) -> dict[str, float]:
    """What a window says of the MFU that its steps can reach: the least and most of it too, and its sums."""
    return {
        semconv.EXPECTED: mfu,
        semconv.EXPECTED_LOW: mfu * (1 - EXPECTED_WITHIN),
        semconv.EXPECTED_HIGH: mfu * (1 + EXPECTED_WITHIN),
        semconv.EXPECTED_FLOP: mfu * available_flops,
        semconv.EXPECTED_AVAILABLE_FLOP: available_flops,
    }
